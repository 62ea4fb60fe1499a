"""expert_offsets beside torch.compile: ``python -m benchmarks.expert_offsets --help``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from benchmarks.harness.cli import main
from benchmarks.harness.operator import Call, Case, Inputs, Peer, Work
from benchmarks.kernels import TOKENS, compiled, loaded_kernel
from benchmarks.peers import tile_kernels

if TYPE_CHECKING:
    import torch

K, ALIGN = 6, 128
EXPERTS = {"Flash": 256, "Pro": 384}
CTA_ROUTES = 4096


def rows(tokens: int, experts: int) -> int:
    return -(-(tokens * K + experts * (ALIGN - 1)) // ALIGN) * ALIGN


def formula(experts: Any, count: int, padded: int) -> Any:
    """The same without a size that is known on the device only, so that it can be captured in a graph."""
    import torch

    flat = experts.flatten().long()
    counts = torch.zeros(count, dtype=torch.int64, device=flat.device).scatter_add_(0, flat, torch.ones_like(flat))
    sizes = (counts + ALIGN - 1) // ALIGN * ALIGN
    offsets = torch.nn.functional.pad(sizes.cumsum(0), (1, 0))
    order = torch.sort(flat, stable=True).indices
    ordered = flat[order]
    place = offsets[ordered] + torch.arange(flat.numel(), device=flat.device) - (counts.cumsum(0) - counts)[ordered]
    route_row = torch.empty_like(flat).scatter_(0, order, place)
    row_token = torch.full((padded,), -1, dtype=torch.int64, device=flat.device).scatter_(0, place, order // K)
    return counts.int(), offsets.int(), route_row.int().view_as(experts), row_token.int()


class ExpertOffsetsBenchmark:
    """Routes [T, 6] sorted by expert, rows of each expert padded to a multiple of 128."""

    op = "expert_offsets"
    ours = "dsv4"

    def cases(self) -> list[Case]:
        made = []
        for model, experts in EXPERTS.items():
            for tokens in TOKENS:
                made.append(Case(f"{model} T={tokens}", {"T": tokens, "E": experts}))
        return made

    def peers(self) -> list[Peer]:
        return [
            Peer("dsv4", ours, "the kernel's host function"),
            Peer("tile-kernels", tile_peer, "TileKernels' get_fused_mapping, in any order", tile_kernels.versions),
            Peer("torch.compile", torch_compiled, "sort, cumsum and scatter, compiled for each shape (dynamic=False)"),
        ]

    def make_inputs(self, case: Case, seed: int) -> Inputs:
        import torch

        tokens, count = int(case.sizes["T"]), int(case.sizes["E"])
        generator = torch.Generator(device="cuda").manual_seed(seed)
        scores = torch.rand(tokens, count, device="cuda", generator=generator)

        def unset(*shape: int) -> torch.Tensor:
            return torch.full(shape, -7, dtype=torch.int32, device="cuda")

        return {
            "experts": scores.argsort(dim=1)[:, :K].to(torch.int32).contiguous(),
            "counts": unset(count),
            "offsets": unset(count + 1),
            "route_row": unset(tokens, K),
            "row_token": unset(rows(tokens, count)),
            "cta_counts": unset(-(-tokens * K // CTA_ROUTES), count),
        }

    def check(self, case: Case, inputs: Inputs, output: Any) -> Mapping[str, float]:
        """Equal to the reference, element by element; a peer's mapping may have the rows of an expert in any order."""
        import torch

        from dsv4.runtime.reference.expert_offsets import expert_offsets

        if isinstance(output, tile_kernels.Mapping):
            return check_mapping(inputs["experts"], output, int(case.sizes["E"]))
        expected = expert_offsets(inputs["experts"], count=int(case.sizes["E"]), align=ALIGN)
        for name, got, right in zip(expected._fields, output, expected, strict=True):
            if not torch.equal(got, right):
                raise ValueError(f"{name}: {int((got != right).sum())} elements are wrong")
        return {"wrong": 0.0}

    def work(self, case: Case) -> Work:
        tokens, count = int(case.sizes["T"]), int(case.sizes["E"])
        return Work(bytes=8 * tokens * K + 4 * rows(tokens, count) + 8 * count, flops=0)


def check_mapping(experts: torch.Tensor, got: tile_kernels.Mapping, count: int) -> dict[str, float]:
    """Every expert's rows begin where they should, and every route has a row of its own among its expert's."""
    import torch

    from dsv4.runtime.reference.expert_offsets import expert_offsets

    right = expert_offsets(experts, count=count, align=ALIGN)
    route = got.route_row.flatten().long()
    tokens = torch.arange(len(experts), device=route.device).repeat_interleave(K)
    starts, chosen = right.offsets.long(), experts.flatten().long()
    wrong = {
        "offsets": (got.offsets != right.offsets).sum(),
        "route_row": ((route < starts[chosen]) | (route >= starts[chosen + 1])).sum(),
        "row_token": (got.row_token[route.clamp(0, len(got.row_token) - 1)] != tokens).sum(),
        "rows twice": route.numel() - route.unique().numel(),
    }
    for name, number in wrong.items():
        if int(number):
            raise ValueError(f"{name}: {int(number)} are wrong")
    return {"wrong": 0.0}


def tile_peer(case: Case) -> Call:
    return tile_kernels.expert_offsets(case, align=ALIGN, rows=rows(int(case.sizes["T"]), int(case.sizes["E"])))


def ours(case: Case) -> Call:
    return loaded_kernel(
        "expert_offsets",
        dims={"k": K, "E": int(case.sizes["E"]), "align_m": ALIGN},
        variant={"pdl": False},
        sizes={"T": int(case.sizes["T"])},
        result=lambda s: (s["counts"], s["offsets"], s["route_row"], s["row_token"]),
    )


def torch_compiled(case: Case) -> Call:
    count, padded = int(case.sizes["E"]), rows(int(case.sizes["T"]), int(case.sizes["E"]))
    return compiled(formula, lambda s: (s["experts"], count, padded))


BENCHMARK = ExpertOffsetsBenchmark()

if __name__ == "__main__":
    main(BENCHMARK, "benchmarks.expert_offsets")
