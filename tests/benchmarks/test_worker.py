"""A peer in a process of its own: the protocol, failures, the end."""

from __future__ import annotations

import io
import json
import sys

import pytest

from benchmarks.harness.operator import Case
from benchmarks.harness.rounds import measure
from benchmarks.harness.worker import WorkerFailed, WorkerSession, serve
from tests.benchmarks.fakes import STEADY, FakeSession

FAKE_WORKER = """
import sys
from benchmarks.harness.worker import serve
from tests.benchmarks.fakes import FakeSession
session = FakeSession({sys.argv[1]: float(sys.argv[2])})
session.breaks_at = "broken"
serve(session, sys.stdin, sys.stdout)
"""


def worker(peer: str, time_us: float = 2.0) -> WorkerSession:
    return WorkerSession("-", peer, command=[sys.executable, "-c", FAKE_WORKER, peer, str(time_us)])


def test_answers_are_one_json_line_each_and_errors_do_not_end_the_worker() -> None:
    session = FakeSession({"a": 4.0})
    session.breaks_at = "b"
    requests = [["open_case", "small", 3], ["sample", "b", "cold"], ["sample", "a", "host"], ["controls"]]
    answers = io.StringIO()
    serve(session, [json.dumps(request) for request in requests], answers)
    opened, failed, sample, controls = (json.loads(line) for line in answers.getvalue().splitlines())
    assert opened == {"value": {"a": {"skipped": None, "errors": {"rel_l2": 1e-3}}}}
    assert failed == {"error": "RuntimeError: the GPU fell off the bus"}
    assert sample == {"value": 40.0}
    assert controls["value"]["copy_gb_s"] == STEADY.copy_gb_s


def test_peers_in_two_processes_are_measured_like_peers_in_one() -> None:
    sessions = {"a": worker("a", 2.0), "b": worker("b", 3.0)}
    try:
        (result,), readings = measure(sessions, [Case("small", {"T": 1})], rounds=2, seed=0)
        assert {name: modes["cold"].median_us for name, modes in result.summaries.items()} == {"a": 2.0, "b": 3.0}
        assert readings == [STEADY] * 4
        assert sessions["a"].describe()["versions"]["torch"] == "2.11.0"
    finally:
        for session in sessions.values():
            session.close()
    assert all(session.process.returncode == 0 for session in sessions.values())


def test_an_error_in_the_worker_is_one_line_that_names_the_peer() -> None:
    session = worker("broken")
    try:
        with pytest.raises(WorkerFailed, match="broken: sample: RuntimeError: the GPU fell off the bus"):
            session.sample("broken", "cold")
    finally:
        session.close()


def test_a_worker_that_ends_is_reported_with_its_exit_code() -> None:
    session = WorkerSession("-", "gone", command=[sys.executable, "-c", "raise SystemExit(7)"])
    try:
        with pytest.raises(WorkerFailed, match="gone: the worker ended with exit code 7 at controls"):
            session.controls()
    finally:
        session.close()
