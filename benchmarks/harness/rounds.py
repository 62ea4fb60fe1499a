"""The order of measurement: peers in turn, the order reversed every other round, controls all along."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from benchmarks.harness.controls import Controls
from benchmarks.harness.operator import Case
from benchmarks.harness.session import MODES, Opened, Session

CASES_BETWEEN_CONTROLS = 4


@dataclass(frozen=True)
class Summary:
    """Median and spread of the samples of one peer in one mode, in µs a call."""

    median_us: float
    p10_us: float
    p90_us: float
    samples: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> Summary:
        """Deciles are interpolated between samples; one sample is its own spread."""
        if len(samples) == 1:
            return cls(samples[0], samples[0], samples[0], 1)
        deciles = statistics.quantiles(samples, n=10, method="inclusive")
        return cls(statistics.median(samples), deciles[0], deciles[-1], len(samples))

    def as_dict(self) -> dict[str, float | int]:
        return {
            "median_us": round(self.median_us, 4),
            "p10_us": round(self.p10_us, 4),
            "p90_us": round(self.p90_us, 4),
            "samples": self.samples,
        }


@dataclass
class CaseResult:
    """``summaries``: peer → mode → summary. ``opened``: every peer's errors, or why it was skipped."""

    case: Case
    seed: int
    opened: dict[str, Opened]
    summaries: dict[str, dict[str, Summary]] = field(default_factory=dict)


def order_of_round(names: Sequence[str], number: int) -> list[str]:
    """Every other round backwards, so that nobody always follows the same neighbour into the same clocks and caches."""
    return list(names) if number % 2 == 0 else list(reversed(names))


def measure(
    sessions: Mapping[str, Session],
    cases: Sequence[Case],
    *,
    rounds: int,
    seed: int,
    progress: Callable[[CaseResult], Any] = lambda _: None,
    goes_on: Callable[[], bool] = lambda: True,
) -> tuple[list[CaseResult], list[Controls]]:
    """Measure every peer of ``sessions`` (peer → the session that holds it) in every case.

    One session may hold several peers. In each case every peer gives one sample a mode and round, in turn. Controls are
    read in every session at the start, between the cases and at the end. ``goes_on`` is asked before every case but the
    first; the cases after a no are left out. So are, once there is a result, an interrupted case and those after it.
    """
    distinct = list({id(session): session for session in sessions.values()}.values())
    readings = [session.controls() for session in distinct]
    results: list[CaseResult] = []
    for position, case in enumerate(cases):
        if position and not goes_on():
            break
        case_seed = seed + 100_003 * position
        try:
            result = measure_case(sessions, distinct, case, rounds=rounds, seed=case_seed)
        except KeyboardInterrupt:
            if not results:
                raise
            break
        results.append(result)
        progress(result)
        if len(results) % CASES_BETWEEN_CONTROLS == 0:
            readings += [session.controls() for session in distinct]
    if len(results) % CASES_BETWEEN_CONTROLS:
        readings += [session.controls() for session in distinct]
    return results, readings


def _in_all(sessions: Sequence[Session], ask: Callable[[Session], dict[str, Opened]]) -> list[dict[str, Opened]]:
    """What every session answers; several, which are processes of their own, are asked at the same time."""
    if len(sessions) == 1:
        return [ask(sessions[0])]
    with ThreadPoolExecutor(len(sessions)) as pool:
        return list(pool.map(ask, sessions))


def measure_case(
    sessions: Mapping[str, Session], distinct: Sequence[Session], case: Case, *, rounds: int, seed: int
) -> CaseResult:
    """One case: opened in every session at once, ``rounds`` rounds, closed again whatever happens.

    Peers compile and make their inputs at the same time; what is timed, one after another.
    """
    opened: dict[str, Opened] = {}
    try:
        for found in _in_all(distinct, lambda session: session.open_case(case.label, seed)):
            opened.update(found)
        names = [name for name in sessions if not opened[name].skipped]
        samples: dict[str, dict[str, list[float]]] = {name: {mode: [] for mode in MODES} for name in names}
        for number in range(rounds):
            for mode in MODES:
                for name in order_of_round(names, number):
                    samples[name][mode].append(sessions[name].sample(name, mode))
    finally:
        for session in distinct:
            session.close_case()
    summaries = {name: {mode: Summary.of(values) for mode, values in modes.items()} for name, modes in samples.items()}
    return CaseResult(case, seed, opened, summaries)
