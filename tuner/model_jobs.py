"""From a model's calls to what is tuned: one job for each kernel (operator, static dimensions, flags), with its shapes,
buckets, calls a step, predicted share of the steps, and what serves it today."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from dsv4.generator.console import UsageError
from dsv4.generator.resources import Refused
from dsv4.generator.spec import SpecError, load_op
from dsv4.runtime.artifact import Scalar, canonical_json
from dsv4.runtime.cache import KernelCache
from dsv4.runtime.tuned import Bucket, Device
from dsv4.tuner import shapes
from dsv4.tuner.buckets import automatic, bounded_names
from dsv4.tuner.coverage import Asked, Covered, cover_calls
from dsv4.tuner.model_calls import StepCalls
from dsv4.tuner.protocol import Sizes
from dsv4.tuner.step_share import predicted_us, ready_ops, static_dims
from dsv4.tuner.target import Target

NO_KERNEL = "no kernel is made"


@dataclass
class Job:
    """``sizes`` are what is measured, each once; ``calls`` how often the kernel is called in each step, ``shares`` its
    predicted part of each step's time (0 to 1; None: nothing is known of its work). ``obstacle``: why it cannot be
    tuned, in one line."""

    op: str
    arch: str
    dims: dict[str, int]
    variant: dict[str, Scalar]
    obstacle: str | None = None
    sizes: list[Sizes] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    covered: list[Covered] = field(default_factory=list)
    calls: list[int] = field(default_factory=list)
    us: list[float | None] = field(default_factory=list)
    shares: list[float | None] = field(default_factory=list)

    @property
    def target(self) -> Target:
        return Target(self.op, self.arch, dims=self.dims, variant=self.variant)

    def look(self, cache: KernelCache, device: Device | None) -> None:
        """See what serves the calls now."""
        self.covered = cover_calls(self.asked, cache, self.arch, device)

    @property
    def share(self) -> float:
        """The mean over the steps, each of which counts the same."""
        return sum(share or 0.0 for share in self.shares) / len(self.shares)

    @property
    def served(self) -> str:
        """What serves its calls today; where they differ, how many of its shapes have what."""
        counts = Counter(each.served for each in self.covered)
        if len(counts) == 1:
            return next(iter(counts))
        return ", ".join(f"{count} {name}" for name, count in counts.items())

    @property
    def is_answered(self) -> bool:
        """Whether a measured entry of the cache serves every one of its calls."""
        return bool(self.covered) and all(each.served == "tuned" for each in self.covered)

    @property
    def buckets(self) -> list[Bucket]:
        """One for each shape, as far as the operator's dimensions tell them apart."""
        return automatic(self.sizes, bounded_names(self.op, self.sizes))


def model_jobs(steps: Sequence[StepCalls], arch: str) -> list[Job]:
    """The jobs of ``steps``, the largest predicted share first; those that cannot be tuned among them. What serves them
    is not known before ``Job.look``."""
    jobs: dict[str, Job] = {}
    for number, step in enumerate(steps):
        for asked in step.calls:
            job = _job_of(jobs, asked, arch, len(steps))
            us = predicted_us(asked, arch)
            job.calls[number] += asked.times
            if us is not None:
                job.us[number] = (job.us[number] or 0.0) + us * asked.times
            job.asked.append(asked)
            if job.obstacle is None:
                sizes = measured_sizes(asked, step)
                job.sizes += [sizes] if sizes not in job.sizes else []
    totals = [sum(job.us[number] or 0.0 for job in jobs.values()) for number in range(len(steps))]
    for job in jobs.values():
        job.shares = [None if us is None else us / total for us, total in zip(job.us, totals, strict=True)]
    return sorted(jobs.values(), key=lambda job: (-job.share, job.op, canonical_json([job.dims, job.variant])))


def _job_of(jobs: dict[str, Job], asked: Asked, arch: str, steps: int) -> Job:
    made = asked.op in ready_ops()
    dims = static_dims(asked.op, asked.sizes) if made else {n: s for n, s in asked.sizes.items() if n not in _VARYING}
    key = canonical_json([asked.op, dims, asked.variant])
    if key not in jobs:
        job = Job(asked.op, arch, dims, asked.variant, calls=[0] * steps, us=[None] * steps)
        job.obstacle = _obstacle(job) if made else NO_KERNEL
        jobs[key] = job
    return jobs[key]


_VARYING = ("T", "rows", "S")
"""What varies from call to call of operators that no kernel is made for."""


def _obstacle(job: Job) -> str | None:
    if job.arch not in load_op(job.op).archs:
        return f"{NO_KERNEL} for {job.arch}"
    if shapes.workload_sizes(job.op) is None:
        return "it has no workload to be timed with"
    try:
        job.target.default()
        job.target.space()
    except Refused as refused:
        return refused.reasons[0]
    except (SpecError, UsageError) as error:
        return " ".join(str(error).split())
    return None


def measured_sizes(asked: Asked, step: StepCalls) -> Sizes:
    """The shape at which the operator's workload is to be timed for this call: the call's own sizes, and the workload's
    usual ones of what belongs to the cache (pages, pools). A compressor's sequences are as long as the step's."""
    usual = shapes.workload_sizes(asked.op) or {}
    sizes = {name: asked.sizes.get(name, size) for name, size in usual.items()}
    if "length" in sizes:
        sizes["length"] = step.tokens // step.sequences
    return sizes
