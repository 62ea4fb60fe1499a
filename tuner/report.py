"""What a study found, gathered for people: as data (JSON, CSV) and for the page."""

from __future__ import annotations

import csv
import io
import warnings
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import optuna
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from dsv4.generator.console import UsageError
from dsv4.generator.resources import Refused
from dsv4.generator.spec import SpecError, load_op
from dsv4.generator.spec.plan import plan, work
from dsv4.generator.verify.registry import workload_sizes
from dsv4.runtime.artifact import Scalar
from dsv4.runtime.tuned import FAKE_DEVICE
from dsv4.tuner.choose import finalist
from dsv4.tuner.study import study_names
from dsv4.tuner.tried import Tried

SCORED_MIN = 8
"""Fewer configurations with times say nothing about what matters."""


@dataclass(frozen=True)
class Row:
    """One configuration in a report; ``spread`` is a share of the median, ``shapes_us`` has a median for each shape."""

    number: int
    config: dict[str, Scalar]
    us: float | None
    failure: str | None
    is_slow: bool
    spread: float
    shapes_us: list[float]
    artifact: str


@dataclass(frozen=True)
class Rate:
    """What a configuration achieves at one shape, by the operator's own counts (None: the spec has no such count)."""

    sizes: dict[str, int]
    us: float
    gigabytes_per_s: float | None
    teraflops: float | None


@dataclass(frozen=True)
class Report:
    """A study as data. ``best`` is the configuration that the sweep would measure again, None where nothing passed."""

    study: str
    about: dict[str, Any]
    rows: list[Row]
    default: Row | None
    best: Row | None
    importance: dict[str, float]
    importance_missing: str | None
    refused: dict[str, int]
    failed: dict[str, int]
    lost: int
    rates: dict[str, list[Rate]]

    @property
    def gain(self) -> float | None:
        """default / best of the sweep's own times (the entry's figure is measured in turn)."""
        if self.default is None or self.best is None or not self.default.us or not self.best.us:
            return None
        return self.default.us / self.best.us

    @property
    def is_fake(self) -> bool:
        """Whether its times are made up."""
        return bool(self.about.get("device", {}).get("name") == FAKE_DEVICE)

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "gain": self.gain}

    def as_csv(self) -> str:
        """One line for each configuration."""
        tunables = list(self.about.get("default", {}))
        shapes = [",".join(f"{k}={v}" for k, v in sizes.items()) for sizes in self.about.get("sizes", [])]
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["number", *tunables, "us", "state", "spread", *(f"us {name}" for name in shapes), "failure"])
        for row in self.rows:
            state = "failed" if row.failure else "slow" if row.is_slow else "measured"
            values = [row.config.get(name) for name in tunables]
            each = [f"{us:.4f}" for us in row.shapes_us] or [""] * len(shapes)
            score = "" if row.us is None else f"{row.us:.4f}"
            writer.writerow([row.number, *values, score, state, f"{row.spread:.5f}", *each, row.failure or ""])
        return stream.getvalue()


def pick_study(storage: BaseStorage, wanted: str | None, where: str) -> str:
    """The study called ``wanted``, or beginning like it; the newest where nothing is asked. Raises UsageError."""
    names = study_names(storage)
    if not names:
        raise UsageError(f"--storage: found no studies in {where}; valid: sweep first")
    found = names[-1:] if wanted is None else [name for name in names if name == wanted or name.startswith(wanted)]
    if len(found) != 1:
        how = "no study" if not found else f"{len(found)} studies"
        raise UsageError(f"study: found {how} called '{wanted}' in {where}; valid: {', '.join(names[-8:])}")
    return found[0]


def gather(storage: BaseStorage, name: str) -> Report:
    """Everything that is known of the study."""
    study_id = storage.get_study_id_from_name(name)
    about = storage.get_study_user_attrs(study_id).get("about", {})
    every = storage.get_all_trials(study_id, deepcopy=False)
    told = [trial for trial in every if "outcome" in trial.user_attrs and trial.state != TrialState.FAIL]
    tried = [Tried(**trial.user_attrs["outcome"]) for trial in told if trial.state.is_finished()]
    numbers = [trial.number for trial in told if trial.state.is_finished()]
    rows = [_row(number, each) for number, each in zip(numbers, tried, strict=True)]
    best = finalist(tried, about.get("default", {}))
    default_row = next((row for row in rows if row.config == about.get("default")), None)
    best_row = next((row for row in rows if best is not None and row.config == best.config), None)
    importance, missing = _importance(told)
    named = {"default": default_row, "best": best_row}
    return Report(
        study=name,
        about=about,
        rows=rows,
        default=default_row,
        best=best_row,
        importance=importance,
        importance_missing=missing,
        refused=about.get("refused", {}),
        failed=dict(Counter(each.failure for each in tried if each.failure).most_common()),
        lost=sum(bool(trial.user_attrs.get("lost")) for trial in every),
        rates={label: rates for label, row in named.items() if row is not None and (rates := _rates(about, row))},
    )


def _row(number: int, tried: Tried) -> Row:
    timings = tried.detail.get("timings", [])
    medians = [timing["median_us"] for timing in timings]
    artifact = str(tried.detail.get("artifact", ""))
    return Row(number, tried.config, tried.score_us, tried.failure, tried.is_slow, tried.spread, medians, artifact)


def _importance(trials: list[FrozenTrial]) -> tuple[dict[str, float], str | None]:
    """Each tunable's share in being among the fast ones (PED-ANOVA), or why there is none."""
    scored = [trial for trial in trials if trial.user_attrs["outcome"]["score_us"] is not None]
    if len(scored) < SCORED_MIN:
        return {}, f"{len(scored)} configurations have times; {SCORED_MIN} are needed"
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="minimize")
    for trial in scored:  # those given up as slow count, too: a rough time is enough here
        value = trial.user_attrs["outcome"]["score_us"]
        study.add_trial(create_trial(params=trial.params, distributions=trial.distributions, value=value))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = optuna.importance.get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    except (ValueError, RuntimeError) as error:
        return {}, " ".join(str(error).split())
    return {name: float(share) for name, share in found.items()}, None


def _rates(about: dict[str, Any], row: Row) -> list[Rate]:
    """Achieved rates at each shape; empty where the spec has changed so that the configuration is none any more."""
    try:
        spec = load_op(about["op"])
        kernel = plan(spec, about["arch"], dims=about["dims"], variant=about["variant"], config=row.config)
        rates = []
        for sizes, us in zip(about["sizes"], row.shapes_us, strict=True):
            counts = work(spec, kernel, {**workload_sizes(spec.op), **sizes})
            gigabytes = counts["bytes"] / us / 1e3 if counts.get("bytes") else None
            teraflops = counts["mma"] / us / 1e6 if counts.get("mma") else None
            rates.append(Rate(sizes, us, gigabytes, teraflops))
        return rates
    except (SpecError, Refused, ValueError):  # an old study: what it was asked about is not there any more
        return []
