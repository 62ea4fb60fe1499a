"""The end of a sweep: for each bucket the configuration that serves it, measured again in turn with the default.

Each bucket has the fastest one found for it; or, where a loss is allowed, all of them together get by with the fewest
configurations (``cover``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import inf
from typing import Any

from dsv4.generator.resources import Refused
from dsv4.runtime.artifact import canonical_json
from dsv4.runtime.cache import Artifact, KernelCache
from dsv4.runtime.tuned import Bucket
from dsv4.tuner import decide
from dsv4.tuner.bench import Bench, Measured
from dsv4.tuner.buckets import spelled
from dsv4.tuner.choose import SLOWER_MAX, Verdict, finalist
from dsv4.tuner.cost.entry import subject
from dsv4.tuner.cover import cover
from dsv4.tuner.protocol import Sizes, score_us
from dsv4.tuner.question import Settings
from dsv4.tuner.reach import Probe, narrowed, probes
from dsv4.tuner.space import Space
from dsv4.tuner.spread import together
from dsv4.tuner.tried import Tried


@dataclass
class Winner:
    """What serves one bucket: ``best`` against ``default`` at the bucket's shapes. ``speedup`` is default / best by the
    geometric mean over them, measured in turn; ``entry`` is the name of what was kept."""

    bucket: Bucket
    sizes: list[Sizes]
    default: dict[str, Any]
    best: dict[str, Any]
    chosen: bool = False
    why: str = "the default is the fastest that was found"
    speedup: float = 1.0
    compared: list[dict[str, Any]] = field(default_factory=list)
    entry: str | None = None


def at(tried: Tried, places: Sequence[int]) -> Tried:
    """``tried`` as it stands at the shapes in ``places`` alone: their timings, and the geometric mean of these."""
    timings = tried.detail.get("timings", [])
    if tried.score_us is None or len(places) == len(timings):
        return tried
    here = replace(tried, detail={**tried.detail, "timings": [timings[place] for place in places]})
    return replace(here, score_us=score_us(here.timings))


def best_of(
    groups: Sequence[Sequence[int]], tried: Sequence[Tried], default: Tried, loss: float | None
) -> list[Tried | None]:
    """The configuration for each group of shapes; None for the default. ``loss`` is the share of the best's time by
    which the fewest configurations (the default is one of them) may be slower than the best of a group."""
    passed = [each for each in tried if each.score_us is not None and not each.is_slow and each.key != default.key]
    every = [default, *passed]
    found: list[Tried | None] = []
    if loss is None or len(groups) == 1:
        for places in groups:
            here = {each.key: at(each, places) for each in every}
            best = finalist(list(here.values()), default.config)
            if best is None or (best.score_us or 0.0) >= (here[default.key].score_us or 0.0):
                best = None
            found.append(best)
    else:
        scores = {each.key: [at(each, places).score_us or 0.0 for places in groups] for each in every}
        by_key = {each.key: each for each in every}
        found = [
            None if key == default.key else at(by_key[key], places)
            for key, places in zip(cover(scores, loss).serves, groups, strict=True)
        ]
    return found


def decide_all(
    bench: Bench,
    space: Space,
    settings: Settings,
    baseline: Measured,
    cache: KernelCache,
    *,
    groups: Sequence[Sequence[int]],
    tried: Sequence[Tried],
    refused: dict[str, int],
    study: str,
) -> list[Winner]:
    """Measure what won each bucket again, in turn with the default and at the bucket's shapes; keep what still wins.

    Nothing is kept of times that are made up.
    """
    default = baseline.tried()
    chosen = best_of(groups, tried, default, settings.loss)
    made: list[Winner] = []
    tasks: list[tuple[int, decide.Comparison]] = []
    for place, (bucket, places, best) in enumerate(zip(settings.served, groups, chosen, strict=True)):
        sizes = [settings.sizes[each] for each in places]
        mine = decide.as_default(baseline, places)
        served, plan = {name: mine[name] for name in ("config", "key", "us")}, baseline.plan
        if best is not None:
            served = {"config": best.config, "key": best.detail["artifact"], "us": best.score_us}
            planned = space.plan(best.config)
            assert not isinstance(planned, Refused)
            plan = planned
        mine_here = decide.comparisons(bench, space.planner, plan, sizes)
        tasks += [(place, each) for each in mine_here]
        made.append(Winner(bucket, sizes, mine, served))
        if best is not None and not mine_here:
            made[-1].why = "the spec's own kernel for these sizes is the fastest that was found"
        elif best is None and settings.loss is not None and len(groups) > 1:
            made[-1].why = f"the default is within {100 * settings.loss:g} % of the best there, or is it"
    verdicts = together(bench.measure, [partial(each.measured, bench, settings.compare_rounds) for _, each in tasks])
    joined = [
        [(each, verdict) for (at_place, each), verdict in zip(tasks, verdicts, strict=True) if at_place == place]
        for place in range(len(made))
    ]
    whole = [
        decide.joined([each for _, each in found], winner.sizes) if found else None
        for found, winner in zip(joined, made, strict=True)
    ]
    reaches = _reaches(bench, space, settings, made, whole)
    for place, winner in enumerate(made):
        found, verdict = joined[place], whole[place]
        best = chosen[place] or default
        artifact = found[0][0].winner if found else None
        if verdict is not None:
            winner.compared, winner.speedup, winner.why = verdict.compared, verdict.speedup, verdict.why
            if verdict.wins and settings.is_fake:
                winner.why = f"{verdict.why}; the times are made up, so nothing is kept"
        if settings.is_fake:
            continue
        cache.refresh()
        if verdict is not None and verdict.wins and artifact is not None:
            asked, winner.bucket = winner.bucket, reaches[place]
            if winner.bucket != asked:
                winner.why += f"; slower beyond {spelled(winner.bucket)}, which it serves"
            entry = decide.entry(
                Artifact.read(artifact).manifest,
                device=settings.device,
                bucket=winner.bucket,
                policy=settings.policy,
                winner=at(best, groups[place]),
                default=winner.default,
                verdict=verdict,
                tried=tried,
                refused=refused,
                study=study,
            )
            winner.chosen, winner.entry = True, cache.keep(entry).name
            winner.best["key"] = artifact.name
        else:  # the default was measured to be the fastest: a prediction of another serves no more
            cache.drop_predicted(subject(baseline.plan, winner.bucket, settings.device.sms))
    return made


def _reaches(
    bench: Bench, space: Space, settings: Settings, made: Sequence[Winner], verdicts: Sequence[Verdict | None]
) -> list[Bucket]:
    """The part of its bucket that each winner serves (``reach``), all of it where it does not win."""
    looked = [
        probes(winner.bucket, winner.sizes) if verdict is not None and verdict.wins and not settings.is_fake else []
        for winner, verdict in zip(made, verdicts, strict=True)
    ]
    tasks: list[tuple[int, decide.Comparison]] = []
    for place, (winner, there) in enumerate(zip(made, looked, strict=True)):
        plan = space.plan(winner.best["config"])
        assert not isinstance(plan, Refused)
        sizes = [probe.sizes for probe in there]
        tasks += [(place, each) for each in decide.comparisons(bench, space.planner, plan, sizes)]
    found = together(bench.measure, [partial(each.ratios, bench, settings.compare_rounds) for _, each in tasks])
    ratios: list[dict[str, float]] = [{} for _ in made]
    asked: list[set[str]] = [set() for _ in made]
    for (place, each), ratio in zip(tasks, found, strict=True):
        ratios[place] |= ratio
        asked[place] |= {canonical_json(sizes) for sizes in each.sizes}

    def is_fine(place: int, probe: Probe) -> bool:
        """Not slower than what serves there untuned, which may be the winner itself."""
        key = canonical_json(probe.sizes)
        return key not in asked[place] or ratios[place].get(key, inf) <= SLOWER_MAX

    return [
        narrowed(winner.bucket, winner.sizes, looked[place], partial(is_fine, place))
        for place, winner in enumerate(made)
    ]
