"""`dsv4-gen`: what it prints, where it prints it, and how it ends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dsv4.generator.cli import app, run


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A kernel cache of this module's own, with one small kernel of each arch in it."""
    root = tmp_path_factory.mktemp("cache")
    root.chmod(0o700)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DSV4_CACHE", str(root))
        patch.setenv("COLUMNS", "200")
        assert run(app, ["build", "--op", "rms_norm", "--dims", "d=520", "--jobs", "2"]) == 0
        yield root


def printed(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> tuple[int, Any]:
    """Run with --json; the exit code and the one object that standard output held."""
    capsys.readouterr()
    code = run(app, [*arguments, "--json"])
    text = capsys.readouterr().out
    return code, json.loads(text) if text else None


def test_list_names_every_ready_operator_and_says_what_is_only_planned(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = printed(capsys, ["list"])
    assert code == 0
    assert {kernel["op"] for kernel in found["kernels"]} >= {"rms_norm", "fmha", "mhc_pre", "sample"}
    assert {"moe_l1"} <= set(found["planned"])
    assert not any(kernel["built"] for kernel in found["kernels"]), "d=520 is no default"


def test_build_reports_resources_as_predicted_and_the_second_build_is_cached(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = printed(capsys, ["build", "--op", "rms_norm", "--dims", "d=520"])
    assert code == 0
    assert [kernel["arch"] for kernel in found["kernels"]] == ["sm_100a", "sm_90a"]
    for kernel in found["kernels"]:
        assert kernel["cached"]
        assert kernel["smem_bytes"] == kernel["smem_bytes_predicted"]
        assert kernel["tmem_columns"] == kernel["tmem_columns_predicted"] == 0
        assert kernel["spill_bytes"] == 0 and 0 < kernel["registers"] <= 255
        assert kernel["rungs"][:2] == ["spec", "compiled"]


def test_verify_on_a_cpu_checks_the_artifacts_and_executes_nothing(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = printed(capsys, ["verify", "--device", "cpu"])
    assert code == 0
    assert len(found["kernels"]) == 2
    for kernel in found["kernels"]:
        assert kernel["ok"] and kernel["findings"] == [] and kernel["cosine"] is None


def test_verify_finds_an_altered_object(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    victim = next((cache / "kernels" / "rms_norm" / "sm_90a").iterdir()) / "kernel.ptx"
    whole = victim.read_text()
    victim.write_text(whole[:-200])
    try:
        code, found = printed(capsys, ["verify", "--device", "cpu", "--arch", "sm_90a"])
    finally:
        victim.write_text(whole)
        assert run(app, ["verify", "--device", "cpu"]) == 0, "the evidence has to say that it is whole again"
    assert code == 1
    assert "kernel.ptx" in found["kernels"][0]["findings"][0]


def test_explain_prints_the_budget_line_by_line(capsys: pytest.CaptureFixture[str]) -> None:
    code, found = printed(capsys, ["explain", "fmha", "--arch", "sm_100a", "--dims", "D=64"])
    assert code == 0
    (kernel,) = found["kernels"]
    text = "\n".join(kernel["budget"])
    assert "tmem" in text and "setmaxnreg" in text
    assert kernel["predicted"]["tmem_columns"] in (128, 256, 512)


def test_explain_says_why_a_configuration_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    code, found = printed(capsys, ["explain", "fmha", "--arch", "sm_90a", "--dims", "D=128", "--set", "kv_stage=4"])
    assert code == 1
    (kernel,) = found["kernels"]
    assert not kernel["fits"] and "232,448" in kernel["reasons"][0]


def test_emit_prints_the_source_of_one_kernel(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(app, ["emit", "--op", "rms_norm", "--arch", "sm_90a", "--dims", "d=520"]) == 0
    text = capsys.readouterr().out
    compile(text, "emitted", "exec")
    assert "520" in text and "{{" not in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["list", "--op", "fhma"], "--op: found 'fhma'; valid: attention_combine, "),
        (["list", "--arch", "sm_80"], "--arch: found 'sm_80'; valid: sm_100a, sm_90a"),
        (["list", "--model", "huge"], "--model: found 'huge'"),
        (["explain", "nothing"], "OP: found 'nothing'"),
        (["explain", "fmha", "--set", "tile_q=3"], "tile_q"),
        (["explain", "fmha", "--set", "tile_m"], "--set: found 'tile_m'; valid: NAME=VALUE"),
        (["explain", "fmha", "--arch", "sm_90a", "--set", "tile_n=17"], "tile_n"),
        (["build", "--dims", "D=64"], "need --op"),
        (["build", "--jobs", "-1"], "--jobs: found -1"),
        (["verify", "--device", "tpu"], "--device: found 'tpu'"),
        (["clean"], "nothing selected"),
        (["no-such-command"], "no-such-command"),
        (["emit", "--check", "--op", "fmha"], "leave out"),
    ],
)
def test_bad_usage_ends_in_one_line_and_exit_code_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(app, arguments) == 2
    captured = capsys.readouterr()
    assert said in captured.err.replace("\n", " ")
    assert captured.err.strip().count("\n") == 0 and "Traceback" not in captured.err
    assert captured.out == ""


def test_a_traceback_is_shown_with_debug() -> None:
    with pytest.raises(Exception, match="found 'fhma'"):
        run(app, ["--debug", "list", "--op", "fhma"])


def test_clean_removes_what_was_selected_and_nothing_else(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = printed(capsys, ["clean", "--arch", "sm_90a", "--dry-run"])
    assert code == 0 and len(found["removed"]) == 1
    code, found = printed(capsys, ["clean", "--arch", "sm_90a"])
    assert code == 0 and len(found["removed"]) == 1
    left = sorted(path.parent.name for path in cache.glob("kernels/rms_norm/*/*") if not path.name.startswith("."))
    assert left == ["sm_100a"]
