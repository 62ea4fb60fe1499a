"""Which kernels are mutated: of fmha and RMSNorm some of each kind, of every other operator one.

Those of attention over gathered rows are in ``attention_kinds``.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.emulator_seeds import ALL, default_kernels
from dsv4.generator.kernel import KernelPlan
from dsv4.generator.spec import Refused, load_op, plan
from dsv4.runtime.artifact import Scalar

SMALL_CONFIG: dict[str, dict[str, Scalar]] = {op: {"clusters": 1} for op in ("mhc_head", "mhc_post_pre", "mhc_pre")}
"""One cluster, so that the small cases are more passes of it than it has buffers, barriers and phases."""


def kernels() -> list[KernelPlan]:
    """The defaults that are mutated: attention with and without causal mask and sink, rms_norm short and long."""
    chosen = []
    for arch in ("sm_90a", "sm_100a"):
        for head_dim, causal, has_sink, pdl in (
            (128, False, False, True),
            (128, True, True, False),
            (64, True, False, True),
        ):
            variant: dict[str, Scalar] = {"causal": causal, "has_sink": has_sink, "pdl": pdl}
            chosen.append(plan("fmha", arch, dims={"D": head_dim}, variant=variant))
        for d, pdl in ((512, True), (4096, False)):
            chosen.append(plan("rms_norm", arch, dims={"d": d}, variant={"pdl": pdl}))
    return chosen


def operator_kernels(ops: Sequence[str] = ALL) -> list[KernelPlan]:
    """Of each other operator and chip the first variant that is a default, at the smallest sizes that its spec knows.

    Attention over gathered rows is not among them: see ``attention_kinds``. With dependent launch. Where the variant
    has no such sizes, they are those of the default; tunables are those of ``SMALL_CONFIG``.
    """
    first: dict[tuple[str, str], KernelPlan] = {}
    for each in default_kernels([*ops, "!fmha", "!rms_norm", "!sparse_attention_*"]):
        first.setdefault((each.op, each.arch), each)
    return [_smallest(each) for each in first.values()]


def _smallest(default: KernelPlan) -> KernelPlan:
    known = {name: dim.static for name, dim in load_op(default.op).dims.items() if name in default.dims and dim.static}
    variant, config = {**default.variant, "pdl": True}, SMALL_CONFIG.get(default.op)
    smallest = {name: min(sizes) for name, sizes in known.items()}
    try:
        return plan(default.op, default.arch, dims={**default.dims, **smallest}, variant=variant, config=config)
    except Refused:
        return plan(default.op, default.arch, dims=default.dims, variant=variant, config=config)
