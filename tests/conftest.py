"""What all tests share.

One thread for torch: the tensors are small, and test processes beside one another would otherwise wait for each other's
threads (measured on 4 busy cores: 0.1 s a test instead of 10 s). And `benchmarks` and `tests` are importable: the root
comes last on the path, so that the installed dsv4 stays in front of the folder of that name.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported; processes that tests start inherit it
sys.path.append(str(Path(__file__).resolve().parents[1]))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked ``gpu`` are skipped without one; what else they need, they say themselves."""
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


@pytest.fixture
def emulated() -> Callable[..., Any]:
    """Runs a compiled kernel in the emulator and fails on any finding; gives the report.

    ``emulated(compiled, x, output(y), 1e-6)`` for what ``cute.compile`` returned, ``emulated(folder, {"x": x, ...})``
    for an artifact of the kernel cache.
    """
    from dsv4 import emulator

    def run(compiled: Any, *arguments: Any, **options: Any) -> emulator.Report:
        launch = emulator.run_artifact if isinstance(compiled, Path) else emulator.run
        return launch(compiled, *arguments, **options).check()

    return run
