"""The wheel: what is in it, under which names, and that `dsv4-gen` works from it, outside the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "source"
    files = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    ).stdout.split("\n")
    for name in filter(None, files):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder), "."]
    subprocess.run(command, cwd=copy, check=True)
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_every_room_under_dsv4_and_nothing_beside_it(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"dsv4"}
    for wanted in (
        "dsv4/py.typed",
        "dsv4/runtime/support/support.c",
        "dsv4/generator/templates/norm/rms_norm.py.j2",
        "dsv4/specs/ops/fmha.yaml",
        "dsv4/specs/archs/sm_100a.yaml",
        "dsv4/specs/models/flash.yaml",
        "dsv4/generated/INDEX.json",
    ):
        assert wanted in names
    checkout = {
        f"dsv4/{path.relative_to(ROOT)}"
        for room in ("runtime", "generator", "emulator", "tuner", "specs")
        for path in (ROOT / room).rglob("*")
        if path.suffix in (".py", ".j2", ".yaml", ".c") and "__pycache__" not in path.parts
    }
    assert checkout <= set(names), f"not in the wheel: {sorted(checkout - set(names))}"


def test_dsv4_gen_works_from_the_wheel_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "DSV4_CACHE": str(tmp_path / "cache")}
    code = "import dsv4.generator as g, sys; print(g.__file__); from dsv4.generator.cli import app, run; "
    code += "sys.exit(run(app, ['explain', 'fmha', '--arch', 'sm_90a']))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(tmp_path / "site"))
    assert "smem" in done.stdout
