"""What `dsv4-tune model` prints: the plan before, and what became of each kernel after."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.table import Table

from dsv4.generator.console import err, out, print_table
from dsv4.runtime.artifact import Scalar
from dsv4.runtime.tuned import Device
from dsv4.tuner import buckets
from dsv4.tuner.coverage import ORDER
from dsv4.tuner.protocol import Sizes
from dsv4.tuner.tried import spelled

if TYPE_CHECKING:  # with them come Optuna and much of torch, which is asked for only when the command line is right
    from dsv4.tuner.model_calls import StepCalls
    from dsv4.tuner.model_jobs import Job
    from dsv4.tuner.tune_model import Turn


def what(job: Job) -> str:
    """Static dimensions, and the flags that are not simply off."""
    flags: dict[str, Scalar] = {name: value for name, value in job.variant.items() if value is not False}
    return spelled({**job.dims, **flags})


def shapes_told(sizes: Sequence[Sizes]) -> str:
    """``T=2, 128, 2048``: the sizes that differ from shape to shape; all of the first where there is one shape."""
    if not sizes:
        return ""
    varying = [name for name in sizes[0] if len({each[name] for each in sizes}) > 1] or list(sizes[0])
    if len(varying) == 1:
        return f"{varying[0]}={', '.join(str(each[varying[0]]) for each in sizes)}"
    return "; ".join(spelled({name: each[name] for name in varying}) for each in sizes)


def per_step(counts: Sequence[int]) -> str:
    """``44``, or ``0 to 41`` where steps differ."""
    return str(counts[0]) if len(set(counts)) == 1 else f"{min(counts)} to {max(counts)}"


def share_told(job: Job) -> str:
    """Percent of the steps' predicted time; nothing where nothing is known."""
    return "?" if all(share is None for share in job.shares) else f"{100 * job.share:.1f} %"


def print_plan(steps: Sequence[StepCalls], jobs: Sequence[Job], device: Device | None) -> None:
    """The table of the plan, for a person."""
    table = Table("share", "operator", "dimensions and flags", "calls a step", "shapes", "served today by")
    for job in jobs:
        cells = (share_told(job), job.op, what(job), per_step(job.calls), shapes_told(job.sizes), served_told(job))
        table.add_row(*cells)
    print_table(table)
    out.print(f"steps: {'; '.join(step.name for step in steps)}", highlight=False)
    out.print(summary(jobs, device), highlight=False)
    out.print("shares are predicted (bytes and products at the datasheet's rates), not measured", highlight=False)


def served_told(job: Job) -> str:
    """What serves, or why nothing can be tuned."""
    return job.served if job.obstacle is None or job.obstacle == job.served else f"{job.served}: {job.obstacle}"


def summary(jobs: Sequence[Job], device: Device | None) -> str:
    """How many kinds of calls are served by what, and which part of the predicted time can be tuned at all."""
    counts = Counter(each.served for job in jobs for each in job.covered)
    told = ", ".join(f"{counts[name]} {name}" for name in ORDER if counts[name])
    tunable = sum(job.share for job in jobs if job.obstacle is None)
    where = device.name if device else "no device"
    return (
        f"{sum(counts.values())} kinds of calls on {where}: {told}; kernels that can be tuned have "
        f"{100 * tunable:.0f} % of the steps' predicted time"
    )


def print_turns(turns: Sequence[Turn]) -> None:
    """What became of each kernel that can be tuned, for a person."""
    table = Table("share", "operator", "dimensions and flags", "bucket", "default → best", "outcome")
    for turn in turns:
        job = turn.job
        if job.obstacle is not None:
            continue
        told = "\n".join(buckets.spelled(each) for each in job.buckets)
        table.add_row(share_told(job), job.op, what(job), told, gains(turn), turn.told)
    print_table(table)
    left = [turn for turn in turns if turn.job.obstacle is not None]
    if left:
        names = ", ".join(sorted({turn.job.op for turn in left}))
        out.print(f"no kernel to tune ({sum(t.job.share for t in left):.0%} of the predicted time): {names}")
    done = [turn.result for turn in turns if turn.result is not None]
    if done and all(turn.job.covered for turn in turns):
        counts = Counter(each.served for turn in turns for each in turn.job.covered)
        told = ", ".join(f"{counts[name]} {name}" for name in ORDER if counts[name])
        err.print(f"kinds of calls served now: {told} (dsv4-tune coverage --model lists them)", markup=False)


def gains(turn: Turn) -> str:
    """The times of default and winner, a line for each bucket."""
    result = turn.result
    if result is None:
        return ""
    pairs = [(each.default["us"], each.best["us"]) for each in result.winners]
    return "\n".join(f"{one:.2f} → {best:.2f} µs" for one, best in pairs or [(result.default["us"], result.best["us"])])


def plan_data(steps: Sequence[StepCalls], jobs: Sequence[Job]) -> dict[str, Any]:
    """The plan as data."""
    return {
        "steps": [{"name": step.name, "tokens": step.tokens, "sequences": step.sequences} for step in steps],
        "shares": "predicted",
        "kernels": [_job_data(job) for job in jobs],
    }


def turns_data(steps: Sequence[StepCalls], turns: Sequence[Turn]) -> dict[str, Any]:
    """The plan as data, each kernel with what became of it."""
    rows = [
        {
            **_job_data(turn.job),
            "outcome": turn.told,
            "failed": turn.failed,
            "result": None if turn.result is None else asdict(turn.result),
        }
        for turn in turns
    ]
    return {**plan_data(steps, [turn.job for turn in turns]), "kernels": rows}


def _job_data(job: Job) -> dict[str, Any]:
    return {
        "op": job.op,
        "dims": job.dims,
        "variant": job.variant,
        "share": job.share,
        "shares": job.shares,
        "us": job.us,
        "calls": job.calls,
        "shapes": job.sizes,
        "buckets": [] if job.obstacle else job.buckets,
        "obstacle": job.obstacle,
        "served": Counter(each.served for each in job.covered),
    }
