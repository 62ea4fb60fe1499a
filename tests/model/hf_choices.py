"""Two implementations in float32 may choose differently between equal scores, and go apart from there.

``followed`` lets transformers go on with our choice of compressed entries and experts, after checking that its own is
the same set but for members whose scores, by its own reckoning, are equal to the last bits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from transformers.models.deepseek_v4.modeling_deepseek_v4 import (
    DeepseekV4ForCausalLM,
    DeepseekV4Indexer,
    DeepseekV4IndexerScorer,
    DeepseekV4TopKRouter,
)

from dsv4.runtime.model import attention, moe

EQUAL = 1e-5
"""Scores that differ by so little, relative to the largest, count as equal."""


@dataclass
class Choices:
    """What ours chose since transformers last caught up, in the order of the layers; and what was counted."""

    entries: deque[torch.Tensor] = field(default_factory=deque)
    experts: deque[torch.Tensor] = field(default_factory=deque)
    selected: int = 0
    """Choices of entries from more than may be chosen."""
    routed: int = 0
    """Choices of experts by the dense routers."""
    ties: int = 0
    """Choices of both kinds that differed, by ties."""
    scores: torch.Tensor | None = None

    def checked(self, ours: torch.Tensor, theirs: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Rows [T] where the two sets [T, k] (−1 for none) differ, by ties of ``scores`` [T, n] only."""
        width = scores.shape[-1] + 1  # the last column takes what is none
        mine, other = (
            torch.zeros(ours.shape[0], width, dtype=torch.bool).scatter_(1, chosen.long() % width, True)[:, :-1]
            for chosen in (ours, theirs)
        )
        assert torch.equal(mine.sum(dim=-1), other.sum(dim=-1)), "the two choose different numbers"
        only_mine, only_other = mine & ~other, other & ~mine
        differing = only_mine.any(dim=-1)
        room = EQUAL * scores.masked_fill(scores.isinf(), 0.0).abs().amax(dim=-1)
        worst = scores.masked_fill(~only_mine, torch.inf).amin(dim=-1)
        best = scores.masked_fill(~only_other, -torch.inf).amax(dim=-1)
        assert (worst[differing] >= (best - room)[differing]).all(), "ours chose a lower score"
        self.ties += int(differing.sum())
        return differing


@contextmanager
def followed(model: DeepseekV4ForCausalLM) -> Iterator[Choices]:
    """While it lasts, every forward pass of ours must be followed by the same of ``model``."""
    choices = Choices()
    topk, router = attention.topk, moe.router

    def recording_topk(scores: torch.Tensor, visible: torch.Tensor, *, k: int) -> torch.Tensor:
        chosen = topk(scores, visible, k=k)
        choices.entries.append(chosen)
        choices.selected += int((visible > k).sum())
        return chosen

    def recording_router(*args: Any, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
        experts, weights = router(*args, **options)
        if options.get("tid2eid") is None:
            choices.experts.append(experts)
        return experts, weights

    def after_scores(module: Any, args: Any, scores: torch.Tensor) -> None:
        choices.scores = scores[0]

    def after_indexer(module: Any, args: Any, theirs: torch.Tensor) -> torch.Tensor | None:
        if not choices.entries:
            return None  # fewer entries than may be chosen: ours does not score them
        assert choices.scores is not None
        ours = choices.entries.popleft()
        choices.checked(ours, theirs[0], choices.scores)
        return ours.long()[None]

    def after_router(module: Any, args: Any, output: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        logits, weights, theirs = output
        ours = choices.experts.popleft().long()
        choices.routed += ours.shape[0]
        scores = module.score_fn(logits)
        differing = choices.checked(ours, theirs, scores + module.e_score_correction_bias)
        chosen = scores.gather(1, ours)
        renewed = chosen / chosen.sum(dim=-1, keepdim=True) * module.routed_scaling_factor
        keep = ~differing[:, None]
        return logits, torch.where(keep, weights, renewed), torch.where(keep, theirs, ours)

    hooks = {
        DeepseekV4IndexerScorer: after_scores,
        DeepseekV4Indexer: after_indexer,
        DeepseekV4TopKRouter: after_router,
    }
    handles = [
        module.register_forward_hook(hook)
        for module in model.modules()
        for kind, hook in hooks.items()
        if isinstance(module, kind)
    ]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(attention, "topk", recording_topk)
        patched.setattr(moe, "router", recording_router)
        try:
            yield choices
        finally:
            for handle in handles:
                handle.remove()
    assert not choices.entries and not choices.experts, "transformers did not follow"
