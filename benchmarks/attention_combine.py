"""attention_combine beside torch.compile: ``python -m benchmarks.attention_combine --help``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from benchmarks.harness.cli import main
from benchmarks.harness.operator import Call, Case, Inputs, Peer, Work
from benchmarks.kernels import compiled_peer, loaded_kernel, our_peers

if TYPE_CHECKING:
    import torch

WIDTH = 512
PARTS = (2, 8)
HEADS = {"flash": 64, "pro": 128}
TOKENS = (1, 4, 16, 64, 256, 2048)
"""Decoding, where the keys of a query are split, up to a chunk of a prefill in two segments."""
ERROR = 4e-3
"""Relative L2 of out against float64: one rounding to bf16 gives 1.7e-3."""


class AttentionCombineBenchmark:
    """Parts in float32, as a split of the keys leaves them; with a sink."""

    op = "attention_combine"
    ours = "dsv4 kernel"

    def cases(self) -> list[Case]:
        return [
            Case(f"{model} T={tokens} P={parts}", {"P": parts, "T": tokens, "H": heads})
            for model, heads in HEADS.items()
            for parts in PARTS
            for tokens in TOKENS
        ]

    def peers(self) -> list[Peer]:
        return [*our_peers(kernel), compiled_peer(formula, arguments)]

    def make_inputs(self, case: Case, seed: int) -> Inputs:
        import torch

        parts, tokens, heads = (int(case.sizes[name]) for name in ("P", "T", "H"))
        generator = torch.Generator(device="cuda").manual_seed(seed)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, device="cuda", generator=generator)

        return {
            "parts": normal(parts, tokens, heads, WIDTH),
            "part_lse": 3 * normal(parts, tokens, heads),
            "sink": normal(heads),
            "out": torch.full((tokens, heads, WIDTH), torch.nan, device="cuda", dtype=torch.bfloat16),
            "lse": torch.full((tokens, heads), torch.nan, device="cuda"),
        }

    def check(self, case: Case, inputs: Inputs, output: Any) -> Mapping[str, float]:
        """Against float64: the relative error of out, the largest of lse."""
        import torch

        from dsv4.runtime.reference.attention_combine import attention_combine

        given = (inputs["parts"], inputs["part_lse"], inputs["sink"])
        expected, expected_lse = attention_combine(*given, dtype=torch.float64, out_dtype=torch.float64)
        out, lse = output
        error = ((out.double() - expected).norm() / expected.norm()).item()
        lse_error = (lse.double() - expected_lse).abs().max().item()
        if not (error <= ERROR and lse_error <= 1e-4):
            raise ValueError(f"out {error:.3g}, lse {lse_error:.3g}; valid: at most {ERROR} and 1e-4")
        return {"out_rel_l2": error, "lse_max_abs": lse_error}

    def work(self, case: Case) -> Work:
        parts, rows = int(case.sizes["P"]), int(case.sizes["T"]) * int(case.sizes["H"])
        return Work(bytes=rows * (4 * parts * (WIDTH + 1) + 2 * WIDTH + 4), flops=2 * rows * parts * WIDTH)


def formula(parts: torch.Tensor, part_lse: torch.Tensor, sink: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """float32 inside, one rounding (dsv4-reference §7.2)."""
    import torch

    lse = part_lse.logsumexp(0)
    weights = (part_lse - torch.logaddexp(lse, sink)).exp()
    return (weights[..., None] * parts).sum(0).to(torch.bfloat16), lse


def arguments(s: Inputs) -> tuple[Any, ...]:
    return s["parts"], s["part_lse"], s["sink"]


def kernel(case: Case, *, pdl: bool) -> Call:
    return loaded_kernel(
        "attention_combine",
        dims={"D": WIDTH},
        variant={"parts_dtype": "f32", "has_sink": True, "pdl": pdl},
        sizes={name: int(case.sizes[name]) for name in ("P", "T", "H")},
        result=lambda s: (s["out"], s["lse"]),
    )


BENCHMARK = AttentionCombineBenchmark()

if __name__ == "__main__":
    main(BENCHMARK, "benchmarks.attention_combine")
