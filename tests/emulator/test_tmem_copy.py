"""tcgen05.cp and tcgen05.shift: where rows and bytes land, decompression, and pairs of CTAs."""

from __future__ import annotations

import numpy as np
import pytest

from dsv4.emulator.oracle import tcgen05 as oracle
from tests.emulator.tcgen05_case import Case, dense_tile
from tests.emulator.tcgen05_kernel import IMAGE_ADDRESS, LANES, POLICIES, Kernel, commit

COLUMNS = 32
COLUMN = 4  # first column of the destination
FORMS = [
    ("128x256b", ""),
    ("4x256b", ""),
    ("128x128b", ""),
    ("64x128b", "warpx2::02_13"),
    ("64x128b", "warpx2::01_23"),
    ("32x128b", "warpx4"),
]


def before(ctas: int = 1) -> np.ndarray:
    """Random words."""
    return np.random.default_rng(1).integers(0, 1 << 32, (ctas, LANES, COLUMNS), dtype=np.uint32)


def copy_statement(form: str, tile: oracle.Tile, *, group: int = 1, lane: int = 0) -> str:
    """The leader copies to lane `lane`, column COLUMN."""
    return f"""add.u32 %r0, %tmem, {(lane << 16) + COLUMN}; mov.u64 %d0, {tile.descriptor()};
        @%leader tcgen05.cp.cta_group::{group}.{form} [%r0], %d0;
    """


def run_copy(
    shape: str, multicast: str, swizzle: int, *, group: int = 1, lane: int = 0, bits: int = 8, policy: int = 0
) -> None:
    """Copies a random source and compares all of tensor memory; `bits` below 8: decompression."""
    rows, row_bytes = int(shape.split("x")[0]), int(shape.split("x")[1].rstrip("b")) // 8
    tile, size = dense_tile(IMAGE_ADDRESS, rows, row_bytes, 8, swizzle=swizzle, mn_major=False)
    rng = np.random.default_rng(rows + swizzle)
    source = rng.integers(0, 256, (group, rows, row_bytes), dtype=np.uint8)
    image = rng.integers(0, 256, (group, max(size, 1024)), dtype=np.uint8)
    expected = before(group)
    for cta in range(group):
        tile.write(image[cta], source[cta].astype(np.uint32), 8, base=IMAGE_ADDRESS)
        data = source[cta]
        if bits < 8:
            units = data.reshape(-1, 16)
            data = np.stack([oracle.unpacked(unit, bits) for unit in units]).reshape(rows, row_bytes)
        words = np.ascontiguousarray(data).view("<u4")
        for lanes in oracle.copy_places(shape, multicast, lane):
            expected[cta, lanes[:, None], COLUMN + np.arange(row_bytes // 4)] = words
    form = ".".join(filter(None, [shape, multicast, {8: "", 6: "b8x16.b6x16_p32", 4: "b8x16.b4x16_p64"}[bits]]))
    body = copy_statement(form, tile, group=group, lane=lane) + commit(group, 3 if group == 2 else 0)
    kernel = Kernel(body, columns=COLUMNS, ctas=group, image=image, before=before(group))
    outcome = kernel.run(POLICIES[policy])
    assert outcome.kinds == []
    np.testing.assert_array_equal(outcome.tmem, expected)


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize(("shape", "multicast"), FORMS)
def test_shapes(shape: str, multicast: str, group: int) -> None:
    """Every shape from rows without swizzle; in a pair each CTA copies its own shared memory."""
    for policy in range(len(POLICIES)):
        run_copy(shape, multicast, 0, group=group, policy=policy)


@pytest.mark.parametrize("swizzle", [32, 64, 128])
@pytest.mark.parametrize(("shape", "multicast"), FORMS)
def test_swizzled_sources(shape: str, multicast: str, swizzle: int) -> None:
    """The source may lie in a swizzled tile."""
    run_copy(shape, multicast, swizzle)


@pytest.mark.parametrize("lane", [1, 31])
def test_four_rows_go_to_one_lane_of_each_quarter(lane: int) -> None:
    """4x256b from another first lane."""
    run_copy("4x256b", "", 0, lane=lane)


@pytest.mark.parametrize("bits", [4, 6])
@pytest.mark.parametrize(("shape", "multicast"), [("128x256b", ""), ("128x128b", ""), ("32x128b", "warpx4")])
def test_decompression(shape: str, multicast: str, bits: int) -> None:
    """Padded elements of 4 and 6 bits become a byte each."""
    run_copy(shape, multicast, 0, bits=bits)


@pytest.mark.parametrize(("name", "source"), [("e2m1", "b8x16.b4x16_p64"), ("e3m2", "b8x16.b6x16_p32")])
def test_a_decompressed_operand_is_an_a_in_tensor_memory(name: str, source: str) -> None:
    """What cp makes of a padded tile in shared memory is what f8f6f4 takes as A."""
    case = Case("f8f6f4", name, "e4m3", n=16, a_in_tmem=True)
    at = case.layout
    tile, size = dense_tile(IMAGE_ADDRESS, 128, 32, 6, swizzle=0, mn_major=False, padded=True)
    _, _, used = case.tiles()
    image = np.concatenate([case.image(), np.zeros((1, size), np.uint8)], axis=1)
    moved = oracle.Tile(IMAGE_ADDRESS + used, tile.leading, tile.stride, 0, padded=True)
    moved.write(image[0], case.codes["a"], oracle.element_bits(name), base=IMAGE_ADDRESS)
    words = case.before()
    words[0, :, at["a"] : at["a"] + 8] = 0
    copy = f"""add.u32 %r0, %tmem, {at["a"]}; mov.u64 %d0, {moved.descriptor()};
        @%leader tcgen05.cp.cta_group::1.128x256b.{source} [%r0], %d0;
    """
    kernel = Kernel(copy + case.statement() + commit(), columns=at["end"], image=image, before=words)
    outcome = kernel.run()
    assert outcome.kinds == []
    np.testing.assert_array_equal(outcome.tmem, case.expected())


def test_scale_factors_by_copy() -> None:
    """Factors through cp.32x128b.warpx4, in the issuing thread's order before the MMA: no wait between them."""
    case = Case("mxf8f6f4", "e4m3", "e4m3", n=128, block=32)
    at = case.layout
    _, _, used = case.tiles()
    image, words, text = case.image(), case.before(), ""
    for number, name in enumerate(("sfa", "sfb")):
        start = IMAGE_ADDRESS + used + 1024 * number
        rows = case.scale_words(name, 0).reshape(4, 32).T  # [lane, column]
        tile = oracle.Tile(start, 16, 128, 0)
        image = np.concatenate([image, np.zeros((1, 1024), np.uint8)], axis=1)
        data = np.ascontiguousarray(rows).view(np.uint8).reshape(32, 16)
        tile.write(image[0], data.astype(np.uint32), 8, base=IMAGE_ADDRESS)
        words[0, :, at[name] : at[name] + 8] = 0
        text += f"""add.u32 %r0, %tmem, {at[name]}; mov.u64 %d0, {tile.descriptor()};
            @%leader tcgen05.cp.cta_group::1.32x128b.warpx4 [%r0], %d0;
        """
    for policy in POLICIES:
        kernel = Kernel(text + case.statement() + commit(), columns=at["end"], image=image, before=words)
        outcome = kernel.run(policy)
        assert outcome.kinds == []
        np.testing.assert_array_equal(outcome.tmem[0, :, :128], case.expected()[0, :, :128])


def test_unset_bytes_become_unset_words() -> None:
    """A copy is no use of the data: poison goes along, word by word."""
    tile, size = dense_tile(IMAGE_ADDRESS, 128, 16, 8, swizzle=0, mn_major=False)
    unset = np.zeros(size, np.uint8)
    unset[16 * 5 + 7] = 1
    body = copy_statement("128x128b", tile) + commit()
    kernel = Kernel(body, image=np.zeros((1, size), np.uint8), before=before(), unset={"image": unset})
    outcome = kernel.run()
    assert set(outcome.kinds) <= {"undefined_value"}
    expected = np.zeros((LANES, COLUMNS), bool)
    expected[5, COLUMN + 1] = True
    np.testing.assert_array_equal(outcome.poison[0], expected)


@pytest.mark.parametrize("quarter", [0, 2])
def test_shift(quarter: int) -> None:
    """31 lanes of 8 columns receive the lane above, the last one keeps what it holds."""
    body = f"""add.u32 %r0, %tmem, {(32 * quarter << 16) + COLUMN};
        @%leader tcgen05.shift.cta_group::1.down [%r0];
    """
    outcome = Kernel(body + commit(), before=before()).run()
    assert outcome.kinds == []
    expected = before()
    rows = slice(32 * quarter, 32 * quarter + 31)
    above = slice(32 * quarter + 1, 32 * quarter + 32)
    expected[0, rows, COLUMN : COLUMN + 8] = before()[0, above, COLUMN : COLUMN + 8]
    np.testing.assert_array_equal(outcome.tmem, expected)


@pytest.mark.parametrize(
    ("form", "lane", "kind", "words"),
    [
        ("32x128b", 0, "tmem_access", "multicast"),
        ("128x256b.warpx4", 0, "tmem_access", "multicast"),
        ("128x128b", 32, "tmem_access", "lane"),
    ],
)
def test_forms_that_there_are_not(form: str, lane: int, kind: str, words: str) -> None:
    """Shapes with the wrong multicast or first lane."""
    tile, size = dense_tile(IMAGE_ADDRESS, 128, 32, 8, swizzle=0, mn_major=False)
    body = copy_statement(form, tile, lane=lane) + commit()
    (found,) = Kernel(body, image=np.zeros((1, size), np.uint8), dump=False).run().findings
    assert found.kind == kind
    assert words in found.message
