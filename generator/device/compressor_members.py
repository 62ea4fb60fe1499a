"""The members of a compressed entry: which rows they are in, and one thread's part of them (dsv4-reference §5.2).

An entry has a number of slots, each a token: one of this step (``fresh``), in rows of kv and score; an earlier one
(``stored``), in a row of state, kv ‖ score + ape; or nobody, before the first token of a sequence. A thread holds eight
neighbouring channels of some neighbouring slots. Where a row has twice the channels of an entry, the first half of the
slots takes the first half of them, the second the second.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32, Int64

from dsv4.generator.device.vector_io import VECTOR_BITS, VECTOR_ELEMENTS, to_float32

ABSENT = -1


@cute.jit
def load_rows(table: cute.Tensor, first: Int32, count: cutlass.Constexpr[int]) -> list[Int32]:
    """``count`` (even) row numbers from slot ``first`` (a multiple of it) on: ``table`` is i64 [slots], one entry's."""
    numbers = cute.make_rmem_tensor((count,), Int64)
    load_at(table.iterator.toint() + Int64(first) * 8, numbers)
    return [Int32(numbers[i]) for i in range(count)]


@cute.jit
def load_at(address: Int64, fragment: cute.Tensor) -> None:
    """Load a fragment of whole 16-byte vectors from global memory; ``address`` is a multiple of 16."""
    pointer = cute.make_ptr(fragment.element_type, address, cute.AddressSpace.gmem, assumed_align=16)
    source = cute.make_tensor(pointer, cute.make_layout(cute.size(fragment)))
    atom = cute.make_copy_atom(cute.nvgpu.CopyG2ROp(), fragment.element_type, num_bits_per_copy=VECTOR_BITS)
    cute.copy(atom, source, fragment)


@cute.jit
def address_of(matrix: cute.Tensor, row: Int32, column: Int32) -> Int64:
    """Where an element lies; in 64 bits, since a state or the tokens of a step may have more than 2³¹ bytes."""
    element_bytes = matrix.element_type.width // 8
    return matrix.iterator.toint() + (Int64(row) * Int64(matrix.stride[0]) + Int64(column)) * element_bytes


@cute.jit
def column_of(ape: cute.Tensor, slot: Int32, channel: Int32, width: cutlass.Constexpr[int]) -> Int32:
    """The column, in the row of the token in ``slot``, of the channel ``channel`` of an entry of ``width`` channels.

    ``ape``: [m, f · width].
    """
    if cutlass.const_expr(ape.shape[1] == 2 * width):
        return channel + width * (slot // ape.shape[0])
    return channel


@cute.jit
def load_ape(
    ape: cute.Tensor, first_slot: Int32, count: cutlass.Constexpr[int], channel: Int32, width: cutlass.Constexpr[int]
) -> cute.Tensor:
    """What is added to the scores of ``count`` slots from ``first_slot`` on: float32 (8, count), from ``channel`` on.

    Slot s holds a token of phase s mod m, so this waits for no row number.
    """
    found = cute.make_rmem_tensor((VECTOR_ELEMENTS, count), Float32)
    for i in cutlass.range_constexpr(count):
        slot = first_slot + i
        load_at(address_of(ape, slot % ape.shape[0], column_of(ape, slot, channel, width)), found[None, i])
    return found


@cute.jit
def narrow(registers: cute.Tensor, dtype: type[cutlass.Numeric]) -> cute.Tensor:
    """The first half of eight float32 registers as eight 16-bit elements: where those wait until they are widened."""
    return cute.make_tensor(cute.recast_tensor(registers, dtype).iterator, cute.make_layout(VECTOR_ELEMENTS))


@cute.jit
def load_members(
    kv: cute.Tensor,
    score: cute.Tensor,
    state: cute.Tensor,
    ape: cute.Tensor,
    added: cute.Tensor,
    fresh: list[Int32],
    stored: list[Int32],
    channel: Int32,
    first_slot: Int32,
    width: cutlass.Constexpr[int],
) -> tuple[cute.Tensor, cute.Tensor]:
    """Eight channels of the values of a thread's slots, and of their scores with ape.

    Two float32 fragments (8, slots), 0 and −∞ where a slot is empty. ``kv``, ``score``: float32 or bf16 [T, f · width];
    ``state``: float32 [R, 2 · f · width]; of ``ape`` the shape alone is used, ``added`` is from :func:`load_ape`.
    ``fresh`` and ``stored``: the slots' rows, −1 for none. All loads are issued before the first is used.
    """
    count = len(fresh)
    values = cute.make_rmem_tensor((VECTOR_ELEMENTS, count), Float32)
    scores = cute.make_rmem_tensor((VECTOR_ELEMENTS, count), Float32)
    values.fill(0.0)
    scores.fill(-Float32.inf)
    for i in cutlass.range_constexpr(count):
        column = column_of(ape, first_slot + i, channel, width)
        is_fresh = fresh[i] > ABSENT
        value = address_of(state, stored[i], column)
        gate = value + 4 * ape.shape[1]
        if cutlass.const_expr(kv.element_type is Float32):
            value = address_of(kv, fresh[i], column) if is_fresh else value
            gate = address_of(score, fresh[i], column) if is_fresh else gate
            if is_fresh or stored[i] > ABSENT:
                load_at(value, values[None, i])
                load_at(gate, scores[None, i])
        elif is_fresh:
            load_at(address_of(kv, fresh[i], column), narrow(values[None, i], kv.element_type))
            load_at(address_of(score, fresh[i], column), narrow(scores[None, i], kv.element_type))
        elif stored[i] > ABSENT:
            load_at(value, values[None, i])
            load_at(gate, scores[None, i])
    if cutlass.const_expr(kv.element_type is not Float32):
        for i in cutlass.range_constexpr(count):
            is_fresh = fresh[i] > ABSENT
            for registers in (values[None, i], scores[None, i]):
                wide = to_float32(narrow(registers, kv.element_type))
                for k in cutlass.range_constexpr(VECTOR_ELEMENTS):
                    registers[k] = wide[k] if is_fresh else registers[k]
    for i in cutlass.range_constexpr(count):
        is_fresh = fresh[i] > ABSENT
        for k in cutlass.range_constexpr(VECTOR_ELEMENTS):
            scores[k, i] = scores[k, i] + added[k, i] if is_fresh else scores[k, i]
    return values, scores
