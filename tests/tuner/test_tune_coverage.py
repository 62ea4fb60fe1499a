"""Coverage: what the runtime would take for each call that a program made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import dsv4
from dsv4.generator.cli import run as run_cli
from dsv4.generator.console import UsageError
from dsv4.runtime import dispatch
from dsv4.runtime.dispatch import Call
from dsv4.tuner import cli
from dsv4.tuner.budget import Budget
from dsv4.tuner.coverage import cover_calls, distinct, known_device, read_calls, write_calls
from dsv4.tuner.question import Settings
from dsv4.tuner.sweep import sweep
from dsv4.tuner.target import Target
from tests.tuner.tuner_fakes import GPU, FakeBuilder, FakeGpu

TARGET = Target("rms_norm", "sm_90a", dims={"d": 512})
DEFAULT = TARGET.default()


def call(op: str, implementation: str = "reference", variant=None, **sizes: int) -> Call:
    return Call(op, implementation, None, "cpu", sizes, DEFAULT.variant if variant is None else variant)


CALLS = [
    call("rms_norm", d=512, T=7), call("rms_norm", d=512, T=7), call("rms_norm", d=512, T=900),
    call("rms_norm", d=1024, T=7), call("linear", T=7), call("rms_norm", "empty", d=512, T=0),
]  # fmt: skip


@pytest.fixture
def tuned(cache):
    """rms_norm at d = 512 has its default, and a winner for up to 100 rows on the fake GPU."""
    gpu = FakeGpu(FakeBuilder(cache), lambda config, sizes: 2.0 if config == DEFAULT.config else 1.0)
    settings = Settings(GPU, ({"T": 7},), Budget(configurations=4), sampler="grid", bucket={"T": (1, 100)})
    assert sweep(TARGET, settings, cache=cache, builder=gpu.builder, measure=gpu).chosen
    cache.refresh()
    return cache


def test_calls_of_one_kind_count_together_and_empty_ones_do_not():
    found = distinct(CALLS)
    assert [(each.op, each.sizes, each.times) for each in found] == [
        ("rms_norm", {"d": 512, "T": 7}, 2), ("rms_norm", {"d": 512, "T": 900}, 1),
        ("rms_norm", {"d": 1024, "T": 7}, 1), ("linear", {"T": 7}, 1),
    ]  # fmt: skip


def test_each_call_is_told_what_would_serve_it(tuned):
    asked = distinct(CALLS)
    assert [each.served for each in cover_calls(asked, tuned, "sm_90a", GPU)] == [
        "tuned", "default", "missing", "no kernel is made",
    ]  # fmt: skip
    assert [each.served for each in cover_calls(asked, tuned, "sm_90a", None)][:2] == ["default", "default"]
    assert [each.served for each in cover_calls(asked, tuned, "sm_100a", GPU)][:2] == ["missing", "missing"]
    other = GPU.model_copy(update={"name": "another"})
    assert cover_calls(asked, tuned, "sm_90a", other)[0].served == "default"
    assert known_device(tuned, "sm_90a", "Fake GPU") == GPU
    with pytest.raises(UsageError, match="valid: Fake GPU"):
        known_device(tuned, "sm_90a", "another")


def test_a_traced_program_is_covered_on_the_command_line(tuned, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setenv("DSV4_CACHE", str(tuned.root))
    dispatch.reset()
    file = tmp_path / "step.json"
    with dsv4.trace_dispatch() as calls:
        dsv4.rms_norm(torch.zeros(7, 512).bfloat16(), torch.ones(512).bfloat16())
        dsv4.rms_norm(torch.zeros(7, 1024).bfloat16(), torch.ones(1024).bfloat16())
    write_calls(file, calls)
    dispatch.reset()
    assert [each.sizes for each in read_calls(file)] == [{"d": 512, "T": 7}, {"d": 1024, "T": 7}]
    assert run_cli(cli.app, ["coverage", str(file), "--arch", "sm_90a", "--device", "Fake GPU", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["counts"] == {"missing": 1, "tuned": 1} and answer["calls"][0]["sizes"] == {"d": 1024, "T": 7}
    assert run_cli(cli.app, ["coverage", str(file), "--arch", "sm_90a", "--device", "Fake GPU"]) == 0
    assert "2 kinds of calls on Fake GPU: 1 missing, 1 tuned" in capsys.readouterr().out


@pytest.mark.parametrize("content", [None, "{", "[1]", '[{"op": "rms_norm"}]'])
def test_files_of_something_else_are_one_line(tuned, tmp_path, monkeypatch, capsys, content):
    monkeypatch.setenv("DSV4_CACHE", str(tuned.root))
    file = tmp_path / "step.json"
    if content is not None:
        file.write_text(content)
    assert run_cli(cli.app, ["coverage", str(file), "--arch", "sm_90a"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
