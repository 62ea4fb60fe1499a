"""Mutated kernels: what becomes of each, and that a sample of the mutations of every kind of kernel is found.

The sample is every n-th mutation; all of them, over more cases and kernels, are ``python -m benchmarks.mutations``, and
the sweep below.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.mutations import Reason, explain, kernels, read_reasons
from dsv4.emulator.client import Client
from dsv4.emulator.mutations import Mutation
from dsv4.generator.build import build
from dsv4.generator.kernel import KernelPlan
from dsv4.generator.spec import plan
from dsv4.generator.verify.mutation_run import Subject, Trial, attempt, attempt_all, subject
from dsv4.runtime.artifact import sha256_file
from dsv4.runtime.cache import Artifact

SAMPLE = {"fmha": 13, "rms_norm": 1}
PLANS = {
    "rms_norm sm_90a": plan("rms_norm", "sm_90a", dims={"d": 512}, variant={"pdl": True}),
    "rms_norm sm_100a": plan("rms_norm", "sm_100a", dims={"d": 512}),
    # O through Q's place: waits for a place of its own show with a second tile of a CTA only, which the sweep has.
    "fmha sm_90a": plan("fmha", "sm_90a", dims={"D": 64}, config={"o_apart": False}),
    "fmha sm_100a": plan("fmha", "sm_100a", dims={"D": 64}),
}


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    root = tmp_path_factory.mktemp("cache")
    results = build(list(PLANS.values()), cache_root=root, jobs=2)
    made = {}
    for name, result in zip(PLANS, results, strict=True):
        assert result.artifact is not None, result.error
        made[name] = Artifact.read(result.artifact)
    return made


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with Client() as made:
        yield made


@pytest.fixture(scope="module")
def small(artifacts: dict[str, Artifact]) -> Subject:
    return subject(artifacts["rms_norm sm_90a"], schedules=2)


def named(whole: Subject, start: str) -> Mutation:
    return next(each for each in whole.mutations() if each.id.startswith(start))


@pytest.mark.parametrize(
    ("start", "category", "place"),
    [
        ("drop-barrier/row_reduce.sum_over_row#0", "undefined_value", "function"),
        ("drop-fence/source.rms_norm_kernel#0", "prior_grid", ""),
        ("shuffle/row_reduce.sum_over_lanes#1", "wrong values", ""),
        ("barrier-id+1/row_reduce.sum_over_row#0", "", ""),
    ],
)
def test_a_trial_says_what_was_found_and_where(
    small: Subject, client: Client, start: str, category: str, place: str
) -> None:
    trial = attempt(small, named(small, start), client)
    assert trial.category == category and trial.found == bool(category)
    assert not place or trial.place in ("line", "near", place)
    assert trial.runs == (1 if category else len(small.runs)) and (trial.schedule == "late") == bool(category)
    assert bool(trial.message) == bool(category)
    assert trial.as_json()["id"] == trial.mutation.id and "mutation" not in trial.as_json()


def edited(whole: Subject, before: str, after: str) -> Mutation:
    start = whole.text.rindex(before)
    return Mutation("x", "x", "x", "x", 1, "", start, start + len(before), before, after)


def test_a_kernel_that_cannot_be_run_is_no_find(small: Subject, client: Client) -> None:
    trial = attempt(small, edited(small, "bar.sync \t0", "bar.strange \t0"), client)
    assert trial.category == "error" and not trial.found and "bar.strange" in trial.message


def test_a_kernel_that_does_not_end_is_found(small: Subject, client: Client) -> None:
    trial = attempt(replace(small, max_instructions=20_000), edited(small, "ret", "ROUND: bra ROUND"), client)
    assert trial.category == "endless" and trial.found and trial.runs == 1


def test_a_kernel_with_findings_of_its_own_is_refused(artifacts: dict[str, Artifact]) -> None:
    artifact = artifacts["rms_norm sm_100a"]
    path, manifest = artifact.folder / "kernel.ptx", artifact.manifest
    kept = path.read_text()
    path.write_text(named(subject(artifact, schedules=1), "drop-barrier/row_reduce").apply(kept))
    changed = manifest.model_copy(update={"files": {**manifest.files, "kernel.ptx": sha256_file(path)}})
    try:
        with pytest.raises(ValueError, match="the unmutated kernel has a finding: undefined_value"):
            subject(replace(artifact, manifest=changed), schedules=1)
    finally:
        path.write_text(kept)


def test_jobs_run_beside_one_another_and_answer_in_order(small: Subject) -> None:
    chosen, told = small.mutations(), []
    trials = list(attempt_all(small, chosen, jobs=2, told=lambda trial: told.append(trial.mutation.id)))
    assert [trial.mutation.id for trial in trials] == [each.id for each in chosen]
    assert sorted(told) == sorted(each.id for each in chosen)
    with pytest.raises(ValueError, match="jobs: found 0; valid: 1 or more"):
        next(attempt_all(small, chosen, jobs=0))


def unexplained(whole: Subject, trials: list[Trial], reasons: list[Reason]) -> list[str]:
    survivors = [explain(whole, trial, reasons) for trial in trials if not trial.found]
    return [f"{each.trial.mutation.id}: {each.trial.message}" for each in survivors if not each.kind]


@pytest.mark.parametrize("name", PLANS)
def test_a_sample_of_the_mutations_is_found(artifacts: dict[str, Artifact], name: str) -> None:
    whole = subject(artifacts[name], wide=False)
    chosen = whole.mutations()[:: SAMPLE[whole.manifest.op]]
    trials = list(attempt_all(whole, chosen, jobs=2))
    assert unexplained(whole, trials, read_reasons()) == []
    assert sum(trial.found for trial in trials) >= 0.6 * len(trials) and len(trials) >= 6
    assert not any(trial.category == "error" for trial in trials)


@pytest.mark.sweep
@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize("kernel", kernels(), ids=lambda kernel: kernel.name)
def test_all_mutations_are_found_or_explained(tmp_path: Path, kernel: KernelPlan) -> None:
    (result,) = build([kernel], cache_root=tmp_path, jobs=1)
    assert result.artifact is not None, result.error
    whole = subject(Artifact.read(result.artifact))
    trials = list(attempt_all(whole, whole.mutations(), jobs=2))
    assert unexplained(whole, trials, read_reasons()) == []
