"""TMA tiles through the whole machine: where bytes land, what is counted, what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dsv4.emulator.policy import Policy
from dsv4.emulator.tma_descriptor import TensorMap
from tests.emulator.copy_kernel import (
    EARLY,
    LATE,
    POLICIES,
    SHARED_BASE,
    Kernel,
    aligned,
    barrier_init,
    copy_words,
    dump,
    expect,
    fill,
    wait,
)
from tests.emulator.test_tma_tiles import ELEMENT_BYTES, Tile, places, random_tile

TILE = 1024  # byte offset of the tile in shared memory, behind the mbarrier
LOAD = "cp.async.bulk.tensor.{rank}d.shared::cta.global.tile.mbarrier::complete_tx::bytes"
CLUSTER_LOAD = "cp.async.bulk.tensor.{rank}d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
STORE = "cp.async.bulk.tensor.{rank}d.global.shared::cta.tile.bulk_group"
REDUCE = "cp.reduce.async.bulk.tensor.{rank}d.global.shared::cta.{op}.tile.bulk_group"
FENCE = "fence.proxy.async.shared::cta; bar.sync 0;\n"


def load(map_name: str, coordinates: tuple[int, ...], *, to: int = TILE, form: str = LOAD, extra: str = "") -> str:
    """Thread 0 loads one box to shared byte `to` and has the mbarrier count it."""
    text = ", ".join(map(str, coordinates))
    opcode = form.format(rank=len(coordinates))
    return f"@%lead {opcode} [%smem+{to}], [%m_{map_name}, {{{text}}}], [%smem]{extra};\n"


def store(map_name: str, coordinates: tuple[int, ...], *, at: int = TILE, form: str = STORE, op: str = "") -> str:
    """Thread 0 stores one box from shared byte `at`, and waits until it is written."""
    text = ", ".join(map(str, coordinates))
    opcode = form.format(rank=len(coordinates), op=op)
    return (
        f"@%lead {opcode} [%m_{map_name}, {{{text}}}], [%smem+{at}];\n"
        "@%lead cp.async.bulk.commit_group; @%lead cp.async.bulk.wait_group 0;\n"
    )


def box_bytes(tensor_map: TensorMap) -> int:
    """Bytes that a load of one box counts."""
    return int(np.prod(tensor_map.box)) * ELEMENT_BYTES[tensor_map.element_type]


def tile_bytes(tensor_map: TensorMap) -> int:
    """Bytes of shared memory that the rows of a box take: a swizzle's rows are as long as its span."""
    row_bytes = tensor_map.swizzle_bytes or tensor_map.box[0] * ELEMENT_BYTES[tensor_map.element_type]
    return int(np.prod(tensor_map.box[1:])) * row_bytes


def placed(tile: Tile, memory: np.ndarray) -> Tile:
    """The same tile with the tensor in `memory` and its box at shared byte TILE."""
    tensor_map = replace(tile.map, address=memory.ctypes.data, spans_fetch=False)
    return Tile(tensor_map, memory, tile.coordinates, SHARED_BASE + TILE)


# ------------------------------------------------------------------------------------------------------ loads, stores


@pytest.mark.parametrize("seed", range(24))
def test_a_load_puts_every_byte_in_its_place_and_counts_the_whole_box(seed: int) -> None:
    drawn = random_tile(seed)
    memory = aligned(drawn.memory)
    tile = placed(drawn, memory)
    total, size = box_bytes(tile.map), ELEMENT_BYTES[tile.map.element_type]
    words = -(-tile_bytes(tile.map) // 128) * 32
    out = aligned(np.zeros(4 * words, np.uint8))
    body = barrier_init() + copy_words(
        words, load="mov.u32 x, 0;", store=f"add.u32 %at, %at, %smem; st.shared.b32 [%at+{TILE}], x;"
    )
    body += FENCE + expect(total) + load("t", tile.coordinates) + wait("%smem") + dump("out", words, TILE)
    kernel = Kernel(body, {"t": tile.map}, {"memory": memory, "out": out}, read_only=("memory",))
    result, shadows = kernel.run(POLICIES[seed % 3])
    assert [found.message for found in result.findings] == []
    expected = np.zeros(4 * words, np.uint8)
    nan = []
    for address, at in places(tile):
        start = address - SHARED_BASE - TILE
        if at is not None:
            expected[start : start + size] = memory[at : at + size]
        elif tile.map.fill_nan:
            nan.append(start)
    for start in nan:
        bits = int.from_bytes(out[start : start + size].tobytes(), "little") << (32 - 8 * size)
        assert np.isnan(np.uint32(bits).view(np.float32))
        expected[start : start + size] = out[start : start + size]
    assert np.array_equal(out, expected)
    assert not shadows["out"].any()


@pytest.mark.parametrize("seed", range(24))
def test_a_store_writes_the_part_of_its_box_that_lies_in_the_tensor_up_to_whole_units(seed: int) -> None:
    drawn = random_tile(seed)
    drawn = replace(drawn, coordinates=tuple(abs(c) for c in drawn.coordinates))
    memory = aligned(drawn.memory)
    tile = placed(drawn, memory)
    size = ELEMENT_BYTES[tile.map.element_type]
    words = -(-tile_bytes(tile.map) // 128) * 32
    source = aligned(np.random.default_rng(seed).integers(0, 256, 4 * words, dtype=np.uint8))
    expected = memory.copy()
    for address, at in places(tile, stored=True):
        if at is not None:
            start = address - SHARED_BASE - TILE
            expected[at : at + size] = source[start : start + size]
    body = fill("source", words, TILE) + FENCE + store("t", tile.coordinates)
    kernel = Kernel(body, {"t": tile.map}, {"memory": memory, "source": source})
    assert kernel.findings(POLICIES[seed % 3]) == []
    assert np.array_equal(memory, expected)


def plain_map(memory: np.ndarray, box: tuple[int, ...] = (64, 8), **fields: Any) -> TensorMap:
    """A tensor map over a 2D array of 16-bit or 32-bit elements, its last dimension contiguous."""
    names = {"<u2": "bf16", "<f2": "f16", "<f4": "f32", "<u4": "u32", "<i4": "s32", "<u8": "u64", "|u1": "u8"}
    rows, columns = memory.shape
    return TensorMap(
        memory.ctypes.data, names[memory.dtype.str], (columns, rows), (columns * memory.itemsize,), box,
        spans_fetch=False, **fields,
    )  # fmt: skip


def numbers(rows: int = 40, columns: int = 64, dtype: type = np.uint16) -> np.ndarray:
    """Different values at an aligned address."""
    return aligned(np.arange(rows * columns, dtype=dtype).reshape(rows, columns))


def test_a_box_outside_of_the_tensor_is_zero_and_counts_in_full() -> None:
    memory, out = numbers(), aligned(np.ones(1024, np.uint8))
    body = barrier_init() + expect(1024) + load("t", (0, 1000)) + wait("%smem") + dump("out", 256, TILE)
    assert Kernel(body, {"t": plain_map(memory)}, {"memory": memory, "out": out}).findings() == []
    assert not out.any()


def test_a_barrier_that_expects_other_bytes_than_the_box_has_never_completes() -> None:
    memory = numbers()
    for expected in (512, 2048):
        body = barrier_init() + expect(expected) + load("t", (0, 0)) + wait("%smem")
        kinds = [kind for kind, _ in Kernel(body, {"t": plain_map(memory)}, {"memory": memory}).findings()]
        assert "hang" in kinds


def test_element_strides_take_every_nth_row() -> None:
    memory, out = numbers(), aligned(np.zeros(4 * 128, np.uint8))
    tensor_map = plain_map(memory, (64, 8), element_strides=(1, 2))
    body = barrier_init() + expect(512) + load("t", (0, 3)) + wait("%smem") + dump("out", 128, TILE)
    assert Kernel(body, {"t": tensor_map}, {"memory": memory, "out": out}).findings() == []
    assert np.array_equal(out.view(np.uint16).reshape(4, 64), memory[3:11:2])


def test_a_tf32_map_rounds_to_nearest_even() -> None:
    bits = np.array([0x3F800FFF, 0x3F801000, 0x3F803000, 0x3F801001, 0x7F800000, 0xFF7FFFFF, 0x00001000, 0], np.uint32)
    memory, out = aligned(bits.reshape(1, 8)), aligned(np.zeros(8, np.uint32))
    tensor_map = TensorMap(memory.ctypes.data, "f32", (8, 1), (32,), (8, 1), round_to_tf32=True)
    body = barrier_init() + expect(32) + load("t", (0, 0)) + wait("%smem") + dump("out", 8, TILE)
    assert Kernel(body, {"t": tensor_map}, {"memory": memory, "out": out}).findings() == []
    rounded = [0x3F800000, 0x3F800000, 0x3F804000, 0x3F802000, 0x7F800000, 0xFF800000, 0, 0]
    assert out.tolist() == rounded


def test_packed_4_bit_elements_are_half_a_byte_and_may_be_spread() -> None:
    rows = np.random.default_rng(5).integers(0, 256, (16, 64), dtype=np.uint8)
    memory, out = aligned(rows), aligned(np.zeros(1024, np.uint8))
    packed = TensorMap(memory.ctypes.data, "b4x16", (128, 16), (64,), (64, 8))
    body = barrier_init() + expect(256) + load("t", (32, 4)) + wait("%smem") + dump("out", 64, TILE)
    assert Kernel(body, {"t": packed}, {"memory": memory, "out": out}).findings() == []
    assert np.array_equal(out[:256].reshape(8, 32), rows[4:12, 16:48])
    spread = TensorMap(memory.ctypes.data, "b4x16_p64", (128, 16), (64,), (128, 8))
    body = barrier_init() + copy_words(
        256, load="mov.u32 x, 0;", store=f"add.u32 %at, %at, %smem; st.shared.b32 [%at+{TILE}], x;"
    )
    body += FENCE + expect(512) + load("t", (0, 4)) + wait("%smem") + dump("out", 256, TILE)
    assert Kernel(body, {"t": spread}, {"memory": memory, "out": out}).findings() == []
    groups = out.reshape(8, 8, 16)
    assert np.array_equal(groups[:, :, :8].reshape(8, 64), rows[4:12]) and not groups[:, :, 8:].any()


# ---------------------------------------------------------------------------------------------------- gather, scatter


GATHER = "cp.async.bulk.tensor.2d.shared::cta.global.tile::gather4.mbarrier::complete_tx::bytes"
SCATTER = "cp.async.bulk.tensor.2d.global.shared::cta.tile::scatter4.bulk_group"


@pytest.mark.parametrize("policy", POLICIES)
def test_gather4_takes_four_rows_and_zeroes_those_outside(policy: Policy) -> None:
    memory, out = numbers(), aligned(np.ones(512, np.uint8))
    tensor_map = plain_map(memory, (64, 1), swizzle_bytes=128)
    rows = (7, 39, -1, 2)
    body = barrier_init() + expect(512)
    body += f"@%lead {GATHER} [%smem+{TILE}], [%m_t, {{0, {', '.join(map(str, rows))}}}], [%smem];\n"
    body += wait("%smem") + dump("out", 128, TILE)
    assert Kernel(body, {"t": tensor_map}, {"memory": memory, "out": out}).findings(policy) == []
    got = out.view(np.uint16).reshape(4, 8, 8)
    for line, row in enumerate(rows):
        chunks = memory[row].reshape(8, 8) if row >= 0 else np.zeros((8, 8), np.uint16)
        assert np.array_equal(got[line], chunks[np.arange(8) ^ line])


def test_scatter4_writes_four_rows_where_they_exist() -> None:
    memory, source = numbers(), aligned(np.arange(5000, 5256, dtype=np.uint16))
    before = memory.copy()
    tensor_map = plain_map(memory, (64, 1))
    body = fill("source", 128, TILE) + FENCE
    body += f"@%lead {SCATTER} [%m_t, {{0, 30, 3, 40, 8}}], [%smem+{TILE}];\n"
    body += "@%lead cp.async.bulk.commit_group; @%lead cp.async.bulk.wait_group 0;\n"
    assert Kernel(body, {"t": tensor_map}, {"memory": memory, "source": source}).findings() == []
    expected = before.copy()
    expected[[30, 3, 8]] = source.reshape(4, 64)[[0, 1, 3]]
    assert np.array_equal(memory, expected)


def test_gather4_needs_a_map_with_a_box_of_one_row() -> None:
    memory = numbers()
    body = barrier_init() + f"@%lead {GATHER} [%smem+{TILE}], [%m_t, {{0, 1, 2, 3, 4}}], [%smem];\n"
    ((kind, message),) = Kernel(body, {"t": plain_map(memory)}, {"memory": memory}).findings()
    assert kind == "tensor_map" and "box of one row, this one has 8" in message


# ------------------------------------------------------------------------------------------------------------ cluster


@pytest.mark.parametrize("policy", POLICIES)
def test_multicast_lands_in_every_masked_cta_and_signals_each_ones_barrier(policy: Policy) -> None:
    """Each CTA loads one half of the tile for both, as GEMMs of a cluster do."""
    memory, out = numbers(), aligned(np.zeros((2, 2048), np.uint8))
    form = CLUSTER_LOAD + ".multicast::cluster"
    body = barrier_init() + expect(2048)
    body += (
        "mov.b16 %h0, 3; shl.b32 %r1, %rank, 3; add.u32 %r1, %r1, 8; shl.b32 %r2, %rank, 10; add.u32 %r2, %r2, %smem;\n"
    )
    body += f"@%lead {form.format(rank=2)} [%r2+{TILE}], [%m_t, {{0, %r1}}], [%smem], %h0;\n" + wait("%smem")
    body += "mul.wide.u32 %d0, %rank, 2048; add.u64 %a_out, %a_out, %d0;\n" + dump("out", 512, TILE)
    body += "barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;\n"
    kernel = Kernel(body, {"t": plain_map(memory)}, {"memory": memory, "out": out}, cluster=2)
    assert kernel.findings(policy) == []
    for rank in range(2):
        assert np.array_equal(out[rank].view(np.uint16).reshape(16, 64), memory[8:24])


@pytest.mark.parametrize("policy", POLICIES)
def test_cta_group_2_signals_the_leader_for_both_ctas(policy: Policy) -> None:
    memory, out = numbers(), aligned(np.zeros((2, 1024), np.uint8))
    form = CLUSTER_LOAD + ".cta_group::2"
    body = barrier_init() + "setp.eq.u32 %p0, %rank, 0; and.pred %p1, %lead, %p0;\n"
    body += "@%p1 mbarrier.arrive.expect_tx.shared.b64 _, [%smem], 2048;\n"
    body += "and.b32 %r3, %smem, -16777224; shl.b32 %r1, %rank, 3;\n"
    body += f"@%lead {form.format(rank=2)} [%smem+{TILE}], [%m_t, {{0, %r1}}], [%r3];\n"
    body += "@!%p0 bra JOIN;\n" + wait("%smem") + "JOIN:\n"
    body += "barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;\n"
    body += "mul.wide.u32 %d0, %rank, 1024; add.u64 %a_out, %a_out, %d0;\n" + dump("out", 256, TILE)
    kernel = Kernel(body, {"t": plain_map(memory)}, {"memory": memory, "out": out}, cluster=2)
    assert kernel.findings(policy) == []
    assert np.array_equal(out.view(np.uint16).reshape(16, 64), memory[:16])


def test_the_barrier_of_another_cta_needs_cta_group_2_and_shared_cluster() -> None:
    memory = numbers()
    for form, said in (
        (LOAD, "the copy lands in CTA 1 of the cluster and signals an mbarrier in CTA 0"),
        (CLUSTER_LOAD, "the copy lands in CTA 1 of the cluster and signals an mbarrier in CTA 0"),
        (LOAD + ".cta_group::2", "a copy to .shared::cta cannot signal the mbarrier of another CTA (0)"),
    ):
        body = barrier_init() + "and.b32 %r3, %smem, -16777224; setp.eq.u32 %p0, %rank, 1; and.pred %p0, %p0, %lead;\n"
        body += f"@%p0 {form.format(rank=2)} [%smem+{TILE}], [%m_t, {{0, 0}}], [%r3];\n"
        body += "barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;\n"
        found = Kernel(body, {"t": plain_map(memory)}, {"memory": memory}, cluster=2).findings()
        assert found[0][0] == "barrier" and said in found[0][1], found


def test_a_multicast_mask_names_ctas_that_exist() -> None:
    memory = numbers()
    for mask, said in ((4, "the multicast mask 0x4 names CTA 2 of a cluster of 2"), (0, "the multicast mask is 0")):
        body = barrier_init() + f"mov.b16 %h0, {mask};\n"
        body += load("t", (0, 0), form=CLUSTER_LOAD + ".multicast::cluster", extra=", %h0")
        found = Kernel(body, {"t": plain_map(memory)}, {"memory": memory}, cluster=2).findings()
        assert said in found[0][1], found


# --------------------------------------------------------------------------------------------------------- reductions


def reduction(op: str, before: np.ndarray, source: np.ndarray, grid: int = 1, policy: Policy = LATE) -> np.ndarray:
    """`source` (8 rows of 16 or 32 bytes…) reduced into `before` by every CTA of the grid."""
    memory = aligned(before)
    tensor_map = plain_map(memory, (before.shape[1], before.shape[0]))
    if before.dtype == np.uint16:
        tensor_map = replace(tensor_map, element_type="bf16")
    words = source.nbytes // 4
    body = fill("source", words, TILE) + FENCE + store("t", (0, 0), form=REDUCE, op=op)
    kernel = Kernel(body, {"t": tensor_map}, {"memory": memory, "source": aligned(source)}, grid=grid)
    assert kernel.findings(policy) == []
    return memory


def bf16(values: np.ndarray) -> np.ndarray:
    """Nearest-even bits of values that have at most 16 significant bits."""
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def test_reductions_add_elements_of_every_cta() -> None:
    rng = np.random.default_rng(1)
    whole = rng.integers(-30, 30, (8, 8)).astype(np.float32)
    assert np.array_equal(reduction("add", np.ones((8, 8), np.float32), whole, grid=3), 1 + 3 * whole)
    half = rng.integers(-30, 30, (8, 8)).astype(np.float16)
    assert np.array_equal(reduction("add", np.zeros((8, 8), np.float16), half, grid=2), 2 * half)
    got = reduction("add", bf16(np.full((8, 8), 0.5)), bf16(whole), grid=2)
    assert np.array_equal(got, bf16(0.5 + 2 * whole))


def test_a_bf16_reduction_rounds_to_nearest_even_and_keeps_subnormals() -> None:
    before, source = np.zeros((1, 8), np.uint16), np.zeros((1, 8), np.uint16)
    before[0, :4], source[0, :4] = [0x3F80, 0x3F81, 0x0001, 0x7F80], [0x3B80, 0x3B80, 0x0001, 0xFF80]
    got = reduction("add", before, source)
    assert [hex(v) for v in got[0, :3]] == ["0x3f80", "0x3f82", "0x2"]  # 1 + 2^-8: to even, down and up
    assert got[0, 3] & 0x7F80 == 0x7F80 and got[0, 3] & 0x7F  # inf - inf


@pytest.mark.parametrize(
    ("op", "function"),
    [("min", np.minimum), ("max", np.maximum), ("and", np.bitwise_and), ("or", np.bitwise_or), ("xor", np.bitwise_xor)],
)
def test_integer_reductions(op: str, function: np.ufunc) -> None:
    rng = np.random.default_rng(2)
    for dtype in (np.int32, np.uint32, np.uint64):
        a, b = (rng.integers(0, 2**32, (8, 4), dtype=np.uint64).astype(dtype) for _ in range(2))
        assert np.array_equal(reduction(op, a, b), function(a, b)), dtype


def test_inc_and_dec_wrap_at_the_sources_value() -> None:
    a = np.array([[0, 4, 5, 9, 0, 3, 5, 6]], np.uint32)
    b = np.full((1, 8), 5, np.uint32)
    assert reduction("inc", a, b).tolist() == [[1, 5, 0, 0, 1, 4, 0, 0]]
    assert reduction("dec", a, b).tolist() == [[5, 3, 4, 5, 5, 2, 4, 5]]


def test_a_reduction_that_the_element_type_does_not_have_is_refused() -> None:
    memory = aligned(np.zeros((8, 8), np.float32))
    body = fill("memory", 64, TILE) + FENCE + store("t", (0, 0), form=REDUCE, op="max")
    ((kind, message),) = Kernel(body, {"t": plain_map(memory, (8, 8))}, {"memory": memory}).findings()
    assert kind == "tensor_map" and "does not exist for the tensor map's element type" in message


# -------------------------------------------------------------------------------------------- a whole warp that copies


def test_a_store_that_a_whole_warp_executes_is_stored_once() -> None:
    """NVIDIA's grouped GEMM for Hopper does it; each thread of the warp that waits has waited for it."""
    memory, source = numbers(8), aligned(np.full(1024, 9, np.uint8))
    body = fill("source", 256, TILE) + FENCE + f"{STORE.format(rank=2)} [%m_t, {{0, 0}}], [%smem+{TILE}];\n"
    body += "cp.async.bulk.commit_group; elect.sync %r1|%p1, -1; @%p1 cp.async.bulk.wait_group.read 0;\n"
    body += f"mov.u32 %r2, 0; st.shared.b32 [%smem+{TILE}], %r2;\n"
    for policy in POLICIES:
        result, _ = Kernel(body, {"t": plain_map(memory)}, {"memory": memory, "source": source}).run(policy)
        assert result.findings == [] and result.stats["async_ops"] == 1
        assert (memory.view(np.uint8) == 9).all()


def test_a_load_or_reduction_that_a_whole_warp_executes_is_carried_out_by_each_thread() -> None:
    memory, source = aligned(np.zeros((8, 8), np.float32)), aligned(np.ones((8, 8), np.float32))
    tensor_map = plain_map(memory, (8, 8))
    body = fill("source", 64, TILE) + FENCE + f"{REDUCE.format(rank=2, op='add')} [%m_t, {{0, 0}}], [%smem+{TILE}];\n"
    body += "cp.async.bulk.commit_group; cp.async.bulk.wait_group 0;\n"
    found = Kernel(body, {"t": tensor_map}, {"memory": memory, "source": source}).findings()
    assert [kind for kind, _ in found] == ["not_elected"] and "32 lanes" in found[0][1]
    assert (memory == 32).all()
    body = barrier_init() + expect(32 * 256) + f"{LOAD.format(rank=2)} [%smem+{TILE}], [%m_t, {{0, 0}}], [%smem];\n"
    found = Kernel(body + wait("%smem"), {"t": tensor_map}, {"memory": memory}).findings()
    assert "not_elected" in [kind for kind, _ in found] and "hang" not in [kind for kind, _ in found]


def test_threads_may_copy_different_tiles_with_one_instruction() -> None:
    memory, out = numbers(), aligned(np.zeros(4 * 1024, np.uint8))
    body = barrier_init() + expect(4 * 1024) + "setp.lt.u32 %p0, %thread, 4; shl.b32 %r1, %thread, 3;\n"
    body += f"shl.b32 %r2, %thread, 10; add.u32 %r2, %r2, %smem; bar.warp.sync -1;\n@%p0 {LOAD.format(rank=2)} "
    body += f"[%r2+{TILE}], [%m_t, {{0, %r1}}], [%smem];\n" + wait("%smem") + dump("out", 1024, TILE)
    assert Kernel(body, {"t": plain_map(memory)}, {"memory": memory, "out": out}).findings() == []
    assert np.array_equal(out.view(np.uint16).reshape(32, 64), memory[:32])


# -------------------------------------------------------------------------------------------------------------- races


def test_reductions_do_not_race_with_each_other_and_stores_do() -> None:
    memory, source = aligned(np.zeros((8, 8), np.float32)), aligned(np.ones((8, 8), np.float32))
    once = "@%p0 {form} [%m_t, {{0, 0}}], [%smem+" + str(TILE) + "];\n"
    for form, expected in ((REDUCE.format(rank=2, op="add"), []), (STORE.format(rank=2), ["race"])):
        body = fill("source", 64, TILE) + FENCE + "and.b32 %r1, %thread, 31; setp.eq.u32 %p0, %r1, 0;\n"
        body += once.format(form=form) + "@%p0 cp.async.bulk.commit_group; @%p0 cp.async.bulk.wait_group 0;\n"
        kernel = Kernel(body, {"t": plain_map(memory, (8, 8))}, {"memory": memory, "source": source}, block=64)
        for policy in POLICIES:
            assert [kind for kind, _ in kernel.findings(policy)] == expected
    assert memory[0, 0] in (1, 7)


def test_reading_a_tile_before_the_barrier_completes_is_a_race_under_every_schedule() -> None:
    memory, out = numbers(), aligned(np.zeros(1024, np.uint8))
    body = barrier_init() + expect(1024) + load("t", (0, 0)) + dump("out", 256, TILE) + wait("%smem")
    for policy in POLICIES:
        found = Kernel(body, {"t": plain_map(memory)}, {"memory": memory, "out": out}).findings(policy)
        assert "race" in [kind for kind, _ in found], policy.name


def test_a_tile_that_is_loaded_again_while_it_is_read_is_a_race() -> None:
    """The second warp reads the first tile while the first warp loads the next one, or misses the phase altogether."""
    memory, out = numbers(), aligned(np.zeros(1024, np.uint8))
    body = barrier_init() + expect(1024) + load("t", (0, 0)) + wait("%smem") + dump("out", 256, TILE)
    body += expect(1024) + load("t", (0, 8)) + wait("%smem", 1)
    kernel = Kernel(body, {"t": plain_map(memory)}, {"memory": memory, "out": out}, block=64)
    for policy in POLICIES:
        assert {"race", "hang"} & {kind for kind, _ in kernel.findings(policy)}, policy.name
    right = body.replace(expect(1024), "bar.sync 0;\n" + expect(1024))
    kernel = Kernel(right, {"t": plain_map(memory)}, {"memory": memory, "out": out}, block=64)
    for policy in POLICIES:
        assert kernel.findings(policy) == []


def test_a_store_of_ordinary_writes_needs_the_proxy_fence() -> None:
    memory, source = numbers(8), aligned(np.zeros(1024, np.uint8))
    body = fill("source", 256, TILE) + "bar.sync 0;\n" + store("t", (0, 0))
    found = Kernel(body, {"t": plain_map(memory)}, {"memory": memory, "source": source}).findings()
    assert [kind for kind, _ in found] == ["missing_proxy_fence"]


def test_the_source_of_a_store_may_be_written_again_only_after_wait_group_read() -> None:
    memory, source = numbers(8), aligned(np.full(1024, 7, np.uint8))
    start = fill("source", 256, TILE) + FENCE
    issue = f"@%lead {STORE.format(rank=2)} [%m_t, {{0, 0}}], [%smem+{TILE}];\n@%lead cp.async.bulk.commit_group;\n"
    again = "mov.u32 %r9, 5; @%lead st.shared.b32 [%smem+" + str(TILE) + "], %r9;\n"
    for policy in POLICIES:
        kernel = Kernel(start + issue + again, {"t": plain_map(memory)}, {"memory": memory, "source": source})
        assert "race" in [kind for kind, _ in kernel.findings(policy)]
        kernel.body = start + issue + "@%lead cp.async.bulk.wait_group.read 0;\n" + again
        assert kernel.findings(policy) == []
        assert (memory.view(np.uint8) == 7).all()


# ------------------------------------------------------------------------------------------------------------- poison


def test_memory_that_was_never_written_stays_unwritten_through_a_load() -> None:
    memory, out = numbers(), aligned(np.zeros(1024, np.uint8))
    body = barrier_init() + expect(1024) + load("t", (0, 36)) + wait("%smem") + dump("out", 256, TILE)
    kernel = Kernel(body, {"t": plain_map(memory)}, {"memory": memory, "out": out}, unset=("memory",))
    result, shadows = kernel.run()
    assert [found.kind for found in result.findings] == ["undefined_value"]
    assert shadows["out"][:512].all() and not shadows["out"][512:].any()  # four rows of the tensor, then fill


def test_a_store_of_unwritten_shared_memory_is_found_where_it_lies_in_the_tensor() -> None:
    memory = numbers(8)
    result, shadows = Kernel(store("t", (0, 0)), {"t": plain_map(memory)}, {"memory": memory}).run()
    ((kind, message),) = [(found.kind, found.message) for found in result.findings]
    assert kind == "undefined_value" and hex(memory.ctypes.data) in message and shadows["memory"].all()
    assert Kernel(store("t", (0, 8)), {"t": plain_map(memory)}, {"memory": memory}).findings() == []


def test_coordinates_and_maps_that_were_never_written_are_found() -> None:
    memory = numbers()
    body = barrier_init() + f"@%lead {LOAD.format(rank=2)} [%smem+{TILE}], [%m_t, {{0, %r5}}], [%smem];\n"
    ((kind, message),) = Kernel(body, {"t": plain_map(memory)}, {"memory": memory}).findings()
    assert kind == "undefined_value" and "operand 4 of the copy" in message
    body = barrier_init() + f"@%lead {LOAD.format(rank=2)} [%smem+{TILE}], [%a_map, {{0, 0}}], [%smem];\n"
    kernel = Kernel(body, {}, {"map": aligned(np.zeros(128, np.uint8)), "memory": memory}, unset=("map",))
    ((kind, message),) = kernel.findings()
    assert kind == "undefined_value" and "byte 0 of the tensor map" in message


# ---------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("body", "kind", "said"),
    [
        (load("t", (0, 0), to=TILE + 64), "misaligned", ""),
        (load("t", (4, 0)), "tensor_map", "the first coordinate, 4, is 8 bytes into a row, no multiple of 16"),
        (load("t", (-9, 0)), "tensor_map", "the first coordinate, -9, is -18 bytes into a row"),
        (FENCE + store("t", (1, 0)), "tensor_map", "an illegal instruction to the hardware"),
        (load("t", (0, 0, 0)), "tensor_map", "a 3d copy uses a tensor map of rank 2"),
        (load("t", (0, 0), to=32768 - 512), "out_of_bounds", ""),
        (load("t", (0, 0)).replace("%m_t", "%m_z"), "tensor_map", "these bytes are not a tensor map"),
        (load("o", (0, 0)), "out_of_bounds", ""),
        (store("t", (0, -1)), "tensor_map", "coordinate 1 of a store is negative (-1)"),
        ("cvt.u64.u32 %d0, %smem;\n" + load("t", (0, 0)).replace("%m_t", "%d0"), "tensor_map", "lies in shared memory"),
        (store("p", (0, 0)), "tensor_map", "padded 4-bit elements can be loaded, not stored"),
        (load("p", (64, 0)), "tensor_map", "64, of a padded type is no multiple of 128"),
        (load("w", (0, 0)), "tensor_map", "promises 128 KiB behind the tensor's address"),
    ],
)
def test_what_is_refused(body: str, kind: str, said: str) -> None:
    memory = numbers()
    maps: dict[str, TensorMap | bytes] = {
        "t": plain_map(memory),
        "s": plain_map(memory, (64, 8), swizzle_bytes=128),
        "z": bytes(128),
        "o": replace(plain_map(memory), address=memory.ctypes.data + 8192),
        "p": TensorMap(memory.ctypes.data, "b4x16_p64", (128, 8), (64,), (128, 8)),
        "w": replace(plain_map(memory), spans_fetch=True),
    }
    expected = expect(1024) if said else ""
    found = Kernel(barrier_init() + expected + body, maps, {"memory": memory}).findings(EARLY)
    assert any(k == kind and said in message for k, message in found), found


def test_a_store_into_read_only_memory_is_found() -> None:
    memory = numbers(8)
    kernel = Kernel(store("t", (0, 0)), {"t": plain_map(memory)}, {"memory": memory}, read_only=("memory",))
    assert kernel.findings() and (memory == numbers(8)).all()
