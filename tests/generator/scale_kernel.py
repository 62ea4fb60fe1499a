"""A kernel small enough to test the whole path from plan to artifact with: y = x · alpha, or its square.

Not a test module: the tests of emission and of building import it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jinja2

from dsv4.generator.emit import emit
from dsv4.generator.kernel import EmittedSource, KernelPlan
from dsv4.runtime.artifact import Argument, Contract, Resources

TEMPLATE = "scale/scale.py.j2"
TEXT = '''\
{{ header }}
"""y = x * alpha over a vector of n float32, staged through shared memory; squared where the variant says so."""

import cutlass
import cutlass.cute as cute
from cutlass.cute.runtime import make_fake_compact_tensor, make_fake_stream

VARIANTS = ({"square": False}, {"square": True})
THREADS = {{ config.threads }}
STAGES = {{ config.stages }}


@cute.kernel
def scale_kernel(x: cute.Tensor, y: cute.Tensor, alpha: cutlass.Float32, square: cutlass.Constexpr[bool]):
    thread, _, _ = cute.arch.thread_idx()
    block, _, _ = cute.arch.block_idx()
    staged = cutlass.memory.SmemAllocator().allocate_tensor(cutlass.Float32, cute.make_layout(THREADS * STAGES), 16)
    index = block * THREADS + thread
    if index < cute.size(x):
        staged[thread] = x[index]
        value = staged[thread] * alpha
        if cutlass.const_expr(square):
            value = value * value
        else:
            value = value + cutlass.Float32(0.5)
        y[index] = value


@cute.jit
def launch(x: cute.Tensor, y: cute.Tensor, alpha: cutlass.Float32, *, square: cutlass.Constexpr[bool], stream):
    blocks = cute.ceil_div(cute.size(x), THREADS)
    scale_kernel(x, y, alpha, square).launch(grid=[blocks, 1, 1], block=[THREADS, 1, 1], stream=stream)


def arguments(variant):
    n = cute.sym_int(divisibility=4)
    x = make_fake_compact_tensor(cutlass.Float32, (n,), assumed_align=16)
    y = make_fake_compact_tensor(cutlass.Float32, (n,), assumed_align=16)
    stream = make_fake_stream(use_tvm_ffi_env_stream=True)
    return (x, y, cutlass.Float32(1.0), variant["square"], stream)
'''

_VECTOR = {"kind": "tensor", "dtype": "f32", "shape": ("n",), "strides": (1,)}
CONTRACT = Contract(
    dims={"n": None},
    arguments=(
        Argument(name="x", role="input", **_VECTOR),
        Argument(name="y", role="output", **_VECTOR),
        Argument(name="alpha", kind="scalar", dtype="f32", align=4),
    ),
)


@dataclass(frozen=True)
class FlatBudget:
    """What the template of this test would read of a budget."""

    smem_bytes: int


def scale_plan(
    arch: str = "sm_90a", *, square: bool = False, threads: int = 64, stages: int = 3, **changes: Any
) -> KernelPlan:
    """A plan made by hand. ``changes`` replaces fields of it."""
    smem_bytes = 4 * threads * stages
    plan = KernelPlan(
        op="scale",
        arch=arch,
        model=None,
        dims={},
        variant={"square": square},
        config={"threads": threads, "stages": stages},
        is_default=True,
        template=TEMPLATE,
        budget=FlatBudget(smem_bytes),  # type: ignore[arg-type]
        predicted=Resources(smem_bytes=smem_bytes, tmem_columns=0, threads=threads),
        contract=CONTRACT,
        numeric_class="elementwise",
        spec_sha256="0" * 64,
        compute_capabilities=((9, 0),) if arch == "sm_90a" else ((10, 0), (10, 3)),
        build_target="sm_90a" if arch == "sm_90a" else "sm_100f",
        forbid_spills=True,
        compile_seconds_limit=60.0,
    )
    return replace(plan, **changes)


def loader(text: str = TEXT) -> jinja2.BaseLoader:
    return jinja2.DictLoader({TEMPLATE: text})


def emitter(text: str = TEXT) -> Any:
    """An ``emit`` whose template has this text."""
    templates = loader(text)

    def emit_scale(plan: KernelPlan) -> EmittedSource:
        return emit(plan, loader=templates)

    return emit_scale
