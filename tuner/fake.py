"""Made-up times, to try and to test the tuner where there is no GPU. Nothing that they say is ever kept as a winner.

The times follow a formula of the configuration's values alone, with seeded noise: the same configuration, shape, seed
and round give the same time in every process.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

from dsv4.generator.kernel import KernelPlan
from dsv4.runtime.artifact import Scalar, canonical_json, digest
from dsv4.runtime.tuned import FAKE_DEVICE, Device
from dsv4.tuner import turns
from dsv4.tuner.builders import Built
from dsv4.tuner.halving import survivors
from dsv4.tuner.protocol import Request, Sizes, Timing, score_us
from dsv4.tuner.space import Config, Space
from dsv4.tuner.timing import summary
from dsv4.tuner.worker import Outcome

DEVICE = Device(name=FAKE_DEVICE, memory_bytes=0, sms=0, driver="none", cuda="none")
NOISE = 0.01
"""Standard deviation of a round, as a share of the time."""


class FakeBuilder:
    """Compiles nothing: an artifact is a name that holds its configuration."""

    def __init__(self) -> None:
        self.plans: dict[str, KernelPlan] = {}

    def only(self, space: Space) -> list[Config] | None:
        return None

    def build(self, plans: Sequence[KernelPlan], progress: Callable[[Built], None]) -> list[Built]:
        built = []
        for plan in plans:
            folder = Path("fake") / digest(plan.identity)[:32]
            self.plans[str(folder)] = plan
            built.append(Built(plan, folder, None))
            progress(built[-1])
        return built


class FakeGpu:
    """Answers as ``worker.run`` does, by ``cost_us``."""

    def __init__(self, builder: FakeBuilder, cost_us: Callable[[Config, Sizes], float] | None = None) -> None:
        self.builder, self.cost_us = builder, cost_us or made_up_us

    def __call__(
        self,
        request: Request,
        *,
        limit_s: float,
        progress: Callable[[Outcome], None] = lambda outcome: None,
        is_stopped: Callable[[], bool] = lambda: False,
    ) -> list[Outcome]:
        """One outcome per artifact; in a comparison one, that of the second."""
        if request.compare:
            return [self._compared(request)]
        outcomes = {
            folder: Outcome(folder, checked={"ok": True, "cases": 0, "findings": []}, device=FAKE_DEVICE)
            for folder in request.artifacts
        }
        going_on = list(outcomes)
        for rounds in request.rungs:
            scores_us = {}
            for folder in (*request.beside, *going_on):
                timings = [self._in_turn(request, folder, place, rounds) for place in range(len(request.sizes))]
                scores_us[folder] = score_us(timings)
                for timing in timings if folder in outcomes else ():
                    outcomes[folder].measured(timing)
            known_us = [scores_us.pop(folder) for folder in request.beside]
            going_on = survivors(scores_us, min(known_us, default=None))
        for outcome in outcomes.values():
            progress(outcome)
        return list(outcomes.values())

    def _rounds_us(self, folder: str, sizes: Sizes, seed: int, rounds: int) -> list[float]:
        config = self.builder.plans[folder].config
        rng = random.Random(canonical_json([config, sizes, seed]))
        return [self.cost_us(config, sizes) * max(0.5, rng.gauss(1.0, NOISE)) for _ in range(rounds)]

    def _in_turn(self, request: Request, folder: str, place: int, rounds: int) -> Timing:
        sizes, beside = request.sizes[place], None
        rounds_us = self._rounds_us(folder, sizes, request.seed, rounds)
        if request.beside:
            default_us = self._rounds_us(request.beside[0], sizes, request.seed, rounds)
            beside = turns.beside(turns.Turns(rounds_us, default_us), request.default_us[place])
        return summary(sizes, rounds_us, copies=1, policy=request.policy, beside=beside)

    def _timing(self, request: Request, folder: str, sizes: Sizes, rounds: int) -> Timing:
        return summary(sizes, self._rounds_us(folder, sizes, request.seed, rounds), copies=1, policy=request.policy)

    def _compared(self, request: Request) -> Outcome:
        outcome = Outcome(request.artifacts[1], device=FAKE_DEVICE)
        for sizes in request.sizes:
            first, second = (self._timing(request, each, sizes, request.rungs[-1]) for each in request.artifacts)
            ratio = second.median_us / first.median_us
            outcome.compared.append(
                {"sizes": sizes, "first": first.model_dump(), "second": second.model_dump(), "ratio": ratio}
            )
        return outcome


def made_up_us(config: Config, sizes: Sizes) -> float:
    """A smooth bowl in the numbers, an effect for each flag, and an interaction of neighbours; 1 µs and up."""
    names = sorted(config)
    effects = [_effect(name, config[name]) for name in names]
    bowl = 1.0 + sum(effects)
    twist = sum(0.5 * one * other for one, other in pairwise(effects))
    return (2.0 + sum(sizes.values()) ** 0.5 / 16) * (bowl + twist)


def _effect(name: str, value: Scalar) -> float:
    """From 0 to about 1; for whole numbers the distance, in octaves, from a favourite that the name decides."""
    favourite = int(digest(name)[:4], 16) / 0xFFFF
    if isinstance(value, int) and not isinstance(value, bool):
        octave = max(value, 0).bit_length() / 8
        return min(1.0, abs(octave - favourite))
    return int(digest([name, value])[:4], 16) / 0xFFFF / 2
