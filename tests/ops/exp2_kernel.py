"""A small kernel around ``sm100_exp2``: one thread, one exponential. Not a test module."""

from __future__ import annotations

from typing import Any

import cutlass.cute as cute
from cutlass import Float32
from cutlass.cute.runtime import make_fake_stream, make_fake_tensor

from dsv4.generator.device.sm100_exp2 import exp2_emulated

THREADS = 128


@cute.kernel
def exp2_kernel(x: cute.Tensor, y: cute.Tensor):
    number = cute.arch.block_idx()[0] * THREADS + cute.arch.thread_idx()[0]
    if number < x.shape[0]:
        y[number] = exp2_emulated(x[number])


@cute.jit
def launch_exp2(x: cute.Tensor, y: cute.Tensor, stream):
    exp2_kernel(x, y).launch(grid=[cute.ceil_div(x.shape[0], THREADS), 1, 1], block=[THREADS, 1, 1], stream=stream)


def compile_exp2(arch: str, folder: str) -> Any:
    count = cute.sym_int()
    x, y = (make_fake_tensor(Float32, (count,), (1,), assumed_align=4) for _ in range(2))
    options = f"--gpu-arch {arch} --enable-tvm-ffi --keep-ptx --keep-cubin --dump-dir {folder}"
    return cute.compile(launch_exp2, x, y, make_fake_stream(use_tvm_ffi_env_stream=True), options=options)
