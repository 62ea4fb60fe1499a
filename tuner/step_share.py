"""How much of a step a call is, predicted: the order in which a model's kernels are worth tuning. Nothing is measured.

A call takes what its largest limit takes: bytes at the chip's memory rate, or products at its tensor cores' rate, and a
launch besides. Counts come from the specs' ``work:``; those of operators that no kernel is made for from ``_PLAIN``.
The rates are the datasheet's, so shares are right to within a factor, which is what an order needs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from dsv4.generator.resources import Refused
from dsv4.generator.spec import Planner, SpecError, list_ops, load_arch, load_op, work
from dsv4.runtime.artifact import Scalar
from dsv4.runtime.pool import ROW_BYTES, PoolFormat
from dsv4.tuner.coverage import Asked

LAUNCH_US = 0.97
"""An empty node of a CUDA graph on an H100 (benchmarks/results/2026-11-21_h100-80gb-hbm3_rms_norm.json)."""

WEIGHT_BYTES: dict[Scalar, float] = {"plain": 2.0, "fp8_block": 1.0, "mxfp4": 0.5 + 1 / 32, "nvfp4": 0.5 + 1 / 16}
"""Of an element with its share of the scales, by ``runtime.weight.Format``."""

Sizes = Mapping[str, int]
Variant = Mapping[str, Scalar]


@dataclass(frozen=True)
class Work:
    """Bytes that a call must move, and the FLOP of its matrix products, by tensor cores in FP8 where ``fp8``."""

    bytes: float
    mma: float = 0.0
    fp8: bool = False


def predicted_us(asked: Asked, arch: str) -> float | None:
    """Microseconds of one call on the GPU of ``arch``; None where nothing is known of its work."""
    counts = work_of(asked, arch)
    if counts is None:
        return None
    rates = load_arch(arch).rates
    memory_us = counts.bytes / (rates["hbm"].value * 1e6)
    mma = rates["mma_fp8" if counts.fp8 and "mma_fp8" in rates else "mma_bf16"].value
    return LAUNCH_US + max(memory_us, counts.mma / (mma * 1e6))


def work_of(asked: Asked, arch: str) -> Work | None:
    """The call's counts, from the operator's spec (that of another arch where it has none for this one)."""
    if asked.op in ready_ops():
        return _from_spec(asked, arch)
    by_hand = _PLAIN.get(asked.op)
    try:
        return by_hand(asked.sizes, asked.variant) if by_hand else None
    except KeyError:  # a size or a format of an operator that has changed since: better nothing than a wrong figure
        return None


def static_dims(op: str, sizes: Sizes) -> dict[str, int]:
    """Of ``sizes`` those that the operator's kernels are compiled for."""
    return {name: sizes[name] for name, dim in load_op(op).dims.items() if dim.static is not None and name in sizes}


@lru_cache(maxsize=1)
def ready_ops() -> frozenset[str]:
    """The operators that kernels are made for."""
    return frozenset(list_ops(planned=False))


def _from_spec(asked: Asked, arch: str) -> Work | None:
    spec = load_op(asked.op)
    place = arch if arch in spec.archs else spec.archs[0]
    try:
        plan = Planner(asked.op, place, dims=static_dims(asked.op, asked.sizes), variant=asked.variant).plan()
        counts = work(spec, plan, asked.sizes)
    except (SpecError, Refused):
        return None
    return Work(counts.get("bytes", 0.0), counts.get("mma", 0.0))


def _activation(variant: Variant, name: str) -> float:
    """Bytes of an element of the activation ``name``: FP8 with its scale where it was quantised, else bf16."""
    return 1.0 + 1 / 128 if name in variant else 2.0


def _out(variant: Variant) -> float:
    return 4.0 if variant.get("out_dtype", variant.get("dtype")) == "float32" else 2.0


def _linear(n: Sizes, v: Variant) -> Work:
    """y [rows, o] = x [rows, i] Wᵀ."""
    rows, inner, outer = n["rows"], n["i"], n["o"]
    moved = inner * outer * WEIGHT_BYTES[v["weight"]] + rows * inner * _activation(v, "x") + rows * outer * _out(v)
    return Work(moved, 2.0 * rows * inner * outer, fp8="x" in v)


def _grouped_output(n: Sizes, v: Variant) -> Work:
    """z [T, N]: each column over the W of its group."""
    tokens, columns, width = n["T"], n["N"], n["W"]
    moved = columns * width * WEIGHT_BYTES[v["wo_a"]] + tokens * n["G"] * width * _activation(v, "out")
    return Work(moved + tokens * columns * _out(v), 2.0 * tokens * columns * width, fp8="out" in v)


def _experts(n: Sizes, v: Variant) -> Work:
    """Three products of each of T·k routes; the weights of each expert that one of T tokens is expected to reach, if
    routes fall evenly."""
    tokens, routes, count, inner, width = n["T"], n["k"], n["E"], n["I"], n["d"]
    reached = count * (1 - (1 - routes / count) ** tokens)
    moved = reached * 3 * inner * width * WEIGHT_BYTES[v["w1"]] + tokens * (1 + routes) * width * 2.0
    return Work(moved, 6.0 * tokens * routes * inner * width, fp8=v.get("rule") != "none")


def _indexer_scores(n: Sizes, v: Variant) -> Work:
    """Scores f32 [T, E] of h heads; the keys of each of S sequences are read once."""
    format = PoolFormat(v["pool"])
    row = 2 * n["D"] if format is PoolFormat.PLAIN else sum(ROW_BYTES[format])
    moved = n["S"] * n["E"] * (row + 4) + n["T"] * (n["E"] * 4 + n["h"] * n["D"] * _activation(v, "q"))
    return Work(moved, 2.0 * n["T"] * n["E"] * n["h"] * n["D"], fp8="q" in v)


def _lm_head(n: Sizes, v: Variant) -> Work:
    rows, vocabulary, width = n["T"], n["V"], n["d"]
    return Work(2.0 * vocabulary * width + rows * (2 * width + 4 * vocabulary), 2.0 * rows * vocabulary * width)


_PLAIN: dict[str, Callable[[Sizes, Variant], Work]] = {
    "linear": _linear,
    "grouped_output": _grouped_output,
    "experts": _experts,
    "indexer_scores": _indexer_scores,
    "lm_head": _lm_head,
    "topk": lambda n, v: Work(4.0 * n["T"] * n["E"] + 4.0 * n["T"] * int(v["k"])),
    "rope_table": lambda n, v: Work(n["T"] * (8.0 + 8.0 * n["h"])),
}
"""Operators of the model without a kernel of their own, by the sizes and formats that a call of theirs is recorded
with."""
