"""Small random checkpoints in every layout, written once a session."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from checkpoint_samples import MINI, Written

from dsv4.runtime.checkpoint.write_tiny import write_checkpoint
from dsv4.runtime.model.config import WeightScheme


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """``written(layout, shards)``: the folder of a checkpoint that a test must not change."""
    root = tmp_path_factory.mktemp("checkpoints")

    def folder(layout: WeightScheme, shards: int) -> Path:
        path = root / f"{layout}-{shards}"
        if not path.exists():
            write_checkpoint(path, MINI, layout=layout, shards=shards, seed=7)
        return path

    return folder


@pytest.fixture
def copied(written: Written, tmp_path: Path) -> Written:
    """The same, as a copy that a test may change."""

    def folder(layout: WeightScheme, shards: int) -> Path:
        return Path(shutil.copytree(written(layout, shards), tmp_path / "checkpoint"))

    return folder
