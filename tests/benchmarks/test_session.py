"""What a session does with its peers before it measures them; the GPU's part is replaced."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.harness import session as session_module
from benchmarks.harness import timing
from benchmarks.harness.operator import Case, Inputs, Peer, Unavailable
from benchmarks.harness.session import LocalSession
from tests.benchmarks.fakes import FakeBenchmark

NAN = float("nan")


class Doubling(FakeBenchmark):
    """y = 2x; one peer right, one wrong, one not there, one that leaves y as it found it."""

    def __init__(self) -> None:
        self.made: list[int] = []

    def peers(self) -> list[Peer]:
        return [
            Peer("right", lambda case: lambda s: s["y"].copy_(2 * s["x"])),
            Peer("wrong", lambda case: lambda s: s["y"].copy_(3 * s["x"])),
            Peer("absent", self._absent),
            Peer("lazy", lambda case: lambda s: s["y"]),
        ]

    @staticmethod
    def _absent(case: Case) -> Any:
        raise Unavailable("not installed")

    def make_inputs(self, case: Case, seed: int) -> Inputs:
        self.made.append(seed)
        x = torch.full((int(case.sizes["T"]),), float(seed))
        return {"x": x, "y": torch.full_like(x, NAN), "eps": 1e-6}

    def check(self, case: Case, inputs: Inputs, output: Any) -> dict[str, float]:
        if not torch.equal(output, 2 * inputs["x"]):
            raise ValueError("not twice x")
        return {"error": 0.0}


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> LocalSession:
    def capture(calls: Sequence[Callable[[], Any]], *, keep: bool = False) -> Any:
        return SimpleNamespace(calls=list(calls), keep=keep, graph=SimpleNamespace(replay=lambda: None))

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(session_module, "ControlMeter", lambda: None)
    monkeypatch.setattr(timing, "L2Flush", lambda device: "flush")
    monkeypatch.setattr(timing, "capture", capture)
    monkeypatch.setattr(timing, "estimate_us", lambda call: 400.0)
    monkeypatch.setattr(timing, "replay_us", lambda captured, before: (len(captured.calls), before))
    bench = Doubling()
    return LocalSession(bench, bench.peers())


def test_peers_that_are_absent_or_wrong_are_skipped_with_the_reason(session: LocalSession) -> None:
    opened = session.open_case("small", 5)
    assert opened["right"].errors == {"error": 0.0} and opened["right"].skipped is None
    assert opened["wrong"].skipped == "wrong result: not twice x"
    assert opened["absent"].skipped == "not installed"
    assert list(session.ready) == ["right"]


def test_a_peer_cannot_pass_on_the_output_of_the_peer_before(session: LocalSession) -> None:
    assert session.open_case("small", 5)["lazy"].skipped == "wrong result: not twice x"


def test_cold_calls_have_inputs_of_their_own_and_warm_calls_share_theirs(session: LocalSession) -> None:
    session.open_case("small", 5)
    captured = session.ready["right"]
    cold = [call.args[0]["x"].data_ptr() for call in captured["cold"].calls]
    warm = {call.args[0]["x"].data_ptr() for call in captured["warm"].calls}
    assert len(cold) == len(set(cold)) == 5  # 2 ms of 400 µs calls
    assert captured["cold"].keep and not captured["warm"].keep
    assert warm == {cold[0]}


def test_a_peer_without_memory_or_without_a_graph_is_skipped(
    session: LocalSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    def estimate_us(call: Any) -> float:
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    monkeypatch.setattr(timing, "estimate_us", estimate_us)
    told = session.open_case("small", 5)["right"].skipped
    assert told == "no graph can hold it (operation not permitted when stream is capturing)"

    def capture(calls: Any, *, keep: bool = False) -> Any:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(timing, "estimate_us", lambda call: 400.0)
    monkeypatch.setattr(timing, "capture", capture)
    assert session.open_case("small", 5)["right"].skipped == "out of memory"
    assert not session.ready


def test_only_cold_samples_flush_the_cache(session: LocalSession) -> None:
    session.open_case("small", 5)
    assert session.sample("right", "cold") == (5, "flush")
    warm: Any = session.sample("right", "warm")
    assert warm[0] == 5 and warm[1] != "flush"


def test_calls_fill_about_two_milliseconds() -> None:
    assert timing.calls_for(2.0, 1000) == 1000
    assert timing.calls_for(100.0, 1000) == 20
    assert timing.calls_for(2.0, 7) == 7
    assert timing.calls_for(1e6, 1000) == 1


def test_one_peer_that_fails_does_not_end_the_run(session: LocalSession, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(case: Case) -> Any:
        raise RuntimeError("stride 0 is not 128")

    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    session.peers["wrong"] = Peer("wrong", fails)
    opened = session.open_case("small", 5)
    assert opened["wrong"].skipped == "failed (RuntimeError: stride 0 is not 128)"
    assert opened["right"].skipped is None and "right" in session.ready


def test_a_case_without_room_for_its_inputs_is_skipped(session: LocalSession, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(case: Case, seed: int) -> Inputs:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(session.bench, "make_inputs", no_room)
    assert {each.skipped for each in session.open_case("small", 5).values()} == {"out of memory"}


def test_a_slow_peer_has_fewer_calls_in_its_graphs(session: LocalSession, monkeypatch: pytest.MonkeyPatch) -> None:
    session.peers["slow"] = Peer("slow", session.peers["right"].prepare)
    times = iter([100.0, 1000.0])
    monkeypatch.setattr(timing, "estimate_us", lambda call: next(times))
    for name in ("wrong", "absent", "lazy"):
        del session.peers[name]
    session.open_case("small", 5)
    calls = {name: [len(ready[mode].calls) for mode in ("cold", "warm")] for name, ready in session.ready.items()}
    assert calls == {"right": [20, 20], "slow": [2, 2]}


def test_closing_a_case_lets_its_memory_go(session: LocalSession) -> None:
    session.open_case("small", 5)
    session.close_case()
    assert not session.ready


@pytest.mark.parametrize(("gpu_us", "calls"), [(0.5, 200), (100.0, 200), (400.0, 50), (15_000.0, 5)])
def test_a_sample_of_the_hosts_time_does_not_wait_long_for_the_gpu(gpu_us: float, calls: int) -> None:
    """200 calls of 15 ms would take 3 s, in every round and for every peer."""
    assert timing.host_calls_for(gpu_us) == calls
