"""One row of float32 written to a pool: as bf16, or as the bytes of a packed page (dsv4-reference §4.4, §6.5).

A packed page holds the bodies of its rows, one after another, then their scales (``runtime/pool.py``):

    KV_FP8      448 E4M3 codes and 64 rotary bf16    8 bytes: an E8M0 scale for each 64 codes, then a zero
    INDEX_FP8   128 E4M3 codes                       4 bytes: the scale as float32
    INDEX_FP4   128 E2M1 codes in 64 bytes           4 bytes: an E8M0 scale for each 32 codes

``values`` are this lane's part of the row, float32 ``(8, vectors)``, spread over ``lanes`` threads as ``vector_io``
does: 512 columns over 32 or 64 lanes, 128 columns over 8, 16 or 32 (there the upper half holds a row of its own).
``row`` is the row's flat number, page · P + offset, Int32 or Int64, the same in all lanes of the row; a negative one
writes nothing, but its lanes have to call like the others: the amax goes through shuffles of whole warps. ``page`` is
P, an Int32 or, where the division by it would be waited for, a ``FastDivmodDivisorV2`` that the host made of it.
``pool`` is u8 [pages, page bytes] with a 64-bit stride that is a multiple of 16, aligned to 16 bytes.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import BFloat16, Int32, Int64, Uint8, Uint32

from dsv4.generator.device.e8m0 import amax_bits_f32, amax_bits_over_lanes, e8m0_reciprocal, e8m0_value
from dsv4.generator.device.fp8_codes import encode_fragment, fp8_scale_code
from dsv4.generator.device.fragments import scaled_by
from dsv4.generator.device.rope import ROTARY_LANES, is_rotary_lane
from dsv4.generator.device.row_quant import quantize_fp8, quantize_mxfp4
from dsv4.generator.device.vector_io import VECTOR_ELEMENTS

KV_BODY_BYTES, KV_TAIL_BYTES = 576, 8
KV_CODES = 448
INDEX_FP8_BODY_BYTES, INDEX_FP4_BODY_BYTES, INDEX_TAIL_BYTES = 128, 64, 4


@cute.jit
def row_addresses(
    pool: cute.Tensor, row: Int64, page: Int32, body: cutlass.Constexpr[int], tail: cutlass.Constexpr[int]
) -> tuple[Int64, Int64]:
    """Addresses of a row's ``body`` bytes and of its ``tail`` bytes of scales. ``row`` must not be negative."""
    if cutlass.const_expr(isinstance(page, cute.FastDivmodDivisorV2)):
        quotient, remainder = divmod(Int32(row), page)
        index, offset, rows = Uint32(quotient), Uint32(remainder), Uint32(page.divisor)
    else:
        number, rows = Uint32(row), Uint32(page)  # unsigned: the shorter division
        index = number // rows
        offset = number - index * rows
    start = pool.iterator.toint() + Int64(index) * Int64(pool.stride[0])
    return start + Int64(offset * Uint32(body)), start + Int64(rows * Uint32(body) + offset * Uint32(tail))


@cute.jit
def store_at(address: Int64, fragment: cute.Tensor) -> None:
    """Store a fragment of 1 … 16 bytes (a power of two) to global memory at once; ``address`` is a multiple of that."""
    size = cute.size(fragment) * fragment.element_type.width // 8
    pointer = cute.make_ptr(fragment.element_type, address, cute.AddressSpace.gmem, assumed_align=size)
    target = cute.make_tensor(pointer, cute.make_layout(cute.size(fragment)))
    atom = cute.make_copy_atom(cute.nvgpu.CopyR2GOp(), fragment.element_type, num_bits_per_copy=8 * size)
    cute.copy(atom, fragment, target)


@cute.jit
def store_byte(address: Int64, value: Uint32) -> None:
    """Store the lowest byte of ``value`` to global memory."""
    byte = cute.make_rmem_tensor((1,), Uint8)
    byte[0] = Uint8(value)
    store_at(address, byte)


@cute.jit
def to_bf16(values: cute.Tensor) -> cute.Tensor:
    """float32 values rounded to bf16; same shape."""
    result = cute.make_rmem_tensor(values.shape, BFloat16)
    result.store(values.load().to(BFloat16))
    return result


@cute.jit
def store_plain(values: cute.Tensor, pool: cute.Tensor, row: Int64, lanes: cutlass.Constexpr[int], lane: Int32) -> None:
    """Write a row of bf16. ``pool``: bf16 [rows, columns] with a 64-bit stride, aligned to 16 bytes."""
    if row >= 0:
        start = pool.iterator.toint() + Int64(row) * Int64(pool.stride[0]) * 2
        for v in cutlass.range_constexpr(cute.size(values, mode=[1])):
            place = Int64((v * lanes + lane) * (2 * VECTOR_ELEMENTS))
            store_at(start + place, to_bf16(values[None, v]))


@cute.jit
def store_kv_fp8(
    values: cute.Tensor, pool: cute.Tensor, row: Int64, page: Int32, lanes: cutlass.Constexpr[int], lane: Int32
) -> None:
    """Write a row of 512 to a ``KV_FP8`` page: columns 0 … 447 by FQ64 (§4.3), the last 64 as bf16."""
    vectors = cute.size(values, mode=[1])
    codes, scales = [], []
    for v in cutlass.range_constexpr(vectors):
        code, scale = quantize_fp8(values[None, v], ROTARY_LANES)
        codes.append(code)
        scales.append(scale)
    if row >= 0:
        body, tail = row_addresses(pool, row, page, KV_BODY_BYTES, KV_TAIL_BYTES)
        is_rotary = is_rotary_lane(lanes, lane)
        for v in cutlass.range_constexpr(vectors):
            number = v * lanes + lane
            if cutlass.const_expr(v == vectors - 1):
                if is_rotary:
                    rotary = number * (2 * VECTOR_ELEMENTS) - KV_CODES
                    store_at(body + Int64(rotary), to_bf16(values[None, v]))
                else:
                    store_at(body + Int64(number * VECTOR_ELEMENTS), codes[v])
            else:
                store_at(body + Int64(number * VECTOR_ELEMENTS), codes[v])
            if lane % ROTARY_LANES == 0:
                scale = scales[v]
                if cutlass.const_expr(v == vectors - 1):  # the rotary lanes' place is the byte of padding
                    scale = Uint32(0) if is_rotary else scale
                store_byte(tail + Int64(number // ROTARY_LANES), scale)


@cute.jit
def store_index_fp8(
    values: cute.Tensor, pool: cute.Tensor, row: Int64, page: Int32, lanes: cutlass.Constexpr[int], lane: Int32
) -> None:
    """Write a row of 128 to an ``INDEX_FP8`` page: one scale, a power of two as float32."""
    scale = fp8_scale_code(amax_bits_over_lanes(amax_bits_f32(values), lanes))
    reciprocal = e8m0_reciprocal(scale)
    vectors = cute.size(values, mode=[1])
    codes = [encode_fragment(scaled_by(values[None, v], reciprocal)) for v in range(vectors)]
    if row >= 0:
        body, tail = row_addresses(pool, row, page, INDEX_FP8_BODY_BYTES, INDEX_TAIL_BYTES)
        for v in cutlass.range_constexpr(vectors):
            store_at(body + Int64((v * lanes + lane) * VECTOR_ELEMENTS), codes[v])
        if lane == 0:
            value = cute.make_rmem_tensor((1,), cutlass.Float32)
            value[0] = e8m0_value(scale)
            store_at(tail, value)


@cute.jit
def store_index_fp4(
    values: cute.Tensor,
    pool: cute.Tensor,
    row: Int64,
    page: Int32,
    lanes: cutlass.Constexpr[int],
    lane: Int32,
    native: cutlass.Constexpr[bool],
) -> None:
    """Write a row of 128 to an ``INDEX_FP4`` page: MXFP4 (§6.3). ``native``: the chip encodes E2M1 (sm_100a)."""
    vectors = cute.size(values, mode=[1])
    codes, scales = [], []
    for v in cutlass.range_constexpr(vectors):
        code, scale = quantize_mxfp4(values[None, v], native)
        codes.append(code)
        scales.append(scale)
    if row >= 0:
        body, tail = row_addresses(pool, row, page, INDEX_FP4_BODY_BYTES, INDEX_TAIL_BYTES)
        for v in cutlass.range_constexpr(vectors):
            number = v * lanes + lane
            store_at(body + Int64(number * 4), codes[v])
            if lane % 4 == 0:
                store_byte(tail + Int64(number // 4), scales[v])
