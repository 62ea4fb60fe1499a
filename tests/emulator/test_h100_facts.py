"""What an H100 does where manuals are silent or easily misread: each fact by itself, in numbers that one can check.

Measured as docs/notes/emulator_vs_h100.md says; `test_h100_answers.py` holds the emulator to the whole measurement.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dsv4.emulator.oracle import matrix
from dsv4.emulator.text_kernel import Kernel, aligned, barrier_init, copy_words, dump, expect, fill, wait
from dsv4.emulator.tma_descriptor import DescriptorError, TensorMap, decode, from_driver_call

TILE = 1024
LOAD = "@%lead cp.async.bulk.tensor.2d.shared::cta.global.tile.mbarrier::complete_tx::bytes"
STORE = "@%lead cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group"
REDUCE = "@%lead cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.tile.bulk_group"
FENCE = "fence.proxy.async.shared::cta; bar.sync 0;\n"
DONE = "@%lead cp.async.bulk.commit_group; @%lead cp.async.bulk.wait_group 0;\n"
CLEAR = copy_words(256, load="mov.u32 x, 0;", store=f"add.u32 %at, %at, %smem; st.shared.b32 [%at+{TILE}], x;")


def numbers(rows: int, columns: int) -> np.ndarray:
    return aligned(np.arange(1, rows * columns + 1, dtype=np.uint16).reshape(rows, columns))


def map_of(memory: np.ndarray, box: tuple[int, int], columns: int = 0, **fields: object) -> TensorMap:
    """A map over the first `columns` of a 2D array of u16."""
    found = TensorMap(
        memory.ctypes.data, "u16", (columns or memory.shape[1], memory.shape[0]), (2 * memory.shape[1],), box,
        spans_fetch=False,
    )  # fmt: skip
    return replace(found, **fields)  # type: ignore[arg-type]


def loaded(tensor_map: TensorMap, memory: np.ndarray, place: tuple[int, int], byte_count: int) -> np.ndarray:
    """1024 bytes of shared memory behind a load, as u16; what it did not write is 0."""
    out = aligned(np.zeros(512, np.uint16))
    body = barrier_init() + CLEAR + FENCE + expect(byte_count)
    body += (
        f"{LOAD} [%smem+{TILE}], [%m_t, {{{place[0]}, {place[1]}}}], [%smem];\n"
        + wait("%smem")
        + dump("out", 256, TILE)
    )
    assert Kernel(body, {"t": tensor_map}, {"memory": memory, "out": out}).findings() == []
    return out


def test_a_row_shorter_than_the_swizzles_span_still_takes_the_whole_span() -> None:
    """32 bytes of a row under the 128-byte swizzle: rows lie 128 bytes apart, and only the data counts as bytes."""
    memory = numbers(8, 64)
    tile = loaded(map_of(memory, (16, 4), swizzle_bytes=128), memory, (0, 2), 4 * 32).reshape(8, 8, 8)
    for row in range(4):
        units = [unit ^ row for unit in (0, 1)]
        assert np.array_equal(tile[row][units].ravel(), memory[2 + row, :16])
        assert not np.delete(tile[row], units, axis=0).any()
    assert not tile[4:].any()


def test_an_element_stride_of_dimension_0_does_not_count() -> None:
    memory = numbers(8, 64)
    tile = loaded(map_of(memory, (32, 4), element_strides=(2, 2)), memory, (8, 1), 2 * 64)
    assert np.array_equal(tile[:64].reshape(2, 32), memory[[1, 3], 8:40])


def test_nan_fill_is_7ff7() -> None:
    memory = numbers(4, 8)
    tensor_map = replace(map_of(memory, (8, 8)), element_type="bf16", fill_nan=True)
    assert set(loaded(tensor_map, memory, (0, 4), 128)[:64].tolist()) == {0x7FF7}


@pytest.mark.parametrize("opcode", [STORE, REDUCE])
def test_stores_and_reductions_reach_to_the_end_of_a_rows_last_16_bytes(opcode: str) -> None:
    """A row of 5 elements: the 3 behind it, up to 16 bytes, are written too, the next ones are not."""
    memory, source = numbers(4, 16), aligned(np.full(64, 0x3C00, np.uint16))
    before = memory.copy()
    tensor_map = replace(map_of(memory, (16, 4), columns=5), element_type="u16" if opcode == STORE else "f16")
    body = fill("source", 32, TILE) + FENCE + f"{opcode} [%m_t, {{0, 0}}], [%smem+{TILE}];\n" + DONE
    assert Kernel(body, {"t": tensor_map}, {"memory": memory, "source": source}).findings() == []
    assert np.array_equal(memory[:, 8:], before[:, 8:])
    assert (memory[:, :8] != before[:, :8]).all()
    if opcode == STORE:
        assert (memory[:, :8] == 0x3C00).all()


def test_a_store_whose_last_16_bytes_leave_the_tensors_memory_is_found() -> None:
    memory, source = numbers(2, 8)[:, :], aligned(np.full(64, 7, np.uint16))
    short = aligned(np.zeros(13, np.uint16))  # two rows of 8, of which 5 count: 3 elements are missing at the end
    tensor_map = TensorMap(short.ctypes.data, "u16", (5, 2), (16,), (8, 2), spans_fetch=False)
    body = fill("source", 32, TILE) + FENCE + f"{STORE} [%m_t, {{0, 0}}], [%smem+{TILE}];\n" + DONE
    found = Kernel(body, {"t": tensor_map}, {"short": short, "source": source, "memory": memory}).findings()
    assert [kind for kind, _ in found] == ["out_of_bounds"]


def test_a_tile_may_begin_anywhere_in_the_swizzles_pattern() -> None:
    """The pattern is one of absolute addresses: a tile 128 bytes further on begins with the pattern's second row."""
    memory = numbers(8, 64)
    out = aligned(np.zeros(512, np.uint16))
    body = barrier_init() + CLEAR + FENCE + expect(256)
    body += f"{LOAD} [%smem+{TILE + 128}], [%m_t, {{0, 0}}], [%smem];\n" + wait("%smem") + dump("out", 256, TILE)
    tensor_map = map_of(memory, (64, 2), swizzle_bytes=128)
    assert Kernel(body, {"t": tensor_map}, {"memory": memory, "out": out}).findings() == []
    tile = out.reshape(8, 8, 8)
    for row in range(2):
        assert np.array_equal(tile[row + 1][np.arange(8) ^ (row + 1)].ravel(), memory[row])


def one(statement: str, words: list[int], bits: int = 32) -> int:
    """What a statement leaves in d; it reads a and b."""
    dtype = {32: np.uint32, 64: np.uint64, 16: np.uint16}[bits]
    arrays = {"in": aligned(np.array(words, dtype)), "out": aligned(np.zeros(2, dtype))}
    size = bits // 8
    body = f"""{{ .reg .b{bits} a, b, d; ld.global.b{bits} a, [%a_in]; ld.global.b{bits} b, [%a_in+{size}];
        {statement} @%lead st.global.b{bits} [%a_out], d; }}"""
    kernel = Kernel(body, arrays=arrays, smem_bytes=16)
    assert kernel.findings() == []
    return int(kernel.arrays["out"][0])


NAN_A, NAN_B = 0x7FF0000000000001, 0xFFFC000000000000


@pytest.mark.parametrize(
    ("statement", "words", "bits", "expected"),
    [
        ("abs.f32 d, a;", [0xFFC00000, 0], 32, 0x7FFFFFFF),
        ("neg.f32 d, a;", [0x7F800001, 0], 32, 0x7FFFFFFF),
        ("neg.f16 d, a;", [0x7E01, 0], 16, 0x7FFF),
        ("add.f64 d, a, b;", [NAN_A, NAN_B], 64, NAN_B),
        ("add.f64 d, b, a;", [NAN_A, NAN_B], 64, NAN_A | 1 << 51),
        ("div.rn.f64 d, a, b;", [NAN_A, NAN_B], 64, NAN_A | 1 << 51),
        ("fma.rn.f64 d, a, a, b;", [NAN_A, NAN_B], 64, NAN_A | 1 << 51),
        ("sqrt.rn.f64 d, a;", [0xBFF0000000000000, 0], 64, 0xFFF8000000000000),
        ("min.f64 d, a, b;", [NAN_A, NAN_B], 64, NAN_B),
        ("cvt.rna.tf32.f32 d, a;", [0x7F800001, 0], 32, 0x7F800000),
        ("cvt.rn.tf32.f32 d, a;", [0xFF800001, 0], 32, 0x7FFFE000),
        ("div.approx.f32 d, a, b;", [0x7F000000, 0x7F000000], 32, 0),
        ("div.full.f32 d, a, b;", [0x7F000000, 0x7F000000], 32, 0x3F800000),
        ("div.approx.f32 d, a, b;", [1, 1], 32, 0x3F800000),
    ],
)
def test_scalars(statement: str, words: list[int], bits: int, expected: int) -> None:
    assert hex(one(statement, words, bits)) == hex(expected)


@pytest.mark.parametrize(
    ("statement", "space", "before", "value", "after"),
    [
        ("add.f32", "global", 0x00000001, 0x00000001, 0),  # subnormal numbers are flushed there, and not here
        ("add.f32", "shared", 0x00000001, 0x00000001, 2),
        ("add.f32", "global", 0xFFC00000, 0x3F800000, 0x7FFFFFFF),
        ("add.noftz.f16x2", "global", 0x00007C01, 0x00003C00, 0x00007FFF),
    ],
)
def test_atomics(statement: str, space: str, before: int, value: int, after: int) -> None:
    arrays = {"out": aligned(np.array([before, value], np.uint32))}
    body = "ld.global.b32 %r1, [%a_out]; ld.global.b32 %r2, [%a_out+4];\n"
    if space == "shared":
        body += f"@%lead st.shared.b32 [%smem], %r1; @%lead red.shared.{statement} [%smem], %r2;\n"
        body += "@%lead ld.shared.b32 %r3, [%smem]; @%lead st.global.b32 [%a_out], %r3;\n"
    else:
        body += f"bar.warp.sync -1; @%lead red.global.{statement} [%a_out], %r2;\n"
    kernel = Kernel(body, arrays=arrays, smem_bytes=16)
    assert kernel.findings() == []
    assert hex(kernel.arrays["out"][0]) == hex(after)


def test_fp8_of_mma_sync_is_two_products_of_f16_and_an_addition() -> None:
    """1 + 2^-9 in C is kept to the bit, though 13 bits beside a product of 448 · 448 would not hold it."""
    a, b = np.zeros((16, 32), np.uint32), np.zeros((32, 8), np.uint32)
    a[:, 0], a[:, 2], b[0], b[2] = 0x7E, 0xFE, 0x7E, 0x7E  # 448 · 448 in the first product, − 448 · 448 in the second
    c = np.full((16, 8), 0x3F804000, np.uint32)
    assert set(matrix.mma_sync(a, b, c, ("e4m3", "e4m3", "f32", "f32")).ravel().tolist()) == {0x3F804000}


def test_the_drivers_tensor_maps_are_read_and_its_refusals_shared() -> None:
    asked = {"interleave": 0, "swizzle": 0, "l2_promotion": 0, "fill": 0}
    shape = ((256, 100), (512,), (16, 64), (1, 1))
    words = (  # of the driver 580.159.04: bit 65 is not set; words 16 and 18 say what a box takes
        "00705634127f0000100500002000000000000000000000000000000000000000"
        "ff000000630000000000000000000000000000000000000f3f00000000000000"
        "00080000000000001000000000000000"
    )
    theirs = bytes.fromhex(words.ljust(256, "0"))
    ours = from_driver_call(9, 0x7F1234567000, *shape, **asked)
    assert replace(decode(theirs), spans_fetch=False) == replace(ours, element_strides=(1, 1))
    for changed in ({"fill": 2}, {"l2_promotion": 4}):
        with pytest.raises(DescriptorError):
            from_driver_call(9, 0x7F1234567000, *shape, **{**asked, **changed})
    with pytest.raises(DescriptorError, match="fill_nan"):
        from_driver_call(2, 0x7F1234567000, (256, 100), (1024,), (8, 64), (1, 1), **{**asked, "fill": 1}).encode()
