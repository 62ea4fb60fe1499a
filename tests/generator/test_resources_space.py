"""Placement properties over whole search spaces: nothing overlaps by accident, everything is aligned and fits."""

from itertools import combinations

import pytest

from dsv4.generator.resources import Refused
from dsv4.generator.spec import list_ops, load_arch, space

CASES = [(op, arch, dims) for op, sizes in (("rms_norm", ({"d": 512}, {"d": 7168})), ("fmha", ({"D": 64}, {"D": 256})))
         for arch in ("sm_90a", "sm_100a") for dims in sizes]  # fmt: skip


def sound(budget, limits):
    """Asserts what must hold of every placed budget."""
    members = budget.smem_members
    for one, two in combinations(members, 2):
        assert one.end_bytes <= two.offset_bytes or two.end_bytes <= one.offset_bytes, (one, two)
    for region in budget.smem.values():
        assert region.offset_bytes % region.align_bytes == 0 and region.end_bytes <= budget.smem_bytes
        if region.alias:
            base = budget.smem[region.alias]
            assert base.offset_bytes == region.offset_bytes and region.end_bytes <= base.end_bytes
    assert budget.smem_bytes <= limits.smem_bytes_per_cta
    for one, two in combinations(budget.tmem.values(), 2):
        assert not one.touches(two) or one.name == two.overlaps or two.name == one.overlaps, (one, two)
    end = max((region.end_column for region in budget.tmem.values()), default=0)
    assert end <= budget.tmem_columns <= limits.tmem_columns
    assert budget.tmem_columns & (budget.tmem_columns - 1) == 0 and (not end or budget.tmem_columns >= 32)
    assert budget.threads == sum(role.threads for role in budget.roles.values()) <= limits.threads_per_cta
    held = sum((role.registers or budget.launch_registers) * role.threads for role in budget.roles.values())
    assert held <= limits.registers_per_sm
    assert sum(role.warps for role in budget.roles.values()) * 32 == budget.threads
    assert budget.table()


@pytest.mark.parametrize("op, arch, dims", CASES)
def test_every_plan_of_the_space_is_sound(op, arch, dims):
    limits = load_arch(arch).limits
    plans = [kernel for _, kernel in space(op, arch, dims=dims) if not isinstance(kernel, Refused)]
    assert plans
    for kernel in plans:
        sound(kernel.budget, limits)


@pytest.mark.parametrize("arch", ["sm_90a", "sm_100a"])
def test_the_hard_spaces_are_sound(arch):
    limits = load_arch(arch).limits
    planned = [op for op in list_ops() if op not in list_ops(planned=False)]
    assert planned
    for op in planned:
        count = 0
        for _, kernel in space(op, arch, model="pro"):
            if not isinstance(kernel, Refused):
                sound(kernel.budget, limits)
                count += 1
            if count == 300:  # the decode space has thousands
                break
        assert count
