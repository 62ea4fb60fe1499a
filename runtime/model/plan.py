"""What all layers of one kind share in a step, computed once: rows to write and read, and rotations.

Only tensor code: nothing waits for the device, and shapes depend on nothing but ``lengths`` and ``reach``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from dsv4.runtime.errors import ContractError
from dsv4.runtime.model.cache import Cache
from dsv4.runtime.model.schedule import LayerSchedule, RopeParameters
from dsv4.runtime.model.step import Step
from dsv4.runtime.ops.rope_table import rope_table
from dsv4.runtime.reference.compressor import Compression
from dsv4.runtime.reference.rope import rope_frequencies


@dataclass(frozen=True)
class RatioPlan:
    """Of the layers that compress by one ratio.

    ``visible`` i64 [T]: entries that each token may see. ``entry_rows`` i64 [S, E]: all entries of each sequence as
    rows of the pools; ``read_rows`` i32 [T, E]: those that each token may see. ``entry_cos_sin`` [N, r]: rotations of
    the entries that this step may complete.
    """

    compression: Compression
    entry_cos_sin: torch.Tensor
    visible: torch.Tensor
    entry_rows: torch.Tensor
    read_rows: torch.Tensor


@dataclass(frozen=True)
class Plan:
    """Of one step. ``window_write`` i64 [T]; ``window_read`` i32 [T, window]; ``cos_sin`` [T, r] by rotation."""

    step: Step
    window_write: torch.Tensor
    window_read: torch.Tensor
    cos_sin: dict[RopeParameters, torch.Tensor]
    ratios: dict[int, RatioPlan]


Frequencies = dict[RopeParameters, torch.Tensor]


def frequencies(layers: Iterable[LayerSchedule], device: torch.device | str) -> Frequencies:
    """f32 [r/2] on ``device`` for each kind of rotation; computed on the CPU, so that all devices have the same."""
    found: Frequencies = {}
    for rope in {layer.rope for layer in layers}:
        yarn = rope.yarn
        options = {}
        if yarn is not None:
            options = {
                "factor": yarn.factor,
                "beta_fast": yarn.beta_fast,
                "beta_slow": yarn.beta_slow,
                "original_positions": yarn.original_max_position_embeddings,
            }
        found[rope] = rope_frequencies(rope.theta, rope.rotary_dim, **options).to(device)  # type: ignore[arg-type]
    return found


def make_plan(
    step: Step,
    layers: Iterable[LayerSchedule],
    cache: Cache,
    frequencies: Frequencies,
    *,
    dtype: torch.dtype = torch.float32,
) -> Plan:
    """The plan of ``step`` for ``layers``. Raises ``ContractError`` where the step does not fit the cache."""
    layers = tuple(layers)
    _require_room(step, cache)
    window = layers[0].window
    token_slots = step.slots[step.sequence]
    back = torch.arange(window - 1, -1, -1, device=step.device)
    window_read = cache.window_rows(token_slots[:, None], step.positions[:, None] - back)
    ratios = {layer.ratio: layer for layer in layers if layer.has_compressor}
    return Plan(
        step=step,
        window_write=cache.window_rows(token_slots, step.positions),
        window_read=window_read.to(torch.int32),
        cos_sin={
            rope: rope_table(step.positions, frequencies[rope], dtype=dtype)
            for rope in {layer.rope for layer in layers}
        },
        ratios={
            ratio: _ratio_plan(step, layer, cache, token_slots, frequencies[layer.rope], dtype)
            for ratio, layer in ratios.items()
        },
    )


def _require_room(step: Step, cache: Cache) -> None:
    if step.reach > cache.positions_max:
        raise ContractError(
            f"step: reach: found {step.reach}; valid: at most {cache.positions_max}, the positions of the cache"
        )
    longest = max(step.lengths, default=0)
    if longest > cache.step_tokens_max:
        raise ContractError(
            f"step: found {longest} tokens of one sequence; valid: at most {cache.step_tokens_max} with this cache"
        )


def _ratio_plan(
    step: Step,
    layer: LayerSchedule,
    cache: Cache,
    token_slots: torch.Tensor,
    frequencies: torch.Tensor,
    dtype: torch.dtype,
) -> RatioPlan:
    ratio = layer.ratio
    entries, compression = _compression(step, layer, cache, token_slots)
    reach = step.reach // ratio
    everyone = torch.arange(reach, device=step.device)
    visible = (step.positions + 1) // ratio
    rows = cache.entry_rows(ratio, step.slots[:, None], everyone)
    return RatioPlan(
        compression=compression,
        entry_cos_sin=rope_table(entries * ratio, frequencies, dtype=dtype),
        visible=visible,
        entry_rows=rows,
        read_rows=rows[step.sequence].masked_fill(everyone >= visible[:, None], -1).to(torch.int32),
    )


def _compression(
    step: Step, layer: LayerSchedule, cache: Cache, token_slots: torch.Tensor
) -> tuple[torch.Tensor, Compression]:
    """The entries [N] that may be completed, ⌈length / ratio⌉ of each sequence, and which rows they are made of."""
    ratio, span, device = layer.ratio, layer.overlap * layer.ratio, step.device
    first = step.positions[step.starts[:-1]]
    last = step.positions[step.starts[1:] - 1]
    counts = (step.starts.diff() + ratio - 1) // ratio
    ends = counts.cumsum(0)
    number = torch.arange(sum(-(-length // ratio) for length in step.lengths), device=device)
    owner = torch.searchsorted(ends, number, right=True)
    entries = first[owner] // ratio + (number - (ends - counts)[owner])
    end = (entries + 1) * ratio
    complete = (end <= last[owner] + 1) & (step.slots[owner] >= 0)

    members = end[:, None] - span + torch.arange(span, device=device)
    owner_first = first[owner][:, None]
    is_fresh = (members >= owner_first) & complete[:, None]
    fresh = step.starts[owner][:, None] + members - owner_first
    is_stored = (members < owner_first) & (members >= 0) & complete[:, None]
    stored = cache.state_rows(ratio, step.slots[owner][:, None], members)
    kept = step.positions > last[step.sequence] - cache.state_tokens(ratio)
    return entries, Compression(
        phase=step.positions % ratio,
        fresh=fresh.masked_fill(~is_fresh, -1),
        stored=stored.masked_fill(~is_stored, -1),
        entry_rows=cache.entry_rows(ratio, step.slots[owner], entries).masked_fill(~complete, -1),
        state_rows=cache.state_rows(ratio, token_slots, step.positions).masked_fill(~kept, -1),
        # A token writes where an entry reads only if it lies a whole ring behind the entry's first token; entries that
        # read the state begin at most span − 1 tokens before the step.
        apart=max(step.lengths, default=0) <= 1 + cache.state_tokens(ratio) - span,
    )
