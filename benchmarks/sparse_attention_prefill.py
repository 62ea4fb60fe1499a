"""sparse_attention_prefill beside FlashMLA: ``python -m benchmarks.sparse_attention_prefill --help``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.harness.cli import main
from benchmarks.harness.operator import Call, Case, Inputs, Peer, Work
from benchmarks.kernels import loaded_kernel, our_peers
from benchmarks.peers import flash_mla as peer
from benchmarks.sparse_attention_decode import (
    CHECKED,
    LSE_ABS_MAX,
    LSE_REL_MAX,
    OUT_ABS_MAX,
    OUT_REL_MAX,
    SCALE,
    WIDTH,
)

QUERIES, KEY_ROWS = 4096, 32768
SHAPES = ((64, 640), (128, 1152), (128, 2048))
"""Heads and rows of a query: those of DeepSeek-V4's two models, and twice the second's top-k."""


def make_case(heads: int, keys: int, queries: int = QUERIES, rows: int = KEY_ROWS) -> Case:
    return Case(f"H={heads} top-k={keys} T={queries} S={rows}", {"T": queries, "H": heads, "K": keys, "S": rows})


class SparseAttentionPrefillBenchmark:
    """Queries over their own distinct rows of one bf16 tensor, no two queries' rows alike."""

    op = "sparse_attention_prefill"
    ours = "dsv4 kernel"

    def cases(self) -> list[Case]:
        return [make_case(heads, keys) for heads, keys in SHAPES]

    def peers(self) -> list[Peer]:
        return [
            *our_peers(kernel),
            Peer("dsv4.flash_mla", ours_as_flash_mla, "the compatible function, host code included"),
            Peer("FlashMLA", flash_mla, "flash_mla_sparse_fwd, its outputs allocated", versions=peer.versions),
        ]

    def make_inputs(self, case: Case, seed: int) -> Inputs:
        import torch

        queries, heads, keys, rows = (int(case.sizes[name]) for name in ("T", "H", "K", "S"))
        generator = torch.Generator(device="cuda").manual_seed(seed)
        q = torch.randn(queries, heads, WIDTH, device="cuda", generator=generator).clamp(-1, 1)
        kv = (torch.randn(rows, WIDTH, device="cuda", generator=generator) / 10).clamp(-1, 1)
        index = torch.empty(queries, keys, device="cuda", dtype=torch.int32)
        for query in range(queries):
            index[query] = torch.randperm(rows, device="cuda", generator=generator)[:keys]
        numbers = {name: torch.full((queries, heads), torch.nan, device="cuda") for name in ("lse", "max_logits")}
        return {
            "q": q.to(torch.bfloat16),
            "kv": kv.to(torch.bfloat16),
            "rows": index,
            "length": None,
            "sink": torch.randn(heads, device="cuda", generator=generator),
            "out": torch.full((queries, heads, WIDTH), torch.nan, device="cuda", dtype=torch.bfloat16),
            **numbers,
            "softmax_scale": SCALE,
            "empty_lse": torch.inf,
        }

    def check(self, case: Case, inputs: Inputs, output: Any) -> Mapping[str, float]:
        """The largest errors against float64 of a few queries, held to the tolerances of FlashMLA's own tests."""
        import torch

        from dsv4.runtime.reference.sparse_attention_prefill import sparse_attention_prefill

        out = output[0]
        some = torch.linspace(0, out.shape[0] - 1, min(CHECKED, out.shape[0])).long().to(out.device)
        wanted = sparse_attention_prefill(
            *(inputs["q"][some], inputs["kv"], inputs["rows"][some], None, inputs["sink"]),
            softmax_scale=SCALE,
            dtype=torch.float64,
            out_dtype=torch.float64,
        )
        limits = ((OUT_ABS_MAX, OUT_REL_MAX), *[(LSE_ABS_MAX, LSE_REL_MAX)] * 2)
        errors: dict[str, float] = {}
        for name, got, expected, (absolute, relative) in zip(
            ("out", "max_logits", "lse"), output, wanted, limits, strict=True
        ):
            error = (got[some].double() - expected).abs()
            wrong = ~((error <= absolute) | (error <= relative * expected.abs()))
            if wrong.any():
                raise ValueError(f"{name}: {int(wrong.sum())} elements are off by up to {float(error.max()):.3g}")
            errors[f"{name}_max_abs"] = float(error.max())
        return errors

    def work(self, case: Case) -> Work:
        """Each row of keys counts once for a query, wherever it is read from."""
        queries, heads, keys = (int(case.sizes[name]) for name in ("T", "H", "K"))
        return Work(
            bytes=queries * keys * (2 * WIDTH + 4) + queries * heads * (4 * WIDTH + 8),
            flops=4 * queries * heads * keys * WIDTH,
        )


def kernel(case: Case, *, pdl: bool) -> Call:
    return loaded_kernel(
        "sparse_attention_prefill",
        dims={"H": int(case.sizes["H"])},
        variant={"has_length": False, "has_sink": True, "pdl": pdl},
        sizes={name: int(case.sizes[name]) for name in ("T", "K", "S")},
        result=lambda s: (s["out"], s["max_logits"], s["lse"]),
    )


def with_interface(module: Any) -> Call:
    """A call of ``flash_mla_sparse_fwd``, ours or theirs."""

    def call(s: Inputs) -> Any:
        index = s["rows"][:, None]
        return module.flash_mla_sparse_fwd(s["q"], s["kv"][:, None], index, SCALE, WIDTH, s["sink"], None)

    return call


def ours_as_flash_mla(case: Case) -> Call:
    return peer.ours(with_interface)


def flash_mla(case: Case) -> Call:
    return peer.theirs(case, with_interface)


BENCHMARK = SparseAttentionPrefillBenchmark()

if __name__ == "__main__":
    main(BENCHMARK, "benchmarks.sparse_attention_prefill")
