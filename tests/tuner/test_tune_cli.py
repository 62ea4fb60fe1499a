"""`dsv4-tune` on the command line: help, plan, compile and what a machine without a GPU says."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from dsv4.generator.cli import run
from dsv4.generator.console import UsageError
from dsv4.tuner import cli, shapes
from dsv4.tuner.builders import Built
from dsv4.tuner.target import Target


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DSV4_CACHE", str(tmp_path / "cache"))


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = run(cli.app, list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_help_has_examples(capsys):
    code, out, _ = call(capsys, "--help")
    assert code == 0 and "dsv4-tune sweep --op" in out
    for command in (
        "plan", "sweep", "model", "compile", "report", "cover", "coverage", "replay", "explain",
        "pack", "measure", "import", "export", "merge", "diff",
        "checksum",
    ):  # fmt: skip
        code, out, _ = call(capsys, command, "--help")
        assert code == 0 and f"Example: dsv4-tune {command}" in " ".join(out.split())


def test_plan_prints_one_json_object(capsys):
    code, out, err = call(
        capsys, "plan", "--op", "fmha", "--arch", "sm_90a", "--dims", "D=64", "--variant", "causal=true",
        "--limit", "3", "--json",
    )  # fmt: skip
    assert code == 0 and err == ""
    answer = json.loads(out)
    assert answer["dims"] == {"D": 64} and answer["variant"]["causal"] is True
    assert [row["rank"] for row in answer["configurations"]] == [1, 2, 3]
    first = answer["configurations"][0]
    assert first["is_default"] and first["changes"] == {} and first["smem_bytes"] > 0 and first["resident_ctas"] >= 1
    assert answer["fitting"] > 3 and answer["refused"] == answer["points"] - answer["fitting"] > 0
    assert all(row["count"] > 0 and "valid" in row["reason"] for row in answer["refused_by_reason"])


def test_plan_prints_a_table_and_the_refusals(capsys):
    code, out, _ = call(capsys, "plan", "--op", "rms_norm", "--arch", "sm_100a", "--dims", "d=512", "--limit", "2")
    assert code == 0 and "the default" in out and "refused" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("plan", "--op", "nope", "--arch", "sm_90a"), "rms_norm"),
        (("plan", "--op", "rms_norm", "--arch", "sm_80"), "sm_90a"),
        (("plan", "--op", "rms_norm", "--arch", "sm_90a", "--dims", "d=12.5"), "whole number"),
        (("plan", "--op", "rms_norm", "--arch", "sm_90a", "--dims", "q=12"), "q"),
        (("plan", "--op", "rms_norm", "--arch", "sm_90a", "--set", "opt_level=9"), "opt_level"),
        (("plan", "--op", "rms_norm", "--arch", "sm_90a", "--set", "opt_level"), "NAME=VALUE"),
        (("plan", "--op", "rms_norm", "--arch", "sm_90a", "--model", "huge"), "flash"),
        (("plan", "--op", "rms_norm"), "--arch"),
        (("sweep", "--op", "rms_norm", "--arch", "sm_90a", "--budget", "soon"), "--budget"),
        (("sweep", "--op", "rms_norm", "--arch", "sm_90a", "--budget", "3", "--budget", "4"), "after another one"),
        (("sweep", "--op", "rms_norm", "--arch", "sm_90a", "--budget", "3", "--patience", "3"), "which ends first"),
        (("sweep", "--op", "rms_norm", "--arch", "sm_90a", "--sampler", "lucky"), "--sampler: found 'lucky'"),
        (("sweep", "--op", "rms_norm", "--arch", "sm_90a", "--measure", "guess"), "valid: gpu, fake"),
        (("sweep", "--op", "rms_norm", "--arch", "sm_90a", "--measure", "fake", "--storage", "mysql://h/n"), "mysql"),
        (
            (
                "plan",
                "--op",
                "fmha",
                "--arch",
                "sm_90a",
                "--set",
                "tile_m=64",
                "--set",
                "consumer_warpgroups=3",
                "--dims",
                "D=128",
            ),
            "never holds (without it",
        ),
        (
            ("sweep", "--op", "rms_norm", "--arch", "sm_90a", "--launch", "twice"),
            "--launch: found 'twice'; valid: graph",
        ),
        (("sweep", "--op", "rms_norm", "--arch", "sm_90a", "--l2", "hot"), "--l2: found 'hot'; valid: cold, warm"),
        (("sweep", "--op", "rms_norm", "--arch", "sm_90a", "--shape", "T=x"), "--shape"),
        (("sweep", "--op", "rms_norm", "--arch", "sm_90a", "--bucket", "T=9:1"), "--bucket"),
        (("sweep", "--op", "rms_norm", "--arch", "sm_90a", "--shape", "T=9", "--bucket", "T=1:8"), "lies outside"),
        (("sweep", "--op", "rms_norm", "--arch", "sm_90a", "--shape", "Q=9"), "which rms_norm does not have"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(capsys, arguments, words):
    code, out, err = call(capsys, *arguments)
    assert code == 2 and out == ""
    assert len(err.strip().splitlines()) == 1 and words in err, err


def test_sweep_without_a_gpu_says_in_one_line_what_it_needs(capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    code, out, err = call(capsys, "sweep", "--op", "rms_norm", "--arch", "sm_90a", "--budget", "3")
    assert code == 2 and out == ""
    (line,) = err.strip().splitlines()
    assert "compute capability 9.0" in line and "this machine has none" in line


def test_a_sweep_with_made_up_times_keeps_nothing(capsys, tmp_path):
    arguments = ("sweep", "--op", "rms_norm", "--arch", "sm_90a", "--dims", "d=512", "--measure", "fake", "--json")
    code, out, _ = call(capsys, *arguments, "--budget", "9", "--batch", "4")
    answer = json.loads(out)
    assert code == 0 and answer["tried"] == 9 and not answer["chosen"] and answer["device"] == "made-up device"
    assert not (tmp_path / "cache" / "tuned").exists()
    assert [path.name for path in (tmp_path / "cache" / "studies").glob("*.journal")] == [
        "made-up.rms_norm.sm_90a.journal"
    ]
    code, out, _ = call(capsys, *arguments[:-1], "--budget", "12", "--storage", f"sqlite:///{tmp_path}/x.db")
    assert code == 0 and "12 configurations tried on made-up device" in out and "not kept" in out


def test_sweep_on_the_wrong_gpu_says_so(capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (8, 0))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "Old GPU")
    code, _, err = call(capsys, "sweep", "--op", "rms_norm", "--arch", "sm_90a")
    assert code == 2 and "this is a Old GPU (8.0)" in err


def test_a_traceback_comes_only_with_debug(monkeypatch, capsys):
    command = ["dsv4-tune", "plan", "--op", "nope", "--arch", "x"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2 and "Traceback" not in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", [*command, "--debug"])
    with pytest.raises(UsageError, match="nope"):
        cli.main()


def test_compile_reports_each_kernel(capsys, monkeypatch, tmp_path):
    def build(self, plans, progress):
        found = [
            Built(plan, tmp_path / f"key{i}" if i else None, None if i else "ptxas: no") for i, plan in enumerate(plans)
        ]
        for one in found:
            progress(one)
        return found

    monkeypatch.setattr("dsv4.tuner.builders.Compiler.build", build)
    code, out, err = call(
        capsys, "compile", "--op", "rms_norm", "--arch", "sm_90a", "--dims", "d=512", "--limit", "3", "--json"
    )
    kernels = json.loads(out)["kernels"]
    assert code == 0 and [k["error"] for k in kernels] == ["ptxas: no", None, None]
    assert kernels[0]["config"] == Target("rms_norm", "sm_90a", dims={"d": 512}).default().config
    assert "2 of 3 configurations" in err


def test_shapes_and_buckets():
    assert shapes.shapes("fmha", ["B=1,Sq=2", "B=3"]) == ({"B": 1, "Sq": 2}, {"B": 3})
    assert shapes.bucket(["T=1:64", "Sk=9:"]) == {"T": (1, 64), "Sk": (9, None)}
    assert shapes.outside({"T": (1, 64)}, {"T": 64}) is None
    assert shapes.outside({"T": (1, 64)}, {"T": 65}) == "T=65 lies outside 1:64"
    with pytest.raises(UsageError, match="has no shapes of its own"):
        shapes.shapes("moe_l1", [])
    assert shapes.shapes("embed", []) == (shapes.workload_sizes("embed"),)
    with pytest.raises(UsageError, match="found 'Q', which rms_norm does not have; valid: T"):
        shapes.shapes("rms_norm", ["Q=3"])
