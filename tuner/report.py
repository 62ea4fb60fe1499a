"""What a study found, gathered for people: as data (JSON, CSV) and for the page."""

from __future__ import annotations

import csv
import io
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from dsv4.generator.console import UsageError
from dsv4.runtime.artifact import Scalar
from dsv4.runtime.tuned import FAKE_DEVICE
from dsv4.tuner.choose import finalist
from dsv4.tuner.peers import Peer, ResultFile, matching, shipped
from dsv4.tuner.protocol import GpuState
from dsv4.tuner.roofline import Placement, place
from dsv4.tuner.study import study_names
from dsv4.tuner.tried import Tried

SCORED_MIN = 8
"""Fewer configurations with times say nothing about what matters."""


@dataclass(frozen=True)
class Row:
    """One configuration in a report; ``spread`` is a share of the median, ``shapes_us`` has what counts (``Timing.us``)
    for each shape."""

    number: int
    config: dict[str, Scalar]
    us: float | None
    failure: str | None
    is_slow: bool
    spread: float
    shapes_us: list[float]
    artifact: str


@dataclass(frozen=True)
class Report:
    """A study as data. ``best`` is the configuration that the sweep would measure again, None where nothing passed.

    ``gpu`` has the least and the most that the GPU said of its clock (MHz), temperature (°C) and power (W) while
    configurations were timed, nothing where it was not asked. ``placed`` has the default's and the best's place under
    the roofline at each shape, and ``peers`` the times of others there; both are empty where the times are made up.
    """

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
    gpu: dict[str, tuple[float, float]]
    placed: dict[str, list[Placement]]
    peers: list[Peer]

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


def gather(storage: BaseStorage, name: str, peer_files: Sequence[ResultFile] | None = None) -> Report:
    """Everything that is known of the study; peers from ``peer_files`` (None: those that lie in a checkout)."""
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
        gpu=_gpu_ranges(tried),
        placed=placed(about, default_row, best_row),
        peers=peers_of(about, peer_files),
    )


def is_measured(about: dict[str, Any]) -> bool:
    """Whether a GPU's times are told, none that were made up."""
    return about.get("device", {}).get("name") not in (None, FAKE_DEVICE)


def placed(about: dict[str, Any], default: Row | None, best: Row | None) -> dict[str, list[Placement]]:
    """Where the default and the best lie under the roofline; nothing of made-up times."""
    named = {"default": default, "best": best}
    found = {key: place(about, row.config, row.shapes_us) for key, row in named.items() if row and is_measured(about)}
    return {label: each for label, each in found.items() if each}


def peers_of(about: dict[str, Any], files: Sequence[ResultFile] | None) -> list[Peer]:
    """Times of others at the same shapes in ``files`` (None: those of a checkout); none beside made-up times."""
    if not is_measured(about):
        return []
    return matching(about, shipped(about["op"]) if files is None else files)


def _row(number: int, tried: Tried) -> Row:
    shapes_us = [timing.us for timing in tried.timings]
    artifact = str(tried.detail.get("artifact", ""))
    return Row(number, tried.config, tried.score_us, tried.failure, tried.is_slow, tried.spread, shapes_us, artifact)


def _gpu_ranges(tried: Sequence[Tried]) -> dict[str, tuple[float, float]]:
    states = [timing.get("gpu") or {} for each in tried for timing in each.detail.get("timings", [])]
    found = {name: [state[name] for state in states if state.get(name) is not None] for name in GpuState.model_fields}
    return {name: (min(values), max(values)) for name, values in found.items() if values}


def _importance(trials: list[FrozenTrial]) -> tuple[dict[str, float], str | None]:
    """Of a study's trials, as they were drawn. Those given up as slow count, too: a rough time is enough here."""
    scores = {trial.number: trial.user_attrs["outcome"]["score_us"] for trial in trials}
    return _ped_anova(
        [
            create_trial(params=trial.params, distributions=trial.distributions, value=scores[trial.number])
            for trial in trials
            if scores[trial.number] is not None
        ]
    )


def importance_of(rows: Sequence[Row]) -> tuple[dict[str, float], str | None]:
    """The same of rows of which it is not known how they were drawn: each tunable has the values that were tried."""
    scored = [row for row in rows if row.us is not None]
    values = {name: sorted({row.config[name] for row in scored}, key=repr) for name in (rows[0].config if rows else ())}
    drawn = {name: CategoricalDistribution(choices) for name, choices in values.items() if len(choices) > 1}
    return _ped_anova(
        [
            create_trial(params={name: row.config[name] for name in drawn}, distributions=dict(drawn), value=row.us)
            for row in scored
        ]
    )


def _ped_anova(scored: list[FrozenTrial]) -> tuple[dict[str, float], str | None]:
    """Each tunable's share in being among the fast ones (PED-ANOVA), or why there is none."""
    if len(scored) < SCORED_MIN:
        return {}, f"{len(scored)} configurations have times; {SCORED_MIN} are needed"
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="minimize")
    study.add_trials(scored)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = optuna.importance.get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    except (ValueError, RuntimeError) as error:
        return {}, " ".join(str(error).split())
    return {name: float(share) for name, share in found.items()}, None
