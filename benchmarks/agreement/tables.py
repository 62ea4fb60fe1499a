"""Kernels that apply many statements to the same operands: one row of ``out`` a statement, one column an element."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks.agreement.probe import OUT, TARGET, Probe
from dsv4.emulator.text_kernel import Kernel, aligned

BLOCK = 128
LOAD_TYPES = {1: "b8", 2: "b16", 4: "b32", 8: "b64"}
REGISTER_TYPES = {1: "b16", 2: "b16", 4: "b32", 8: "b64"}
OUT_TYPES = {2: np.uint16, 4: np.uint32, 8: np.uint64}


def table(
    family: str,
    name: str,
    rows: Sequence[tuple[str, str]],
    operands: Mapping[str, np.ndarray],
    *,
    out_bytes: int = 4,
    kind: str = "bits",
    approximate: bool = False,
    block: int = BLOCK,
) -> Probe:
    """A probe of ``rows`` (label, statement) over ``operands`` (1D arrays of one length, a multiple of ``block``).

    A statement reads the operands by name and leaves its result in ``d`` (``out_bytes`` wide). It may use p, q
    (predicates), h0..3 (b16), t0..5 (b32) and w0..3 (b64). ``lane`` and ``index`` hold the lane and the element.
    """
    sizes = {len(array) for array in operands.values()}
    if len(sizes) != 1 or (count := sizes.pop()) % block:
        raise ValueError(f"{family}/{name}: operands of {sizes} elements; valid: one length, a multiple of {block}")
    registers = "".join(f".reg .{REGISTER_TYPES[a.itemsize]} {name};\n" for name, a in operands.items())
    loads = "".join(
        f"mad.wide.u32 at, index, {a.itemsize}, %a_{name}; ld.global.{LOAD_TYPES[a.itemsize]} {name}, [at];\n"
        for name, a in operands.items()
    )
    scratch = f".reg .pred p, q; .reg .b16 h<4>; .reg .b32 t<6>; .reg .b64 w<4>; .reg .{REGISTER_TYPES[out_bytes]} d;\n"
    body = f""".reg .b32 index, lane; .reg .b64 at, to;
    {registers}
    mov.u32 index, %ctaid.x; mad.lo.u32 index, index, {block}, %thread; mov.u32 lane, %laneid;
    {loads}
    mad.wide.u32 to, index, {out_bytes}, %a_{OUT};
    """
    for _, statement in rows:
        body += f"{{ {scratch} {statement} st.global.{LOAD_TYPES[out_bytes]} [to], d; }}\n"
        body += f"add.u64 to, to, {count * out_bytes};\n"
    arrays = {name: aligned(array) for name, array in operands.items()}
    arrays[OUT] = aligned(np.zeros((len(rows), count), OUT_TYPES[out_bytes]))
    kernel = Kernel(body, {}, arrays, block=block, grid=count // block, smem_bytes=16, target=TARGET)
    kernel.read_only = tuple(operands)
    return Probe(family, name, kernel, tuple(label for label, _ in rows), kind, approximate)


def bell(rng: np.random.Generator, count: int) -> np.ndarray:
    """Numbers around 0 with variance 1. Made by additions only: the same bits on every machine."""
    return (rng.random((12, count)).sum(axis=0) - 6.0) if count else np.zeros(0)


def scaled(rng: np.random.Generator, count: int, low: int, high: int) -> np.ndarray:
    """The same times powers of two from 2^low to 2^(high - 1)."""
    return np.ldexp(bell(rng, count), rng.integers(low, high, count).astype(np.int32))


def f32_bits(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, np.float32).view(np.uint32)


SPECIAL_F32 = np.array(
    [
        0, 1, 2, 0x007FFFFF, 0x00800000, 0x00800001, 0x3F800000, 0x3F7FFFFF, 0x3F800001, 0x7F7FFFFF, 0x7F800000,
        0x7FC00000, 0x7F800001, 0x7FFFFFFF, 0x40000000, 0x3F000000, 0x4B000000, 0x4B800000, 0x4F000000, 0x4F800000,
        0x5F000000, 0x33800000, 0x477FE000, 0x477FEFFF, 0x477FF000, 0x38800000, 0x387FFFFF, 0x33000000, 0x43E00000,
        0x43E80000, 0x43F00000, 0x47600000,
    ],
    np.uint32,
)  # fmt: skip


def mixed_f32(rng: np.random.Generator, count: int) -> np.ndarray:
    """Bits of f32: special values of both signs, any bits, moderate numbers, and ties of narrower formats."""
    special = np.concatenate([SPECIAL_F32, SPECIAL_F32 | 0x80000000])
    quarter = count // 4
    any_bits = rng.integers(0, 2**32, quarter, dtype=np.uint64).astype(np.uint32)
    moderate = f32_bits(scaled(rng, quarter, -12, 13))
    ties = f32_bits(scaled(rng, quarter, -26, 18))
    keep = rng.integers(1, 14, quarter)  # bits that are left of the fraction, the last one set: a tie of one less
    step = (np.uint32(1) << (23 - keep).astype(np.uint32)).astype(np.uint32)
    ties = (ties & ~(step - 1)) | step
    near = ties + rng.integers(-1, 2, quarter).astype(np.uint32)  # on the tie, one below, one above
    found = np.concatenate([any_bits, moderate, ties, near])
    rng.shuffle(found)
    found[: len(special)] = special
    return found[:count].copy()


def mixed_u32(rng: np.random.Generator, count: int) -> np.ndarray:
    """Integers of all magnitudes, small ones and edges among them."""
    edges = np.array([0, 1, 2, 31, 32, 33, 63, 64, 255, 256, 2**31 - 1, 2**31, 2**31 + 1, 2**32 - 1], np.uint64)
    wide = rng.integers(0, 2**32, count, dtype=np.uint64) >> rng.integers(0, 32, count, dtype=np.uint64)
    wide ^= np.where(rng.integers(0, 2, count), np.uint64(0xFFFFFFFF), np.uint64(0))
    wide[: 4 * len(edges)] = np.tile(edges, 4)
    return rng.permutation(wide).astype(np.uint32)


def mixed_u64(rng: np.random.Generator, count: int) -> np.ndarray:
    low, high = mixed_u32(rng, count).astype(np.uint64), mixed_u32(rng, count).astype(np.uint64)
    both = low | high << np.uint64(32)
    return np.where(rng.integers(0, 4, count) == 0, low, both)
