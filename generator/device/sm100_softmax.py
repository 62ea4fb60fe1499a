"""Online softmax with one row per thread, as TMEM hands rows out on sm_100.

All logits are carried in base-2 units, x = s · scale · log2 e, because the hardware's exponential is 2^x. A row's
state is its reference (the exponent that its P and its O are relative to) and Σ 2^(x − reference).

The reference is the running maximum, always: a reference that lags behind it would save rescales of O, but the largest
P of a row, 2^0, is exact in bf16 only without a lag, and in a row with one dominant key that is most of the error.

A row that has seen no key has the reference −∞ and the sum 0. A NaN logit gives a NaN sum and a NaN row of P, in its
own row only: the maximum ignores NaN.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute

from dsv4.generator.device.sm100_exp2 import exp2_emulated

LOG2_E = 1.4426950408889634
LN_2 = 0.6931471805599453
MINUS_INFINITY = -cutlass.Float32.inf


SMALLEST_SCALE = 2.0**-126


@cute.jit
def scale_to_base_2(softmax_scale: cutlass.Float32) -> cutlass.Float32:
    """|softmax_scale| · log2 e, at least 2^−126: with a scale of 0 the logits of hidden keys would be −∞ · 0, a NaN."""
    magnitude = cutlass.max(softmax_scale, -softmax_scale)
    return cutlass.max(magnitude * LOG2_E, cutlass.Float32(SMALLEST_SCALE))


@cute.jit
def hide_keys(scores: cute.Tensor, visible: cutlass.Int32) -> None:
    """Set the elements of a row of scores from index ``visible`` on to −∞ (``visible`` may be ≤ 0 or past the end)."""
    for i in cutlass.range_constexpr(cute.size(scores)):
        scores[i] = scores[i] if i < visible else MINUS_INFINITY


@cute.jit
def row_maximum(scores: cute.Tensor) -> cutlass.Float32:
    """The largest element of one thread's row; NaN elements are ignored, a row of NaN gives −∞.

    Four running maxima, so that the chain of dependent comparisons is a quarter as long.
    """
    count = cute.size(scores)
    best = [cute.arch.fmax(MINUS_INFINITY, scores[i]) for i in range(4)]
    for i in cutlass.range_constexpr(4, count):
        best[i % 4] = cute.arch.fmax(best[i % 4], scores[i])
    return cute.arch.fmax(cute.arch.fmax(best[0], best[1]), cute.arch.fmax(best[2], best[3]))


@cute.jit
def finite_or_zero(reference: cutlass.Float32) -> cutlass.Float32:
    """The reference to subtract: 0 in place of −∞, so that 2^(−∞ − reference) is 0 and not NaN."""
    return cutlass.Float32(0.0) if reference == MINUS_INFINITY else reference


@cute.jit
def rescale_factor(old_reference: cutlass.Float32, subtracted: cutlass.Float32) -> cutlass.Float32:
    """2^(old − new), by which a row's O and sum are multiplied: 0 where the row had seen no key, 1 without a rise."""
    return cute.math.exp2(old_reference - subtracted, fastmath=True)


@cute.jit
def exponentials(
    scores: cute.Tensor,
    packed: cute.Tensor,
    scale_log2: cutlass.Float32,
    subtracted: cutlass.Float32,
    row_sum: cutlass.Float32,
    emulated: cutlass.Constexpr[int] = 0,
) -> cutlass.Float32:
    """P = 2^(s·scale_log2 − subtracted) of one piece of a row.

    ``scores`` (n,) float32 is overwritten by P, ``packed`` (n/2,) float32 cells receive P as bf16, two to a cell, lower
    column in the lower half: the layout in which the MMA reads an A operand from TMEM. Returns ``row_sum`` + Σ P,
    summed before the rounding to bf16. Of every 32 so many are ``emulated``, an even number (``sm100_exp2``).
    """
    count = cute.size(scores)
    halves = cute.make_tensor(cute.recast_ptr(packed.iterator, dtype=cutlass.BFloat16), cute.make_layout(count))
    sums = (row_sum, cutlass.Float32(0.0))
    for i in cutlass.range_constexpr(0, count, 2):
        x0, x1 = cute.arch.fma_packed_f32x2(
            (scores[i], scores[i + 1]), (scale_log2, scale_log2), (-subtracted, -subtracted)
        )
        if cutlass.const_expr(i * emulated // 2 % 32 < emulated):  # far from one another
            scores[i], scores[i + 1] = exp2_emulated(x0), exp2_emulated(x1)
        else:
            scores[i] = cute.math.exp2(x0, fastmath=True)
            scores[i + 1] = cute.math.exp2(x1, fastmath=True)
        sums = cute.arch.add_packed_f32x2(sums, (scores[i], scores[i + 1]))
    halves.store(scores.load().to(cutlass.BFloat16))
    return sums[0] + sums[1]


@cute.jit
def scaled_scores(
    scores: cute.Tensor, packed: cute.Tensor, scale: cutlass.Float32, row_sum: cutlass.Float32
) -> cutlass.Float32:
    """The identity in place of the softmax, to bring a kernel up: P = s·scale, hidden keys 0; see ``exponentials``."""
    count = cute.size(scores)
    halves = cute.make_tensor(cute.recast_ptr(packed.iterator, dtype=cutlass.BFloat16), cute.make_layout(count))
    for i in cutlass.range_constexpr(count):
        value = scores[i] * scale
        scores[i] = cutlass.Float32(0.0) if scores[i] == MINUS_INFINITY else value
        row_sum = row_sum + scores[i]
    halves.store(scores.load().to(cutlass.BFloat16))
    return row_sum


@cute.jit
def log_sum_exp(reference: cutlass.Float32, row_sum: cutlass.Float32) -> cutlass.Float32:
    """Natural log of Σ e^s over the row's keys; −∞ for a row without keys."""
    return (reference + cute.math.log2(row_sum, fastmath=True)) * LN_2


@cute.jit
def sum_with_sink(reference: cutlass.Float32, row_sum: cutlass.Float32, sink: cutlass.Float32) -> cutlass.Float32:
    """Σ 2^(x − reference) plus the attention sink: one more column, a logit without a value vector.

    ``sink`` is in natural units and not scaled; −∞ adds nothing, +∞ makes the row's output 0.
    """
    return row_sum + cute.math.exp2(sink * LOG2_E - finite_or_zero(reference), fastmath=True)
