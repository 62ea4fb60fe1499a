"""A session without a GPU: times are what the test says, and everything that is asked is written down."""

from __future__ import annotations

import os
import signal
from typing import Any

from benchmarks.harness.controls import Controls
from benchmarks.harness.operator import Case, Inputs, Peer, Work
from benchmarks.harness.session import Opened

STEADY = Controls(copy_gb_s=3000.0, product_tflops=700.0, empty_node_us=0.8)


class FakeSession:
    """``times``: peer → µs, the same in every mode but ``host`` (ten times that)."""

    def __init__(self, times: dict[str, float], *, readings: list[Controls] | None = None) -> None:
        self.times, self.readings = times, list(readings or [])
        self.asked: list[tuple[str, ...]] = []
        self.skipped: dict[str, str] = {}
        self.breaks_at: str | None = None
        self.interrupted_in: str | None = None

    def open_case(self, label: str, seed: int) -> dict[str, Opened]:
        self.asked.append(("open", label, str(seed)))
        if label == self.interrupted_in:
            os.kill(os.getpid(), signal.SIGTERM)
        return {
            name: Opened(skipped=self.skipped.get(name), errors={} if name in self.skipped else {"rel_l2": 1e-3})
            for name in self.times
        }

    def sample(self, peer: str, mode: str) -> float:
        self.asked.append((mode, peer))
        if peer == self.breaks_at:
            raise RuntimeError("the GPU fell off the bus")
        return self.times[peer] * (10 if mode == "host" else 1)

    def close_case(self) -> None:
        self.asked.append(("close",))

    def controls(self) -> Controls:
        return self.readings.pop(0) if self.readings else STEADY

    def describe(self) -> dict[str, Any]:
        return {"device": {"name": "NVIDIA H100 80GB HBM3"}, "versions": {"torch": "2.11.0", "cuda": "13.0"}}

    def close(self) -> None:
        self.asked.append(("end",))


class FakeBenchmark:
    op = "fake_op"
    ours = "ours"

    def cases(self) -> list[Case]:
        return [Case("small", {"T": 3}), Case("large", {"T": 5000})]

    def peers(self) -> list[Peer]:
        return [Peer("ours", self._prepare, "our kernel"), Peer("theirs", self._prepare, "the peer")]

    @staticmethod
    def _prepare(case: Case) -> Any:
        return lambda inputs: None

    def make_inputs(self, case: Case, seed: int) -> Inputs:
        return {}

    def check(self, case: Case, inputs: Inputs, output: Any) -> dict[str, float]:
        return {}

    def work(self, case: Case) -> Work:
        return Work(bytes=1000 * int(case.sizes["T"]), flops=2000 * int(case.sizes["T"]))


BENCHMARK = FakeBenchmark()
