"""Block-scaled kinds of tcgen05.mma: scale factors in tensor memory, their ids, and their repetition."""

from __future__ import annotations

import pytest

from dsv4.emulator.oracle import tcgen05 as oracle
from tests.emulator.tcgen05_case import Case
from tests.emulator.tcgen05_kernel import EARLY, POLICIES

PAIRS = [("e4m3", "e4m3"), ("e5m2", "e2m1"), ("e2m1", "e3m2"), ("e2m3", "e4m3")]
SHAPES = [(128, 16, 1), (128, 72, 1), (128, 256, 1), (256, 64, 2), (256, 192, 2), (128, 32, 2), (128, 192, 2)]


@pytest.mark.parametrize(("a", "b"), PAIRS)
@pytest.mark.parametrize("ids", [(0, 0), (1, 3), (2, 1), (3, 2)])
def test_mxf8f6f4(a: str, b: str, ids: tuple[int, int]) -> None:
    """One ue8m0 factor for 32 elements, in the byte that the id names."""
    vector = ".scale_vec::1X" if ids[0] % 2 else ".block32"
    case = Case("mxf8f6f4", a, b, n=40, block=32, scale_ids=ids, scale_vector=vector, seed=ids[0])
    case.check(POLICIES[ids[1] % 3])


@pytest.mark.parametrize(("m", "n", "group"), SHAPES)
def test_shapes(m: int, n: int, group: int) -> None:
    """Factors of up to 256 columns; a pair with 128 rows has them by halves of the columns."""
    Case("mxf8f6f4", "e4m3", "e5m2", m=m, n=n, group=group, block=32, scale_ids=(1, 2), seed=n).check(EARLY)
    Case("mxf4", "e2m1", "e2m1", m=m, n=n, group=group, block=32, scale_ids=(2, 0), seed=n).check()
    case = Case("mxf4nvf4", "e2m1", "e2m1", m=m, n=n, group=group, block=16, scale="ue4m3", scale_vector=".block16")
    case.check()


@pytest.mark.parametrize("ids", [(0, 0), (0, 2), (2, 0), (2, 2)])
def test_mxf4(ids: tuple[int, int]) -> None:
    """Two ue8m0 factors for 64 elements of 4 bits, from byte 0 or 2."""
    for vector in ("", ".scale_vec::2X", ".block32"):
        Case("mxf4", "e2m1", "e2m1", n=24, block=32, scale_ids=ids, scale_vector=vector, seed=1).check()


@pytest.mark.parametrize(
    ("block", "scale", "vector"),
    [(16, "ue4m3", ".scale_vec::4X"), (16, "ue8m0", ".block16"), (32, "ue8m0", ".scale_vec::2X")],
)
@pytest.mark.parametrize("swizzle", [0, 32, 64, 128])
def test_mxf4nvf4(block: int, scale: str, vector: str, swizzle: int) -> None:
    """Four factors of either type, or two of ue8m0; packed 4-bit operands in every swizzle."""
    case = Case("mxf4nvf4", "e2m1", "e2m1", n=32, block=block, scale=scale, scale_vector=vector)
    case.swizzle, case.negate = (swizzle, 64), (True, False)
    case.check()


def test_a_in_tensor_memory() -> None:
    """Packed 4-bit and padded 6-bit operands beside their factors."""
    Case("mxf4", "e2m1", "e2m1", n=16, block=32, a_in_tmem=True).check()
    Case("mxf8f6f4", "e2m3", "e4m3", n=16, block=32, a_in_tmem=True).check()
    Case("mxf8f6f4", "e2m1", "e4m3", m=128, n=32, group=2, block=32, a_in_tmem=True).check()


def test_a_nan_factor_makes_its_rows_nan() -> None:
    """Code 0xff of ue8m0."""
    case = Case("mxf8f6f4", "e4m3", "e4m3", n=16, block=32)
    case.codes["sfa"][5] = 0xFF
    outcome = case.kernel().run()
    assert outcome.kinds == []
    assert (outcome.tmem[0, 5, :16] == 0x7FFFFFFF).all()
    assert (outcome.tmem[0, 6, :16] != 0x7FFFFFFF).all()


@pytest.mark.parametrize(("operand", "word"), [("sfa", "A 37"), ("sfb", "B 8")])
def test_factors_that_are_not_repeated(operand: str, word: str) -> None:
    """Every quarter of the lanes needs the same factors."""
    case = Case("mxf8f6f4", "e4m3", "e4m3", n=16, block=32)
    kernel = case.kernel()
    assert kernel.before is not None
    row = int(word.split()[1])
    kernel.before[0, 64 + row % 32, case.layout[operand] + row // 32] ^= 1
    (found,) = kernel.run().findings
    assert found.kind == "scale_factors"
    assert word in found.message
    assert "lanes" in found.message


def test_bytes_of_other_ids_may_differ() -> None:
    """Only the bytes that the instruction uses count."""
    case = Case("mxf8f6f4", "e4m3", "e4m3", n=16, block=32, scale_ids=(1, 1))
    kernel = case.kernel()
    assert kernel.before is not None
    kernel.before[0, 64:96, case.layout["sfa"]] ^= 0xFF00FF
    assert kernel.run().kinds == []


def test_factors_that_were_never_written() -> None:
    """Unset tensor memory where the factors should be."""
    case = Case("mxf8f6f4", "e4m3", "e4m3", n=16, block=32)
    kernel = case.kernel()
    assert kernel.before is not None
    kernel.before = kernel.before[:, :, : case.layout["sfb"]]
    kinds = {(found.kind, found.message.split(",")[0]) for found in kernel.run().findings}
    assert ("undefined_value", "scale factor of B 0") in kinds


def test_ids_that_do_not_go_with_the_number_of_factors() -> None:
    """Two factors begin in byte 0 or 2, four in byte 0."""
    case = Case("mxf4", "e2m1", "e2m1", n=16, block=32)
    wrong = oracle.instruction_descriptor("mxf4", "e2m1", "e2m1", "f32", 128, 16, scale_ids=(1, 0))
    right = oracle.instruction_descriptor("mxf4", "e2m1", "e2m1", "f32", 128, 16)
    kernel = case.kernel()
    assert kernel.body.count(f"mov.u32 %r2, {right};") == 1
    kernel.body = kernel.body.replace(f"mov.u32 %r2, {right};", f"mov.u32 %r2, {wrong};")
    (found,) = kernel.run().findings
    assert found.kind == "matrix_descriptor"
    assert "scale factor id" in found.message
