"""What the tuner asks its measuring worker, and the lines that the worker answers with.

One JSON object a line, appended to a file and flushed: whatever happens to the worker, the lines before it count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from dsv4.runtime.tuned import Policy

Sizes = dict[str, int]
EventKind = Literal["ready", "begin", "checked", "measured", "compared", "failed", "end"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Request(_Strict):
    """Work for one worker process.

    ``artifacts`` are folders of compiled kernels. Each is checked against the reference (but those in ``passed``, which
    were), and those that pass are timed at each of ``sizes`` by successive halving: with the rounds of the first of
    ``rungs`` all of them, with those of the next the ones that ``halving.survivors`` keeps. Their rounds take turns
    with those of ``beside``: the default, for which ``default_us`` has the study's own microseconds at each of
    ``sizes``, and the incumbent where there is one. ``policy`` says how calls are timed. With ``compare`` there are
    exactly two artifacts, which are not checked but timed in alternating rounds, ``rungs[-1]`` of them, at each of
    ``sizes``; and for the record in each of the other policies, in a few rounds.
    """

    artifacts: tuple[str, ...]
    sizes: tuple[Sizes, ...]
    passed: tuple[str, ...] = ()
    beside: tuple[str, ...] = Field(default=(), max_length=2)
    default_us: tuple[float, ...] = ()
    compare: bool = False
    seed: int = 0
    rungs: tuple[int, ...] = Field(default=(15,), min_length=1)
    policy: Policy = Policy()
    device_index: int = 0


class Event(_Strict):
    """One line of the answer; ``artifact`` is the folder that it is about."""

    event: EventKind
    artifact: str = ""
    data: dict[str, Any] = Field(default_factory=dict)


class GpuState(_Strict):
    """One reading of the GPU's own sensors; None for what it does not tell."""

    sm_clock_mhz: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None


class Beside(_Strict):
    """Rounds set beside the default's, which took turns with them: a GPU that got slower meanwhile did so for both.

    ``ratio`` is the median over the rounds of this kernel's time / the default's (``turns.in_turn``), ``low`` and
    ``high`` are the quartiles. ``default_us`` is the default's median in those rounds, ``anchor_us`` the one that the
    study goes by, the same for all of its configurations.
    """

    ratio: float
    low: float
    high: float
    default_us: float
    anchor_us: float


class Timing(_Strict):
    """Microseconds of one kernel call, as they were measured: the median of the rounds and their quartiles."""

    sizes: Sizes
    median_us: float
    low_us: float
    high_us: float
    rounds: int
    input_copies: int
    """How many copies of the inputs the calls take in turn, so that the L2 cache does not hold the next one's."""
    policy: Policy = Policy()
    gpu: GpuState | None = None
    """Read under the load of this kernel, right after the rounds; None where NVML cannot be asked."""
    beside: Beside | None = None
    """None where the kernel was timed alone, as the default is at first."""

    @property
    def us(self) -> float:
        """What it counts for: the default's microseconds in the study times the ratio to it; alone, the median."""
        return self.median_us if self.beside is None else self.beside.ratio * self.beside.anchor_us

    @property
    def spread(self) -> float:
        """The width between the quartiles (of the ratios where there are any) as a share of the median."""
        if self.beside is None:
            return (self.high_us - self.low_us) / self.median_us
        return (self.beside.high - self.beside.low) / self.beside.ratio


def geometric_mean(values: Sequence[float]) -> float:
    """Of positive numbers; what scores over several shapes are."""
    return math.exp(sum(map(math.log, values)) / len(values))


def score_us(timings: Sequence[Timing]) -> float:
    """One number for a configuration: the geometric mean over the shapes of what its timings count for."""
    return geometric_mean([timing.us for timing in timings])
