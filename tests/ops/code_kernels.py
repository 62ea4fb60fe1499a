"""Small kernels around the device functions for number codes: one thread converts eight values. Not a test module."""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import BFloat16, Float32, Uint32
from cutlass.cute.runtime import make_fake_stream, make_fake_tensor

from dsv4.generator.device import e8m0, fp4_codes, fp8_codes

THREADS = 128
VALUES = 8


@cute.kernel
def encode_kernel(x: cute.Tensor, fp8: cute.Tensor, fp4: cute.Tensor, native: cutlass.Constexpr[bool]):
    row = cute.arch.block_idx()[0] * THREADS + cute.arch.thread_idx()[0]
    if row < x.shape[0]:
        values = cute.make_rmem_tensor((VALUES,), Float32)
        for i in cutlass.range_constexpr(VALUES):
            values[i] = x[row, i]
        codes = fp8_codes.encode_fragment(values)
        fp8[row, 0], fp8[row, 1] = codes[0], codes[1]
        fp4[row, 0] = fp4_codes.encode_fragment(values, native)[0]


@cute.kernel
def decode_kernel(fp8: cute.Tensor, fp4: cute.Tensor, from_fp8: cute.Tensor, from_fp4: cute.Tensor):
    row = cute.arch.block_idx()[0] * THREADS + cute.arch.thread_idx()[0]
    if row < fp8.shape[0]:
        codes8, codes4 = cute.make_rmem_tensor((2,), Uint32), cute.make_rmem_tensor((1,), Uint32)
        codes8[0], codes8[1], codes4[0] = fp8[row, 0], fp8[row, 1], fp4[row, 0]
        values8, values4 = fp8_codes.decode_fragment(codes8), fp4_codes.decode_fragment(codes4)
        for i in cutlass.range_constexpr(VALUES):
            from_fp8[row, i], from_fp4[row, i] = values8[i], values4[i]


@cute.kernel
def scale_kernel(x: cute.Tensor, codes: cute.Tensor, reciprocals: cute.Tensor, scales: cute.Tensor):
    row = cute.arch.block_idx()[0] * THREADS + cute.arch.thread_idx()[0]
    bits = Uint32(0)
    wide = cute.make_rmem_tensor((VALUES,), Float32)
    if row < x.shape[0]:
        narrow = cute.make_rmem_tensor((VALUES,), BFloat16)
        for i in cutlass.range_constexpr(VALUES):
            narrow[i] = x[row, i]
            wide[i] = narrow[i].to(Float32)
        bits = e8m0.amax_bits_bf16(narrow)
        wide_bits = e8m0.amax_bits_f32(wide)
        both_nan = cutlass.min(bits, wide_bits) > Uint32(0x7F800000)  # of different payloads
        bits = bits if bits == wide_bits or both_nan else Uint32(0x12345678)
    pair_bits = e8m0.amax_bits_over_lanes(bits, 2)
    if row < x.shape[0]:
        found = [fp8_codes.fp8_scale_code(bits), fp4_codes.mxfp4_scale_code(bits), fp8_codes.fp8_scale_code(pair_bits)]
        for i in cutlass.range_constexpr(3):
            codes[row, i] = found[i]
            reciprocals[row, i] = e8m0.e8m0_reciprocal(found[i])
            scales[row, i] = e8m0.e8m0_value(found[i])


@cute.jit
def launch_encode(x, fp8, fp4, native: cutlass.Constexpr[bool], stream):
    encode_kernel(x, fp8, fp4, native).launch(
        grid=[cute.ceil_div(x.shape[0], THREADS), 1, 1], block=[THREADS, 1, 1], stream=stream
    )


@cute.jit
def launch_decode(fp8, fp4, from_fp8, from_fp4, stream):
    decode_kernel(fp8, fp4, from_fp8, from_fp4).launch(
        grid=[cute.ceil_div(fp8.shape[0], THREADS), 1, 1], block=[THREADS, 1, 1], stream=stream
    )


@cute.jit
def launch_scale(x, codes, reciprocals, scales, stream):
    scale_kernel(x, codes, reciprocals, scales).launch(
        grid=[cute.ceil_div(x.shape[0], THREADS), 1, 1], block=[THREADS, 1, 1], stream=stream
    )


def compile_kernels(arch: str, dump_folder: str):
    """The three kernels for ``arch``: encode(x f32 [n, 8], u32 [n, 2], u32 [n, 1]), decode, scale (bf16 [n, 8], …)."""
    rows = cute.sym_int()

    def matrix(dtype, columns):
        return make_fake_tensor(dtype, (rows, columns), (columns, 1), assumed_align=4)

    stream = make_fake_stream(use_tvm_ffi_env_stream=True)
    options = f"--gpu-arch {arch} --enable-tvm-ffi --keep-ptx --keep-cubin --dump-dir {dump_folder}"
    packed = matrix(Uint32, 2), matrix(Uint32, 1)
    encode = cute.compile(launch_encode, matrix(Float32, VALUES), *packed, arch == "sm_100a", stream, options=options)
    decode = cute.compile(
        launch_decode, *packed, matrix(Float32, VALUES), matrix(Float32, VALUES), stream, options=options
    )
    three = matrix(Uint32, 3), matrix(Float32, 3), matrix(Float32, 3)
    scale = cute.compile(launch_scale, matrix(BFloat16, VALUES), *three, stream, options=options)
    return encode, decode, scale
