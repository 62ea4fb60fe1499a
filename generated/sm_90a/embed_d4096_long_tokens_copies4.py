# Emitted from generator/templates/mhc/embed.py.j2 for op embed on sm_90a. Do not edit.
# dims: d=4096
# config: threads=128, opt_level=3
# spec sha256: a2ceaaca2728d93d17be7d7c2d5f47eb751f533c9a567cde40492c9b3386f368
"""Embedding: X[t, k, :] = table[tokens[t], :] for each stream k.

A thread copies 8 columns of one token, read once and written once a stream, 16 bytes at a time. 4 CTAs of
128 threads make a token of 4096 columns.
"""

import cutlass
import cutlass.cute as cute
from cutlass import BFloat16, Int32, Int64
from cutlass.cute.runtime import make_fake_stream, make_fake_tensor

from dsv4.generator.device.mhc_streams import load_vector, store_vector, vector_at

VARIANTS = (
    {"long_tokens": True, "copies": 4, "pdl": False},
    {"long_tokens": True, "copies": 4, "pdl": True},
    {"long_tokens": True, "copies": 1, "pdl": False},
    {"long_tokens": True, "copies": 1, "pdl": True},
    {"long_tokens": False, "copies": 4, "pdl": False},
    {"long_tokens": False, "copies": 4, "pdl": True},
    {"long_tokens": False, "copies": 1, "pdl": False},
    {"long_tokens": False, "copies": 1, "pdl": True},
)

COLUMNS = 4096
THREADS = 128
CTAS_PER_TOKEN = 4


@cute.kernel
def embed_kernel(
    tokens: cute.Tensor,
    table: cute.Tensor,
    streams: cute.Tensor,
    copies: cutlass.Constexpr[int],
    pdl: cutlass.Constexpr[bool],
):
    thread, _, _ = cute.arch.thread_idx()
    cta, _, _ = cute.arch.block_idx()
    token = Int64(cta // CTAS_PER_TOKEN)
    vector = cta % CTAS_PER_TOKEN * THREADS + thread

    # The tokens may come from the launch before this one; the table is read by their number.
    if cutlass.const_expr(pdl):
        cute.arch.griddepcontrol_wait()
        cute.arch.griddepcontrol_launch_dependents()
    row = Int64(tokens[token])
    values = load_vector(vector_at(table[row, None], vector))
    for k in cutlass.range_constexpr(copies):
        store_vector(values, vector_at(streams[token, k, None], vector))


@cute.jit
def launch(
    tokens: cute.Tensor,
    table: cute.Tensor,
    streams: cute.Tensor,
    long_tokens: cutlass.Constexpr[bool],
    copies: cutlass.Constexpr[int],
    pdl: cutlass.Constexpr[bool],
    stream,
):
    ctas = tokens.shape[0] * CTAS_PER_TOKEN
    if ctas > 0:
        embed_kernel(tokens, table, streams, copies, pdl).launch(
            grid=[ctas, 1, 1], block=[THREADS, 1, 1], stream=stream, use_pdl=pdl
        )


def arguments(variant):
    tokens, rows = cute.sym_int(), cute.sym_int()
    copies = variant["copies"]
    stream = make_fake_stream(use_tvm_ffi_env_stream=True)
    return (
        make_fake_tensor(
            Int64 if variant["long_tokens"] else Int32, (tokens,), (1,), assumed_align=8
        ),
        make_fake_tensor(BFloat16, (rows, COLUMNS), (COLUMNS, 1), assumed_align=16),
        make_fake_tensor(
            BFloat16, (tokens, copies, COLUMNS), (copies * COLUMNS, COLUMNS, 1), assumed_align=16
        ),
        variant["long_tokens"],
        copies,
        variant["pdl"],
        stream,
    )
