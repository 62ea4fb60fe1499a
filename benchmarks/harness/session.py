"""A session holds prepared peers on one GPU and gives samples of them; one process, or one process per peer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from benchmarks.harness.controls import ControlMeter, Controls
from benchmarks.harness.operator import Call, Case, Inputs, OperatorBenchmark, Peer, Unavailable, one_line

MODES = ("cold", "warm", "host")
"""``cold`` and ``warm``: see timing.py, µs of GPU time a call. ``host``: µs of host time an eager call."""
SETS_BYTES_MAX = 8 << 30
ONE_SET_BYTES = 1 << 30
"""Inputs and outputs beyond this are cold whoever used them last: L2 holds a twentieth of them."""
CALLS_MAX = 1000
OUT_OF_MEMORY = "out of memory"


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

        A peer whose result is wrong, or that fails, is skipped with the reason; so is one for which the memory does not
        suffice, or whose call no graph can hold. One case that cannot be measured does not end the run.
        """
        import torch

        case = self.cases[label]
        torch.manual_seed(seed)
        calls: dict[str, Call] = {}
        opened: dict[str, Opened] = {}
        estimates_us: dict[str, float] = {}
        first: Inputs = {}
        for name, peer in self.peers.items():
            first, output = {}, None  # let go before others are made
            torch.cuda.empty_cache()  # other peers' processes want what the last check took
            try:
                first = self.bench.make_inputs(case, seed)  # poisoned anew: no peer passes on another's result
                call = peer.prepare(case)
                output = call(first)
                errors = dict(self.bench.check(case, first, output)) if peer.checked else {}
                estimates_us[name] = _captured_us(call, first)
            except Unavailable as reason:
                opened[name] = Opened(skipped=str(reason))
            except ValueError as error:
                opened[name] = Opened(skipped=f"wrong result: {error}")
            except torch.OutOfMemoryError:
                opened[name] = Opened(skipped=OUT_OF_MEMORY)
            except Exception as error:  # compilers and libraries fail in ways of their own
                torch.cuda.synchronize()  # a GPU that is lost raises here, and ends the run
                opened[name] = Opened(skipped=f"failed ({type(error).__name__}: {one_line(error)})")
            else:
                opened[name], calls[name] = Opened(errors=errors), call
        if calls:
            first = first or self.bench.make_inputs(case, seed)
            for name in self._capture(case, seed, first, calls, estimates_us):
                opened[name] = Opened(skipped=OUT_OF_MEMORY)
        return opened

    def _capture(
        self, case: Case, seed: int, first: Inputs, calls: dict[str, Call], estimates_us: dict[str, float]
    ) -> list[str]:
        """Capture every call on as many sets of inputs as its time asks for; names of those that memory is short for.

        The fastest decides how many sets are made, if there is room; a slower peer has fewer calls in its graphs.
        """
        import torch

        from benchmarks.harness.timing import calls_for, capture, host_calls_for, host_us

        held_bytes = max(1, sum(value.nbytes for value in first.values() if hasattr(value, "nbytes")))
        most = min(CALLS_MAX, max(1 if held_bytes > ONE_SET_BYTES else 2, SETS_BYTES_MAX // held_bytes))
        count = calls_for(min(estimates_us[name] for name in calls), most)
        sets, without_memory = [first], []
        try:
            sets += [self.bench.make_inputs(case, seed + i) for i in range(1, count)]
        except torch.OutOfMemoryError:
            return list(calls)
        for name, call in calls.items():
            repeated = partial(call, first)
            try:
                own = sets[: calls_for(estimates_us[name], most)]
                self.ready[name] = {
                    "cold": capture([partial(call, inputs) for inputs in own], keep=True),
                    "warm": capture([repeated] * calls_for(estimates_us[name], CALLS_MAX)),
                    "host": partial(host_us, repeated, host_calls_for(estimates_us[name])),
                }
            except torch.OutOfMemoryError:
                without_memory.append(name)
        return without_memory

    def sample(self, peer: str, mode: str) -> float:
        from benchmarks.harness.timing import replay_us

        held = self.ready[peer][mode]
        if mode == "host":
            return float(held())
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


def _captured_us(call: Call, inputs: Inputs) -> float:
    """A rough time of a call in a graph. Raises ``Unavailable`` for one that cannot be captured."""
    import torch

    from benchmarks.harness.timing import estimate_us

    try:
        return estimate_us(partial(call, inputs))
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise Unavailable(f"no graph can hold it ({one_line(error)})") from None
