"""moe_combine beside torch.compile: ``python -m benchmarks.moe_combine --help``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from benchmarks.harness.cli import main
from benchmarks.harness.operator import Call, Case, Inputs, Peer, Work
from benchmarks.kernels import TOKENS, bf16_position, compiled_peer, loaded_kernel
from benchmarks.peers import tile_kernels

if TYPE_CHECKING:
    import torch

COLUMNS = (4096, 7168)
ROUTES = 6


class MoeCombineBenchmark:
    """out = Σ of a token's 6 routed rows + its shared row, the sizes of Flash and Pro; gathered by an index."""

    op = "moe_combine"
    ours = "dsv4 kernel"

    def cases(self) -> list[Case]:
        sizes = [(tokens, columns) for columns in COLUMNS for tokens in TOKENS]
        return [Case(f"T={tokens} d={columns}", {"T": tokens, "d": columns}) for tokens, columns in sizes]

    def peers(self) -> list[Peer]:
        return [
            Peer("dsv4 kernel", lambda case: kernel(case, gathered=True, pdl=False), "the default kernel, called bare"),
            Peer("dsv4 kernel pdl", lambda case: kernel(case, gathered=True, pdl=True), "dependent launch"),
            Peer("dsv4 kernel in order", lambda case: kernel(case, gathered=False, pdl=False), "no index", shown=False),
            Peer(
                "tile-kernels",
                tile_kernels.moe_combine,
                "TileKernels' reduce_fused, the shared rows behind the routed ones",
                tile_kernels.versions,
            ),
            compiled_peer(formula, arguments),
        ]

    def make_inputs(self, case: Case, seed: int) -> Inputs:
        import torch

        tokens, columns = int(case.sizes["T"]), int(case.sizes["d"])
        generator = torch.Generator(device="cuda").manual_seed(seed)
        options: dict[str, Any] = {"device": "cuda", "dtype": torch.bfloat16, "generator": generator}
        rows = torch.randn(tokens * ROUTES, columns, **options)
        index = torch.randperm(tokens * ROUTES, device="cuda", generator=generator).to(torch.int32)
        shared = torch.randn(tokens, columns, **options)
        return {
            "rows": rows,
            "index": index.view(tokens, ROUTES),
            "routed": rows.view(tokens, ROUTES, columns),
            "shared": shared,
            "out": torch.full_like(shared, float("nan")),
        }

    def check(self, case: Case, inputs: Inputs, output: Any) -> Mapping[str, float]:
        """Of the first 1,024 tokens, against float64: the rows as the index has them, or in order."""
        import torch

        out = output[:1024]
        shared = inputs["shared"][:1024].double()
        errors = []
        for terms in (inputs["rows"][inputs["index"][:1024].long()], inputs["routed"][:1024]):
            expected = terms.double().sum(1) + shared
            size = terms.double().abs().sum(1) + shared.abs()
            steps = (bf16_position(out) - bf16_position(expected.to(torch.bfloat16))).abs()
            errors.append(float(steps[expected.abs() > 1e-3 * size].max().item()))
        if not min(errors) <= 1:
            raise ValueError(f"{min(errors):.0f} bf16 steps from the float64 result; valid: at most 1")
        return {"max_bf16_steps": min(errors)}

    def work(self, case: Case) -> Work:
        tokens, columns = int(case.sizes["T"]), int(case.sizes["d"])
        return Work(bytes=2 * tokens * columns * (ROUTES + 2) + 4 * tokens * ROUTES, flops=tokens * columns * ROUTES)


def formula(rows: torch.Tensor, index: torch.Tensor, shared: torch.Tensor) -> torch.Tensor:
    return (rows[index].float().sum(1) + shared.float()).to(shared.dtype)


def arguments(s: Inputs) -> tuple[Any, ...]:
    return s["rows"], s["index"], s["shared"]


def kernel(case: Case, *, gathered: bool, pdl: bool) -> Call:
    tokens, columns = int(case.sizes["T"]), int(case.sizes["d"])
    return loaded_kernel(
        "moe_combine",
        dims={"d": columns, "k": ROUTES},
        variant={"gathered": gathered, "pdl": pdl},
        sizes={"T": tokens},
        result=lambda s: s["out"],
    )


BENCHMARK = MoeCombineBenchmark()

if __name__ == "__main__":
    main(BENCHMARK, "benchmarks.moe_combine")
