"""The command line of a benchmark: what is listed, what is refused, what ends in which exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner, Result

from benchmarks.harness import cli
from benchmarks.harness.controls import Controls
from tests.benchmarks.fakes import BENCHMARK, FakeSession


def invoke(*arguments: str) -> Result:
    app = typer.Typer()
    app.command()(cli.command(BENCHMARK, "tests.benchmarks.fakes"))
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> FakeSession:
    fake = FakeSession({"ours": 2.0, "theirs": 3.0})
    monkeypatch.setattr(cli, "LocalSession", lambda bench, peers: fake)
    monkeypatch.setattr(cli, "require_gpu", lambda: None)
    return fake


def test_list_measures_nothing() -> None:
    shown = invoke("--list")
    assert shown.exit_code == 0
    assert "small, large" in shown.stdout and "ours, theirs" in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--case", "huge"), "--case: found 'huge'; valid: small, large"),
        (("--peer", "x*"), "--peer: found 'x*'; valid: ours, theirs"),
        (("--python", "theirs=/no/such/python"), "--python: found 'theirs=/no/such/python'"),
        (("--python", "nobody=/bin/sh"), "--python: found 'nobody=/bin/sh'"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(arguments: tuple[str, ...], said: str) -> None:
    shown = invoke(*arguments)
    assert shown.exit_code == cli.USAGE
    assert said in shown.stderr and len(shown.stderr.strip().splitlines()) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path: Path) -> None:
    shown = invoke("--out", str(tmp_path))
    assert shown.exit_code == cli.NO_GPU
    assert "CUDA device" in shown.stderr
    assert not list(tmp_path.iterdir())


def test_a_run_is_printed_and_written(session: FakeSession, tmp_path: Path) -> None:
    shown = invoke("--out", str(tmp_path), "--case", "sm*", "--rounds", "2")
    assert shown.exit_code == 0, shown.output
    (path,) = tmp_path.iterdir()
    assert [case["label"] for case in json.loads(path.read_text())["cases"]] == ["small"]
    assert "0.667" in shown.stdout and str(path) in shown.stdout
    assert session.asked[-1] == ("end",)


def test_a_void_run_is_written_and_ends_in_exit_code_1(session: FakeSession, tmp_path: Path) -> None:
    session.readings = [Controls(3000.0, 700.0, 0.8), Controls(2000.0, 700.0, 0.8)]
    shown = invoke("--out", str(tmp_path), "--case", "small")
    assert shown.exit_code == cli.FAILED
    assert "void: copy_gb_s" in shown.stderr
    assert len(list(tmp_path.iterdir())) == 1


def test_a_skipped_peer_is_named_with_its_reason(session: FakeSession, tmp_path: Path) -> None:
    session.skipped["theirs"] = "theirs is not installed"
    shown = invoke("--out", str(tmp_path), "--case", "small")
    assert "theirs: skipped, theirs is not installed" in shown.stdout


def test_without_time_the_telling_cases_come_first_and_the_rest_is_named(session: FakeSession, tmp_path: Path) -> None:
    shown = invoke("--out", str(tmp_path), "--rounds", "1", "--seconds", "0")
    assert shown.exit_code == 0 and "left out 1 cases: large" in shown.stderr
    (path,) = tmp_path.glob("*.json")
    result = json.loads(path.read_text())
    assert result["left"] == ["large"] and [case["label"] for case in result["cases"]] == ["small"]


def test_an_interrupted_run_keeps_what_it_has_measured(session: FakeSession, tmp_path: Path) -> None:
    session.interrupted_in = "large"
    shown = invoke("--out", str(tmp_path), "--rounds", "1")
    assert shown.exit_code == 0 and "left out 1 cases: large" in shown.stderr
    (path,) = tmp_path.glob("*.json")
    assert [case["label"] for case in json.loads(path.read_text())["cases"]] == ["small"]
    assert session.asked[-1] == ("end",)


def test_a_run_interrupted_before_it_has_anything_writes_nothing(session: FakeSession, tmp_path: Path) -> None:
    session.interrupted_in = "small"
    assert invoke("--out", str(tmp_path), "--rounds", "1").exit_code != 0
    assert not list(tmp_path.iterdir()) and session.asked[-1] == ("end",)


def test_cases_that_tell_most_come_first() -> None:
    sizes = [(1, 7), (4, 7), (64, 7), (8192, 7), (1, 9), (32768, 9)]
    cases = [cli.Case(f"T={tokens} d={d}", {"T": tokens, "d": d}) for tokens, d in sizes]
    assert [case.sizes["T"] for case in cli.telling_first(cases)] == [1, 64, 8192, 1, 4, 32768]
    assert [case.sizes["R"] for case in cli.telling_first([cli.Case("a", {"R": 4}), cli.Case("b", {"R": 64})])] == [
        64,
        4,
    ]
