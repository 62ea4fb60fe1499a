"""A kernel cache of its own for each test."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsv4.runtime.cache import KernelCache


@pytest.fixture
def cache(tmp_path: Path) -> KernelCache:
    return KernelCache(tmp_path / "cache")
