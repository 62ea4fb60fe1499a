"""The acceptance rule by itself: whatever the draft's distribution, tokens come out by the model's."""

from __future__ import annotations

import pytest
import torch

from dsv4.runtime.engine import acceptance
from dsv4.runtime.ops.sample import sample

DRAWS = 20_000
P = torch.tensor([0.4, 0.05, 0.0, 0.25, 0.2, 0.1])


def drawn(q: torch.Tensor, p: torch.Tensor = P) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(drafts, tokens, kept) of many seeds."""
    seeds = torch.arange(DRAWS)
    position = torch.full_like(seeds, 17)
    weights, drafts_by = p.expand(DRAWS, -1), q.expand(DRAWS, -1)
    draft = acceptance.draw(drafts_by, seeds ^ acceptance.DRAFT_STREAM, position)
    token, kept = acceptance.accept(draft, drafts_by, weights, seeds, position)
    return draft, token, kept


def require_distribution(tokens: torch.Tensor, p: torch.Tensor) -> None:
    """Chi-square of ``tokens`` against ``p``, at a level of 1e-5 or so."""
    counts = torch.bincount(tokens, minlength=len(p)).double()
    assert counts[p == 0].sum() == 0
    expected = p[p > 0].double() * len(tokens)
    chi = ((counts[p > 0] - expected) ** 2 / expected).sum()
    assert chi < 35, f"chi-square {chi:.1f} with {len(expected) - 1} degrees of freedom"


@pytest.mark.parametrize(
    "q",
    [
        P,
        torch.tensor([0.1, 0.3, 0.2, 0.1, 0.1, 0.2]),
        torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0, 0.0]),
        torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0, 0.0]),
        torch.full((6,), 1 / 6),
    ],
)
def test_tokens_come_by_the_model(q: torch.Tensor) -> None:
    draft, token, kept = drawn(q)
    require_distribution(draft, q)
    require_distribution(token, P)
    expected = torch.minimum(P, q).sum()
    assert abs(kept.float().mean() - expected) < 0.015, "drafts are kept with probability Σ min(p, q)"
    assert torch.equal(token[kept], draft[kept])


def test_keeping_every_draft_would_be_noticed() -> None:
    draft, _, _ = drawn(torch.full((6,), 1 / 6))
    with pytest.raises(AssertionError):
        require_distribution(draft, P)


def test_greedy_keeps_the_most_probable_token_and_no_other() -> None:
    one_hot = torch.tensor([0.0, 0.0, 0.0, 1.0, 0.0, 0.0])
    _, token, kept = drawn(torch.full((6,), 1 / 6), one_hot)
    assert (token == 3).all() and 0.1 < kept.float().mean() < 0.25
    _, token, kept = drawn(one_hot, one_hot)
    assert (token == 3).all() and kept.all()


def test_rounding_cannot_leave_nothing_to_draw_from() -> None:
    """q a last bit above p everywhere: nothing is left of p − q, and p itself is drawn from."""
    q = P * (1 + 2e-7)
    for uniform in (0.5, 1 - 1e-9):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(acceptance, "uniform", lambda *_, u=uniform: torch.tensor([u]))
            token, _ = acceptance.accept(torch.tensor([0]), q[None], P[None], torch.tensor([1]), torch.tensor([2]))
            assert P[token] > 0


def test_the_streams_of_noise_are_independent() -> None:
    """The draft's noise must not decide whether it is kept, nor what replaces it."""
    seeds, position = torch.arange(DRAWS), torch.full((DRAWS,), 3)
    even = torch.full((DRAWS, 2), 0.5)
    draft = acceptance.draw(even, seeds ^ acceptance.DRAFT_STREAM, position)
    replaced = acceptance.draw(even, seeds ^ acceptance._RESIDUAL_STREAM, position)
    plain = acceptance.draw(even, seeds, position)
    chance = acceptance.uniform(seeds ^ acceptance._ACCEPT_STREAM, position, torch.float32)
    assert chance.min() > 0 and chance.max() < 1 and abs(chance.mean() - 0.5) < 0.01
    for one, other in ((draft, replaced), (draft, plain), (replaced, plain), (draft, chance > 0.5)):
        assert abs((one == other).float().mean() - 0.5) < 0.015


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_distribution_is_what_sample_draws_by(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    rows = 64
    logits = torch.randn(rows, 50) * 2
    logits[3] = 1.0
    temperature = torch.rand(rows) * 1.5 * (torch.rand(rows) > 0.2)
    top_k = torch.randint(0, 12, (rows,))
    top_p = torch.where(torch.rand(rows) > 0.3, torch.rand(rows).clamp(min=0.05), 1.0)
    seed, position = torch.randint(-(2**62), 2**62, (rows,)), torch.randint(0, 9999, (rows,))
    weights = acceptance.distribution(logits, temperature, top_k, top_p, dtype=dtype)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(rows, dtype=dtype))
    assert ((weights > 0).sum(dim=-1) <= torch.where(top_k > 0, top_k, 50)).all()
    assert ((weights > 0).sum(dim=-1)[temperature == 0] == 1).all()
    expected = sample(logits, temperature, top_k, top_p, seed, position, dtype=dtype)
    assert torch.equal(acceptance.draw(weights, seed, position), expected)
