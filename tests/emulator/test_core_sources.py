"""Every C source of the core compiles without a warning, by itself."""

from __future__ import annotations

import subprocess
from importlib import resources
from pathlib import Path

import pytest

CORE = Path(str(resources.files("dsv4.emulator"))) / "core"


@pytest.mark.parametrize("source", sorted(path.name for path in CORE.glob("*.c")))
def test_it_compiles_without_a_warning(source: str, tmp_path: Path) -> None:
    flags = ["-O1", "-mavx2", "-mf16c", "-ffp-contract=off", "-Wall", "-Werror", "-c"]
    subprocess.run(["gcc", *flags, str(CORE / source), "-o", str(tmp_path / "core.o")], check=True)
