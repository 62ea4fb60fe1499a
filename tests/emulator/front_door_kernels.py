"""Small CuTeDSL kernels that the front door's tests run. Not a test module."""

from __future__ import annotations

import tempfile
from typing import Any

import cutlass
import cutlass.cute as cute
from cutlass import Float8E4M3FN, Float32, Int32
from cutlass.cute.runtime import make_fake_stream, make_fake_tensor, make_ptr

OPTIONS = "--enable-tvm-ffi --keep-ptx --keep-cubin --generate-line-info --gpu-arch"
THREADS = 64


@cute.kernel
def scale_kernel(x: cute.Tensor, y: cute.Tensor, alpha: Float32):
    thread, _, _ = cute.arch.thread_idx()
    block, _, _ = cute.arch.block_idx()
    index = block * THREADS + thread
    if index < cute.size(x):
        y[index] = x[index] * alpha


@cute.jit
def scale(x: cute.Tensor, y: cute.Tensor, alpha: Float32, stream):
    """y = x · alpha; how much is written is decided by the length of x."""
    blocks = cute.ceil_div(cute.size(x), THREADS)
    scale_kernel(x, y, alpha).launch(grid=[blocks, 1, 1], block=[THREADS, 1, 1], stream=stream)


@cute.kernel
def dependent_kernel(x: cute.Tensor, y: cute.Tensor, alpha: Float32, waits: cutlass.Constexpr[bool]):
    thread, _, _ = cute.arch.thread_idx()
    if cutlass.const_expr(waits):
        cute.arch.griddepcontrol_wait()
    if thread < cute.size(x):
        y[thread] = x[thread] * alpha


@cute.jit
def chain(x: cute.Tensor, y: cute.Tensor, z: cute.Tensor, alpha: Float32, waits: cutlass.Constexpr[bool], stream):
    """y = x · alpha, then z = y · alpha in a launch that may begin before the first one has ended."""
    scale_kernel(x, y, alpha).launch(grid=[1, 1, 1], block=[THREADS, 1, 1], stream=stream)
    dependent_kernel(y, z, alpha, waits).launch(grid=[1, 1, 1], block=[THREADS, 1, 1], stream=stream, use_pdl=True)


@cute.kernel
def between_kernel(y: cute.Tensor, order: cutlass.Constexpr[str]):
    thread, _, _ = cute.arch.thread_idx()
    block, _, _ = cute.arch.block_idx()
    for what in order:
        if cutlass.const_expr(what == "W"):
            cute.arch.griddepcontrol_wait()
        elif cutlass.const_expr(what == "L"):
            cute.arch.griddepcontrol_launch_dependents()
        elif block == 0:
            cute.arch.griddepcontrol_wait()
    y[block * THREADS + thread] = Float32(1.0)


@cute.jit
def relay(
    x: cute.Tensor,
    y: cute.Tensor,
    z: cute.Tensor,
    w: cute.Tensor,
    alpha: Float32,
    order: cutlass.Constexpr[str],
    stream,
):
    """y = x · alpha; z = 1 in two CTAs; w = y · alpha without a wait, in the launch after next.

    ``order`` is what the launch between does: W waits, L lets the next one begin, w waits in its first CTA only.
    """
    scale_kernel(x, y, alpha).launch(grid=[1, 1, 1], block=[THREADS, 1, 1], stream=stream)
    between_kernel(z, order).launch(grid=[2, 1, 1], block=[THREADS, 1, 1], stream=stream, use_pdl=True)
    dependent_kernel(y, w, alpha, False).launch(grid=[1, 1, 1], block=[THREADS, 1, 1], stream=stream, use_pdl=True)


@cute.kernel
def fill_kernel(target: cute.Pointer, count: Int32):
    thread, _, _ = cute.arch.thread_idx()
    if thread < count:
        cute.make_tensor(target, cute.make_layout(THREADS))[thread] = Float32(7.0)


@cute.jit
def fill(target: cute.Pointer, count: Int32, stream):
    """Seven in each of ``count`` float32 at ``target``. Without a tensor there is no stream to be found."""
    fill_kernel(target, count).launch(grid=[1, 1, 1], block=[THREADS, 1, 1], stream=stream)


@cute.kernel
def copy_kernel(x: cute.Tensor, y: cute.Tensor):
    thread, _, _ = cute.arch.thread_idx()
    if thread < cute.size(x):
        y[thread] = x[thread]


@cute.jit
def copy(x: cute.Tensor, y: cute.Tensor, stream):
    copy_kernel(x, y).launch(grid=[1, 1, 1], block=[THREADS, 1, 1], stream=stream)


def vector(dtype: Any = Float32, align: int = 4) -> Any:
    return make_fake_tensor(dtype, (cute.sym_int(),), (1,), assumed_align=align)


def compiled(name: str, arch: str = "sm_90a") -> Any:
    """One of the kernels above: scale, chain, hasty (a chain that does not wait), fill, copy (of e4m3), relay:ORDER."""
    with tempfile.TemporaryDirectory() as kept:  # where --keep-* writes; the working directory otherwise
        return _compiled(name, f"{OPTIONS} {arch} --dump-dir {kept}")


def _compiled(name: str, options: str) -> Any:
    env = make_fake_stream(use_tvm_ffi_env_stream=True)
    if name == "scale":
        return cute.compile(scale, vector(), vector(), Float32(1.0), env, options=options)
    if name in ("chain", "hasty"):
        arguments = (vector(), vector(), vector(), Float32(1.0), name == "chain", env)
        return cute.compile(chain, *arguments, options=options)
    if name.startswith("relay:"):
        tensors = (vector() for _ in range(4))
        return cute.compile(relay, *tensors, Float32(1.0), name.partition(":")[2], env, options=options)
    if name == "fill":
        target = make_ptr(Float32, 16, cute.AddressSpace.gmem, assumed_align=4)
        return cute.compile(fill, target, Int32(1), make_fake_stream(), options=options)
    return cute.compile(copy, vector(Float8E4M3FN, 16), vector(Float8E4M3FN, 16), env, options=options)
