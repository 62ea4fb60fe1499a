"""ldmatrix, stmatrix and mma.sync against the oracle, which is written from the PTX ISA's fragment tables."""

from __future__ import annotations

import numpy as np
import pytest

from dsv4.emulator.oracle import matrix
from tests.emulator.matrix_machine import SHARED_BASE, Matrices, clean

ROW_STRIDE = 48  # bytes between rows: 16-byte aligned, and no power of two

LOADS = [
    (f"m8n8.x{count}{'.trans' if transposed else ''}.shared.b16", "m8n8", count, transposed, None)
    for count in (1, 2, 4)
    for transposed in (False, True)
]
LOADS += [(f"m16n16.x{count}.trans.shared.b8", "m16n16", count, True, None) for count in (1, 2)]
LOADS += [
    (f"{shape}.x{count}{trans}.shared::cta.b8x16.{source}", shape, count, bool(trans), bits)
    for source, bits in (("b6x16_p32", 6), ("b4x16_p64", 4))
    for shape, count, trans in (
        ("m8n16", 1, ""),
        ("m8n16", 2, ""),
        ("m8n16", 4, ""),
        ("m16n16", 1, ".trans"),
        ("m16n16", 2, ".trans"),
    )
]


def row_addresses(count: int) -> tuple[str, np.ndarray]:
    """Statements that put into %r0 the address of the row that a lane names, and the offsets of the rows.

    Rows are dealt out in a shuffled order; lanes that name no row point outside of shared memory.
    """
    order = np.random.default_rng(count).permutation(count)
    table = "".join(
        f"setp.eq.u32 %pr0, %r1, {lane}; @%pr0 mov.u32 %r0, {SHARED_BASE + ROW_STRIDE * row};\n"
        for lane, row in enumerate(order.tolist())
    )
    return f"and.b32 %r1, %tid, 31; mov.u32 %r0, 0x00800000;\n{table}", order * ROW_STRIDE


@pytest.mark.parametrize(("opcode", "shape", "count", "transposed", "bits"), LOADS, ids=[load[0] for load in LOADS])
def test_ldmatrix_gives_each_lane_its_elements(
    opcode: str, shape: str, count: int, transposed: bool, bits: int | None
) -> None:
    n_rows = count * (16 if shape == "m16n16" else 8)
    registers = count * (2 if shape == "m16n16" else 1)
    setup, offsets = row_addresses(n_rows)
    shared = np.random.default_rng(1).integers(0, 256, 32 * ROW_STRIDE).astype(np.uint8)
    outputs = ", ".join(f"%o{n}" for n in range(registers))
    body = f"{setup} ldmatrix.sync.aligned.{opcode} {{{outputs}}}, [%r0+16];"
    offsets = offsets + 16
    outcome = Matrices(body, outputs=registers, shared=shared, threads=32).run()
    clean(outcome)
    rows = np.stack([shared[at : at + 16] for at in offsets])
    if bits:
        rows = np.stack([matrix.unpacked_row(row, bits) for row in rows])
    assert np.array_equal(outcome.registers, matrix.ldmatrix(rows, shape, transposed=transposed))


@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix_passes_poison_on_element_by_element(transposed: bool) -> None:
    shared = np.arange(8 * 16, dtype=np.uint8)
    unset = np.zeros(32, bool)
    unset[4 * 3 + 2] = True  # row 3, bytes 8..11: 16-bit columns 4 and 5
    body = f"""and.b32 %r1, %tid, 7; mad.lo.u32 %r0, %r1, 16, %smem;
        ldmatrix.sync.aligned.m8n8.x1{".trans" if transposed else ""}.shared.b16 {{%o0}}, [%r0];"""
    outcome = Matrices(body, outputs=1, shared=shared, unset=unset, threads=32).run()
    # row 3, 2 columns a lane: lane 3 · 4 + 2; transposed, rows 2 and 3 of columns 4 and 5: lanes 4 · 4 + 1, 5 · 4 + 1
    expected = [4 * 4 + 1, 5 * 4 + 1] if transposed else [3 * 4 + 2]
    assert np.flatnonzero(outcome.poison[0]).tolist() == expected
    assert outcome.kinds() == []


STORES = [
    (f"m8n8.x{count}{'.trans' if transposed else ''}.shared.b16", "m8n8", count, transposed)
    for count in (1, 2, 4)
    for transposed in (False, True)
]
STORES += [(f"m16n8.x{count}.trans.shared.b8", "m16n8", count, True) for count in (1, 2, 4)]


@pytest.mark.parametrize(("opcode", "shape", "count", "transposed"), STORES, ids=[store[0] for store in STORES])
def test_stmatrix_is_where_the_figures_say(opcode: str, shape: str, count: int, transposed: bool) -> None:
    registers = np.random.default_rng(2).integers(0, 2**32, (count, 32), dtype=np.uint64).astype(np.uint32)
    setup, offsets = row_addresses(8 * count)
    before = np.random.default_rng(3).integers(0, 256, 32 * ROW_STRIDE).astype(np.uint8)
    inputs = ", ".join(f"%i{n}" for n in range(count))
    body = f"{setup} stmatrix.sync.aligned.{opcode} [%r0+32], {{{inputs}}};"
    outcome = Matrices(body, inputs=registers, shared=before, threads=32, dump_shared=True).run()
    clean(outcome)
    expected = before.copy()
    for at, row in zip(offsets + 32, matrix.stmatrix(registers, shape, transposed=transposed), strict=True):
        expected[at : at + 16] = row
    assert np.array_equal(outcome.shared, expected)


def test_stmatrix_writes_poison_of_its_registers() -> None:
    body = """and.b32 %r1, %tid, 7; mad.lo.u32 %r0, %r1, 16, %smem;
        setp.eq.u32 %pr0, %tid, 9; @!%pr0 mov.u32 %r2, 7;
        stmatrix.sync.aligned.m8n8.x1.shared.b16 [%r0], {%r2};
        bar.warp.sync -1; mad.lo.u32 %r3, %tid, 4, %smem; ld.shared.b32 %o0, [%r3];"""
    outcome = Matrices(body, outputs=1, shared=np.zeros(128, np.uint8), threads=32).run()
    assert np.flatnonzero(outcome.poison[0]).tolist() == [9]  # row 2, second word: word 9 of 128 bytes


def test_a_row_address_that_is_not_a_multiple_of_16_is_found() -> None:
    body = (
        "mad.lo.u32 %r0, %tid, 16, %smem; add.u32 %r0, %r0, 8; ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%o0}, [%r0];"
    )
    outcome = Matrices(body, outputs=1, shared=np.zeros(1024, np.uint8), threads=32).run()
    assert outcome.kinds() == ["misaligned"]


def test_rows_outside_of_shared_memory_are_found() -> None:
    body = "mad.lo.u32 %r0, %tid, 16, %smem; stmatrix.sync.aligned.m8n8.x2.shared.b16 [%r0], {%tid, %tid};"
    outcome = Matrices(body, shared=np.zeros(240, np.uint8), threads=32).run()
    assert outcome.kinds() == ["out_of_bounds"]


def test_ldmatrix_of_what_another_warp_writes_without_a_barrier_is_a_race() -> None:
    body = """and.b32 %r1, %tid, 31; mad.lo.u32 %r0, %r1, 16, %smem; setp.lt.u32 %pr0, %tid, 32;
        @%pr0 st.shared.b32 [%r0], %tid;
        @%pr0 bra DONE;
        ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r2, %r3, %r4, %r5}, [%r0];
        DONE:"""
    outcome = Matrices(body, shared=np.zeros(512, np.uint8), threads=64).run()
    assert outcome.kinds() == ["race"]


# ------------------------------------------------------------------------------------------------------- mma.sync

FLOATS = [  # shape, D, A, B, C
    ("m16n8k8", "f32", "f16", "f16", "f32"),
    ("m16n8k16", "f32", "f16", "f16", "f32"),
    ("m16n8k16", "f16", "f16", "f16", "f16"),
    ("m16n8k8", "f32", "bf16", "bf16", "f32"),
    ("m16n8k16", "f32", "bf16", "bf16", "f32"),
    ("m16n8k4", "f32", "tf32", "tf32", "f32"),
    ("m16n8k8", "f32", "tf32", "tf32", "f32"),
    ("m16n8k16", "f32", "e4m3", "e5m2", "f32"),
    ("m16n8k32", "f32", "e4m3", "e4m3", "f32"),
    ("m16n8k32", "f32", "e5m2", "e4m3", "f32"),
    ("m16n8k32", "f16", "e4m3", "e4m3", "f16"),
]
INTEGERS = [
    ("m8n8k16", "s8", "u8"),
    ("m16n8k16", "u8", "s8"),
    ("m16n8k32", "s8", "s8"),
    ("m16n8k32", "s4", "u4"),
    ("m16n8k64", "u4", "s4"),
    ("m8n8k32", "s4", "s4"),
]


def sizes(shape: str) -> tuple[int, int]:
    m, k = shape.split("n8k")
    return int(m[1:]), int(k)


def brackets(letter: str, count: int, first: int = 0) -> str:
    return "{" + ", ".join(f"%{letter}{first + n}" for n in range(count)) + "}"


def run_mma(shape: str, types: tuple[str, str, str, str], a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """D as codes [m, 8] of codes A [m, k], B [k, 8], C [m, 8]."""
    m, k = sizes(shape)
    d_type, a_type, b_type, c_type = types
    bits, c_bits, d_bits = matrix.WIDTHS[a_type], 16 if c_type == "f16" else 32, 16 if d_type == "f16" else 32
    of_a = matrix.pack(a[matrix.a_fragment(k, bits, m)], bits)
    of_b = matrix.pack(b[matrix.b_fragment(k, bits)], bits)
    of_c = matrix.pack(c[matrix.d_fragment(8, m)], c_bits)
    outputs = m * 8 * d_bits // 1024
    n_a, n_b = len(of_a), len(of_b)
    body = f"""mma.sync.aligned.{shape}.row.col.{d_type}.{a_type}.{b_type}.{c_type} {brackets("o", outputs)},
        {brackets("i", n_a)}, {brackets("i", n_b, n_a)}, {brackets("i", len(of_c), n_a + n_b)};"""
    outcome = Matrices(body, outputs=outputs, inputs=np.concatenate([of_a, of_b, of_c]), threads=32).run()
    clean(outcome)
    d = np.zeros((m, 8), np.uint32)
    d[matrix.d_fragment(8, m)] = matrix.unpack(outcome.registers, d_bits)
    return d


def random_codes(rng: np.random.Generator, name: str, shape: tuple[int, int], spread: int) -> np.ndarray:
    """Finite numbers of both signs with exponents that differ by up to `spread`, some zeros, in the type's codes."""
    values = rng.normal(size=shape) * 2.0 ** rng.integers(-spread, 1, shape) * (rng.random(shape) > 0.1)
    return matrix.codes_of(values, name)


@pytest.mark.parametrize(("shape", "d", "a", "b", "c"), FLOATS, ids=lambda value: value)
def test_mma_of_floats(shape: str, d: str, a: str, b: str, c: str) -> None:
    m, k = sizes(shape)
    rng = np.random.default_rng(hash((k, m)) % 1000)
    left, right = random_codes(rng, a, (m, k), 6), random_codes(rng, b, (k, 8), 6)
    accumulator = random_codes(rng, c, (m, 8), 3)
    found = run_mma(shape, (d, a, b, c), left, right, accumulator)
    expected = matrix.mma_sync(left, right, accumulator, (a, b, c, d))
    assert np.array_equal(found, expected)


@pytest.mark.parametrize(("shape", "a", "b"), INTEGERS, ids=lambda value: value)
@pytest.mark.parametrize("saturate", [False, True])
def test_mma_of_integers(shape: str, a: str, b: str, saturate: bool) -> None:
    m, k = sizes(shape)
    rng = np.random.default_rng(k)
    left = rng.integers(0, 1 << matrix.WIDTHS[a], (m, k)).astype(np.uint32)
    right = rng.integers(0, 1 << matrix.WIDTHS[b], (k, 8)).astype(np.uint32)
    accumulator = rng.integers(0, 1 << 32, (m, 8)).astype(np.uint32)
    accumulator[0], accumulator[m - 1] = 0x7FFFFFF0, 0x80000010  # these overflow
    satfinite = shape + ".row.col" + (".satfinite" if saturate else "")
    types = ("s32", a, b, "s32")
    of_a = matrix.pack(left[matrix.a_fragment(k, matrix.WIDTHS[a], m)], matrix.WIDTHS[a])
    of_b = matrix.pack(right[matrix.b_fragment(k, matrix.WIDTHS[b])], matrix.WIDTHS[b])
    of_c = accumulator[matrix.d_fragment(8, m)]
    n_a, n_b = len(of_a), len(of_b)
    body = f"""mma.sync.aligned.{satfinite}.{".".join(types)} {brackets("o", len(of_c))}, {brackets("i", n_a)},
        {brackets("i", n_b, n_a)}, {brackets("i", len(of_c), n_a + n_b)};"""
    outcome = Matrices(body, outputs=len(of_c), inputs=np.concatenate([of_a, of_b, of_c]), threads=32).run()
    clean(outcome)
    expected = matrix.multiply_integers(left, right, accumulator, (a, b), saturate=saturate)
    assert np.array_equal(outcome.registers, expected[matrix.d_fragment(8, m)])
    if saturate:
        assert (expected == 0x7FFFFFFF).any() or (expected == 0x80000000).any()


@pytest.mark.parametrize("k", [4, 8, 16])
def test_mma_of_doubles(k: int) -> None:
    rng = np.random.default_rng(k)
    left, right, accumulator = rng.normal(size=(16, k)), rng.normal(size=(k, 8)), rng.normal(size=(16, 8))
    fragments = [
        left[matrix.a_fragment(k, 64)], right[matrix.b_fragment(k, 64)], accumulator[matrix.d_fragment()],
    ]  # fmt: skip
    words = [np.ascontiguousarray(one).view(np.uint32).reshape(len(one), 32, 2) for one in fragments]
    inputs = np.concatenate([word.transpose(0, 2, 1).reshape(-1, 32) for word in words])  # low, high of each
    n_a, n_b = len(fragments[0]), len(fragments[1])
    pairs = "".join(f"mov.b64 %rd{n}, {{%i{2 * n}, %i{2 * n + 1}}};\n" for n in range(n_a + n_b + 4))
    body = f"""{pairs}
        mma.sync.aligned.m16n8k{k}.row.col.f64.f64.f64.f64 {brackets("rd", 4)}, {brackets("rd", n_a)},
            {brackets("rd", n_b, n_a)}, {brackets("rd", 4, n_a + n_b)};
        {"".join(f"mov.b64 {{%o{2 * n}, %o{2 * n + 1}}}, %rd{n};" for n in range(4))}"""
    outcome = Matrices(body, outputs=8, inputs=inputs, threads=32).run()
    clean(outcome)
    found = outcome.registers.reshape(4, 2, 32).transpose(0, 2, 1).copy().view(np.float64)[..., 0]
    expected = (left @ right + accumulator)[matrix.d_fragment()]
    assert np.allclose(found, expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(
    ("operand", "lane", "named"),
    [("A", 9, "operand A of mma.sync: the register that holds row 2, k 10"),
     ("B", 14, "operand B of mma.sync: the register that holds column 3, k 12"),
     ("C", 22, None)],
)  # fmt: skip
def test_undefined_operands_of_mma(operand: str, lane: int, named: str | None) -> None:
    ones = np.full((10, 32), 0x3F803F80, np.uint32)  # bf16 1, 1; as f32 about 1
    a, b, c = (
        ("%r1" if operand == letter else instead) for letter, instead in (("A", "%i2"), ("B", "%i5"), ("C", "%i7"))
    )
    body = f"""setp.ne.u32 %pr0, %tid, {lane}; @%pr0 mov.u32 %r1, 0;
        mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {{%o0, %o1, %o2, %o3}}, {{%i0, %i1, {a}, %i3}},
            {{%i4, {b}}}, {{%i6, {c}, %i8, %i9}};"""
    outcome = Matrices(body, outputs=4, inputs=ones, threads=32).run()
    said = outcome.messages("undefined_value")
    assert [one.split(" was never")[0] for one in said] == ([named] if named else [])
    poison = np.zeros((16, 8), bool)
    if operand == "A":
        poison[2, :] = True  # lane 9, register 2: row 2, K 8 + 2
    elif operand == "B":
        poison[:, 3] = True  # lane 14, register 1: column 3, K 8 + 4
    else:
        poison[5, 5] = True  # lane 22, c1
    assert np.array_equal(outcome.poison, poison[matrix.d_fragment()])
