"""A token's logits as the router's choosing warp holds them: a run of neighbouring experts a lane."""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32

REGISTERS_AT_ONCE = 32
"""For parts of a lane's logits that are loaded together where their number is known only at the call."""


def experts_per_lane(experts: int) -> int:
    """How many neighbouring experts a lane holds, of ``experts`` in all, rounded up."""
    return -(-experts // 32)


def _is_vectors(experts: int) -> bool:
    """Whether every lane's run is whole 16-byte vectors."""
    return experts % 128 == 0


@cute.jit
def load_run(row: cute.Tensor, lane: Int32, experts: cutlass.Constexpr[int]) -> cute.Tensor:
    """This lane's run of ``row`` (float32 [experts], global memory); zeros beyond its end."""
    run = cute.make_rmem_tensor((experts_per_lane(experts),), Float32)
    run.fill(0.0)
    _read_run(row, run, lane, experts)
    return run


@cute.jit
def _read_run(row: cute.Tensor, run: cute.Tensor, lane: Int32, experts: cutlass.Constexpr[int]) -> None:
    held = experts_per_lane(experts)
    if cutlass.const_expr(_is_vectors(experts)):
        vectors = cute.make_layout(((4, held // 4), 32), stride=((1, 4), held))
        source = cute.make_tensor(row.iterator, vectors)[(None, None), lane]
        atom = cute.make_copy_atom(cute.nvgpu.CopyG2ROp(), Float32, num_bits_per_copy=128)
        cute.copy(atom, source, cute.make_tensor(run.iterator, cute.make_layout((4, held // 4))))
    else:
        for i in cutlass.range_constexpr(held):
            if lane * held + i < experts:
                run[i] = row[lane * held + i]


@cute.jit
def _load_parts(
    partials: cute.Tensor,
    first: Int32,
    token: Int32,
    lane: Int32,
    experts: cutlass.Constexpr[int],
    parts: cutlass.Constexpr[int],
) -> list[cute.Tensor]:
    """This lane's runs of the parts from ``first`` on; zeros in place of those that do not exist.

    A load under a condition goes to registers of its own. Loads without one the compiler may give the same registers,
    one after the other's use, and then the memory is waited for twice.
    """
    runs = [cute.make_rmem_tensor((experts_per_lane(experts),), Float32) for _ in range(parts)]
    for n in cutlass.range_constexpr(parts):
        runs[n].fill(0.0)
        if first + n < partials.shape[0] and token < partials.shape[1]:
            _read_run(partials[first + n, token, None], runs[n], lane, experts)
    return runs


@cute.jit
def load_logits(
    partials: cute.Tensor,
    token: Int32,
    lane: Int32,
    experts: cutlass.Constexpr[int],
    splits: cutlass.Constexpr[int],
) -> cute.Tensor:
    """This lane's logits of ``token``: the sum of the ``splits`` parts in ``partials`` [splits, tokens, experts]."""
    parts = _load_parts(partials, Int32(0), token, lane, experts, splits)
    logits = cute.make_rmem_tensor((experts_per_lane(experts),), Float32)
    for i in cutlass.range_constexpr(experts_per_lane(experts)):
        logits[i] = parts[0][i]
        for split in cutlass.range_constexpr(1, splits):
            logits[i] = logits[i] + parts[split][i]
    return logits


@cute.jit
def sum_logits(partials: cute.Tensor, token: Int32, lane: Int32, experts: cutlass.Constexpr[int]) -> cute.Tensor:
    """:func:`load_logits` for a number of parts that is known at the call: ``partials.shape[0]``, at least 1."""
    logits = load_run(partials[0, token, None], lane, experts)
    at_once = max(1, REGISTERS_AT_ONCE // experts_per_lane(experts))
    for first in cutlass.range(1, partials.shape[0], at_once, unroll=1):
        parts = _load_parts(partials, first, token, lane, experts, at_once)
        for n in cutlass.range_constexpr(at_once):
            for i in cutlass.range_constexpr(experts_per_lane(experts)):
                logits[i] = logits[i] + parts[n][i]
    return logits
