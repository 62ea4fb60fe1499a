"""A worker that hangs, faults or dies costs the artifact it was at, nothing else, and leaves no process behind."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest

from dsv4.tuner import worker
from dsv4.tuner.protocol import Event, Request

FAKE = """
import json, os, subprocess, sys, time
out = open(sys.argv[sys.argv.index("--out") + 1], "a", buffering=1)
def say(event, artifact="", **data):
    out.write(json.dumps({"event": event, "artifact": artifact, "data": data}) + "\\n")
request = json.load(sys.stdin)
with open(os.environ["FAKE_LOG"], "a") as log:
    log.write(f"{os.getpid()}\\n")
with open(os.environ["FAKE_LOG"] + ".requests", "a") as log:
    log.write(json.dumps(request) + "\\n")
mode = os.environ.get("FAKE_MODE", "")
if mode == "no start":
    print("ImportError: no module named torch", file=sys.stderr); sys.exit(1)
if mode == "broken device":
    say("failed", error="the device does not compute"); sys.exit(3)
if mode == "never ready":
    time.sleep(60)
say("ready", device="Fake GPU", capability=[9, 0])
if mode == "does nothing":
    say("end"); sys.exit(0)
timing = lambda us: {"sizes": {"T": 7}, "median_us": us, "low_us": us, "high_us": us, "rounds": 3, "input_copies": 1}
for artifact in request["artifacts"][1 if request["compare"] else 0:]:
    say("begin", artifact)
    if artifact == "hang":
        child = subprocess.Popen(["sleep", "300"])
        with open(os.environ["FAKE_LOG"] + ".child", "w") as file:
            file.write(str(child.pid))
        time.sleep(300)
    if artifact == "die":
        os.abort()
    if artifact == "fault":
        say("failed", artifact, error="AcceleratorError: an illegal memory access was encountered")
        os._exit(3)
    if artifact == "exit":
        print("kernel said: assertion failed", file=sys.stderr); sys.stderr.flush(); os._exit(7)
    if artifact == "refused":
        say("failed", artifact, error="ArtifactRefused: altered")
        continue
    wrong = artifact == "wrong"
    if artifact not in request["passed"]:
        say("checked", artifact, ok=not wrong, cases=2, findings=["T=7: y is off"] if wrong else [])
    if not wrong:
        say("measured", artifact, **timing(float(artifact[2:])))
for artifact in [*request["beside"], *request["artifacts"]]:
    say("begin", artifact)
    if artifact == mode:
        os._exit(7)
if request["beside"]:
    say("measured", request["artifacts"][0], **{**timing(1.5), "rounds": 9})
say("end")
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    script = tmp_path / "fake.py"
    script.write_text(FAKE)
    log = tmp_path / "log"
    monkeypatch.setenv("FAKE_LOG", str(log))

    def call(*artifacts: str, mode: str = "", limit_s: float = 20.0, **request):
        monkeypatch.setenv("FAKE_MODE", mode)
        seen: list[str] = []
        outcomes = worker.run(
            Request(artifacts=artifacts, sizes=({"T": 7},), **request),
            limit_s=limit_s,
            start_limit_s=20.0 if mode != "never ready" else 0.5,
            command=(sys.executable, str(script)),
            progress=lambda outcome: seen.append(outcome.artifact),
        )
        return outcomes, seen, log.read_text().split()

    call.requests = lambda: [json.loads(line) for line in Path(f"{log}.requests").read_text().splitlines()]
    return call


def test_one_worker_serves_all_that_behave(fake):
    outcomes, seen, pids = fake("ok3.5", "wrong", "refused", "ok2")
    assert [o.artifact for o in outcomes] == seen == ["ok3.5", "wrong", "refused", "ok2"]
    assert [o.failure for o in outcomes] == [None, "T=7: y is off", "ArtifactRefused: altered", None]
    assert outcomes[0].timings[0].median_us == 3.5 and outcomes[3].timings[0].median_us == 2.0
    assert outcomes[0].device == "Fake GPU"
    assert len(pids) == 1


BESIDE = {"beside": ("default", "incumbent"), "default_us": (2.0,)}


def test_a_later_rung_replaces_the_first(fake):
    outcomes, _, pids = fake("ok1", "ok2", **BESIDE)
    assert [timing.median_us for timing in outcomes[0].timings] == [1.5]
    assert {rounds: len(timings) for rounds, timings in outcomes[0].history.items()} == {3: 1, 9: 1}
    assert outcomes[1].failure is None and outcomes[1].timings[0].rounds == 3 and len(pids) == 1


def test_a_fault_among_rounds_costs_its_own_artifact_and_the_others_are_timed_anew_but_not_checked(fake):
    outcomes, seen, pids = fake("ok1", "wrong", "ok2", "ok3", mode="ok2", **BESIDE)
    assert [o.failure for o in outcomes] == [None, "T=7: y is off", "the worker ended with exit code 7", None]
    assert seen == ["wrong", "ok2", "ok1", "ok3"] and len(pids) == 2
    assert [len(timings) for timings in outcomes[0].history.values()] == [1, 1]  # those of the second worker alone
    assert all(o.checked == {"ok": True, "cases": 2, "findings": []} for o in (outcomes[0], outcomes[3]))
    first, second = fake.requests()
    assert second == {**first, "artifacts": ["ok1", "ok3"], "passed": ["ok1", "ok2", "ok3"]}


def test_an_incumbent_that_fails_is_told_of_and_left_out_of_the_rest(fake):
    outcomes, seen, pids = fake("ok1", "ok2", mode="incumbent", **BESIDE)
    assert [o.failure for o in outcomes] == [None, None] and len(pids) == 2
    assert seen == ["incumbent", "ok1", "ok2"]
    assert [request["beside"] for request in fake.requests()] == [["default", "incumbent"], ["default"]]


def test_a_default_that_fails_ends_it_in_one_line(fake):
    with pytest.raises(worker.WorkerError, match=r"the default failed while others took turns with it: .* code 7"):
        fake("ok1", "ok2", mode="default", **BESIDE)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ("die", "SIGABRT"),
        ("fault", "illegal memory access"),
        ("exit", "exit code 7 (kernel said: assertion failed)"),
    ],
)
def test_a_worker_that_ends_early_costs_one_artifact(fake, bad, words):
    outcomes, _, pids = fake("ok1", bad, "ok2")
    assert [o.failure is None for o in outcomes] == [True, False, True]
    assert words in outcomes[1].failure and "\n" not in outcomes[1].failure
    assert len(pids) == 2


def test_a_hanging_worker_is_killed_with_its_children(fake, tmp_path: Path):
    began = time.monotonic()
    outcomes, _, pids = fake("hang", "ok4", limit_s=1.0)
    assert time.monotonic() - began < 20
    assert "no answer within 1 s: killed" in outcomes[0].failure
    assert outcomes[1].timings[0].median_us == 4.0
    assert len(pids) == 2
    for pid in [*pids, (tmp_path / "log.child").read_text()]:
        stat = Path(f"/proc/{pid}/stat")
        assert not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] in "ZX"


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("no start", "ImportError: no module named torch"),
        ("broken device", "the device does not compute"),
        ("never ready", "no answer within 0.5 s"),
        ("does nothing", "did nothing of what was asked"),
    ],
)
def test_a_worker_that_never_works_is_an_error_in_one_line(fake, mode, words):
    with pytest.raises(worker.WorkerError) as caught:
        fake("ok1", mode=mode)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_comparison_has_one_outcome(fake):
    outcomes, _, _ = fake("ok1", "ok2", compare=True)
    assert [o.artifact for o in outcomes] == ["ok2"]


def test_the_measuring_worker_needs_no_compiler_and_no_search_library():
    """What it imports is what a machine has that only runs kernels."""
    import subprocess

    code = (
        "import sys, dsv4.tuner.measure;"
        "bad = {'cutlass', 'jinja2', 'optuna', 'typer', 'rich', 'yaml'} & {m.split('.')[0] for m in sys.modules};"
        "sys.exit(', '.join(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ})
    assert done.returncode == 0, done.stderr


def test_without_a_gpu_the_real_worker_says_so():
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(worker.WorkerError, match="no CUDA device"):
        worker.run(Request(artifacts=("/nowhere",), sizes=({"T": 1},)), limit_s=60)


def test_events_are_strict():
    with pytest.raises(ValueError, match="nonsense"):
        Event.model_validate_json('{"event": "nonsense"}')
