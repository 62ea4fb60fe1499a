"""`dsv4-gen verify --device emulator`: right kernels climb the rung, planted mistakes are found and can be repeated."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dsv4.generator.build import build
from dsv4.generator.build.evidence import read_evidence
from dsv4.generator.cli import app, run
from dsv4.generator.spec import default_plans, plan
from dsv4.generator.verify import cases
from dsv4.generator.verify.emulator import Run, plan_runs, preflight, verify_on_emulator
from dsv4.generator.verify.registry import operators, thorough
from dsv4.runtime.artifact import sha256_file
from dsv4.runtime.cache import Artifact

COLUMNS = 520  # partial last vectors, rows of three warps


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("cache")
    root.chmod(0o700)
    plans = [plan("rms_norm", arch, dims={"d": COLUMNS}) for arch in ("sm_90a", "sm_100a")]
    for result in build(plans, cache_root=root, jobs=2):
        assert result.error is None, result.error
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DSV4_CACHE", str(root))
        patch.setenv("COLUMNS", "200")
        yield root


@pytest.fixture
def plant(cache: Path) -> Iterator[Callable[[str, str], Artifact]]:
    """Edits the PTX of the sm_90a kernel, for one test, in a way that the manifest agrees with."""
    (folder,) = (cache / "kernels" / "rms_norm" / "sm_90a").iterdir()
    kept = cache / "kept"
    shutil.copytree(folder, kept)

    def edit(pattern: str, text: str) -> Artifact:
        path, manifest = folder / "kernel.ptx", folder / "manifest.json"
        changed, count = re.subn(pattern, text, path.read_text(), count=1)
        assert count == 1
        path.write_text(changed)
        raw = json.loads(manifest.read_text())
        raw["files"]["kernel.ptx"] = sha256_file(path)
        manifest.write_text(json.dumps(raw))
        return Artifact.read(folder)

    yield edit
    shutil.rmtree(folder)
    kept.rename(folder)


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any]:
    capsys.readouterr()
    code = run(app, ["verify", "--device", "emulator", "--json", *arguments])
    text = capsys.readouterr().out
    return code, json.loads(text) if text else None


def test_right_kernels_climb_the_rung(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = printed(capsys)
    assert code == 0
    assert sorted(kernel["arch"] for kernel in found["kernels"]) == ["sm_100a", "sm_90a"]
    for kernel in found["kernels"]:
        assert kernel["ok"] and kernel["findings"] == [] and kernel["device"] == "emulator"
        assert kernel["cases"] == 13 and kernel["cosine"] > 0.99999
        assert kernel["runs"] == 11 + 2 * 9
    for folder in (cache / "kernels" / "rms_norm").glob("*/*"):
        evidence = read_evidence(folder)
        assert "emulator" in evidence.rungs()
        assert evidence.checks[-1].detail["runs"] == 29 and evidence.checks[-1].device.startswith("cpu")


def test_a_part_writes_no_evidence(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {folder: len(read_evidence(folder).checks) for folder in (cache / "kernels" / "rms_norm").glob("*/*")}
    code, found = printed(capsys, "--arch", "sm_90a", "--case", "3", "--schedule", "mixed:5")
    assert code == 0 and [kernel["runs"] for kernel in found["kernels"]] == [1]
    assert before == {folder: len(read_evidence(folder).checks) for folder in before}


def test_a_run_can_be_drawn(cache: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    code, _ = printed(capsys, "--arch", "sm_90a", "--case", "1", "--schedule", "late", "--trace", str(path))
    assert code == 0
    trace = json.loads(path.read_text())
    assert trace["traceEvents"] and trace["otherData"]["schedule"] == "late"
    assert any("row_reduce.py" in json.dumps(event) for event in trace["traceEvents"])


def test_a_planted_race_is_printed_with_its_source_line_and_the_command_repeats_it(
    plant: Callable[[str, str], Artifact], capsys: pytest.CaptureFixture[str]
) -> None:
    artifact = plant(r"\tbar\.sync \t0;", "")
    assert run(app, ["verify", "--device", "emulator", "--op", "rms_norm", "--arch", "sm_90a"]) == 1
    text = capsys.readouterr().out
    assert "race" in text and "row_reduce.py:" in text and "CTA " in text and "warp " in text
    assert "rms_norm sm_90a d=520" in text and "threads_per_row=96" in text
    again = re.findall(r"again +(dsv4-gen verify .*)", text)[0]
    arguments = shlex.split(again)[1:]
    assert arguments[arguments.index("--kernel") + 1] == artifact.manifest.key[:12]
    code, found = printed(capsys, *arguments[3:])
    (kernel,) = found["kernels"]
    assert code == 1 and kernel["runs"] == 1
    assert "race" in [each["kind"] for one in kernel["detail"] for each in one["findings"]]
    assert artifact.failed_check() is not None, "a kernel with a finding must not serve"


def test_wrong_values_are_found_by_the_judge(plant: Callable[[str, str], Artifact]) -> None:
    artifact = plant("0f3AFC0FC1", "0f3B000000")  # the mean over 512 instead of 520
    outcome = verify_on_emulator(artifact, case=1, schedule="early")
    found = outcome.findings[0]
    assert not found.findings and "more than one bf16 step off" in found.message and "--case 1" in found.command


def test_an_opcode_that_is_not_emulated_is_a_finding(plant: Callable[[str, str], Artifact]) -> None:
    outcome = verify_on_emulator(plant(r"rsqrt\.approx\.f32", "rsqrt.exactly.f32"), case=1)
    assert "rsqrt.exactly.f32" in outcome.findings[0].message and "rms_scale.py" in outcome.findings[0].message


def test_a_file_that_is_not_the_manifests_is_a_finding(plant: Callable[[str, str], Artifact]) -> None:
    artifact = plant(r"\tret;", "\tret; ")
    (artifact.folder / "kernel.ptx").write_text("// nothing\n")
    (found,) = verify_on_emulator(artifact, case=1).findings
    assert "sha256" in found.message


def test_preflight(cache: Path, plant: Callable[[str, str], Artifact]) -> None:
    (folder,) = (cache / "kernels" / "rms_norm" / "sm_90a").iterdir()
    assert preflight(folder) == []
    findings = preflight(plant(r"\tbar\.sync \t0;", ""))
    assert findings and all("\n" not in line and "again: dsv4-gen verify" in line for line in findings)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--device", "emulator", "--case", "99"], "--case: found 99; valid: 0 to 12"),
        (["--device", "emulator", "--schedule", "soon"], "--schedule: found 'soon'; valid: late, early"),
        (["--device", "cpu", "--case", "1"], "--case, --schedule, --trace: valid with --device emulator only"),
        (["--device", "emulator", "--trace", "t.json"], "--trace: draws one run"),
        (["--device", "emulator", "--kernel", "ffff"], "--kernel: found 'ffff'; valid: the key of a kernel in"),
        (["--device", "emulator", "--schedules", "0"], "greater than or equal to 1"),
    ],
)
def test_bad_usage(cache: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(app, ["verify", *arguments]) == 2
    captured = capsys.readouterr()
    assert said in captured.err.replace("\n", " ") and captured.err.strip().count("\n") == 0


def test_every_case_runs_and_the_thorough_ones_under_all_schedules() -> None:
    runs = plan_runs(5, (1, 3), 9, seed=0, warps=4)
    assert {run.case for run in runs} == set(range(5))
    for case in (1, 3):
        assert len({run.schedule for run in runs if run.case == case}) == 9
    assert [run for run in runs if run.case in (0, 2, 4)] == [Run(0, "late"), Run(2, "late-mma"), Run(4, "late-stores")]


@pytest.mark.parametrize("op", operators())
def test_the_thorough_cases_are_small_and_have_several_tiles(op: str) -> None:
    first = default_plans(op, "sm_90a")[0]
    found = cases(op, first.dims, first.variant, config=first.config)
    for index in thorough(op):
        assert sum(value.numel() for value in found[index].inputs.values() if isinstance(value, torch.Tensor)) < 3e6
        assert any(tensor.numel() > 256 for tensor in found[index].expected.values())


def test_one_line_in_an_operators_test(cache: Path, emulated: Callable[..., Any]) -> None:
    (folder,) = (cache / "kernels" / "rms_norm" / "sm_100a").iterdir()
    x, w = torch.randn(5, COLUMNS).bfloat16(), torch.randn(COLUMNS).bfloat16()
    y = torch.empty_like(x)
    assert emulated(folder, {"x": x, "w": w, "y": y, "eps": 1e-6}, schedules=2).ok
    expected = x.double() * w.double() / (x.double().square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(y.double(), expected, rtol=2**-8, atol=0)
