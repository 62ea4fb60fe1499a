"""wgmma: layouts, types, shapes and sums against the oracle."""

from __future__ import annotations

import numpy as np
import pytest

from dsv4.emulator.oracle import matrix
from dsv4.emulator.oracle.matrix import Tile
from dsv4.emulator.policy import Policy, mixed
from tests.emulator.matrix_machine import EARLY, LATE, SHARED_BASE, clean
from tests.emulator.wgmma_kernel import K_OF, Product, tile_of

SWIZZLES = (0, 32, 64, 128)


def small(rng: np.random.Generator, shape: tuple[int, int], type_name: str) -> tuple[np.ndarray, np.ndarray]:
    """Codes of small integers, and the integers: every sum of them is exact in every type."""
    low = 0 if type_name == "u8" else -3
    values = rng.integers(low, 4, shape)
    if type_name in ("s8", "u8"):
        return (values & 0xFF).astype(np.uint32), values
    return matrix.codes_of(np.arange(-3.0, 4.0), type_name)[values + 3], values


def exact(d_type: str, values: np.ndarray) -> np.ndarray:
    """Codes of integers as accumulators."""
    if d_type == "f16":
        return values.astype(np.float16).view(np.uint16).astype(np.uint32)
    return (values.astype(np.int32) if d_type == "s32" else values.astype(np.float32)).view(np.uint32)


def check_layout(
    types: tuple[str, str, str], n: int, a: tuple[bool, int] | None, b: tuple[bool, int], gap: int, seed: int
) -> None:
    """One product of small integers; `a` and `b` are (MN-major, swizzle), `a` None for registers."""
    d_type, a_type, b_type = types
    rng = np.random.default_rng(seed)
    a_codes, a_values = small(rng, (64, K_OF[a_type]), a_type)
    b_codes, b_values = small(rng, (K_OF[b_type], n), b_type)
    c_values = rng.integers(-9, 10, (64, n))
    a_tile = tile_of(64, a_type, mn_major=a[0], swizzle_bytes=a[1], gap=gap) if a else None
    b_tile = tile_of(n, b_type, mn_major=b[0], swizzle_bytes=b[1], gap=gap)
    product = Product(a_codes, b_codes, exact(d_type, c_values), types, a_tile, b_tile)
    found, outcome = product.run()
    clean(outcome)
    assert np.array_equal(found, exact(d_type, a_values @ b_values + c_values))


@pytest.mark.parametrize("swizzle_bytes", SWIZZLES)
@pytest.mark.parametrize("a_major", [False, True], ids=["A-K", "A-MN"])
@pytest.mark.parametrize("b_major", [False, True], ids=["B-K", "B-MN"])
@pytest.mark.parametrize(("type_name", "n", "gap"), [("bf16", 192, 0), ("f16", 64, 1)])
def test_majors_and_swizzles(
    swizzle_bytes: int, a_major: bool, b_major: bool, type_name: str, n: int, gap: int
) -> None:
    types = ("f32", type_name, type_name)
    check_layout(types, n, (a_major, swizzle_bytes), (b_major, swizzle_bytes), gap, seed=swizzle_bytes)


@pytest.mark.parametrize("a_swizzle", SWIZZLES)
@pytest.mark.parametrize("b_swizzle", SWIZZLES)
def test_each_operand_has_its_own_swizzle(a_swizzle: int, b_swizzle: int) -> None:
    if a_swizzle != b_swizzle:
        check_layout(("f32", "bf16", "bf16"), 128, (True, a_swizzle), (False, b_swizzle), 1, seed=7)


TYPES = [
    ("f32", "f16", "f16"),
    ("f16", "f16", "f16"),
    ("f32", "bf16", "bf16"),
    ("f32", "tf32", "tf32"),
    ("f32", "e4m3", "e4m3"),
    ("f32", "e4m3", "e5m2"),
    ("f16", "e5m2", "e4m3"),
    ("f32", "e5m2", "e5m2"),
    ("s32", "s8", "s8"),
    ("s32", "u8", "u8"),
    ("s32", "s8", "u8"),
    ("s32", "u8", "s8"),
]


@pytest.mark.parametrize("types", TYPES, ids="-".join)
@pytest.mark.parametrize("swizzle_bytes", SWIZZLES)
def test_types(types: tuple[str, str, str], swizzle_bytes: int) -> None:
    check_layout(types, 72, (False, swizzle_bytes), (False, swizzle_bytes), 1, seed=3)


@pytest.mark.parametrize("types", TYPES, ids="-".join)
def test_a_in_registers(types: tuple[str, str, str]) -> None:
    check_layout(types, 40, None, (False, 128), 0, seed=4)


@pytest.mark.parametrize("n", range(8, 257, 8))
def test_every_width(n: int) -> None:
    kind = n // 8 % 4
    a = [(False, 128), (True, 32), None, (True, 64)][kind]
    b = (True, 32) if n % 16 == 0 else (False, 64)
    d_type = "f16" if kind == 1 else "f32"
    check_layout((d_type, "f16", "f16"), n, a, b, 0, seed=n)


@pytest.mark.parametrize(("scale_a", "scale_b"), [(-1, 1), (1, -1), (-1, -1)])
@pytest.mark.parametrize("in_registers", [False, True])
def test_negated_operands(scale_a: int, scale_b: int, in_registers: bool) -> None:
    rng = np.random.default_rng(5)
    a_codes, a_values = small(rng, (64, 16), "bf16")
    b_codes, b_values = small(rng, (16, 24), "bf16")
    a_tile = None if in_registers else tile_of(64, "bf16", mn_major=False, swizzle_bytes=32)
    b_tile = tile_of(24, "bf16", mn_major=False, swizzle_bytes=32)
    product = Product(
        a_codes, b_codes, np.zeros((64, 24), np.uint32), ("f32", "bf16", "bf16"), a_tile, b_tile,
        scale_a=scale_a, scale_b=scale_b,
    )  # fmt: skip
    found, outcome = product.run()
    clean(outcome)
    assert np.array_equal(found, exact("f32", scale_a * scale_b * (a_values @ b_values)))


def test_without_scale_d_the_accumulator_is_ignored() -> None:
    rng = np.random.default_rng(6)
    a_codes, a_values = small(rng, (64, 16), "f16")
    b_codes, b_values = small(rng, (16, 8), "f16")
    tiles = [tile_of(mn, "f16", mn_major=False, swizzle_bytes=128) for mn in (64, 8)]
    nan = np.full((64, 8), 0x7FC00000, np.uint32)
    product = Product(a_codes, b_codes, nan, ("f32", "f16", "f16"), tiles[0], tiles[1], accumulate=False)
    found, outcome = product.run()
    clean(outcome)
    assert np.array_equal(found, exact("f32", a_values @ b_values))


@pytest.mark.parametrize("satfinite", [False, True])
def test_integer_overflow_wraps_or_saturates(satfinite: bool) -> None:
    rng = np.random.default_rng(8)
    a, b = rng.integers(0, 256, (64, 32)).astype(np.uint32), rng.integers(0, 256, (32, 16)).astype(np.uint32)
    c = rng.integers(0, 2**32, (64, 16)).astype(np.uint32)
    c[:8], c[8:16] = 0x7FFFFFF0, 0x8000000F
    tiles = [tile_of(mn, "s8", mn_major=False, swizzle_bytes=64) for mn in (64, 16)]
    product = Product(a, b, c, ("s32", "s8", "s8"), tiles[0], tiles[1], satfinite=satfinite)
    found, outcome = product.run()
    clean(outcome)
    assert np.array_equal(found, matrix.multiply_integers(a, b, c, ("s8", "s8"), saturate=satfinite))


@pytest.mark.parametrize("types", [t for t in TYPES if t[0] != "s32"], ids="-".join)
def test_sums_follow_the_model(types: tuple[str, str, str]) -> None:
    """Terms of very different size, cancellation, subnormal and special numbers."""
    d_type, a_type, b_type = types
    n, k = 16, K_OF[a_type]
    rng = np.random.default_rng(9)

    def numbers(shape: tuple[int, int], name: str, spread: int) -> np.ndarray:
        values = rng.normal(size=shape) * 2.0 ** rng.integers(-spread, 3, shape) * (rng.random(shape) > 0.15)
        return matrix.codes_of(values, name)

    a, b, c = numbers((64, k), a_type, 12), numbers((k, n), b_type, 12), numbers((64, n), d_type, 14)
    top, whole = matrix.WIDTHS[a_type], (1 << matrix.WIDTHS[a_type]) - 1
    sign = np.uint32(1 << (top - 1))
    a[1] = a[0] ^ sign  # with b's rows in pairs: sums that cancel
    a[2, k // 2 :], b[k // 2 :, 3] = a[2, : k // 2] ^ sign, b[: k // 2, 3]
    c[2, 3] = 1  # a subnormal accumulator
    a[3] = rng.integers(1, 3, k) << (13 if a_type == "tf32" else 0)  # the smallest subnormals
    a[4, 0] = whole & ~int(sign)  # NaN
    infinity = {"f16": 0x7C00, "bf16": 0x7F80, "tf32": 0x7F800000, "e5m2": 0x7C, "e4m3": 0x7E}[a_type]
    a[5, 1], a[6, 1], a[6, 2] = infinity, infinity, infinity | int(sign)
    b[1:3, 5] = 0  # infinity times zero
    tiles = [tile_of(mn, name, mn_major=False, swizzle_bytes=128) for mn, name in ((64, a_type), (n, b_type))]
    product = Product(a, b, c, types, tiles[0], tiles[1])
    found, outcome = product.run()
    clean(outcome)
    expected = matrix.multiply(a, b, c, (a_type, b_type, d_type, d_type), matrix.model("wgmma", a_type, b_type))
    wrong = np.argwhere(found != expected)
    assert not len(wrong), (wrong[:5], [(hex(found[m, n]), hex(expected[m, n])) for m, n in wrong[:5]])


@pytest.mark.parametrize(("types", "largest"), [
    (("f32", "f16", "f16"), 0x3FFF),
    (("f16", "f16", "f16"), 0x3FFF),
    (("f32", "bf16", "bf16"), 0x3FFF),
    (("f32", "tf32", "tf32"), 0x3FFFE000),
    (("f32", "e5m2", "e5m2"), 0x3F),
    (("f32", "e4m3", "e4m3"), 0x3F),
])  # fmt: skip
@pytest.mark.parametrize("sign", [0, 1])
def test_sums_of_terms_that_are_all_as_large_as_their_exponent_allows(
    types: tuple[str, str, str], largest: int, sign: int
) -> None:
    """Sixteen products just below 4 and an accumulator just below 2: more than 32-bit sums of the terms could hold."""
    d_type, a_type, b_type = types
    n, k = 8, K_OF[a_type]
    a, b = np.full((64, k), largest, np.uint32), np.full((k, n), largest, np.uint32)
    a |= np.uint32(sign << (matrix.WIDTHS[a_type] - 1))
    c = np.full((64, n), (0x3FFF if d_type == "f16" else 0x3FFFFFFF), np.uint32)
    c |= np.uint32(sign << (15 if d_type == "f16" else 31))
    a[:, 0] -= (np.arange(64) % 4 == 3).astype(np.uint32) * (0x2000 if a_type == "tf32" else 1)
    tiles = [tile_of(mn, a_type, mn_major=False, swizzle_bytes=64) for mn in (64, n)]
    found, outcome = Product(a, b, c, types, tiles[0], tiles[1]).run()
    clean(outcome)
    expected = matrix.multiply(a, b, c, (a_type, b_type, d_type, d_type), matrix.model("wgmma", a_type, b_type))
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("type_name", ["bf16", "tf32"])
def test_sums_at_the_ends_of_the_exponent_range(type_name: str) -> None:
    """Products beyond f32's range, and below it, as types with f32's exponents can have them."""
    n, k = 8, K_OF[type_name]
    rng = np.random.default_rng(10)
    shift = 23 if type_name == "tf32" else 7
    exponents = rng.choice([1, 2, 20, 64, 127, 190, 230, 253, 254], (64 + n, k))
    codes = (exponents << shift | rng.integers(0, 1 << shift, exponents.shape) & -8).astype(np.uint32)
    codes |= (rng.integers(0, 2, codes.shape) << (matrix.WIDTHS[type_name] - 1)).astype(np.uint32)
    codes &= np.uint32(0xFFFFE000 if type_name == "tf32" else 0xFFFF)
    a, b = codes[:64], np.ascontiguousarray(codes[64:].T)
    a[:16], a[16:32] = a[0], a[1]  # rows that differ by the accumulator only
    c = rng.choice([0, 1, 0x00800000, 0x80000001, 0x3F800001, 0x7F7FFFFF, 0xFF7FFFFF], (64, n)).astype(np.uint32)
    tiles = [tile_of(mn, type_name, mn_major=False, swizzle_bytes=128) for mn in (64, n)]
    product = Product(a, b, c, ("f32", type_name, type_name), tiles[0], tiles[1])
    found, outcome = product.run()
    clean(outcome)
    expected = matrix.multiply(
        a, b, c, (type_name, type_name, "f32", "f32"), matrix.model("wgmma", type_name, type_name)
    )
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("policy", [LATE, EARLY, mixed(1), mixed(2)], ids=lambda policy: policy.name)
def test_a_chain_over_k_advances_the_start_address(policy: Policy) -> None:
    """K = 64 as four wgmmas whose descriptors advance by 32 bytes within the 128-byte swizzle, in two groups."""
    rng = np.random.default_rng(11)
    a_codes, a_values = small(rng, (64, 64), "bf16")
    b_codes, b_values = small(rng, (64, 32), "bf16")
    a_tile, b_tile = (Tile(mn, 64, 16, False, 128, 16, 1024) for mn in (64, 32))
    shared = np.zeros(8192 + 4096, np.uint8)
    a_tile.scatter(a_codes, SHARED_BASE, shared, SHARED_BASE)
    b_tile.scatter(b_codes.T, SHARED_BASE + 8192, shared, SHARED_BASE)
    zeros, types = np.zeros((64, 32), np.uint32), ("f32", "bf16", "bf16")
    one = Product(a_codes[:, :16], b_codes[:16], zeros, types, a_tile, b_tile, placed=(shared, 0, 8192))
    kernel = one.kernel()
    accumulators = "{" + ", ".join(f"%o{n}" for n in range(16)) + "}"
    steps = "".join(
        one.instruction(accumulators)
        + "add.s64 %rd0, %rd0, 2; add.s64 %rd1, %rd1, 2;"
        + ("wgmma.commit_group.sync.aligned;" if step % 2 else "")
        for step in range(4)
    )
    kernel.body = f"""mov.b64 %rd0, {a_tile.descriptor(SHARED_BASE)};
        mov.b64 %rd1, {b_tile.descriptor(SHARED_BASE + 8192)}; setp.eq.u32 %pr7, 0, 0;
        wgmma.fence.sync.aligned;
        {"".join(f"mov.b32 %o{n}, 0;" for n in range(16))}
        {steps}
        wgmma.wait_group.sync.aligned 1;
        wgmma.wait_group.sync.aligned 0;"""
    outcome = kernel.run(policy)
    clean(outcome)  # zeroing accumulators behind the fence is what known-right kernels do
    assert np.array_equal(one.matrix_of(outcome.registers), exact("f32", a_values @ b_values))


@pytest.mark.parametrize("rows", range(1, 8))
def test_a_base_offset_says_where_the_pattern_begins(rows: int) -> None:
    """The tile lies `rows` 128-byte rows behind a 1024-byte boundary, and is swizzled from its own start on."""
    rng = np.random.default_rng(12)
    a_codes, a_values = small(rng, (64, 16), "f16")
    b_codes, b_values = small(rng, (16, 16), "f16")
    start = SHARED_BASE + 128 * rows
    tiles = [Tile(mn, 16, 16, False, 128, 16, 1024, base_offset=rows) for mn in (64, 16)]
    shared = np.zeros(16384, np.uint8)
    tiles[0].scatter(a_codes, start, shared, SHARED_BASE)
    tiles[1].scatter(b_codes.T, start + 9216, shared, SHARED_BASE)
    # the pattern as it would be at a boundary, moved as a whole: row r of 128 bytes is exchanged by r
    moved = np.zeros_like(shared)
    plain = [Tile(mn, 16, 16, False, 128, 16, 1024) for mn in (64, 16)]
    plain[0].scatter(a_codes, 0, moved[128 * rows :], 0)
    plain[1].scatter(b_codes.T, 0, moved[128 * rows + 9216 :], 0)
    assert np.array_equal(shared, moved)
    zeros, types = np.zeros((64, 16), np.uint32), ("f32", "f16", "f16")
    placed = shared, 128 * rows, 128 * rows + 9216
    found, outcome = Product(a_codes, b_codes, zeros, types, tiles[0], tiles[1], placed=placed).run()
    clean(outcome)
    assert np.array_equal(found, exact("f32", a_values @ b_values))
