"""`dsv4-tune sweep`: tune one kernel on this machine's GPU."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from dsv4.generator.console import CheckFailed, UsageError, out, print_json
from dsv4.tuner.buckets import spelled as spelled_bucket
from dsv4.tuner.budget import Budget
from dsv4.tuner.commands import options
from dsv4.tuner.tried import spelled

if TYPE_CHECKING:  # with them comes Optuna, which is asked for only when the command line is right
    from dsv4.tuner.sweep import Result


def sweep_configurations(
    op: options.Op,
    arch: options.Arch,
    budget: Annotated[
        list[str],
        typer.Option("--budget", help="Configurations of the study (40), time of this run (90s, 10m, 1h), or both."),
    ] = ["10m"],  # noqa: B006
    patience: options.Patience = None,
    model: options.Model = None,
    dims: options.Dims = [],  # noqa: B006
    variant: options.Variant = [],  # noqa: B006
    pinned: options.Set = [],  # noqa: B006
    shape: options.Shape = [],  # noqa: B006
    bucket: options.Buckets = [],  # noqa: B006
    loss: options.Loss = None,
    sampler: Annotated[str, typer.Option("--sampler", help="tpe, random, grid, cmaes or gp.")] = "tpe",
    storage: options.Storage = None,
    launch: options.Launch = "graph",
    l2: options.L2 = "cold",
    batch: Annotated[
        int, typer.Option("--batch", min=1, help="Configurations of a GPU that are measured together.")
    ] = 8,
    jobs: options.Jobs = 0,
    seed: options.Seed = 0,
    limit_s: options.LimitSeconds = 60.0,
    gpus: options.Gpus = "1",
    prebuilt: options.Prebuilt = False,
    preflight: Annotated[
        bool, typer.Option("--preflight", help="Run each configuration in the emulator first; a finding keeps it out.")
    ] = False,
    retry_quarantined: Annotated[
        bool, typer.Option("--retry-quarantined", help="Run kernels that hung, faulted or were wrong before.")
    ] = False,
    measure: options.Measure = "gpu",
    json: options.Json = False,
) -> None:
    """Tune on this machine's GPU: compile, check against float64, measure, keep the winner in the cache.

    A kernel that hangs or faults costs only itself. Ctrl-C and kill lose nothing: the same command goes on from there,
    and several at once share the study. With --gpus the GPUs of this machine share the work of one sweep.

    Several buckets, each with a winner of its own: --bucket T=1:64 --bucket T=65:, or --bucket auto for one a shape;
    with --loss 3 by the fewest configurations that are within 3 % of the best in each.

    Example: dsv4-tune sweep --op rms_norm --arch sm_90a --budget 10m --patience 60
    """
    wanted = options.make_target(op, arch, model, dims, variant, pinned)
    arch = wanted.arch
    parsed = Budget.parse(budget, patience)
    sizes, served = options.make_buckets(op, shape, bucket)
    if loss is not None and len(served) == 1:
        raise UsageError("--loss: found one bucket, which one kernel serves; valid: several, or --bucket auto")
    policy = options.make_policy(launch, l2)
    try:
        from dsv4.tuner import bench, sweep, worker
        from dsv4.tuner.commands.measuring import measuring, require_measure
        from dsv4.tuner.propose import SAMPLERS
        from dsv4.tuner.question import Settings
        from dsv4.tuner.seeds import in_turn, starts
        from dsv4.tuner.storage import open_storage
        from dsv4.tuner.view import watching
    except ModuleNotFoundError as missing:
        raise UsageError(f"sweep needs {missing.name}: pip install 'dsv4-kernels[tune]'") from None
    require_measure(measure)
    if sampler not in SAMPLERS:
        raise UsageError(f"--sampler: found '{sampler}'; valid: {', '.join(SAMPLERS)}")
    cache = options.usable_cache()
    means = measuring(
        measure, wanted.default(), cache, jobs=jobs, prebuilt=prebuilt, by="sweep", ahead=launch == "graph", gpus=gpus
    )
    device = means.device
    settings = Settings(
        device, sizes, parsed, sampler=sampler, batch=batch * means.gpus, seed=seed, limit_s=limit_s, buckets=served,
        loss=None if loss is None else loss / 100, policy=policy, retry_quarantined=retry_quarantined,
    )  # fmt: skip
    check_first: bench.Preflight | None = None
    if preflight:
        from dsv4.generator.verify.emulator import preflight as look

        check_first = partial(look, seed=seed)
    with watching(f"{op} on {arch}", parsed) as (say, watch):
        try:
            result = sweep.sweep(
                wanted, settings, cache=cache, builder=means.builder, measure=means.measure,
                storage=open_storage(storage) if storage else None,
                say=say, watch=watch, preflight=check_first, seeds=in_turn(starts(cache, wanted, sizes, device.name)),
            )  # fmt: skip
        except worker.WorkerError as error:
            raise CheckFailed(str(error)) from None
    if json:
        print_json({"op": op, "arch": arch, "device": device.name, "shapes": list(sizes), **asdict(result)})
    else:
        show(result, device.name)
    if result.interrupted:
        raise KeyboardInterrupt


def show(result: Result, device: str) -> None:
    """What a sweep found, for a person."""
    out.print(
        f"{result.tried} configurations tried on {device}, {result.slow} given up as slow, {len(result.failed)} "
        f"failed; {result.ended}",
        highlight=False,
    )
    if len(result.gpus) > 1:
        told = ", ".join(f"{count} on GPU {index}" for index, count in result.gpus.items())
        out.print(f"configurations that ran: {told}", highlight=False)
    out.print(f"default {result.default['us']:.2f} µs: {spelled(result.default['config'])}", highlight=False)
    out.print(f"best    {result.best['us']:.2f} µs: {spelled(result.best['config'])}", highlight=False)
    for each in result.winners:
        where = f"bucket ({spelled_bucket(each.bucket)}): {each.default['us']:.2f} → {each.best['us']:.2f} µs"
        verb = f"kept as {each.entry}" if each.chosen else "not kept"
        out.print(f"{where}: {spelled(each.best['config'])}; {verb}: {each.why}", highlight=False, markup=False)
    verb = f"kept as {result.entry}" if result.entry else "kept" if result.chosen else "not kept"
    out.print(f"{verb}: {result.why}", highlight=False, markup=False)
    out.print(f"study {result.study} (dsv4-tune report)", highlight=False, markup=False)
