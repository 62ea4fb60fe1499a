"""Results that another machine measured become outcomes of the study and, if there is a winner, a tuned entry."""

from __future__ import annotations

from dataclasses import dataclass

from optuna.storages import BaseStorage

from dsv4.generator.console import UsageError
from dsv4.runtime.artifact import Manifest
from dsv4.runtime.cache import KernelCache
from dsv4.tuner import decide
from dsv4.tuner.budget import Budget
from dsv4.tuner.choose import judge
from dsv4.tuner.cost.entry import subject
from dsv4.tuner.encoding import Encoding
from dsv4.tuner.job import Results
from dsv4.tuner.question import Settings, about, journal_path, study_name
from dsv4.tuner.storage import open_storage
from dsv4.tuner.study import Study
from dsv4.tuner.target import Target
from dsv4.tuner.tried import Tried


@dataclass(frozen=True)
class Taken:
    """What an import brought: the study's name, outcomes that were new to it, and the entry's name or why none."""

    study: str
    fresh: int
    entry: str | None
    why: str


def take_results(results: Results, cache: KernelCache, storage: BaseStorage | None = None) -> Taken:
    """Tell the study every outcome that it does not have, and keep the winner if it beat the default there.

    Raises UsageError for results that are not finished, and where the winner's kernel is not in the cache (nothing is
    changed then).
    """
    job = results.job
    if not results.is_done:
        raise UsageError(
            f"results of {job.op} on {job.arch}: found {len(results.outcomes)} of {len(job.candidates) + 1} "
            f"configurations measured; valid: finished ones (measure PACK goes on where it ended)"
        )
    manifests = {each.manifest.key: each.manifest for each in cache.artifacts(job.op, job.arch)}
    if results.winner is not None and results.winner not in manifests:
        raise UsageError(f"the kernel {results.winner[:12]} is not in {cache.root}; valid: dsv4-tune import PACK first")
    target = Target(job.op, job.arch, job.model, job.dims, job.variant, job.pinned)
    space, default = target.space(), target.default()
    settings = Settings(
        results.device, job.sizes, Budget(), seed=job.seed, rounds=job.rounds, bucket=job.bucket, policy=job.policy
    )
    name = study_name(target, default, settings, job.default.key)
    storage = storage or open_storage(journal_path(cache, target, settings.is_fake))
    study = Study(storage, name, Encoding(space), about=lambda: about(target, default, settings, space))
    tried = [Tried(**each) for each in results.outcomes]
    with study.attended():
        fresh = sum(_tell(study, each) for each in tried)
    won = results.winner is not None and bool(results.compared) and judge(results.compared).wins
    if not won and not settings.is_fake:  # whatever was predicted there, the default was measured to be faster
        cache.drop_predicted(subject(default, job.bucket, results.device.sms))
    if results.winner is None:
        return Taken(name, fresh, None, "the default is the fastest that was found")
    if not results.compared:
        return Taken(name, fresh, None, "the winner failed when it was measured again")
    verdict = judge(results.compared)
    if not verdict.wins:
        return Taken(name, fresh, None, verdict.why)
    manifest: Manifest = manifests[results.winner]
    entry = decide.entry(
        manifest,
        device=results.device,
        bucket=job.bucket,
        policy=job.policy,
        verdict=verdict,
        winner=next(each for each in tried if each.detail.get("artifact") == results.winner),
        default={
            "config": tried[0].config,
            "key": job.default.key,
            "us": tried[0].score_us,
            "timings": tried[0].detail.get("timings", []),
        },
        tried=tried,
        refused=study.about().get("refused", {}),
        study=name,
    )
    return Taken(name, fresh, cache.keep(entry).name, verdict.why)


def _tell(study: Study, tried: Tried) -> bool:
    claim = study.claim(tried.config)
    return claim is not None and study.tell(claim, tried)
