"""tcgen05.ld and tcgen05.st: where the registers of a warp lie in tensor memory, and when they are there."""

from __future__ import annotations

import numpy as np
import pytest

from dsv4.emulator.oracle.tcgen05 import move_places
from tests.emulator.tcgen05_kernel import LANES, POLICIES, Kernel, row_address, vector

REGISTERS = {"32x32b": 1, "16x64b": 1, "16x128b": 2, "16x256b": 4, "16x32bx2": 1}
FORMS = [
    (shape, repetitions)
    for shape, per in REGISTERS.items()
    for repetitions in (1, 2, 4, 8, 16, 32, 64, 128)
    if per * repetitions <= 128
]
COLUMNS = {"32x32b": 1, "16x64b": 2, "16x128b": 4, "16x256b": 8, "16x32bx2": 1}


def columns_of(shape: str, repetitions: int, packed: bool, split: int) -> int:
    """Columns that a form spans, as an allocation."""
    needed = COLUMNS[shape] * repetitions * (2 if packed else 1) + split
    return max(32, 1 << (needed - 1).bit_length())


def pattern(columns: int) -> np.ndarray:
    """Words that say where they are: [1, lane, column]."""
    lane, column = np.arange(LANES)[:, None], np.arange(columns)[None, :]
    return (0x5A000000 + lane * 65536 + column)[None].astype(np.uint32)


def load_kernel(shape: str, repetitions: int, *, packed: bool, split: int, base: int, columns: int) -> Kernel:
    """Every thread loads once and writes its registers to `out` [thread, register]."""
    n = REGISTERS[shape] * repetitions
    half = f", {split}" if shape == "16x32bx2" else ""
    pack = ".pack::16b" if packed else ""
    stores = "\n".join(f"st.global.b32 [row+{4 * r}], v{r};" for r in range(n))
    body = f"""{{ .reg .b32 v<{n}>, n, at; .reg .b64 row; {row_address("out", 4 * n)}
        add.u32 at, %own, {base << 16};
        tcgen05.ld.sync.aligned.{shape}.x{repetitions}{pack}.b32 {vector(n)}, [at]{half};
        {stores} }}
    """
    out = np.zeros((LANES, n), np.uint32)
    return Kernel(body, columns=columns, before=pattern(columns), dump=False, arrays={"out": out})


def in_words(
    warp: int, base: int, lanes: np.ndarray, columns: np.ndarray, packed: bool, memory: np.ndarray
) -> np.ndarray:
    """What registers [r, t] of a warp hold when loaded from tensor memory [lane, column]."""
    lanes = lanes + 32 * warp + base
    if not packed:
        return memory[lanes, columns]
    return (memory[lanes, columns] & 0xFFFF) | (memory[lanes, columns + 1] << 16)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("shape", "repetitions"), FORMS)
def test_a_load_takes_the_lanes_and_columns_of_its_shape(shape: str, repetitions: int, packed: bool) -> None:
    """All shapes and repetitions, for the four warps, in both lane halves of the 16-lane shapes."""
    split = COLUMNS[shape] * repetitions * (2 if packed else 1) if shape == "16x32bx2" else 0
    columns = columns_of(shape, repetitions, packed, split)
    if columns > 512:
        pytest.skip("does not fit into tensor memory")
    lanes, at = move_places(shape, repetitions, packed=packed, split=split)
    for base in (0, 16) if shape != "32x32b" else (0,):
        kernel = load_kernel(shape, repetitions, packed=packed, split=split, base=base, columns=columns)
        outcome = kernel.run(POLICIES[repetitions % 3])
        assert outcome.kinds == []
        for warp in range(4):
            expected = in_words(warp, base, lanes, at, packed, pattern(columns)[0])
            np.testing.assert_array_equal(outcome.arrays["out"][32 * warp : 32 * warp + 32].T, expected)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("shape", "repetitions"), FORMS)
def test_a_store_puts_words_where_a_load_takes_them(shape: str, repetitions: int, packed: bool) -> None:
    """All shapes: the words that are written are right, and no others are."""
    split = 3 + COLUMNS[shape] * repetitions * (2 if packed else 1) if shape == "16x32bx2" else 0
    columns = columns_of(shape, repetitions, packed, split)
    if columns > 512:
        pytest.skip("does not fit into tensor memory")
    n, base = REGISTERS[shape] * repetitions, 0 if shape == "32x32b" else 16
    half = f", {split}" if shape == "16x32bx2" else ""
    unpack = ".unpack::16b" if packed else ""
    values = np.random.default_rng(repetitions).integers(0, 1 << 32, (LANES, n), dtype=np.uint32)
    body = f"""{{ .reg .b32 v<{n}>, n, at; .reg .b64 row; {row_address("values", 4 * n)}
        add.u32 at, %own, {base << 16};
        {" ".join(f"ld.global.b32 v{r}, [row+{4 * r}];" for r in range(n))}
        tcgen05.st.sync.aligned.{shape}.x{repetitions}{unpack}.b32 [at]{half}, {vector(n)};
        tcgen05.wait::st.sync.aligned; }}
    """
    outcome = Kernel(body, columns=columns, before=pattern(columns), arrays={"values": values}).run(POLICIES[n % 3])
    assert outcome.kinds == []
    expected = pattern(columns)[0].copy()
    lanes, at = move_places(shape, repetitions, packed=packed, split=split)
    for warp in range(4):
        mine = values[32 * warp : 32 * warp + 32].T
        expected[lanes + 32 * warp + base, at] = mine & 0xFFFF if packed else mine
        if packed:
            expected[lanes + 32 * warp + base, at + 1] = mine >> 16
    np.testing.assert_array_equal(outcome.tmem[0], expected)


def test_addresses_may_name_the_lane_of_each_thread() -> None:
    """The first lane's address counts: known-right kernels put their own lane into the address."""
    body = """{ .reg .b32 own, n; .reg .b64 row; and.b32 own, %thread, 31; shl.b32 own, own, 16; add.u32 own, own, %own;
        tcgen05.ld.sync.aligned.32x32b.x1.b32 {n}, [own+3];
        mul.wide.u32 row, %thread, 4; add.u64 row, row, %a_out; st.global.b32 [row], n; }
    """
    kernel = Kernel(body, before=pattern(32), dump=False, arrays={"out": np.zeros(LANES, np.uint32)})
    outcome = kernel.run()
    assert outcome.kinds == []
    np.testing.assert_array_equal(outcome.arrays["out"], pattern(32)[0, :, 3])


def test_unset_words_make_poisoned_registers() -> None:
    """What was never written is loaded as poison, word by word; a store of poison stores poison."""
    body = """{ .reg .b32 v<4>, unset; .reg .pred P;
        mov.u32 v0, 7;
        setp.lt.u32 P, %thread, 40;
        @P mov.u32 v1, 9;
        tcgen05.st.sync.aligned.32x32b.x2.b32 [%own+4], {v0, v1};
        tcgen05.wait::st.sync.aligned; }
    """
    outcome = Kernel(body).run()
    assert set(outcome.kinds) <= {"undefined_value"}
    expected = np.ones((LANES, 32), bool)
    expected[:, 4] = False
    expected[:40, 5] = False
    np.testing.assert_array_equal(outcome.poison[0], expected)
    assert (outcome.tmem[0, :, 4] == 7).all()
