"""All benchmarks as one campaign: order, limits, what is kept and gone on with, without a GPU and mostly a process."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

from benchmarks import all_operators
from benchmarks.harness import campaign as module
from benchmarks.harness.campaign import DONE, FAILED, KILLED, PART, VOID, Campaign, Job, Record, read_progress
from benchmarks.harness.summary import summarise
from dsv4.generator.spec import list_ops, load_op
from tests.benchmarks.test_results import make_result

JOBS = [Job(name, (name,)) for name in ("first", "second", "third")]


class Fake:
    """Runs nothing: what each job does is looked up by its name, and a clock goes on by the seconds that it takes."""

    def __init__(self, does: dict[str, list[Any]], takes: float = 10.0) -> None:
        self.does, self.takes, self.now = does, takes, 0.0
        self.asked: list[tuple[str, float]] = []
        self.commands: list[list[str]] = []

    def __call__(self, command: Sequence[str], seconds: float, log: Path) -> int | None:
        self.asked.append((command[0], seconds))
        self.commands.append(list(command))
        self.now += self.takes
        log.write_text("one\n\ntwo\n")
        outcome = self.does[command[0]].pop(0)
        if isinstance(outcome, dict):
            folder = Path(command[command.index("--out") + 1])
            (folder / f"2026-11-26_{command[0]}.json").write_text(json.dumps({**make_result(), **outcome}))
            return 0
        return outcome if outcome is None else int(outcome)

    def campaign(self, folder: Path, **how: Any) -> Campaign:
        return Campaign(JOBS, folder, run=self, clock=lambda: self.now, **how)


def statuses(campaign: Campaign) -> dict[str, str]:
    return {name: record.status for name, record in campaign.records.items()}


def test_each_operator_gets_one_file_and_the_next_call_has_nothing_to_do(tmp_path: Path) -> None:
    fake = Fake({name: [{}] for name in ("first", "second", "third")})
    campaign = fake.campaign(tmp_path)
    assert campaign.measure(budget_s=1e6, limit_s=300) == ""
    assert statuses(campaign) == dict.fromkeys(("first", "second", "third"), DONE)
    assert sorted(path.name for path in tmp_path.glob("2026*")) == [
        f"2026-11-26_{name}.json" for name in ("first", "second", "third")
    ]
    assert not list(tmp_path.glob("*.running"))
    assert fake.campaign(tmp_path).queue() == []


def test_the_command_says_where_and_when_to_end(tmp_path: Path) -> None:
    fake = Fake({name: [{}] for name in ("first", "second", "third")})
    fake.campaign(tmp_path).measure(budget_s=1e6, limit_s=300)
    command = fake.commands[0]
    assert command[command.index("--seconds") + 1] == "240" and fake.asked[0] == ("first", 300)
    assert command[command.index("--out") + 1] == str(tmp_path / "first.running")


def test_what_was_never_tried_comes_before_what_failed(tmp_path: Path) -> None:
    fake = Fake({"first": [1, {}], "second": [{}], "third": [{}]})
    fake.campaign(tmp_path).measure(budget_s=130, limit_s=125)  # time for one, and the least for a second
    assert [name for name, _ in fake.asked] == ["first", "second"]
    campaign = fake.campaign(tmp_path)
    assert [job.name for job in campaign.queue()] == ["third", "first"]
    assert campaign.measure(budget_s=1e6, limit_s=300) == ""
    assert [name for name, _ in fake.asked] == ["first", "second", "third", "first"]
    assert campaign.records["first"].attempts == 2 and set(statuses(campaign).values()) == {DONE}


def test_the_budget_ends_it_and_bounds_the_last(tmp_path: Path) -> None:
    fake = Fake({"first": [{}], "second": [{}], "third": [{}]}, takes=200)
    ended = fake.campaign(tmp_path).measure(budget_s=450, limit_s=300)
    assert fake.asked == [("first", 300), ("second", 250)]
    assert ended == "budget: 50 s are left of 450; a benchmark wants at least 120"


def test_how_an_attempt_ends_is_kept(tmp_path: Path) -> None:
    void = {"void": ["copy_gb_s: apart"]}
    fake = Fake({"first": [None], "second": [2], "third": [void]})
    campaign = fake.campaign(tmp_path)
    campaign.measure(budget_s=1e6, limit_s=300)
    assert statuses(campaign) == {"first": KILLED, "second": FAILED, "third": VOID}
    records = read_progress(tmp_path)
    assert records["first"].said == "killed after 300 s; one | two"
    assert records["second"].said == "exit code 2; one | two"
    assert records["third"].said == "copy_gb_s: apart" and records["third"].file


@pytest.mark.parametrize(
    ("before", "after", "kept"),
    [
        ({"left": ["large"], "cases": [1]}, {"left": ["large"], "cases": [1, 2]}, "after"),
        ({"left": ["large"], "cases": [1, 2]}, {"left": ["large"], "cases": [1]}, "before"),
        ({"left": ["large"], "cases": [1, 2]}, {"cases": [1, 2, 3]}, "after"),
        ({"left": ["large"], "cases": [1, 2]}, {"void": ["drift"], "cases": [1, 2]}, "before"),
        ({"void": ["drift"], "cases": [1, 2]}, {"left": ["large"], "cases": [1]}, "after"),
    ],
)
def test_the_result_that_says_more_is_kept(
    tmp_path: Path, before: dict[str, Any], after: dict[str, Any], kept: str
) -> None:
    fake = Fake({"first": [{**before, "date": "before"}, {**after, "date": "after"}]})
    for _ in range(2):
        fake.campaign(tmp_path).attempt(JOBS[0], 300)
    (path,) = tmp_path.glob("2026*")
    assert json.loads(path.read_text())["date"] == kept
    record = read_progress(tmp_path)["first"]
    assert record.file == path.name and record.cases == len((before if kept == "before" else after)["cases"])
    assert record.attempts == 2


def test_a_failure_leaves_an_earlier_result_where_it_is(tmp_path: Path) -> None:
    fake = Fake({"first": [{"left": ["large"]}, None]})
    for _ in range(2):
        record = fake.campaign(tmp_path).attempt(JOBS[0], 300)
    assert record.status == KILLED and (tmp_path / record.file).exists() and record.left == 1


def test_it_ends_where_the_gpu_does_not_answer(tmp_path: Path) -> None:
    fake = Fake({"first": [None], "second": [{}], "third": [{}]})
    campaign = fake.campaign(tmp_path, healthy=lambda: False)
    assert campaign.measure(budget_s=1e6, limit_s=300) == "first: the GPU does not answer after it"
    assert [name for name, _ in fake.asked] == ["first"]


def test_a_progress_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / module.PROGRESS).write_text('{"first": {"state": 1}}')
    with pytest.raises(ValueError, match=r"found no progress .*; valid: what an earlier call wrote there"):
        Campaign(JOBS, tmp_path)


def test_nothing_is_left_of_a_process_that_does_not_end(tmp_path: Path) -> None:
    """It and what it has started are killed, and its output is kept."""
    text = (
        "import subprocess, sys, time; child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
        "print(child.pid, flush=True); time.sleep(60)"
    )
    log, began = tmp_path / "log", time.monotonic()
    assert module.run_process([sys.executable, "-c", text], 2.0, log) is None
    assert time.monotonic() - began < 20
    child = int(log.read_text())
    with pytest.raises(ProcessLookupError):
        for _ in range(100):  # the kernel may need a moment to take it away
            os.kill(child, signal.SIGCONT)
            if Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                raise ProcessLookupError
            time.sleep(0.05)


def test_exit_codes_come_through(tmp_path: Path) -> None:
    assert module.run_process([sys.executable, "-c", "print('x'); raise SystemExit(3)"], 30.0, tmp_path / "log") == 3
    assert (tmp_path / "log").read_text() == "x\n"


def test_every_operator_but_fmha_has_its_place_in_the_order() -> None:
    ready = {op for op in list_ops() if load_op(op).status == "ready"}
    assert len(set(all_operators.ORDER)) == len(all_operators.ORDER)
    # fmha has sizes of its own; router and router_hash measure logits alone and the kernels for many tokens
    assert ready - {"fmha", "router_logits", "router_logits_many", "router_hash_many"} == set(all_operators.ORDER)
    for name in all_operators.ORDER:
        assert (Path(all_operators.__file__).parent / f"{name}.py").exists()


def test_options_go_to_each_benchmark_that_has_such_a_peer() -> None:
    made = all_operators.jobs(["mhc_post", "embed", "rms_norm"], 5, ["tile*", "quack"])
    assert {job.name: job.command[1:] for job in made} == {
        "mhc_post": ("-m", "benchmarks.mhc_post", "--rounds", "5", "--peer", "tile*"),
        "embed": ("-m", "benchmarks.embed", "--rounds", "5", "--peer", "tile*"),
        "rms_norm": ("-m", "benchmarks.rms_norm", "--rounds", "5", "--peer", "quack"),
    }
    assert all_operators.jobs(["embed"], 5, ["quack"]) == []
    assert all_operators.jobs(["embed"], 9, [])[0].command[3:] == ("--rounds", "9")


def invoke(*arguments: str) -> Any:
    app = typer.Typer()
    app.command()(all_operators.main)
    return CliRunner().invoke(app, list(arguments))


def test_what_is_left_can_be_listed(tmp_path: Path) -> None:
    module.write_progress(tmp_path, {"embed": Record(DONE, 1, 5.0), "sample": Record(PART, 1, 5.0, left=3)})
    shown = invoke("--out", str(tmp_path), "--op", "embed", "--op", "sample", "--op", "mhc_*", "--list")
    assert shown.exit_code == 0
    assert shown.stdout.split() == ["mhc_post_pre", "mhc_pre", "mhc_post", "mhc_head", "sample"]
    refused = invoke("--out", str(tmp_path), "--op", "nothing")
    assert (
        refused.exit_code == 2
        and "--op: found 'nothing'; valid: sparse_attention_decode, fmha_varlen" in refused.stderr
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    shown = invoke("--out", str(tmp_path), "--op", "embed")
    assert shown.exit_code == 3 and "CUDA device" in shown.stderr
    assert not (tmp_path / module.PROGRESS).exists()


def test_a_result_in_a_line() -> None:
    found = summarise(make_result(ours=2.0, theirs=3.0))
    assert (found.cases, found.compared, found.behind, found.peers) == (2, 2, 0, ("theirs",))
    assert found.cold == pytest.approx(1.5) and found.warm == pytest.approx(1.5)
    alone = summarise(make_result(ours=2.0))
    assert alone.cold is None and alone.compared == 0 and alone.peers == ()
    assert summarise(make_result(ours=2.0, theirs=1.0)).behind == 2
