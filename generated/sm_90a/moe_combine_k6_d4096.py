# Emitted from generator/templates/moe/moe_combine.py.j2 for op moe_combine on sm_90a. Do not edit.
# dims: k=6, d=4096
# config: row_parts=4, threads=128, opt_level=3
# spec sha256: 7a7ece98b3f6d81e5735fa5c04a6915328ab9a05d00c171c3aaad14accf7bfc1
"""out = bf16(Σ routed + shared) of tokens of 4096 columns: 6 routed rows of the token and one shared row.

4 CTAs share a token. A thread loads its vectors of all rows, 16 bytes each, before it adds the first, in float32.
"""

import cutlass
import cutlass.cute as cute
from cutlass import BFloat16
from cutlass.cute.runtime import make_fake_stream, make_fake_tensor

from dsv4.generator.device.packed_rows import lane_of_part
from dsv4.generator.device.row_sum import rounded_sum
from dsv4.generator.device.vector_io import load_vectors, make_fragment, store_vectors

VARIANTS = ({"gathered": False, "pdl": False}, {"gathered": False, "pdl": True})

ROUTES = 6
ROW = 4096
ROW_PARTS = 4
COLUMNS = ROW // ROW_PARTS  # of the part of a row that a CTA works on
THREADS = 128


@cute.kernel
def moe_combine_kernel(
    routed: cute.Tensor,
    shared: cute.Tensor,
    out: cute.Tensor,
    pdl: cutlass.Constexpr[bool],
):
    lane, _, _ = cute.arch.thread_idx()
    cta, _, _ = cute.arch.block_idx()
    part, token = cta % ROW_PARTS, cta // ROW_PARTS
    if cutlass.const_expr(pdl):
        cute.arch.griddepcontrol_wait()
        # Not earlier: what the next launch does before its own wait may rely on all launches before this.
        cute.arch.griddepcontrol_launch_dependents()

    terms = [make_fragment(COLUMNS, THREADS, BFloat16) for _ in range(ROUTES + 1)]
    shared_lane = lane_of_part(shared, COLUMNS, ROW_PARTS, THREADS, part, lane)
    load_vectors(shared_lane[token, None, None], terms[ROUTES], COLUMNS, THREADS, lane)
    for i in cutlass.range_constexpr(ROUTES):
        route_lane = lane_of_part(routed[None, i, None], COLUMNS, ROW_PARTS, THREADS, part, lane)
        load_vectors(route_lane[token, None, None], terms[i], COLUMNS, THREADS, lane)
    cute.arch.sync_warp()

    total = rounded_sum(terms)
    out_lane = lane_of_part(out, COLUMNS, ROW_PARTS, THREADS, part, lane)
    store_vectors(total, out_lane[token, None, None], COLUMNS, THREADS, lane)


@cute.jit
def launch(
    routed: cute.Tensor,
    rows: None,
    index: None,
    shared: cute.Tensor,
    out: cute.Tensor,
    pdl: cutlass.Constexpr[bool],
    stream,
):
    ctas = shared.shape[0] * ROW_PARTS
    if ctas > 0:
        moe_combine_kernel(routed, shared, out, pdl).launch(
            grid=[ctas, 1, 1], block=[THREADS, 1, 1], stream=stream, use_pdl=pdl
        )


def arguments(variant):
    tokens = cute.sym_int()

    def stride():
        return cute.sym_int64(divisibility=8)

    def matrix(rows):
        return make_fake_tensor(BFloat16, (rows, ROW), (stride(), 1), assumed_align=16)

    routed = make_fake_tensor(
        BFloat16, (tokens, ROUTES, ROW), (stride(), stride(), 1), assumed_align=16
    )
    stream = make_fake_stream(use_tvm_ffi_env_stream=True)
    return routed, None, None, matrix(tokens), matrix(tokens), variant["pdl"], stream
