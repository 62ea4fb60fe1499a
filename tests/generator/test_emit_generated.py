"""The folder of emitted sources: written whole, and stale in every way that it can be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from scale_kernel import TEXT, emitter, scale_plan

from dsv4.generator import generated
from dsv4.generator.kernel import KernelPlan

EMIT = emitter()


def plans() -> list[KernelPlan]:
    every = [scale_plan(arch, square=square) for arch in ("sm_90a", "sm_100a") for square in (False, True)]
    return [*every, scale_plan(threads=256, is_default=False)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "__init__.py").write_text("")
    assert generated.check(plans(), tmp_path, emit=EMIT) != []
    changed = generated.write(plans(), tmp_path, emit=EMIT)
    assert sorted(path.relative_to(tmp_path).as_posix() for path in changed) == [
        "INDEX.json",
        "sm_100a/scale.py",
        "sm_90a/scale.py",
    ]
    return tmp_path


def test_what_was_written_is_up_to_date(root: Path) -> None:
    assert generated.check(plans(), root, emit=EMIT) == []
    assert generated.write(plans(), root, emit=EMIT) == []
    assert (root / "__init__.py").exists()


def test_the_index_holds_every_default_and_no_other(root: Path) -> None:
    kernels = json.loads((root / "INDEX.json").read_text())["kernels"]
    assert sorted(kernels) == ["sm_100a/scale", "sm_100a/scale_square", "sm_90a/scale", "sm_90a/scale_square"]
    assert kernels["sm_90a/scale"]["sha256"] == EMIT(scale_plan()).sha256


def test_a_kernel_for_some_sizes_alone_is_named_by_them() -> None:
    few, many = scale_plan(bucket={"n": (0, 112)}), scale_plan(bucket={"n": (256, None), "m": (1, 2)})
    assert [generated.readable_name(each) for each in (few, many)] == ["scale_n0to112", "scale_n256to_m1to2"]


def test_an_edit_by_hand_a_missing_file_and_a_foreign_file_are_found(root: Path) -> None:
    edited = root / "sm_90a" / "scale.py"
    lines = edited.read_text().splitlines(keepends=True)
    edited.write_text("".join([*lines[:4], "# a thought\n", *lines[4:]]))
    (root / "sm_100a" / "scale.py").unlink()
    (root / "sm_90a" / "old.py").write_text("x = 1\n")
    assert generated.check(plans(), root, emit=EMIT) == [
        "sm_90a/scale.py: differs from line 5",
        "sm_100a/scale.py: missing",
        "sm_90a/old.py: no default gives it",
    ]
    generated.write(plans(), root, emit=EMIT)
    assert generated.check(plans(), root, emit=EMIT) == [] and not (root / "sm_90a" / "old.py").exists()


def test_a_changed_template_shows_in_the_text_and_in_the_index(root: Path) -> None:
    stale = generated.check(plans(), root, emit=emitter(TEXT.replace("0.5", "0.25")))
    assert [line.split(":")[0] for line in stale] == ["sm_90a/scale.py", "sm_100a/scale.py", "INDEX.json"]
    assert "4 kernels differ, the first is sm_100a/scale" in stale[2]
