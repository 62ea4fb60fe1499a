"""How long one call takes, as serving would call it.

* ``graph``: calls are captured into a CUDA graph, whose replay is timed: no gap between them, a node's own cost (0.8 µs
  on an H100) contained. ``eager``: they are launched one by one from Python on an idle GPU; where the host is slower
  than the kernel, its time is what is measured.
* ``cold``: no call finds its inputs in L2. Each call of a stretch has a copy of its own, and a flush before the stretch
  reads twice the L2's size, untimed. (Copies that are together larger than the cache would not do: a kernel may touch
  little of a large argument.) ``warm``: every call has the same inputs, the first one untimed.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from functools import cache
from itertools import product
from typing import Any

import torch

from dsv4.runtime.tuned import Policy
from dsv4.tuner.protocol import Beside, GpuState, Sizes, Timing
from dsv4.tuner.telemetry import read_gpu

ROUND_US = 3000.0
"""A round lasts about this long, so that the events' resolution (about 0.5 µs) does not count."""
COPIES_MIN, COPIES_MAX = 4, 32
"""The start of a stretch (about 1 µs) is shared by as many calls."""
CALLS_MAX = 64
"""In one graph, or between two looks at the clock."""
COPY_BUDGET_SHARE = 0.4
"""Of the free memory, for copies of the inputs."""
POLICIES = tuple(Policy(launch=launch, l2=l2) for launch, l2 in product(("graph", "eager"), ("cold", "warm")))
RECORD_ROUNDS = 5
"""Rounds of both kernels of a comparison in each policy other than the one that decides."""


class Timed:
    """Calls of one kernel, timed in rounds by ``policy``, with ``arguments`` in turn (``argument_lists``). Kernels that
    are timed in turn may share these.

    A round is ``stretches`` stretches, each between two events and, when cold, after a flush: a stretch is ``repeats``
    times a group of ``calls`` calls (one replay of the graph, or a loop over them).
    """

    def __init__(
        self, kernel: Callable[..., Any], arguments: Sequence[list[Any]], policy: Policy | None = None
    ) -> None:
        self.policy = policy or Policy()
        self._kernel, self._arguments = kernel, arguments  # held: graphs refer to their memory
        self.copies = len(arguments)
        self._flush = l2_flush(torch.cuda.current_device()) if self.policy.l2 == "cold" else None
        torch.cuda.synchronize()  # the inputs are there before another stream reads them
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for each in self._arguments[:2]:
                kernel(*each)
        stream.synchronize()
        estimate_us = self._set_out(1)
        wanted = math.ceil(ROUND_US / max(estimate_us, 0.5))
        estimate_us = self._set_out(min(CALLS_MAX if self._flush is None else self.copies, wanted))
        groups = max(1, math.ceil(ROUND_US / max(estimate_us * self.calls, 1.0)))
        if self._flush is None:
            self.repeats = groups
        else:
            self.stretches = groups

    def _set_out(self, calls: int) -> float:
        """Make a group of ``calls`` calls; microseconds a call, the median of three single stretches of it."""
        self.calls, self.repeats, self.stretches = calls, 1, 1
        self._graph = None
        if self.policy.launch == "graph":
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._call_all()
            self._graph = graph
        return sorted(self.round_us() for _ in range(3))[1]

    def _call_all(self) -> None:
        for call in range(self.calls):
            self._kernel(*self._arguments[call % self.copies])

    def enqueue(self) -> None:
        """The calls of a round, neither timed nor waited for."""
        for _ in range(self.stretches * self.repeats):
            self._go()

    def _go(self) -> None:
        """One group of calls."""
        if self._graph is None:
            self._call_all()
        else:
            self._graph.replay()

    def round_us(self) -> float:
        """Microseconds a call, over one round."""
        spans = [self._stretch() for _ in range(self.stretches)]
        spans[-1][1].synchronize()
        elapsed_ms = sum(start.elapsed_time(end) for start, end in spans)
        return elapsed_ms * 1000.0 / (self.stretches * self.repeats * self.calls)

    def _stretch(self) -> tuple[torch.cuda.Event, torch.cuda.Event]:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        if self._flush is not None:
            self._flush()
        if self._graph is None:
            torch.cuda.synchronize()  # behind a flush, launches would gather that a caller waits for one by one
        start.record()
        for _ in range(self.repeats):
            self._go()
        end.record()
        return start, end


def argument_lists(make_arguments: Callable[[], list[Any]], policy: Policy) -> list[list[Any]]:
    """What calls have for arguments: cold ones several lists in turn, warm ones one. ``make_arguments()`` gives a fresh
    one."""
    first = make_arguments()
    copies = input_copies(first) if policy.l2 == "cold" else 1
    return [first, *(make_arguments() for _ in range(copies - 1))]


class L2Flush:
    """Reads twice the L2's size, which leaves the cache full of clean lines of something else."""

    def __init__(self, device: int) -> None:
        self._buffer = torch.ones(2 * _l2_bytes(device) // 4, dtype=torch.int32, device=f"cuda:{device}")
        self._sink = torch.zeros((), dtype=torch.int64, device=self._buffer.device)

    def __call__(self) -> None:
        torch.sum(self._buffer, dim=0, out=self._sink)


@cache
def l2_flush(device: int) -> Callable[[], None]:
    """The flush of this process's ``device`` (its buffer is made once)."""
    return L2Flush(device)


def input_copies(arguments: Sequence[Any]) -> int:
    """Copies for the calls of a stretch: about twice the L2's size, from ``COPIES_MIN`` to ``COPIES_MAX`` within the
    memory that is free."""
    size = max(_bytes(arguments), 1)
    free, _ = torch.cuda.mem_get_info()
    wanted = max(COPIES_MIN, math.ceil(2 * _l2_bytes() / size))
    affordable = int(free * COPY_BUDGET_SHARE / size)
    return max(1, min(wanted, affordable, COPIES_MAX))


def _bytes(arguments: Sequence[Any]) -> int:
    return sum(each.numel() * each.element_size() for each in arguments if isinstance(each, torch.Tensor))


def _l2_bytes(device: int | None = None) -> int:
    index = torch.cuda.current_device() if device is None else device
    return int(torch.cuda.get_device_properties(index).L2_cache_size)


def summary(
    sizes: Sizes,
    rounds_us: Sequence[float],
    copies: int,
    policy: Policy | None = None,
    gpu: GpuState | None = None,
    beside: Beside | None = None,
) -> Timing:
    """Median and quartiles of at least three rounds."""
    low, median, high = statistics.quantiles(rounds_us, n=4, method="inclusive")
    return Timing(
        sizes=sizes,
        median_us=median,
        low_us=low,
        high_us=high,
        rounds=len(rounds_us),
        input_copies=copies,
        policy=policy or Policy(),
        gpu=gpu,
        beside=beside,
    )


def under_load(timed: Timed) -> GpuState | None:
    """A reading while calls of the kernel are on their way."""
    timed.enqueue()
    state = read_gpu()
    torch.cuda.synchronize()
    return state


def compare(one: Timed, other: Timed, sizes: Sizes, rounds: int) -> dict[str, Any]:
    """Rounds of both in turn; the order turns with every round. ``ratio`` is the median of other / one by pairs."""
    one.round_us(), other.round_us()
    pairs: list[tuple[float, float]] = []
    for index in range(rounds):
        if index % 2:
            second, first = other.round_us(), one.round_us()
            pairs.append((first, second))
        else:
            pairs.append((one.round_us(), other.round_us()))
    first_us, second_us = [a for a, _ in pairs], [b for _, b in pairs]
    return {
        "sizes": sizes,
        "first": summary(sizes, first_us, one.copies, one.policy, under_load(one)).model_dump(),
        "second": summary(sizes, second_us, other.copies, other.policy, under_load(other)).model_dump(),
        "ratio": statistics.median(b / a for a, b in pairs),
    }
