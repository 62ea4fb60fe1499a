"""mhc_head with the final norm, beside torch.compile: ``python -m benchmarks.mhc_head --help``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from benchmarks import mhc_pre
from benchmarks.harness.cli import main
from benchmarks.harness.operator import Call, Case, Inputs, Peer, Work
from benchmarks.kernels import compiled_peer, loaded_kernel, our_peers
from benchmarks.peers import tile_kernels
from benchmarks.peers.read_only import read_only

if TYPE_CHECKING:
    import torch

STREAMS = mhc_pre.STREAMS


class MhcHeadBenchmark:
    """y = RMS norm of the weighted sum of the streams before the LM head; the sizes of Flash and Pro."""

    op = "mhc_head"
    ours = "dsv4 kernel"

    def cases(self) -> list[Case]:
        return mhc_pre.BENCHMARK.cases()

    def peers(self) -> list[Peer]:
        return [
            *our_peers(kernel),
            Peer("tile-kernels", tile_peer, "TileKernels' mhc_head (TF32), then torch's norm", tile_kernels.versions),
            compiled_peer(formula, arguments),
            read_only(lambda s: s["fn"]),
        ]

    def make_inputs(self, case: Case, seed: int) -> Inputs:
        made = mhc_pre.make_inputs(case, seed)
        del made["post"], made["comb"]
        return {
            **made,
            "fn": made["fn"][:STREAMS].contiguous(),
            "base": made["base"][:STREAMS],
            "scale": made["scale"][:1],
        }

    def check(self, case: Case, inputs: Inputs, output: Any) -> Mapping[str, float]:
        """Against float64 (of the first and last 1,024 tokens)."""
        import torch

        rows = torch.arange(len(output), device=output.device)
        rows = torch.cat([rows[: mhc_pre.CHECKED], rows[mhc_pre.CHECKED :][-mhc_pre.CHECKED :]])
        streams, fn, base, scale, weight = (tensor.double() for tensor in arguments(inputs))
        expected = normalised(streams[rows], fn, base, scale, weight)
        error = ((output[rows].double() - expected).norm() / expected.norm()).item()
        if not error <= mhc_pre.REL_L2_MAX:
            raise ValueError(f"relative L2 error {error:.3g}; valid: at most {mhc_pre.REL_L2_MAX}")
        return {"rel_l2": error}

    def work(self, case: Case) -> Work:
        tokens, columns = int(case.sizes["T"]), int(case.sizes["d"])
        parameters = STREAMS * STREAMS * columns * 4
        return Work(bytes=tokens * 10 * columns + parameters, flops=tokens * STREAMS * columns * (2 * STREAMS + 4))


def normalised(
    streams: torch.Tensor, fn: torch.Tensor, base: torch.Tensor, scale: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor:
    import torch

    x = streams.flatten(1)
    mu = (x @ fn.T) * (x.square().mean(1, keepdim=True) + mhc_pre.EPS).rsqrt()
    pre = torch.sigmoid(mu * scale + base) + mhc_pre.EPS
    h = (pre[:, :, None] * streams).sum(1).to(torch.bfloat16).to(streams.dtype)
    return weight * h * (h.square().mean(1, keepdim=True) + mhc_pre.EPS).rsqrt()


def formula(
    streams: torch.Tensor, fn: torch.Tensor, base: torch.Tensor, scale: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor:
    """float32 inside; y in bf16."""
    return normalised(streams.float(), fn, base, scale, weight.float()).to(streams.dtype)


def arguments(s: Inputs) -> tuple[Any, ...]:
    return mhc_pre.arguments(s)


def tile_peer(case: Case) -> Call:
    import torch

    columns = (int(case.sizes["d"]),)
    return tile_kernels.mhc_head(case, lambda h, weight: torch.nn.functional.rms_norm(h, columns, weight, mhc_pre.EPS))


def kernel(case: Case, *, pdl: bool) -> Call:
    dims, sizes = {"d": int(case.sizes["d"])}, {"T": int(case.sizes["T"])}
    variant = {"norm": True, "pdl": pdl}
    return loaded_kernel("mhc_head", dims=dims, variant=variant, sizes=sizes, result=lambda s: s["y"])


BENCHMARK = MhcHeadBenchmark()

if __name__ == "__main__":
    main(BENCHMARK, "benchmarks.mhc_head")
