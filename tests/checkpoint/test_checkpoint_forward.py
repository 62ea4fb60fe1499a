"""What was loaded runs: the layouts that hold the same numbers give the same logits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checkpoint_samples import Written

from dsv4.runtime.checkpoint.loader import load
from dsv4.runtime.model.config import WeightScheme
from dsv4.runtime.model.contiguous import ContiguousCache
from dsv4.runtime.model.step import Chunk, Step
from dsv4.runtime.model.transformer import Transformer

TOKENS = 140  # one HCA entry, 35 CSA entries, past the window


def logits(folder: Path, numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    loaded = load(folder)
    model = Transformer(loaded.config, loaded.weights)
    cache = ContiguousCache(loaded.config, positions_max=TOKENS)
    step = Step.of([Chunk(slot=0, first=0, tokens=numbers.tolist())], logits="all")
    out = model.forward(step, cache)
    drafted = model.draft(out.streams, numbers.roll(-1), step, cache)
    return out.logits, drafted.logits


@pytest.fixture(scope="module")
def numbers() -> torch.Tensor:
    return torch.randint(2, 64, (TOKENS,), generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def official(written: Written, numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return logits(written("fp8_mxfp4", 3), numbers)


def test_the_logits_are_of_a_size_that_says_something(official: tuple[torch.Tensor, torch.Tensor]) -> None:
    for values in official:
        assert values.shape == (TOKENS, 64)
        assert values.isfinite().all()
        assert 0.1 < values.std() < 10
        assert len(set(values.argmax(dim=-1).tolist())) > 5


@pytest.mark.parametrize("scheme", ["fp8_nvfp4", "plain"])
def test_layouts_with_the_same_numbers_give_the_same_logits(
    written: Written, numbers: torch.Tensor, official: tuple[torch.Tensor, torch.Tensor], scheme: WeightScheme
) -> None:
    """The NVFP4 checkpoint's MTP layer keeps MXFP4 experts: read by the main scheme, its drafts would be others."""
    for ours, theirs in zip(logits(written(scheme, 1), numbers), official, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*unverified:dsv4.runtime.errors.Dsv4Warning")
def test_full_nvfp4_runs(written: Written, numbers: torch.Tensor) -> None:
    for values in logits(written("nvfp4", 1), numbers):
        assert values.isfinite().all()
