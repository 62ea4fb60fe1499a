"""The kinds of kernels of attention over gathered rows, of which the defaults are but some: for seeds and mutations.

One for each way in which rows come, heads lie and CTAs share the work, with few heads and splits where that can be.
"""

from __future__ import annotations

from dsv4.generator.kernel import KernelPlan
from dsv4.generator.spec import plan
from dsv4.runtime.artifact import Manifest, Scalar

_ROWS: dict[str, Scalar] = {"extra": "rows", "has_length0": True, "has_length1": True, "pdl": True}
_FOUR: dict[str, Scalar] = {**_ROWS, "cache": "kv_fp8_aligned"}
_BF16: dict[str, Scalar] = {"cache": "plain", "extra": "rows", "has_length0": True, "has_length1": True, "pdl": True}
GATHERED: tuple[tuple[str, int, dict[str, Scalar], dict[str, Scalar]], ...] = (
    ("sm_90a", 64, _ROWS, {"splits": 2}),
    ("sm_90a", 8, _ROWS, {"splits": 2}),
    ("sm_90a", 128, _ROWS, {"splits": 1, "pair": 1}),
    ("sm_90a", 64, _BF16, {"splits": 1}),
    ("sm_90a", 64, _ROWS, {"split_ctas": 8}),
    ("sm_100a", 64, _ROWS, {"splits": 1}),
    ("sm_100a", 16, _FOUR, {"splits": 2}),
    ("sm_100a", 128, _FOUR, {"splits": 1, "cta_group": 2}),
    ("sm_100a", 64, _BF16, {"splits": 1}),
)
"""Chip, heads, flags and configuration of decoding: heads as rows or as columns, CTAs alone, sharing keys or in pairs;
rows by bulk copies, gather4 or ``cp.async``. On a chip of eight SMs, so to say, the kernels of one module take turns:
those for few queries, that for more, and that in which CTAs take one query after another."""


def long_cases(manifest: Manifest) -> tuple[int, ...]:
    """Numbers of cases with many tiles, and with many queries: in the small ones a ring comes round but once."""
    if manifest.op == "sparse_attention_prefill":
        return 4, 14
    return (4, 5, 14) if manifest.config["splits"] == 0 else (4,)


def attention_kernels() -> list[KernelPlan]:
    """The kinds of decoding attention of ``GATHERED``, and prefilling."""
    kinds = [
        plan("sparse_attention_decode", arch, dims={"H": heads}, variant=variant, config=config)
        for arch, heads, variant, config in GATHERED
    ]
    return [*kinds, plan("sparse_attention_prefill", "sm_90a", variant={"has_length": True, "pdl": True})]
