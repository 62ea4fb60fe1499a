"""Sampling: greedy, the filters, the distribution, and what the noise may depend on (dsv4-reference §10.3)."""

from __future__ import annotations

import math

import pytest
import torch

from dsv4.runtime.reference.sample import gumbel, sample


def draw(
    logits: torch.Tensor,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    first: int = 0,
) -> torch.Tensor:
    rows = logits.shape[0]
    return sample(
        logits,
        torch.full((rows,), temperature),
        torch.full((rows,), top_k),
        torch.full((rows,), top_p),
        torch.full((rows,), seed),
        torch.arange(first, first + rows),
    )


def test_greedy_takes_the_lowest_of_equal_logits() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, 2.0], [0.0, -1.0, 0.0, 0.0]])
    assert draw(logits, temperature=0.0).tolist() == [1, 0]


def test_distribution() -> None:
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0, -30.0])
    rows = 40000
    for temperature in (1.0, 0.5, 2.0):
        counts = torch.bincount(draw(logits.expand(rows, -1), temperature=temperature, seed=3), minlength=5)
        expected = torch.softmax(logits / temperature, dim=0)
        for count, p in zip(counts.tolist(), expected.tolist(), strict=True):
            assert abs(count / rows - p) < 4 * math.sqrt(p * (1 - p) / rows) + 1e-6


def test_top_k_and_top_p() -> None:
    logits = torch.tensor([2.0, 1.0, 1.0, 0.0, -1.0, -2.0])
    rows, probability = 4000, torch.softmax(logits, dim=0).tolist()

    def seen(**options: float) -> set[int]:
        return set(draw(logits.expand(rows, -1), **options).tolist())  # type: ignore[arg-type]

    assert seen(top_k=1) == {0}
    assert seen(top_k=2) == {0, 1}  # equal logits by index
    assert seen(top_k=3) == {0, 1, 2}
    assert seen(top_k=0) == set(range(6))
    first = probability[0]
    assert seen(top_p=first - 0.01) == {0}
    assert seen(top_p=first + 0.01) == {0, 1}
    assert seen(top_p=0.0) == {0}
    assert seen(top_k=4, top_p=0.999999) == {0, 1, 2, 3}
    among_two = probability[0] / (probability[0] + probability[1])
    assert seen(top_k=2, top_p=among_two - 0.01) == {0}


def test_noise_depends_on_seed_and_position_alone() -> None:
    logits = torch.randn(6, 50)
    alone = [draw(logits[i : i + 1], seed=5, first=10 + i).item() for i in range(6)]
    assert draw(logits, seed=5, first=10).tolist() == alone
    many = torch.randn(1, 50).expand(200, -1)
    assert draw(many, seed=5).tolist() != draw(many, seed=6).tolist()
    assert len(set(draw(many, seed=5).tolist())) > 10  # positions differ
    assert draw(many, seed=5).tolist() == draw(many, seed=5).tolist()


def test_rows_have_their_own_settings() -> None:
    logits = torch.randn(3, 20)
    got = sample(
        logits,
        torch.tensor([0.0, 1.0, 1.0]),
        torch.tensor([0, 1, 0]),
        torch.tensor([1.0, 1.0, 0.0]),
        torch.tensor([1, 2, 3]),
        torch.tensor([4, 5, 6]),
    )
    assert torch.equal(got, logits.argmax(dim=-1))


def test_noise_is_gumbel_and_finite() -> None:
    tokens = torch.arange(200000)
    noise = gumbel(torch.tensor(-7), torch.tensor(1 << 40), tokens, dtype=torch.float64)
    assert noise.isfinite().all()
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.01)
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, abs=0.03)
    below = (noise < 1).double().mean().item()
    assert below == pytest.approx(math.exp(-math.exp(-1)), abs=0.005)


def test_no_rows() -> None:
    assert draw(torch.zeros(0, 5)).shape == (0,)
