"""The router's choice for one token by one warp: affinities, the k experts with the largest scores, their weights.

A lane holds a run of neighbouring experts, so that the lowest lane that holds the largest score also holds the lowest
index that has it.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32, Uint32

from dsv4.generator.device.expert_run import experts_per_lane
from dsv4.generator.device.float_order import order_of
from dsv4.generator.device.softmax import LOG2_E

LINEAR_ABOVE = 20.0
TAKEN = 0
"""Below the order of every number: an expert that was chosen already, or that does not exist."""


@cute.jit
def affinity(logit: Float32) -> Float32:
    """√softplus(logit), relative error below 1e-6 (dsv4-reference §9.1).

    softplus(x) = max(x, 0) + log(1 + e), e = exp(−|x|); with s = e / (2 + e) ≤ 1/3 the logarithm is the odd series
    2 (s + s³/3 + s⁵/5 + …), which loses nothing for small e; seven terms leave 2e-8. Above 20, where torch calls
    softplus linear, the logarithm is below half a float32 step. Quotient and root are the hardware's, 2^-22 each: the
    exact ones branch, and so would follow one another for the experts of a lane.
    """
    e = cute.math.exp2(abs_float32(logit) * Float32(-LOG2_E), fastmath=True)
    s = e * cute.arch.rcp_approx(e + Float32(2.0))
    z = s * s
    series = Float32(1.0 / 13.0)
    for n in cutlass.range_constexpr(11, 0, -2):
        series = series * z + Float32(1.0 / n)
    return cute.math.sqrt(cute.arch.fmax(logit, Float32(0.0)) + Float32(2.0) * s * series, fastmath=True)


@cute.jit
def abs_float32(value: Float32) -> Float32:
    """|value|; a NaN stays one."""
    return cute.arch.fmax(value, -value)


@cute.jit
def make_scores(
    logits: cute.Tensor, biases: cute.Tensor, lane: Int32, experts: cutlass.Constexpr[int]
) -> tuple[cute.Tensor, cute.Tensor]:
    """The orders (:func:`order_of`) of this lane's affinities + ``biases``, and the affinities.

    ``logits``, ``biases``: float32, this lane's run.
    """
    held = experts_per_lane(experts)
    orders = cute.make_rmem_tensor((held,), Uint32)
    affinities = cute.make_rmem_tensor((held,), Float32)
    for i in cutlass.range_constexpr(held):
        affinities[i] = affinity(logits[i])
        order = order_of(affinities[i] + biases[i])
        orders[i] = order if lane * held + i < experts else Uint32(TAKEN)
    return orders, affinities


@cute.jit
def choose_largest(
    orders: cute.Tensor, affinities: cute.Tensor, lane: Int32, k: cutlass.Constexpr[int]
) -> tuple[list[Int32], list[Float32]]:
    """The experts of the ``k`` largest ``orders``, the largest first, and their ``affinities``, in every lane.

    ``orders``: Uint32, this lane's run of experts (:func:`order_of`, or :data:`TAKEN`); used up. Equal ones come by
    ascending index. All lanes of the warp take part. What a lane holds without its best is ready before it is known
    whether that one is taken: a round is as long as the warp's maximum and vote.
    """
    held = cute.size(orders)
    own_bit = Uint32(1) << Uint32(lane)
    lanes_upto_own = own_bit | (own_bit - Uint32(1))
    rest = cute.make_rmem_tensor((held,), Uint32)
    experts, chosen = [], []
    best, place, value = _largest(orders, affinities)
    for n in cutlass.range_constexpr(k):
        largest = cute.arch.warp_redux_sync(best, "max")
        have_it = Uint32(cute.arch.vote_ballot_sync(best == largest))
        owner = Int32(cute.arch.popc((have_it - Uint32(1)) & ~have_it))
        experts.append(cute.arch.shuffle_sync(lane * held + place, owner))
        chosen.append(cute.arch.shuffle_sync(value, owner))
        if cutlass.const_expr(n + 1 < k):
            for i in cutlass.range_constexpr(held):
                rest[i] = Uint32(TAKEN) if place == i else orders[i]
            next_best, next_place, next_value = _largest(rest, affinities)
            is_owner = (have_it & lanes_upto_own) == own_bit
            for i in cutlass.range_constexpr(held):
                orders[i] = rest[i] if is_owner else orders[i]
            best = next_best if is_owner else best
            place = next_place if is_owner else place
            value = next_value if is_owner else value
    return experts, chosen


def _largest(orders: cute.Tensor, affinities: cute.Tensor) -> tuple[Uint32, Int32, Float32]:
    """The largest of this lane's orders, its place and affinity, the first of equal ones, by halves."""
    found = [(orders[i], Int32(i), affinities[i]) for i in range(cute.size(orders))]
    while len(found) > 1:
        halves = [_larger(*found[i], *found[i + 1]) for i in range(0, len(found) - 1, 2)]
        found = halves + found[2 * len(halves) :]
    return found[0]


@cute.jit
def _larger(
    a: Uint32, place_a: Int32, value_a: Float32, b: Uint32, place_b: Int32, value_b: Float32
) -> tuple[Uint32, Int32, Float32]:
    return (b if b > a else a), (place_b if b > a else place_a), (value_b if b > a else value_a)


@cute.jit
def write_choice(
    chosen: list[Int32],
    affinities: list[Float32],
    factor: Float32,
    experts: cute.Tensor,
    weights: cute.Tensor,
    lane: Int32,
) -> None:
    """One token's row of the outputs: lane n writes expert ``chosen[n]`` and its affinity / Σ affinities · ``factor``.

    ``experts`` and ``weights`` are the token's rows. The sum runs in the order of the choice.
    """
    total, expert, own = affinities[0], chosen[0], affinities[0]
    for n in cutlass.range_constexpr(1, len(chosen)):
        total = total + affinities[n]
        expert = chosen[n] if lane == n else expert
        own = affinities[n] if lane == n else own
    if lane < len(chosen):
        experts[lane] = expert
        weights[lane] = own * cute.arch.rcp_approx(total) * factor
