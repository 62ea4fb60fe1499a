"""tcgen05.mma: every kind, shape, layout and option against NumPy, with all of tensor memory compared."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tests.emulator.tcgen05_case import Case
from tests.emulator.tcgen05_kernel import EARLY, POLICIES

NARROW = ("e4m3", "e5m2", "e2m3", "e3m2", "e2m1")


@pytest.mark.parametrize("m", [64, 128])
@pytest.mark.parametrize(
    ("kind", "a", "b", "d"),
    [
        ("f16", "f16", "f16", "f32"),
        ("f16", "f16", "f16", "f16"),
        ("f16", "bf16", "bf16", "f32"),
        ("f16", "f16", "bf16", "f32"),
        ("tf32", "tf32", "tf32", "f32"),
        ("f8f6f4", "e4m3", "e5m2", "f16"),
        ("i8", "s8", "u8", "s32"),
        ("i8", "u8", "s8", "s32"),
    ],
)
def test_kinds(kind: str, a: str, b: str, d: str, m: int) -> None:
    """Types of A, B and D, for 128 rows and 64."""
    case = Case(kind, a, b, d, m=m, n=48, seed=m)
    for policy in POLICIES:
        case.check(policy)


@pytest.mark.parametrize(("a", "b"), list(itertools.product(NARROW, NARROW)))
def test_pairs_of_narrow_types(a: str, b: str) -> None:
    """kind::f8f6f4 mixes all types of 8, 6 and 4 bits."""
    Case("f8f6f4", a, b, n=24, seed=3).check()


@pytest.mark.parametrize("n", [8, 16, 40, 104, 256])
@pytest.mark.parametrize("m", [64, 128])
def test_widths(m: int, n: int) -> None:
    """Columns of D."""
    Case("f16", "bf16", "bf16", m=m, n=n, seed=n).check(EARLY)


@pytest.mark.parametrize("swizzle", list(itertools.product((0, 32, 64, 128), repeat=2)))
@pytest.mark.parametrize("mn_major", list(itertools.product((False, True), repeat=2)))
def test_layouts_of_16_bits(swizzle: tuple[int, int], mn_major: tuple[bool, bool]) -> None:
    """Swizzles and both majors, for A and B apart."""
    Case("f16", "f16", "f16", m=128, n=80, swizzle=swizzle, mn_major=mn_major, seed=5).check()


@pytest.mark.parametrize("swizzle", [0, 32, 64, 128])
@pytest.mark.parametrize("mn_major", [False, True])
@pytest.mark.parametrize("name", ["e4m3", "e2m3", "e2m1"])
def test_layouts_of_bytes(name: str, mn_major: bool, swizzle: int) -> None:
    """8-bit elements, and padded ones of 6 and 4 bits."""
    Case("f8f6f4", name, name, n=48, swizzle=(swizzle, swizzle), mn_major=(mn_major, mn_major), seed=6).check()


@pytest.mark.parametrize("swizzle", [0, 32, 64, 128])
def test_layouts_of_tf32(swizzle: int) -> None:
    """K-major in all swizzles; MN-major has 32-byte atoms."""
    Case("tf32", "tf32", "tf32", n=40, swizzle=(swizzle, 128), mn_major=(False, True), seed=7).check()
    Case("tf32", "tf32", "tf32", n=40, swizzle=(128, swizzle), mn_major=(True, False), seed=8).check()


@pytest.mark.parametrize("advance", [32, 64, 96])
def test_start_inside_of_a_swizzle_atom(advance: int) -> None:
    """A later K step: the start address advances, the swizzle stays with the address."""
    Case("f16", "f16", "f16", n=32, advance=advance, seed=advance).check()


@pytest.mark.parametrize("m", [128, 256])
@pytest.mark.parametrize("n", [32, 96, 256])
@pytest.mark.parametrize("mn_major", [(False, False), (True, True)])
def test_pairs_of_ctas(m: int, n: int, mn_major: tuple[bool, bool]) -> None:
    """cta_group::2: rows of A and columns of B divided among the pair."""
    Case("f16", "bf16", "bf16", m=m, n=n, group=2, mn_major=mn_major, seed=n).check(POLICIES[n // 32 % 3])


@pytest.mark.parametrize("kind", [("tf32", "tf32"), ("f8f6f4", "e3m2"), ("i8", "s8")])
@pytest.mark.parametrize("m", [128, 256])
def test_kinds_in_pairs(kind: tuple[str, str], m: int) -> None:
    """Other types in cta_group::2."""
    Case(kind[0], kind[1], kind[1], "s32" if kind[0] == "i8" else "f32", m=m, n=64, group=2, seed=m).check()


@pytest.mark.parametrize(
    ("kind", "name", "d"),
    [
        ("f16", "f16", "f32"),
        ("tf32", "tf32", "f32"),
        ("f8f6f4", "e5m2", "f32"),
        ("f8f6f4", "e3m2", "f32"),
        ("f8f6f4", "e2m1", "f32"),
        ("i8", "s8", "s32"),
    ],
)
@pytest.mark.parametrize(("m", "group", "first_lane"), [(128, 1, 0), (64, 1, 0), (64, 1, 16), (256, 2, 0), (128, 2, 0)])
def test_a_in_tensor_memory(kind: str, name: str, d: str, m: int, group: int, first_lane: int) -> None:
    """A from tensor memory, in every data path."""
    Case(kind, name, name, d, m=m, n=32, group=group, a_in_tmem=True, first_lane=first_lane, seed=m).check()


def test_an_a_that_is_not_repeated_for_the_second_half_of_the_columns() -> None:
    """With 128 rows in a pair, lanes 64.. need A as well: another A there gives another second half."""
    case = Case("f16", "f16", "f16", m=128, n=32, group=2, a_in_tmem=True)
    kernel = case.kernel()
    assert kernel.before is not None
    kernel.before[:, 64:, case.layout["a"] : case.layout["a"] + 8] = 0
    outcome = kernel.run()
    expected, before = case.expected(), case.before()
    np.testing.assert_array_equal(outcome.tmem[:, :64, :16], expected[:, :64, :16])
    np.testing.assert_array_equal(outcome.tmem[:, 64:, :16], before[:, 64:, :16])


def test_lower_half_of_the_lanes() -> None:
    """64 rows from lane 16 on."""
    Case("f16", "f16", "f16", m=64, n=24, first_lane=16).check()


@pytest.mark.parametrize("negate", [(True, False), (False, True), (True, True)])
def test_negation(negate: tuple[bool, bool]) -> None:
    """Of A, of B, of both."""
    Case("f16", "f16", "f16", n=16, negate=negate, seed=9).check()
    Case("f8f6f4", "e4m3", "e2m1", n=16, negate=negate, seed=9).check()


def test_without_the_old_d() -> None:
    """enable-input-d false: D = A · B, whatever D holds."""
    Case("f16", "f16", "f16", n=16, accumulate=False).check()


@pytest.mark.parametrize("scale_d", [1, 4, 15])
def test_scaled_old_d(scale_d: int) -> None:
    """scale-input-d: D · 2^-s."""
    Case("f16", "f16", "f16", n=16, scale_d=scale_d).check()
    Case("tf32", "tf32", "tf32", n=16, scale_d=scale_d).check()


def test_disabled_lanes() -> None:
    """Lanes of the mask keep what they hold, in each CTA of a pair by its own words."""
    words = (0x0000FFFF, 0xF0F00003, 0, 0xFFFFFFFF, 0x80000001, 0x12345678, 0xFFFFFFFF, 0x00FF00FF)
    Case("f16", "f16", "f16", n=16, disabled=words[:4]).check()
    Case("f16", "f16", "f16", m=64, n=16, disabled=words[4:]).check()
    Case("f16", "f16", "f16", m=256, n=32, group=2, disabled=words).check()
    Case("f16", "f16", "f16", m=128, n=32, group=2, disabled=words).check()


def test_integers_wrap_or_saturate() -> None:
    """Sums beyond 32 bits."""
    for saturate in (False, True):
        case = Case("i8", "s8", "s8", "s32", n=16, saturate=saturate, seed=2)
        case.codes["d"][::2] = 0x7FFFFFF0
        case.codes["d"][1::2] = 0x8000000F
        case.check()


def test_infinities_and_nan() -> None:
    """A NaN result is the canonical one; f16 overflow gives infinity."""
    case = Case("f16", "f16", "f16", n=16, seed=4)
    case.codes["a"][0, 0], case.codes["a"][1, 0] = 0x7C00, 0xFE01
    case.codes["b"][:, 0] = 0x3C00
    outcome = case.kernel().run()
    assert outcome.kinds == []
    assert (outcome.tmem[0, 0, :16] == 0x7F800000).all()
    assert (outcome.tmem[0, 1, :16] == 0x7FFFFFFF).all()
    case = Case("f16", "f16", "f16", "f16", n=16, accumulate=False)
    case.codes["a"][:] = 0x7BFF
    case.codes["b"][:] = 0x4000
    case.check()


def test_f16_results_are_rounded_once() -> None:
    """A sum just above a tie of f16 goes up although its float32 is the tie."""
    case = Case("f16", "f16", "f16", "f16", n=16, accumulate=False)
    case.codes["a"][:] = 0
    case.codes["b"][:] = 0
    case.codes["a"][:, 0], case.codes["b"][:, 0] = 0x3C00, 0x6800  # 1 · 2048
    case.codes["a"][:, 1], case.codes["b"][:, 1] = 0x3C00, 0x3C00  # + 1: the tie to 2048
    case.codes["a"][:, 2], case.codes["b"][:, 2] = 0x0400, 0x0400  # + 2^-28
    outcome = case.check()
    assert (outcome.tmem[0, :, :16] == 0x6801).all()
