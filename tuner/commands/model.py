"""`dsv4-tune model`: tune every kernel that a model's decode and prefill steps call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from dsv4.generator.commands import select
from dsv4.generator.console import CheckFailed, UsageError, print_json, progress_bar
from dsv4.runtime.cache import KernelCache
from dsv4.tuner import model_view
from dsv4.tuner.budget import Budget
from dsv4.tuner.commands import options
from dsv4.tuner.commands.measuring import measuring, require_measure
from dsv4.tuner.coverage import device_here

if TYPE_CHECKING:  # with them come torch's and Optuna's imports, for a command line that is right
    from dsv4.tuner.model_calls import StepCalls
    from dsv4.tuner.model_jobs import Job
    from dsv4.tuner.question import Settings
    from dsv4.tuner.tune_model import Turn

BATCH = 8
"""Configurations of a GPU that are measured together."""

ModelName = Annotated[str, typer.Option("--model", help="flash, pro, tiny, or a config.json.")]
Batch = Annotated[list[int], typer.Option("--batch", help="Sequences of a decode step; repeatable.")]
Context = Annotated[list[int], typer.Option("--context", help="Positions of a sequence; repeatable.")]
Drafts = Annotated[int, typer.Option("--drafts", help="Drafts that a decode step checks beside each new token.")]
Chunk = Annotated[int, typer.Option("--chunk", help="Tokens of a prompt that a prefill step holds.")]


def tune_whole_model(
    model: ModelName,
    arch: options.Arch,
    batch: Batch = [1, 64],  # noqa: B006
    context: Context = [8192],  # noqa: B006
    drafts: Drafts = 0,
    chunk: Chunk = 2048,
    budget: Annotated[str, typer.Option("--budget", help="Time of this run, for all kernels (30m, 8h).")] = "2h",
    each: Annotated[int, typer.Option("--each", min=1, help="Configurations of each kernel's study.")] = 60,
    patience: options.Patience = None,
    loss: options.Loss = None,
    plan: Annotated[
        bool, typer.Option("--plan", "--dry-run", help="Print what would be tuned, in its order; measure nothing.")
    ] = False,
    device: Annotated[
        str | None, typer.Option("--device", help="With --plan: a device that entries were tuned on.")
    ] = None,
    storage: options.Storage = None,
    jobs: options.Jobs = 0,
    seed: options.Seed = 0,
    limit_s: options.LimitSeconds = 60.0,
    gpus: options.Gpus = "1",
    prebuilt: options.Prebuilt = False,
    measure: options.Measure = "gpu",
    json: options.Json = False,
) -> None:
    """Derive the kernels of a model's decode and prefill steps from its configuration, and tune them in the order of
    their predicted share of the steps, one after another on each GPU.

    Calls are grouped by operator, dimensions and flags; each kernel is measured at all its shapes and has a winner for
    each. What measured entries serve already is passed over. Ctrl-C loses nothing: the same command goes on.

    Example: dsv4-tune model --model flash --arch sm_90a --batch 1 --batch 64 --context 8192 --plan
    """
    arch = options.resolve_arch(arch)
    select.Selection(None, arch)
    if device is not None and not plan:
        raise UsageError("--device: found it without --plan; valid: with --plan (tuning is for this machine's GPU)")
    if Budget.parse([budget]).configurations is not None:
        raise UsageError(f"--budget: found '{budget}'; valid: a time (30m, 8h); --each counts configurations")
    limits = Budget.parse([budget, str(each)], patience)
    require_measure(measure)
    cache = options.usable_cache()
    steps = model_steps(model, batch, context, drafts, chunk)
    here = device_here(cache, arch, device)
    work = _jobs(steps, arch)
    if plan:
        for job in work:
            job.look(cache, here)
        if json:
            print_json({"device": here.name if here else None, **model_view.plan_data(steps, work)})
        else:
            model_view.print_plan(steps, work, here)
        return
    tuned_on, turns = _tune(work, cache, limits, loss, storage, jobs, seed, limit_s, gpus, prebuilt, measure)
    if json:
        print_json({"device": tuned_on, **model_view.turns_data(steps, turns)})
    else:
        model_view.print_turns(turns)
    if any(turn.interrupted for turn in turns):
        raise KeyboardInterrupt
    if failed := [turn for turn in turns if turn.failed]:
        raise CheckFailed(f"{len(failed)} of {len(turns)} kernels could not be tuned: {failed[0].told}")


def model_steps(model: str, batch: list[int], context: list[int], drafts: int, chunk: int) -> list[StepCalls]:
    """The steps that the options describe. Raises UsageError."""
    from dsv4.tuner import model_calls

    serving = model_calls.Serving(tuple(dict.fromkeys(batch)), tuple(dict.fromkeys(context)), drafts, chunk)
    return model_calls.model_steps(model_calls.config_of(model), serving)


def _jobs(steps: Sequence[StepCalls], arch: str) -> list[Job]:
    from dsv4.tuner.model_jobs import model_jobs

    return model_jobs(steps, arch)


def _tune(
    work: Sequence[Job],
    cache: KernelCache,
    limits: Budget,
    loss: float | None,
    storage: str | None,
    jobs: int,
    seed: int,
    limit_s: float,
    gpus: str,
    prebuilt: bool,
    measure: str,
) -> tuple[str, list[Turn]]:
    """The device's name, and what became of each of ``work``."""
    try:
        from dsv4.tuner import tune_model
        from dsv4.tuner.question import Settings, require_entries, require_writable
        from dsv4.tuner.storage import open_storage
        from dsv4.tuner.view import Board
    except ModuleNotFoundError as missing:
        raise UsageError(f"model needs {missing.name}: pip install 'dsv4-kernels[tune]'") from None
    first = tune_model.require_work(work)
    means = measuring(measure, first.target.default(), cache, jobs=jobs, prebuilt=prebuilt, by="model", gpus=gpus)
    here, builder = means.device, means.builder
    require_writable(cache)
    for op in sorted({job.op for job in work if job.obstacle is None}):
        require_entries(cache, op, first.arch)
    for job in work:
        job.look(cache, here)
    settings: Settings = Settings(
        here,
        (),
        limits,
        batch=BATCH,
        seed=seed,
        limit_s=limit_s,
        loss=None if loss is None else loss / 100,
    )
    missing_kernels = tune_model.without_kernel(work)
    with progress_bar("defaults", len(missing_kernels)) as advance:
        tune_model.build_defaults(missing_kernels, builder, lambda one: advance(one.plan.name))
    with Board() as board:
        turns = tune_model.tune_model(
            work, settings, cache=cache, lanes=means.lanes, watching=board.watching,
            storage=open_storage(storage) if storage else None,
        )  # fmt: skip
    cache.refresh()
    for job in work:
        job.look(cache, here)
    return here.name, turns
