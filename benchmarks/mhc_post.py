"""mhc_post beside torch.compile: ``python -m benchmarks.mhc_post --help``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from benchmarks.harness.cli import main
from benchmarks.harness.operator import Call, Case, Inputs, Peer, Work
from benchmarks.kernels import TOKENS, bf16_position, compiled_peer, loaded_kernel, our_peers
from benchmarks.peers import flashinfer, tile_kernels

if TYPE_CHECKING:
    import torch

COLUMNS = (4096, 7168)
STREAMS = 4


class MhcPostBenchmark:
    """X'[t, k, :] = post_k · F[t, :] + Σ_j C[j, k] · X[t, j, :], the sizes of Flash and Pro."""

    op = "mhc_post"
    ours = "dsv4 kernel"

    def cases(self) -> list[Case]:
        sizes = [(tokens, columns) for columns in COLUMNS for tokens in TOKENS]
        return [Case(f"T={tokens} d={columns}", {"T": tokens, "d": columns}) for tokens, columns in sizes]

    def peers(self) -> list[Peer]:
        return [
            *our_peers(kernel),
            Peer("tile-kernels", tile_kernels.mhc_post, "TileKernels' forward kernel", tile_kernels.versions),
            Peer("flashinfer", flashinfer.mhc_post, "flashinfer's mhc_post, its result allocated", flashinfer.versions),
            compiled_peer(formula, arguments),
        ]

    def make_inputs(self, case: Case, seed: int) -> Inputs:
        import torch

        tokens, columns = int(case.sizes["T"]), int(case.sizes["d"])
        generator = torch.Generator(device="cuda").manual_seed(seed)

        def normal(*shape: int, dtype: torch.dtype) -> torch.Tensor:
            return torch.randn(*shape, device="cuda", dtype=dtype, generator=generator)

        streams = normal(tokens, STREAMS, columns, dtype=torch.bfloat16)
        return {
            "update": normal(tokens, columns, dtype=torch.bfloat16),
            "streams": streams,
            "post": normal(tokens, STREAMS, dtype=torch.float32),
            "comb": normal(tokens, STREAMS, STREAMS, dtype=torch.float32),
            "new_streams": torch.full_like(streams, float("nan")),
        }

    def check(self, case: Case, inputs: Inputs, output: Any) -> Mapping[str, float]:
        """Against float64 (of the first and last 1,024 tokens), rounded to bf16: steps apart where nothing cancels."""
        import torch

        tokens = int(case.sizes["T"])
        rows = torch.arange(tokens, device=output.device)
        rows = torch.cat([rows[:1024], rows[1024:][-1024:]])
        update, streams, post, comb = (inputs[name][rows].double() for name in ("update", "streams", "post", "comb"))
        got, expected = output[rows], formula_in(update, streams, post, comb)
        size = formula_in(update.abs(), streams.abs(), post.abs(), comb.abs())
        steps = (bf16_position(got) - bf16_position(expected.to(torch.bfloat16))).abs()
        worst = float(steps[expected.abs() > 1e-3 * size].max().item())
        if not worst <= 1:
            raise ValueError(f"{worst:.0f} bf16 steps from the float64 result; valid: at most 1")
        return {"not_correctly_rounded": (steps > 0).double().mean().item(), "max_bf16_steps": worst}

    def work(self, case: Case) -> Work:
        tokens, columns = int(case.sizes["T"]), int(case.sizes["d"])
        return Work(bytes=tokens * (18 * columns + 80), flops=40 * tokens * columns)


def formula_in(update: torch.Tensor, streams: torch.Tensor, post: torch.Tensor, comb: torch.Tensor) -> torch.Tensor:
    return post[..., None] * update[:, None, :] + comb.transpose(1, 2) @ streams


def formula(update: torch.Tensor, streams: torch.Tensor, post: torch.Tensor, comb: torch.Tensor) -> torch.Tensor:
    """float32 inside, bf16 outside; the sum over streams written out, which torch.compile fuses into one kernel."""
    wide = streams.float()
    mixed = (comb[:, :, :, None] * wide[:, :, None, :]).sum(1)
    return (post[..., None] * update.float()[:, None, :] + mixed).to(streams.dtype)


def arguments(s: Inputs) -> tuple[Any, ...]:
    return s["update"], s["streams"], s["post"], s["comb"]


def kernel(case: Case, *, pdl: bool) -> Call:
    dims, sizes = {"d": int(case.sizes["d"])}, {"T": int(case.sizes["T"])}
    return loaded_kernel("mhc_post", dims=dims, variant={"pdl": pdl}, sizes=sizes, result=lambda s: s["new_streams"])


BENCHMARK = MhcPostBenchmark()

if __name__ == "__main__":
    main(BENCHMARK, "benchmarks.mhc_post")
