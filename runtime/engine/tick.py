"""The work of one step on the device: forward pass, drawing, and the MTP layer's next drafts. Nothing waits for it."""

from __future__ import annotations

from dataclasses import replace

import torch

from dsv4.runtime.engine import acceptance
from dsv4.runtime.engine.batch import Batch, Draws
from dsv4.runtime.model.cache import Cache
from dsv4.runtime.model.transformer import Transformer
from dsv4.runtime.ops.sample import sample

FIRST, SECOND, KEPT, DRAFT = range(4)
"""Columns of ``speculative_tick``'s result."""


class DraftMemory:
    """The distribution that the present draft of each slot was drawn from, [slots + 1, V]; the last row is scratch."""

    def __init__(self, slots: int, vocabulary: int, dtype: torch.dtype, device: torch.device | str) -> None:
        self.weights = torch.zeros(slots + 1, vocabulary, dtype=dtype, device=device)


@torch.no_grad()
def plain_tick(model: Transformer, cache: Cache, batch: Batch) -> torch.Tensor:
    """i64 [R, 1]: the next token of each sequence that gets one. No sequence of ``batch`` is drafted."""
    logits = model.forward(batch.step, cache).logits
    return _sampled(logits, batch.draws, batch.draws.position, model)[:, None]


@torch.no_grad()
def speculative_tick(model: Transformer, cache: Cache, batch: Batch, memory: DraftMemory) -> torch.Tensor:
    """i64 [R, 4]: for each sequence that gets tokens the first new one, the second one, 1 where the second counts
    (the draft was kept, and this is the token after it) and the draft of the token after these."""
    step, draws = batch.step, batch.draws
    wide, drafted = model.precision.wide, draws.drafted
    plan = model.plan(step, cache)
    out = model.forward(step, cache, plan)

    kept = torch.zeros_like(draws.position)
    second = _sampled(out.logits[drafted:], draws, draws.position + (_places(draws) < drafted), model)
    first = second
    if drafted:
        weights = acceptance.distribution(
            out.logits[:drafted],
            draws.temperature[:drafted],
            draws.top_k[:drafted],
            draws.top_p[:drafted],
            dtype=wide,
        )
        token, is_kept = acceptance.accept(
            step.tokens[step.logit_rows[drafted : 2 * drafted]],
            memory.weights[draws.slots[:drafted]],
            weights,
            draws.seed[:drafted],
            draws.position[:drafted],
        )
        first = torch.cat((token, second[drafted:]))
        kept = torch.cat((is_kept.to(torch.int64), kept[drafted:]))

    following = batch.following.index_copy(0, step.logit_rows, torch.cat((first[:drafted], second)))
    last_rows = torch.cat((step.logit_rows[:drafted], step.logit_rows[2 * drafted :])) + kept
    drafting = replace(step, logit_rows=last_rows)
    logits = model.draft(out.streams, following, drafting, cache, plan).logits
    weights = acceptance.distribution(logits, draws.temperature, draws.top_k, draws.top_p, dtype=wide)
    memory.weights[draws.slots] = weights
    draft = acceptance.draw(weights, draws.seed ^ acceptance.DRAFT_STREAM, draws.position + 1 + kept)
    return torch.stack((first, second, kept, draft), dim=1)


def _places(draws: Draws) -> torch.Tensor:
    return torch.arange(draws.position.shape[0], device=draws.position.device)


def _sampled(logits: torch.Tensor, draws: Draws, position: torch.Tensor, model: Transformer) -> torch.Tensor:
    """A token for each row of ``logits`` [R, V] at ``position`` [R]."""
    return sample(logits, draws.temperature, draws.top_k, draws.top_p, draws.seed, position, dtype=model.precision.wide)
