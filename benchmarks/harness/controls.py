"""The controls: two things whose speed is known not to change. They are the ceilings of a run, and its alarm.

Copy: 256 MB from device memory to device memory, bytes read plus bytes written. Product: 8192³ in bf16, the fastest of
a few after a pause: a GPU under its power limit slows down within milliseconds of such work, and by how much depends
on what ran before, which is no sign that the machine changed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

COPY_BYTES = 256 << 20
PRODUCT_SIZE = 8192
DRIFT_MAX = 0.02
GROUPS = 3
SAMPLES = 7
PAUSE_S = 0.1


@dataclass(frozen=True)
class Controls:
    """``copy_gb_s`` counts bytes read and written; ``empty_node_us`` is a graph node of a kernel that does nothing."""

    copy_gb_s: float
    product_tflops: float
    empty_node_us: float

    def as_dict(self) -> dict[str, float]:
        return {name: round(value, 4) for name, value in asdict(self).items()}


class ControlMeter:
    """Holds the captured controls, so that measuring them again costs milliseconds."""

    def __init__(self) -> None:
        import torch

        from benchmarks.harness.timing import capture

        device = torch.device("cuda", torch.cuda.current_device())
        source = torch.randn(COPY_BYTES // 2, device=device, dtype=torch.bfloat16)
        target = torch.empty_like(source)
        shape = (PRODUCT_SIZE, PRODUCT_SIZE)
        a, b = (torch.randn(shape, device=device, dtype=torch.bfloat16) for _ in range(2))
        c = torch.empty_like(a)
        self.copy = capture([lambda: target.copy_(source)] * 8)
        self.product = capture([lambda: torch.mm(a, b, out=c)])
        self.empty = capture([lambda: torch.cuda._sleep(0)] * 1000)

    def measure(self) -> Controls:
        """Copy and empty node: the median of all samples. Product: the fastest.

        :data:`SAMPLES` replays of each in :data:`GROUPS` groups with a pause before each, so that a hiccup of some
        milliseconds does not make a run void.
        """
        import torch

        from benchmarks.harness.timing import replay_us

        samples_us: dict[str, list[float]] = {"copy": [], "empty": [], "product": []}
        for _ in range(GROUPS):
            torch.cuda.synchronize()
            time.sleep(PAUSE_S)
            for name, captured in (("product", self.product), ("copy", self.copy), ("empty", self.empty)):
                samples_us[name] += [replay_us(captured, captured.graph.replay) for _ in range(SAMPLES)]
        return Controls(
            copy_gb_s=2 * COPY_BYTES / statistics.median(samples_us["copy"]) / 1e3,
            product_tflops=2 * PRODUCT_SIZE**3 / min(samples_us["product"]) / 1e6,
            empty_node_us=statistics.median(samples_us["empty"]),
        )


def drift(readings: Sequence[Controls]) -> list[str]:
    """Why a run is void: one line for each control whose readings lie more than :data:`DRIFT_MAX` apart."""
    reasons = []
    for name in ("copy_gb_s", "product_tflops"):
        values = [getattr(reading, name) for reading in readings]
        apart = (max(values) - min(values)) / statistics.median(values)
        if apart > DRIFT_MAX:
            reasons.append(
                f"{name}: readings from {min(values):.1f} to {max(values):.1f}, {100 * apart:.1f} % apart; "
                f"valid: at most {100 * DRIFT_MAX:.0f} %"
            )
    return reasons


def ceilings(readings: Sequence[Controls]) -> Controls:
    """The median of each control: what the achieved rates of this run are compared with."""
    return Controls(
        *(
            statistics.median(getattr(reading, name) for reading in readings)
            for name in ("copy_gb_s", "product_tflops", "empty_node_us")
        )
    )
