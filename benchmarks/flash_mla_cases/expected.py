"""What has to come out, in float64 (dsv4-reference §7.4, §7.5), a few queries at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch

from benchmarks.flash_mla_cases.inputs import Inputs

BLOCK_BYTES = 1 << 30
"""Of keys in float64 at a time."""


class Expected(NamedTuple):
    """float64: out [N, heads, 512], the largest scaled logit and the natural log-sum-exp [N, heads], without the sink.

    A query without keys has out = 0, −∞ and lse = +∞.
    """

    out: torch.Tensor
    max_logits: torch.Tensor
    lse: torch.Tensor


def expected(inputs: Inputs, block_bytes: int = BLOCK_BYTES) -> Iterator[tuple[slice, Expected]]:
    """Blocks of queries, which together are all of them."""
    keys = sum(each.row.shape[1] for each in inputs.keys)
    size = max(block_bytes // (8 * keys * inputs.q.shape[-1]), 1)
    for first in range(0, len(inputs.q), size):
        yield slice(first, first + size), _block(inputs, slice(first, first + size))


def _block(inputs: Inputs, some: slice) -> Expected:
    q = inputs.q[some].to(torch.float64)
    keys = torch.cat([each.values[each.row[some]] for each in inputs.keys], dim=1)
    valid = torch.cat([each.valid[some] for each in inputs.keys], dim=1)[:, None]
    logits = torch.bmm(q, keys.transpose(1, 2)).mul_(inputs.scale).masked_fill_(~valid, -math.inf)
    top = logits.amax(-1)
    weights = logits.sub_(top.masked_fill(top.isneginf(), 0.0)[..., None]).exp_()
    total = weights.sum(-1)
    out = torch.bmm(weights, keys)
    below = total
    if inputs.sink is not None:
        below = total + (inputs.sink.to(torch.float64) - top).exp()
    lonely = top.isneginf()
    out = (out / below[..., None]).masked_fill(lonely[..., None], 0.0)
    return Expected(out, top, (top + total.log()).masked_fill(lonely, math.inf))
