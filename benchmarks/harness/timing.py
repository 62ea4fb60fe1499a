"""GPU times by CUDA-graph replay: no host gap between the calls, so that a kernel of 2 µs can be seen.

Many calls are captured into one graph and its replay is timed with two events; a sample is that time divided by the
number of calls, so it contains what a graph node costs by itself (0.8 µs on an H100). Something is enqueued in front of
the first event, which hides the launch of the graph.

* ``warm``: every call uses the same inputs, which stay in L2 where they fit.
* ``cold``: every call has inputs of its own, and a buffer of at least twice the L2's size is read before each replay,
  outside the timed region: no call finds its data in L2.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

REPLAY_US = 2000.0
"""Length of one timed replay: the event's resolution (0.5 µs) and the start of the graph vanish in it."""
FLUSH_BYTES_MIN = 64 << 20
HOST_CALLS = 200
"""Calls enqueued for one sample of the host's time, at most: fewer than the driver's queue holds."""
HOST_CALLS_MIN = 5
HOST_SAMPLE_GPU_US = 20_000.0
"""GPU time of these calls, which has to pass before the next sample."""


@dataclass
class CapturedCalls:
    """Calls in one graph. A graph knows addresses only: ``calls`` holds their inputs, ``kept`` what they returned."""

    graph: torch.cuda.CUDAGraph
    calls: Sequence[Callable[[], Any]]
    kept: list[Any]


def capture(calls: Sequence[Callable[[], Any]], *, keep: bool = False) -> CapturedCalls:
    """Capture ``calls`` in order into one graph, after the first of them has run uncaptured.

    Without ``keep`` a call's result is freed at once, so that the next call gets the same memory.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            calls[0]()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph, kept = torch.cuda.CUDAGraph(), []
    with torch.cuda.graph(graph):
        for call in calls:
            result = call()
            if keep:
                kept.append(result)
            del result
    return CapturedCalls(graph, calls, kept)


class L2Flush:
    """Reads twice the L2's size, which leaves the cache full of clean lines of something else."""

    def __init__(self, device: torch.device) -> None:
        l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size
        self.buffer = torch.ones(max(2 * l2_bytes, FLUSH_BYTES_MIN) // 4, dtype=torch.int32, device=device)
        self.sink = torch.zeros((), dtype=torch.int64, device=device)

    def __call__(self) -> None:
        torch.sum(self.buffer, dim=0, out=self.sink)


def replay_us(captured: CapturedCalls, before: Callable[[], None]) -> float:
    """Microseconds for one call: ``before`` is enqueued first, untimed, then one timed replay."""
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    before()
    start.record()
    captured.graph.replay()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) * 1000 / len(captured.calls)


def estimate_us(call: Callable[[], Any]) -> float:
    """A rough time of one call, from a small graph: only to choose how many calls a timed graph holds."""
    captured = capture([call] * 8)
    captured.graph.replay()
    return max(min(replay_us(captured, captured.graph.replay) for _ in range(3)), 0.5)


def calls_for(estimated_us: float, at_most: int) -> int:
    """Calls for a graph of about :data:`REPLAY_US`, from 1 to ``at_most``."""
    return max(1, min(at_most, round(REPLAY_US / estimated_us)))


def host_calls_for(estimated_us: float) -> int:
    """Calls for one sample of the host's time, by the GPU time of one."""
    return max(HOST_CALLS_MIN, min(HOST_CALLS, round(HOST_SAMPLE_GPU_US / estimated_us)))


def host_us(call: Callable[[], Any], calls: int) -> float:
    """Microseconds of host time for one eager call: ``calls`` are enqueued in a row, nothing is waited for."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        call()
    elapsed = time.perf_counter() - start
    torch.cuda.synchronize()
    return elapsed * 1e6 / calls
