"""A kernel cache of its own for each test, on a disk that is not waited for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dsv4.runtime.cache import KernelCache


@pytest.fixture(autouse=True)
def unhurried_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here takes the power away: what was written need not have reached the disk."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def cache(tmp_path: Path) -> KernelCache:
    return KernelCache(tmp_path / "cache")
