"""Which drafts are kept: the rule that leaves the distribution of the text as it is without drafts.

A draft d from the distribution q is kept with probability min(1, p(d) / q(d)), p being the model's own; else a token is
drawn from max(0, p − q), normalised (Leviathan et al., arXiv 2211.17192). With temperature 0 both are one-hot and the
rule says: keep the draft where it is the most probable token. Noise depends on seed and position only, with a stream of
its own for each of the three draws.
"""

from __future__ import annotations

import torch

from dsv4.runtime.reference.sample import gumbel

DRAFT_STREAM = 0x3C6EF372FE94F82B
_ACCEPT_STREAM = 0x510E527FADE682D1
_RESIDUAL_STREAM = 0x1F83D9ABFB41BD6B
"""What a seed is mixed with, so that the noises of one position are independent."""


def distribution(
    logits: torch.Tensor, temperature: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, *, dtype: torch.dtype
) -> torch.Tensor:
    """[R, V]: the probabilities that ``dsv4.runtime.ops.sample`` draws by, for the same arguments."""
    order = torch.sort(logits.to(dtype), dim=-1, descending=True, stable=True)
    greedy = temperature <= 0
    ranked = order.values / torch.where(greedy, 1.0, temperature).to(dtype)[:, None]
    rank = torch.arange(logits.shape[-1], device=logits.device)
    kept = (rank < top_k[:, None]) | (top_k[:, None] <= 0)
    probability = torch.softmax(ranked.masked_fill(~kept, -torch.inf), dim=-1)
    before = probability.cumsum(dim=-1) - probability
    kept = kept & ((before < top_p.to(dtype)[:, None]) | (rank == 0) | (top_p[:, None] >= 1))
    kept = kept & (~greedy[:, None] | (rank == 0))
    probability = torch.softmax(ranked.masked_fill(~kept, -torch.inf), dim=-1)
    return torch.zeros_like(probability).scatter(1, order.indices, probability)


def draw(weights: torch.Tensor, seed: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """i64 [R]: a token for each row of ``weights`` [R, V], which are probabilities up to a factor."""
    tokens = torch.arange(weights.shape[-1], device=weights.device)
    noise = gumbel(seed[:, None], position[:, None], tokens, dtype=weights.dtype)
    return (weights.log() + noise).argmax(dim=-1)


def accept(
    draft: torch.Tensor,
    draft_weights: torch.Tensor,
    weights: torch.Tensor,
    seed: torch.Tensor,
    position: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(token i64 [R], kept bool [R]): ``draft`` [R] where it is kept, else one that replaces it.

    ``draft_weights`` and ``weights`` [R, V] are the distributions q and p, ``position`` the place of the token.
    """
    at = draft[:, None]
    chance = uniform(seed ^ _ACCEPT_STREAM, position, weights.dtype)
    kept = chance * draft_weights.gather(1, at).squeeze(1) < weights.gather(1, at).squeeze(1)
    left = (weights - draft_weights).clamp(min=0)
    left = torch.where(left.sum(dim=-1, keepdim=True) > 0, left, weights)
    return torch.where(kept, draft, draw(left, seed ^ _RESIDUAL_STREAM, position)), kept


def uniform(seed: torch.Tensor, position: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """[R] in (0, 1), from seed and position."""
    noise = gumbel(seed, position, torch.zeros_like(position), dtype=torch.float64)
    return (-(-noise).exp()).exp().to(dtype)
