"""Predicted shared memory is what CuTeDSL's host code asks for: real compiles of kernels that allocate a budget."""

import re
from dataclasses import replace

import pytest

pytest.importorskip("cutlass")

import cutlass
import cutlass.cute as cute
from cutlass.cute.runtime import make_fake_compact_tensor
from cutlass.memory import SmemAllocator

from dsv4.generator.resources import KernelRequest, RoleRequest, SmemRequest, place
from dsv4.generator.spec import load_arch, plan

_TYPES = {
    "bf16": cutlass.BFloat16,
    "f32": cutlass.Float32,
    "i64": cutlass.Int64,
    "i32": cutlass.Int32,
    "u8": cutlass.Uint8,
    "e8m0": cutlass.Uint8,
}


def _struct(budget):
    """The ``cute.struct`` with the members of ``budget``, in its order."""
    fields = {
        region.name: cute.struct.Align[cute.struct.MemRange[_TYPES[region.dtype], region.elements], region.align_bytes]
        for region in budget.smem_members
    }
    return cute.struct(type("Storage", (), {"__annotations__": fields}))


def _asked_for_bytes(budget):
    """Dynamic shared memory in the launch configuration of a compiled kernel that allocates ``budget``."""
    members = budget.smem_members
    storage = _struct(budget) if budget.allocation == "struct" else None

    @cute.kernel
    def kernel(x: cute.Tensor):
        allocator = SmemAllocator()
        if cutlass.const_expr(storage is not None):
            allocator.allocate(storage)
        else:
            for region in members:
                allocator.allocate_array(_TYPES[region.dtype], region.elements, byte_alignment=region.align_bytes)
        x[0] = cutlass.Float32(1.0)

    @cute.jit
    def launch(x: cute.Tensor):
        kernel(x).launch(grid=[1, 1, 1], block=[budget.threads, 1, 1])

    tensor = make_fake_compact_tensor(cutlass.Float32, (cute.sym_int(),))
    text = str(cute.compile(launch, tensor, options=f"--gpu-arch {budget.arch} --opt-level 1").ir_module)
    config = r"struct<\(array<3 x i32>, array<3 x i32>, i64, ptr, ptr, i32\)>"
    slot = re.search(
        rf"(%\d+) = llvm\.getelementptr %\d+\[0, 2\] : \(!llvm\.ptr\) -> !llvm\.ptr, !llvm\.{config}", text
    )
    value = re.search(rf"llvm\.store (%\d+), {slot[1]} : i64", text[slot.end() :])
    head = text[text.rindex("llvm.func @", 0, slot.start()) : slot.start()]
    return int(re.search(rf"{value[1]} = llvm\.mlir\.constant\((\d+) : i64\)", head)[1])


def _odd(allocation):
    sizes = [("barriers", 24, 8, "i64", 3), ("tile", 200, 1024, "bf16", 100), ("flag", 4, 4, "i32", 1)]
    regions = [SmemRequest(name, size, align, dtype, count) for name, size, align, dtype, count in sizes]
    regions.append(SmemRequest("row", 28, 128, "f32", 7))
    request = KernelRequest("odd", tuple(regions), (), (RoleRequest("all", 4, None),), (), allocation=allocation)
    return place(request, load_arch("sm_90a").limits, "sm_90a")


@pytest.mark.parametrize("allocation, expected", [("struct", 2048), ("separate", 1308)])
def test_odd_sizes_are_rounded_as_cutedsl_does(allocation, expected):
    budget = _odd(allocation)
    assert budget.smem_bytes == expected
    assert _asked_for_bytes(budget) == expected


@pytest.mark.parametrize(
    "op, arch, dims",
    [("rms_norm", "sm_90a", {"d": 1536}), ("fmha", "sm_90a", {"D": 64}), ("fmha", "sm_100a", {"D": 128})],
)
def test_default_budgets_are_what_the_launch_asks_for(op, arch, dims):
    budget = plan(op, arch, dims=dims).budget
    assert _asked_for_bytes(budget) == budget.smem_bytes
    if budget.smem_members:
        assert {region.name: region.offset_bytes for region in budget.smem_members} == _struct(budget)._offsets


def test_the_comparison_can_fail():
    budget = _odd("struct")
    first, *rest = budget.smem.values()
    grown = replace(
        budget, smem={"more": replace(first, name="more", elements=first.elements + 200), **{r.name: r for r in rest}}
    )
    assert _asked_for_bytes(grown) != budget.smem_bytes
