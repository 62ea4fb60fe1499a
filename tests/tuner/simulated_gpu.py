"""A GPU in numbers, for the tests of timing: a stream with a clock, an L2 that forgets the oldest, and a host that
takes its time to launch. It stands in for the parts of ``torch.cuda`` that ``timing`` uses."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch

MISS_US, HIT_US = 10.0, 2.0
LAUNCH_US, REPLAY_US, FLUSH_US = 6.0, 8.0, 40.0
L2_BYTES = 50 << 20


class SimulatedGpu:
    """``kernel`` takes ``MISS_US`` for an argument that is not in L2, ``HIT_US`` for one that is; a launch takes the
    host ``LAUNCH_US``, a replay of a graph ``REPLAY_US``. It touches ``touched_bytes`` of an argument at most. When the
    stream's clock says ``us``, every kernel takes ``slowness(us)`` times as long."""

    def __init__(
        self,
        free_bytes: int = 1 << 36,
        touched_bytes: int = 1 << 40,
        slowness: Callable[[float], float] = lambda us: 1.0,
    ) -> None:
        self.free_bytes, self.touched_bytes, self.slowness = free_bytes, touched_bytes, slowness
        self.host_us = self.stream_us = 0.0
        self.held: OrderedDict[int, int] = OrderedDict()
        self.captured: list[Callable[[], None]] | None = None
        self.flushes = self.replays = self.launches = 0
        gpu = self

        class Event:
            def __init__(self, enable_timing: bool = False) -> None:
                self.us = 0.0

            def record(self) -> None:
                gpu.stream_us = self.us = max(gpu.stream_us, gpu.host_us)

            def synchronize(self) -> None:
                gpu.host_us = max(gpu.host_us, self.us)

            def elapsed_time(self, end: Any) -> float:
                return (end.us - self.us) / 1000

        class CUDAGraph:
            def __init__(self) -> None:
                self.nodes: list[Callable[[], None]] = []

            def replay(self) -> None:
                gpu.replays += 1
                gpu.host_us += REPLAY_US
                gpu.stream_us = max(gpu.stream_us, gpu.host_us)
                for node in self.nodes:
                    node()

        @contextmanager
        def capture(graph: CUDAGraph) -> Iterator[None]:
            self.captured = graph.nodes
            yield
            self.captured = None

        @contextmanager
        def use(stream: Any) -> Iterator[None]:
            yield

        self.cuda = SimpleNamespace(
            Event=Event, CUDAGraph=CUDAGraph, graph=capture, stream=use, synchronize=self.synchronize,
            Stream=lambda: SimpleNamespace(synchronize=self.synchronize), current_device=lambda: 0,
            get_device_properties=lambda _: SimpleNamespace(L2_cache_size=L2_BYTES),
            mem_get_info=lambda: (self.free_bytes, self.free_bytes),
        )  # fmt: skip

    def synchronize(self) -> None:
        self.host_us = self.stream_us = max(self.host_us, self.stream_us)

    def kernel(self, *arguments: Any, cost: float = 1.0) -> None:
        """Reads its tensors; one of ``cost`` takes so many times as long as another."""
        if self.captured is not None:
            self.captured.append(lambda: self._run(arguments, cost))
            return
        self.launches += 1
        self.host_us += LAUNCH_US
        self.stream_us = max(self.stream_us, self.host_us)
        self._run(arguments, cost)

    def _run(self, arguments: tuple[Any, ...], cost: float) -> None:
        for each in arguments:
            if isinstance(each, torch.Tensor):
                us = HIT_US if id(each) in self.held else MISS_US
                self.stream_us += us * cost * self.slowness(self.stream_us)
                self.held.pop(id(each), None)
                self.held[id(each)] = min(each.numel() * each.element_size(), self.touched_bytes)
        while sum(self.held.values()) > L2_BYTES:
            self.held.popitem(last=False)

    def flush(self) -> None:
        """What ``timing.L2Flush`` does."""
        self.flushes += 1
        self.host_us += LAUNCH_US
        self.stream_us = max(self.stream_us, self.host_us) + FLUSH_US
        self.held.clear()
