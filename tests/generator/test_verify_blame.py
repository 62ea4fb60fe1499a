"""Blame for wrong values: the first wrong element, its tile, and the store that wrote it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from dsv4.emulator.outcome import Report, Written
from dsv4.generator.build import build
from dsv4.generator.spec import plan
from dsv4.generator.verify import cases
from dsv4.generator.verify.blame import WrongElement, wrong_element
from dsv4.generator.verify.case import Case
from dsv4.generator.verify.emulator import verify_on_emulator
from dsv4.generator.verify.registry import first_wrong
from dsv4.runtime.artifact import sha256_file
from dsv4.runtime.cache import Artifact

FMHA = plan("fmha", "sm_90a", dims={"D": 64})
COLUMNS = 256


def answer(case: Case) -> dict[str, torch.Tensor]:
    return {name: value.to(case.outputs[name].dtype) for name, value in case.expected.items()}


def test_the_first_wrong_row_of_o_and_its_worst_element() -> None:
    case = cases("fmha", FMHA.dims, {}, config=FMHA.config)[4]
    tile_m = int(FMHA.config["tile_m"])
    got = answer(case)
    assert first_wrong("fmha", got, case, FMHA.config) is None
    got["o"][0, tile_m + 2, 1, 7] += 3.0
    got["o"][0, tile_m + 2, 1, 5] += 0.5
    got["o"][0, tile_m + 9, 0, 0] += 9.0
    place = f"query tile 1 ({tile_m} queries) of head 1, batch 0, row 2 of it"
    assert first_wrong("fmha", got, case, FMHA.config) == ("o", (0, tile_m + 2, 1, 7), place)
    got = answer(case)
    got["o"][0, 3, 0, 1] = float("nan")
    found = first_wrong("fmha", got, case, FMHA.config)
    assert found is not None and found[1] == (0, 3, 0, 1)


def test_lse_is_blamed_where_o_is_right() -> None:
    case = cases("fmha", FMHA.dims, {}, config=FMHA.config)[4]
    got = answer(case)
    got["lse"][0, 1, 4] += 0.1
    found = first_wrong("fmha", got, case, FMHA.config)
    assert found is not None and found[:2] == ("lse", (0, 1, 4)) and "head 1, batch 0, row 4" in found[2]


def test_the_first_wrong_element_of_a_norm() -> None:
    case = cases("rms_norm", {"d": COLUMNS}, {})[2]
    got = answer(case)
    assert first_wrong("rms_norm", got, case, {"rows_per_cta": 2}) is None
    got["y"][5, 9] *= 2
    got["y"][7, 1] *= 2
    tile = "tile 2 (2 rows a CTA), row 1 of it"
    assert first_wrong("rms_norm", got, case, {"rows_per_cta": 2}) == ("y", (5, 9), tile)


class Kernel:
    """Writes the answer with one wrong element, and knows who wrote what it is asked for."""

    def __init__(self, case: Case, wrong: tuple[int, int] | None) -> None:
        self.case, self.wrong = case, wrong
        self.probes: Sequence[tuple[str, Sequence[int]]] = ()
        self.report: Report | None = None
        self.calls: list[Any] = []

    def __call__(self, x: torch.Tensor, w: torch.Tensor, y: torch.Tensor, eps: float) -> None:
        y.copy_(answer(self.case)["y"])
        if self.wrong is not None:
            y[self.wrong] += 8.0
        self.calls.append(list(self.probes))
        self.report = Report((), (), (), 0.0, {}, tuple(Written("st.global", "a.py:3", 7) for _ in self.probes))


def test_the_element_is_found_and_then_asked_about() -> None:
    made = plan("rms_norm", "sm_90a", dims={"d": COLUMNS})
    case = cases("rms_norm", {"d": COLUMNS}, {})[1]
    kernel = Kernel(case, (2, 3))
    wrong = wrong_element(kernel, made.contract, case, {"rows_per_cta": 1})
    assert wrong is not None and (wrong.output, wrong.index) == ("y", (2, 3))
    assert wrong.written == Written("st.global", "a.py:3", 7)
    assert kernel.calls == [[], [("y", (2, 3))]] and kernel.probes == ()
    assert re.search(
        r"y\[2, 3\] is \S+ instead of \S+, lies in tile 2 .* was written by a\.py:3 \(PTX line 7", str(wrong)
    )
    assert wrong_element(Kernel(case, None), made.contract, case, {}) is None


def test_without_a_writer_the_place_is_still_told() -> None:
    wrong = WrongElement("y", (1,), 1.0, 2.0, "tile 1")
    assert str(wrong) == "the first wrong element, y[1] is 1 instead of 2, lies in tile 1"


def test_verify_names_the_store_of_a_wrong_value(tmp_path: Path) -> None:
    (result,) = build([plan("rms_norm", "sm_100a", dims={"d": COLUMNS})], cache_root=tmp_path, jobs=1)
    assert result.artifact is not None, result.error
    artifact = Artifact.read(result.artifact)
    path = artifact.folder / "kernel.ptx"
    text, count = re.subn(r"0f3B800000", "0f3C000000", path.read_text())  # 1/256 becomes 1/128
    assert count
    path.write_text(text)
    files = {**artifact.manifest.files, "kernel.ptx": sha256_file(path)}
    changed = Artifact(artifact.folder, artifact.manifest.model_copy(update={"files": files}))
    (found, *_) = verify_on_emulator(changed, case=1, schedule="early").findings
    assert found.message.startswith("wrong values: y: ") and "more than one bf16 step off" in found.message
    assert "the first wrong element, y[0, 0] is " in found.message and "lies in tile 0" in found.message
    assert re.search(r"was written by \S*vector_io\.py:\d+ \(PTX line \d+: st\.global\.v4\.b32\)", found.message)


@pytest.mark.parametrize("index", [(0, 999), (0,)])
def test_an_element_that_there_is_not_has_no_writer(index: tuple[int, ...], tmp_path: Path) -> None:
    from dsv4.generator.verify.emulator import EmulatedKernel
    from dsv4.generator.verify.run import run_case

    (result,) = build([plan("rms_norm", "sm_90a", dims={"d": COLUMNS})], cache_root=tmp_path, jobs=1)
    assert result.artifact is not None, result.error
    artifact = Artifact.read(result.artifact)
    kernel = EmulatedKernel(artifact)
    kernel.probes = [("y", (0, 1)), ("y", index), ("x", (0, 0))]
    assert run_case(kernel, artifact.manifest.contract, cases("rms_norm", {"d": COLUMNS}, {})[1]).ok
    assert kernel.report is not None
    known, missing, read = kernel.report.writers
    assert known is not None and "st.global" in known.opcode and missing is None and read is None
