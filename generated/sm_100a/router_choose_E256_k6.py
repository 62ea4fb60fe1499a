# Emitted from generator/templates/moe/router_choose.py.j2 for op router_choose on sm_100a. Do not edit.
# dims: E=256, k=6
# config: warps=4, opt_level=3
# spec sha256: 9220d147b8dad7c688a598107be015f2b21b3db42ad7bd1aaa7ef4e742cc5a5f
"""The choice of 6 experts from 256 logits a token and their weights: a warp a token, logits read once."""

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32
from cutlass.cute.runtime import make_fake_stream, make_fake_tensor

from dsv4.generator.device.expert_choice import choose_largest, make_scores, write_choice
from dsv4.generator.device.expert_run import load_run, sum_logits

VARIANTS = ({"hash": False, "pdl": False}, {"hash": False, "pdl": True})

EXPERTS = 256
K = 6  # experts a token
WARPS = 4  # of a CTA, a token each
THREADS = 128


@cute.kernel
def router_choose_kernel(
    logits: cute.Tensor,
    bias: cute.Tensor,
    experts: cute.Tensor,
    weights: cute.Tensor,
    factor: Float32,
    pdl: cutlass.Constexpr[bool],
):
    thread, _, _ = cute.arch.thread_idx()
    cta, _, _ = cute.arch.block_idx()
    warp, lane = thread // 32, thread % 32
    token = cta * WARPS + warp
    # The bias first: with pdl it is read while the launch before this one still runs.
    biases = load_run(bias, lane, EXPERTS)
    if cutlass.const_expr(pdl):
        cute.arch.griddepcontrol_wait()
        # Not earlier: what the next launch does before its own wait may rely on all launches before this.
        cute.arch.griddepcontrol_launch_dependents()
    if token < logits.shape[1]:
        scores, affinities = make_scores(
            sum_logits(logits, token, lane, EXPERTS), biases, lane, EXPERTS
        )
        chosen, values = choose_largest(scores, affinities, lane, K)
        write_choice(chosen, values, factor, experts[token, None], weights[token, None], lane)


@cute.jit
def launch(
    logits: cute.Tensor,
    bias: cute.Tensor,
    tid2eid,
    tokens,
    experts: cute.Tensor,
    weights: cute.Tensor,
    factor: Float32,
    pdl: cutlass.Constexpr[bool],
    stream,
):
    ctas = cute.ceil_div(logits.shape[1], WARPS)
    if ctas > 0:
        router_choose_kernel(logits, bias, experts, weights, factor, pdl).launch(
            grid=[ctas, 1, 1], block=[THREADS, 1, 1], stream=stream, use_pdl=pdl
        )


def arguments(variant):
    rows = cute.sym_int()
    part_stride = cute.sym_int64(divisibility=4)
    logits = make_fake_tensor(
        Float32, (cute.sym_int(), rows, EXPERTS), (part_stride, EXPERTS, 1), assumed_align=16
    )
    experts = make_fake_tensor(Int32, (rows, K), (K, 1), assumed_align=4)
    weights = make_fake_tensor(Float32, (rows, K), (K, 1), assumed_align=4)
    stream = make_fake_stream(use_tvm_ffi_env_stream=True)
    bias = make_fake_tensor(Float32, (EXPERTS,), (1,), assumed_align=16)
    return logits, bias, None, None, experts, weights, Float32(0.0), variant["pdl"], stream
