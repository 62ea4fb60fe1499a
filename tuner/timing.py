"""How long one call takes: CUDA-graph replay, inputs that rotate through more memory than the L2 cache holds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch

from dsv4.tuner.protocol import Sizes, Timing

ROUND_US = 3000.0
"""A round lasts about this long, so that the events' resolution (about 0.5 µs) does not count."""
COPIES_MAX = 32
CALLS_A_GRAPH_MAX = 64
COPY_BUDGET_SHARE = 0.4
"""Of the free memory, for copies of the inputs."""


class Replayed:
    """Calls of one kernel, captured once, replayed in rounds. ``make_arguments()`` gives one fresh argument list."""

    def __init__(self, kernel: Callable[..., Any], make_arguments: Callable[[], list[Any]]) -> None:
        first = make_arguments()
        self.copies = input_copies(first)
        arguments = [first, *(make_arguments() for _ in range(self.copies - 1))]
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for each in arguments[:2]:
                kernel(*each)
        stream.synchronize()
        estimate_us = self._capture_and_time(kernel, arguments, calls=1)
        self.calls = max(self.copies, min(CALLS_A_GRAPH_MAX, math.ceil(ROUND_US / max(estimate_us, 0.5))))
        estimate_us = self._capture_and_time(kernel, arguments, self.calls)
        self.replays = max(1, math.ceil(ROUND_US / max(estimate_us * self.calls, 1.0)))
        self._arguments = arguments  # the graph refers to their memory

    def _capture_and_time(self, kernel: Callable[..., Any], arguments: list[list[Any]], calls: int) -> float:
        """Capture ``calls`` calls; microseconds a call of the second of three replays."""
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            for call in range(calls):
                kernel(*arguments[call % len(arguments)])
        self.calls, self.replays = calls, 1
        return sorted(self.round_us() for _ in range(3))[1]

    def round_us(self) -> float:
        """Microseconds a call, over one round."""
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(self.replays):
            self.graph.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1000.0 / (self.replays * self.calls)


def input_copies(arguments: Sequence[Any]) -> int:
    """Copies so that a round trip touches twice the L2 cache, within the memory that is free."""
    size = sum(a.numel() * a.element_size() for a in arguments if isinstance(a, torch.Tensor))
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    free, _ = torch.cuda.mem_get_info()
    wanted = math.ceil(2 * properties.L2_cache_size / max(size, 1))
    affordable = int(free * COPY_BUDGET_SHARE / max(size, 1))
    return max(1, min(wanted, affordable, COPIES_MAX))


def summary(sizes: Sizes, rounds_us: Sequence[float], copies: int) -> Timing:
    """Median and quartiles of at least three rounds."""
    low, median, high = statistics.quantiles(rounds_us, n=4, method="inclusive")
    return Timing(sizes=sizes, median_us=median, low_us=low, high_us=high, rounds=len(rounds_us), input_copies=copies)


def measure(replayed: Replayed, sizes: Sizes, rounds: int) -> Timing:
    """``rounds`` rounds after one that does not count."""
    replayed.round_us()
    return summary(sizes, [replayed.round_us() for _ in range(rounds)], replayed.copies)


def compare(one: Replayed, other: Replayed, sizes: Sizes, rounds: int) -> dict[str, Any]:
    """Rounds of both in turn; the order turns with every round. ``ratio`` is the median of other / one by pairs."""
    one.round_us(), other.round_us()
    pairs: list[tuple[float, float]] = []
    for index in range(rounds):
        if index % 2:
            second, first = other.round_us(), one.round_us()
            pairs.append((first, second))
        else:
            pairs.append((one.round_us(), other.round_us()))
    return {
        "sizes": sizes,
        "first": summary(sizes, [a for a, _ in pairs], one.copies).model_dump(),
        "second": summary(sizes, [b for _, b in pairs], other.copies).model_dump(),
        "ratio": statistics.median(b / a for a, b in pairs),
    }
