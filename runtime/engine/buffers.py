"""The tensors of decoding steps, made once: each step fills them with two copies to the device.

Steps of one number of sequences and one reach have the very same tensors, so that their work can be recorded as a CUDA
graph and replayed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dsv4.runtime.engine.batch import Batch, Draws, Part, reach_of
from dsv4.runtime.model.step import Step


class DecodeBuffers:
    """For up to ``capacity`` sequences of ``tokens`` tokens each: 1, or 2 where the second is a draft."""

    def __init__(self, capacity: int, tokens: int, positions_max: int, device: torch.device | str) -> None:
        self.capacity, self.tokens, self._positions_max = capacity, tokens, positions_max
        pinned = torch.device(device).type == "cuda"
        self._host_ints = torch.zeros(capacity * (2 * tokens + 4), dtype=torch.int64, pin_memory=pinned)
        self._host_floats = torch.zeros(capacity * 2, dtype=torch.float32, pin_memory=pinned)
        self._ints = torch.zeros_like(self._host_ints, device=device)
        self._floats = torch.zeros_like(self._host_floats, device=device)
        self._following = torch.zeros(capacity * tokens, dtype=torch.int64, device=device)
        places = torch.arange(capacity + 1, device=device)
        self._sequence = places[:capacity].repeat_interleave(tokens)
        self._starts = places * tokens
        self._batches: dict[tuple[int, int], Batch] = {}

    def fill(self, parts: Sequence[Part], *, sequences: int | None = None) -> Batch:
        """The batch of ``parts``, which are all drafted or all one token long; valid until the next call.

        With ``sequences``, padded to that many by sequences for which nothing is stored.
        """
        count = len(parts) if sequences is None else sequences
        padding = [0] * (count - len(parts))
        wide_padding = padding * self.tokens
        ints = [
            *(token for part in parts for token in part.tokens),
            *wide_padding,
            *(part.first + place for part in parts for place in range(self.tokens)),
            *wide_padding,
            *(part.slot for part in parts),
            *(-1 for _ in padding),
        ]
        ints += [part.options.top_k for part in parts] + padding
        ints += [part.options.seed for part in parts] + padding
        ints += [part.position for part in parts] + padding
        floats = [part.options.temperature for part in parts] + padding
        floats += [part.options.top_p for part in parts] + [1.0 for _ in padding]
        for host, device, values in (
            (self._host_ints, self._ints, torch.tensor(ints)),
            (self._host_floats, self._floats, torch.tensor(floats, dtype=torch.float32)),
        ):
            host[: values.numel()] = values
            device[: values.numel()].copy_(host[: values.numel()], non_blocking=True)
        key = (count, reach_of(parts, self._positions_max))
        if key not in self._batches:
            self._batches[key] = self._views(*key)
        return self._batches[key]

    def _views(self, count: int, reach: int) -> Batch:
        """The batch of ``count`` sequences, whose tensors are parts of the buffers."""
        wide = count * self.tokens
        sizes = [wide, wide, count, count, count, count]
        tokens, positions, slots, top_k, seed, position = self._ints[: sum(sizes)].split(sizes)
        temperature, top_p = self._floats[: 2 * count].split(count)
        places = torch.arange(wide, device=self._ints.device).view(count, self.tokens)
        step = Step(
            tokens=tokens,
            positions=positions,
            sequence=self._sequence[:wide],
            starts=self._starts[: count + 1],
            slots=slots,
            logit_rows=places.t().reshape(-1),
            lengths=(self.tokens,) * count,
            reach=reach,
        )
        draws = Draws(count if self.tokens == 2 else 0, slots, top_k, seed, position, temperature, top_p)
        return Batch(step, draws, self._following[:wide])
