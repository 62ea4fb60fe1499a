"""Forked workers: as good as new processes, and nothing is left of one that hangs or whose owner is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from dsv4.tuner import worker
from dsv4.tuner.prefork import SERVE, Prefork
from dsv4.tuner.protocol import Request

SERVER = textwrap.dedent("""
    import os, sys, time
    from pathlib import Path
    from types import SimpleNamespace
    import dsv4.tuner
    from dsv4.tuner import prefork
    from dsv4.tuner.protocol import Event, Request

    def answer(text, path):
        request = Request.model_validate_json(text)
        with path.open("a") as stream, open(sys.argv[1], "a") as log:
            def say(event, artifact="", **data):
                stream.write(Event(event=event, artifact=artifact, data=data).model_dump_json() + "\\n")
                stream.flush()
            log.write(f"{os.getppid()} {os.getpid()} {request.device_index}\\n")
            log.flush()
            say("ready", device="Fake GPU")
            for artifact in request.artifacts:
                say("begin", artifact)
                if artifact == "hang":
                    time.sleep(300)
                if artifact == "die":
                    os.abort()
                if artifact == "raise":
                    raise RuntimeError("nobody caught this")
                if artifact == "fail":
                    say("failed", artifact, error="out of memory")
                    continue
                is_right = artifact != "wrong"
                say("checked", artifact, ok=is_right, cases=1, findings=[] if is_right else ["x: wrong by 1 %"])
            say("end")
        return 0

    dsv4.tuner.measure = sys.modules["dsv4.tuner.measure"] = SimpleNamespace(answer=answer)
    prefork.serve()
""")


@pytest.fixture
def server(tmp_path: Path):
    script, log = tmp_path / "server.py", tmp_path / "log"
    script.write_text(SERVER)
    start = Prefork((sys.executable, str(script), str(log)))

    def call(*artifacts: str, limit_s: float = 20.0, **more):
        request = Request(artifacts=artifacts, sizes=())
        outcomes = worker.on(3, start)(request, limit_s=limit_s, start_limit_s=60.0, **more)
        return outcomes, [line.split() for line in log.read_text().splitlines()]

    return call


def gone(pid: str | int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] in "ZX"


def wait_until(condition, limit_s: float = 20.0) -> bool:
    deadline = time.monotonic() + limit_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def test_a_worker_in_which_nothing_went_wrong_takes_the_next_request(server):
    server("a", "b")
    outcomes, log = server("c")
    assert [outcome.failure for outcome in outcomes] == [None] and outcomes[0].device == "Fake GPU"
    assert outcomes[0].gpu == 3
    (one, first, index), (other, second, _) = log
    assert one == other and first == second and index == "3"


@pytest.mark.parametrize("culprit", ["wrong", "fail"])
def test_after_any_failure_the_next_request_has_a_worker_of_its_own(server, culprit):
    (outcome, other), _ = server(culprit, "a")
    assert outcome.failure and not other.failure
    outcomes, log = server("b")
    assert outcomes[0].failure is None
    (one, first, _), (same, second, _) = log
    assert one == same and first != second and wait_until(lambda: gone(first))


def test_an_idle_worker_that_was_killed_is_replaced(server):
    _, [(_, pid, _)] = server("a")
    os.kill(int(pid), signal.SIGKILL)
    assert wait_until(lambda: gone(pid))
    outcomes, log = server("b")
    assert outcomes[0].failure is None and log[1][1] != pid


def test_many_requests_of_any_size_are_answered_in_their_order(server):
    for number in range(5):
        names = [f"{number}-{'x' * 4000}-{each}" for each in range(40)]  # more than a pipe holds
        outcomes, log = server(*names)
        assert [outcome.artifact for outcome in outcomes] == names
    assert len({pid for _, pid, _ in log}) == 1


def test_what_ends_a_worker_costs_its_own_artifact_and_not_the_server(server):
    outcomes, log = server("a", "die", "raise", "b")
    assert [outcome.failure is None for outcome in outcomes] == [True, False, False, True]
    assert "SIGABRT" in outcomes[1].failure and "exit code 1" in outcomes[2].failure
    assert "nobody caught this" in outcomes[2].failure
    assert len(log) == 3 and len({parent for parent, *_ in log}) == 1


def test_a_hanging_worker_is_killed(server):
    outcomes, log = server("hang", "a", limit_s=1.0)
    assert "no answer within 1 s: killed" in outcomes[0].failure and outcomes[1].failure is None
    assert wait_until(lambda: gone(log[0][1]))


def test_one_that_is_told_to_stop_kills_its_worker(server, tmp_path: Path):
    with pytest.raises(worker.Stopped):
        server("hang", is_stopped=lambda: (tmp_path / "log").exists())
    (_, pid, _), *_ = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    assert wait_until(lambda: gone(pid))
    outcomes, _ = server("a")
    assert outcomes[0].failure is None


def test_a_server_that_does_not_start_is_an_error_in_one_line_and_another_is_tried(tmp_path: Path):
    start = Prefork((sys.executable, "-c", "import nothing_of_this_name"))
    for _ in range(2):
        with pytest.raises(worker.WorkerError, match="nothing_of_this_name") as caught:
            worker.run(Request(artifacts=("a",), sizes=()), limit_s=20.0, start=start)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("doing", ["hang", "idle"])
def test_nothing_is_left_of_a_tuner_that_was_killed(tmp_path: Path, doing: str):
    script, log, owner = tmp_path / "server.py", tmp_path / "log", tmp_path / "owner.py"
    script.write_text(SERVER)
    owner.write_text(
        "import sys\n"
        "from dsv4.tuner import worker\n"
        "from dsv4.tuner.prefork import Prefork\n"
        "from dsv4.tuner.protocol import Request\n"
        f"start = Prefork((sys.executable, {str(script)!r}, {str(log)!r}))\n"
        f"worker.run(Request(artifacts=({doing!r},), sizes=()), limit_s=300, start=start)\n"
        "import time\n"
        "time.sleep(300)\n"
    )
    process = subprocess.Popen([sys.executable, str(owner)])
    assert wait_until(lambda: log.exists() and log.read_text().endswith("\n"), 60.0)
    parent, pid, _ = log.read_text().split()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert wait_until(lambda: gone(pid) and gone(parent))


def test_without_a_gpu_the_real_server_says_so_and_never_touched_cuda():
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(worker.WorkerError, match="no CUDA device"):
        worker.run(Request(artifacts=("/nowhere",), sizes=({"T": 1},)), limit_s=60, start=Prefork(SERVE))
    code = "import torch, dsv4.tuner.measure; assert not torch.cuda.is_initialized()"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
