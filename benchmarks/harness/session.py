"""A session holds prepared peers on one GPU and gives samples of them; one process, or one process per peer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from benchmarks.harness.controls import ControlMeter, Controls
from benchmarks.harness.operator import Call, Case, Inputs, OperatorBenchmark, Peer, Unavailable

MODES = ("cold", "warm", "host")
"""``cold`` and ``warm``: see timing.py, µs of GPU time a call. ``host``: µs of host time an eager call."""
SETS_BYTES_MAX = 8 << 30
CALLS_MAX = 1000


@dataclass
class Opened:
    """A peer in the current case: ready, or ``skipped`` with the reason. ``errors``: against float64, by name."""

    skipped: str | None = None
    errors: dict[str, float] = field(default_factory=dict)


class Session(Protocol):
    def open_case(self, label: str, seed: int) -> dict[str, Opened]: ...

    def sample(self, peer: str, mode: str) -> float: ...

    def close_case(self) -> None: ...

    def controls(self) -> Controls: ...

    def describe(self) -> dict[str, Any]: ...

    def close(self) -> None: ...


class LocalSession:
    """Every given peer in this process."""

    def __init__(self, bench: OperatorBenchmark, peers: Sequence[Peer]) -> None:
        import torch

        from benchmarks.harness.timing import L2Flush

        self.bench, self.peers = bench, {peer.name: peer for peer in peers}
        self.cases = {case.label: case for case in bench.cases()}
        self.flush = L2Flush(torch.device("cuda", torch.cuda.current_device()))
        self.meter = ControlMeter()
        self.ready: dict[str, dict[str, Any]] = {}

    def open_case(self, label: str, seed: int) -> dict[str, Opened]:
        """Fresh inputs for the case; every peer prepared, checked once and captured.

        A peer whose result is wrong, or that fails while it is prepared, is skipped with the reason.
        """
        import torch

        case = self.cases[label]
        torch.manual_seed(seed)
        first = self.bench.make_inputs(case, seed)
        calls: dict[str, Call] = {}
        opened: dict[str, Opened] = {}
        for name, peer in self.peers.items():
            try:
                call = peer.prepare(case)
                errors = dict(self.bench.check(case, first, call(first)))
            except Unavailable as reason:
                opened[name] = Opened(skipped=str(reason))
            except ValueError as error:
                opened[name] = Opened(skipped=f"wrong result: {error}")
            else:
                opened[name], calls[name] = Opened(errors=errors), call
            first = self.bench.make_inputs(case, seed)  # poisoned anew: no peer passes on another's result
        if calls:
            self._capture(case, seed, first, calls)
        return opened

    def _capture(self, case: Case, seed: int, first: Inputs, calls: dict[str, Call]) -> None:
        from benchmarks.harness.timing import calls_for, capture, estimate_us

        estimated_us = min(estimate_us(partial(call, first)) for call in calls.values())
        held_bytes = max(1, sum(value.nbytes for value in first.values() if hasattr(value, "nbytes")))
        count = calls_for(estimated_us, min(CALLS_MAX, max(2, SETS_BYTES_MAX // held_bytes)))
        sets = [first, *(self.bench.make_inputs(case, seed + i) for i in range(1, count))]
        for name, call in calls.items():
            repeated = partial(call, first)
            self.ready[name] = {
                "cold": capture([partial(call, inputs) for inputs in sets], keep=True),
                "warm": capture([repeated] * calls_for(estimated_us, CALLS_MAX)),
                "host": repeated,
            }

    def sample(self, peer: str, mode: str) -> float:
        from benchmarks.harness.timing import host_us, replay_us

        held = self.ready[peer][mode]
        if mode == "host":
            return host_us(held)
        return replay_us(held, self.flush if mode == "cold" else held.graph.replay)

    def close_case(self) -> None:
        import torch

        self.ready.clear()
        torch.cuda.empty_cache()

    def controls(self) -> Controls:
        return self.meter.measure()

    def describe(self) -> dict[str, Any]:
        from benchmarks.harness.machine import describe_device, versions

        found = versions()
        for peer in self.peers.values():
            found.update(peer.versions())
        return {"device": describe_device(), "versions": found}

    def close(self) -> None:
        self.ready.clear()
