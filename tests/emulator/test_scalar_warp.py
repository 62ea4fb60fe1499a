"""shfl, vote, match and redux against the oracle, with partial masks."""

from __future__ import annotations

import numpy as np
import pytest

from dsv4.emulator.oracle import lanes
from tests.emulator.scalar_machine import FULL, ScalarMachine

EMU_NEXT, EMU_AGAIN, EMU_STOP = 0, 2, 4
ALL = list(range(32))


def _random(seed: int, high: int = 1 << 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, high, 32, dtype=np.uint64)


def _constant(value: int) -> np.ndarray:
    return np.full(32, value, np.uint64)


@pytest.mark.parametrize("mode", ["idx", "up", "down", "bfly"])
@pytest.mark.parametrize(("offset", "clamp"), [(1, 31), (16, 31), (3, 0), (2, 0x1807), (5, 0x101F), (0, 0x1C03)])
@pytest.mark.parametrize("active", [FULL, 0x0000FFFF, 0xF0F0F0F1])
def test_shfl(scalar_machine: ScalarMachine, mode: str, offset: int, clamp: int, active: int) -> None:
    a, b, c = _random(1), _random(2, 40) if offset == 5 else _constant(offset), _constant(clamp)
    outcome = scalar_machine.run(
        f"shfl.sync.{mode}.b32 %d|%q, %a, %b, %c, %m;",
        {"%a": ("b32", a), "%b": ("b32", b), "%c": ("b32", c), "%m": ("b32", _constant(active))},
        {"%d": "b32", "%q": "pred"},
        mask=active,
        live=active,
        before=77,
    )
    value, valid, known = lanes.shuffle(mode, a, b, c, active)
    assert outcome.status == EMU_NEXT
    for lane in ALL:
        if not active >> lane & 1:
            assert int(outcome.values["%d"][lane]) == 77
            continue
        assert bool(outcome.values["%q"][lane]) == bool(valid[lane]), lane
        assert bool(outcome.bad["%d"] >> lane & 1) == (not known[lane]), lane
        if known[lane]:
            assert int(outcome.values["%d"][lane]) == int(value[lane]), lane


def test_shfl_waits_for_missing_lanes_and_refuses_strangers(scalar_machine: ScalarMachine) -> None:
    inputs = {"%a": ("b32", _random(1)), "%m": ("b32", _constant(FULL)), "%h": ("b32", _constant(0xFF))}
    text = "shfl.sync.idx.b32 %d, %a, 0, 31, {};"
    assert scalar_machine.run(text.format("%m"), inputs, {"%d": "b32"}, mask=0xFFFF).status == EMU_AGAIN
    assert scalar_machine.run(text.format("%m"), inputs, {"%d": "b32"}, mask=0xFFFF, live=0xFFFF).status == EMU_NEXT
    assert scalar_machine.run(text.format("%h"), inputs, {"%d": "b32"}, mask=0x1FF).status == EMU_STOP


def test_groups_with_masks_of_their_own(scalar_machine: ScalarMachine) -> None:
    members = np.where(np.arange(32) < 16, 0xFFFF, 0xFFFF0000).astype(np.uint64)
    outcome = scalar_machine.run(
        "redux.sync.add.u32 %d, %a, %m;",
        {"%a": ("b32", np.arange(32, dtype=np.uint64)), "%m": ("b32", members)},
        {"%d": "b32"},
    )
    assert outcome.values["%d"].tolist() == [120] * 16 + [376] * 16


@pytest.mark.parametrize("mode", ["all", "any", "uni", "ballot"])
@pytest.mark.parametrize("negated", [False, True])
@pytest.mark.parametrize("active", [FULL, 0x00FF00F0])
@pytest.mark.parametrize("pattern", [0, FULL, 0x00FF0070, 0x80000001])
def test_vote(scalar_machine: ScalarMachine, mode: str, negated: bool, active: int, pattern: int) -> None:
    predicate = np.array([pattern >> lane & 1 for lane in ALL], np.uint64)
    kind = "b32" if mode == "ballot" else "pred"
    outcome = scalar_machine.run(
        f"vote.sync.{mode}.{kind} %d, {'!' if negated else ''}%p, {active};",
        {"%p": ("pred", predicate)},
        {"%d": kind},
        mask=active,
        live=active,
    )
    expected = lanes.vote(mode, 1 - predicate if negated else predicate, active)
    assert {int(outcome.values["%d"][lane]) for lane in ALL if active >> lane & 1} == {expected}


@pytest.mark.parametrize("mode", ["any", "all"])
@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("values", [3, 1])
def test_match(scalar_machine: ScalarMachine, mode: str, bits: int, values: int) -> None:
    active = 0xFFFF0FFF
    a = _random(5, values) << np.uint64(bits - 8)
    d = "%d|%q" if mode == "all" else "%d"
    outcome = scalar_machine.run(
        f"match.{mode}.sync.b{bits} {d}, %a, {active};",
        {"%a": (f"b{bits}", a)},
        {"%d": "b32", "%q": "pred"},
        mask=active,
        live=active,
    )
    masks, same = lanes.match(mode, a, active)
    for lane in ALL:
        if active >> lane & 1:
            assert int(outcome.values["%d"][lane]) == int(masks[lane])
            if mode == "all":
                assert bool(outcome.values["%q"][lane]) == same


REDUX = ["add.u32", "add.s32", "min.s32", "max.s32", "min.u32", "max.u32", "and.b32", "or.b32", "xor.b32"]
REDUX += ["min.f32", "max.f32", "max.NaN.f32", "min.abs.f32", "max.abs.NaN.f32"]


@pytest.mark.parametrize("form", REDUX)
@pytest.mark.parametrize("with_nan", [False, True])
def test_redux(scalar_machine: ScalarMachine, form: str, with_nan: bool) -> None:
    active = 0x7FFFFF80
    a = np.random.default_rng(3).normal(0, 9, 32).astype(np.float32)
    if with_nan:
        a[9] = np.nan
    codes = a.view(np.uint32).astype(np.uint64)
    outcome = scalar_machine.run(
        f"redux.sync.{form} %d, %a, {active};", {"%a": ("b32", codes)}, {"%d": "b32"}, mask=active, live=active
    )
    operation, *modifiers, kind = form.split(".")
    expected = lanes.reduce(operation, kind, codes, active, absolute="abs" in modifiers, nan="NaN" in modifiers)
    assert {int(outcome.values["%d"][lane]) for lane in ALL if active >> lane & 1} == {expected}
