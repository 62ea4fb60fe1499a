"""`dsv4-tune cover` and `replay`: what a recorded study says of few kernels for many shapes, and of the search."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from dsv4.generator.commands import select
from dsv4.generator.console import UsageError, err, out, print_json, print_table
from dsv4.runtime.artifact import Scalar
from dsv4.tuner.commands import options
from dsv4.tuner.commands.report import gathered
from dsv4.tuner.cover import cover
from dsv4.tuner.tried import spelled

if TYPE_CHECKING:
    from dsv4.tuner.report import Report

Study = Annotated[
    str | None, typer.Argument(help="A study or how its name begins (default: the newest), or a recorded sweep's file.")
]


def cover_shapes(
    study: Study = None,
    loss: Annotated[float, typer.Option("--loss", min=0.0, help="Percent over the best at a shape.")] = 3.0,
    op: select.Op = None,
    arch: select.Arch = None,
    storage: options.Storage = None,
    json: options.Json = False,
) -> None:
    """Print the fewest configurations that stay within a stated loss of the best at every shape of a study.

    'dsv4-tune sweep --bucket auto --loss 3' keeps such a set, measured again and bucket by bucket.

    Example: dsv4-tune cover --op rms_norm --arch sm_90a --loss 3
    """
    report = gathered(study, op, arch, storage)
    rows = _measured(report)
    found = cover({name: shapes_us for name, (_, shapes_us) in rows.items()}, loss / 100)
    configs = {name: config for name, (config, _) in rows.items()}
    sizes = report.about["sizes"]
    if json:
        print_json(
            {
                "study": report.study,
                "is_smallest": found.is_smallest,
                "configurations": [configs[name] for name in found.chosen],
                "shapes": [
                    {"sizes": size, "config": configs[name], "loss": share - 1}
                    for size, name, share in zip(sizes, found.serves, found.losses, strict=True)
                ],
            }
        )
        return
    table = Table("shape", "kernel", "over the best there", "configuration")
    for size, name, share in zip(sizes, found.serves, found.losses, strict=True):
        number = found.chosen.index(name) + 1
        table.add_row(spelled(size), str(number), f"{100 * (share - 1):.1f} %", spelled(configs[name]))
    print_table(table)
    how = "the fewest possible" if found.is_smallest else "by a greedy choice"
    out.print(f"{len(found.chosen)} kernels for {len(sizes)} shapes within {loss:g} %, {how}", highlight=False)


def _measured(report: Report) -> dict[str, tuple[dict[str, Scalar], list[float]]]:
    shapes = len(report.about.get("sizes", []))
    rows = {
        str(row.number): (dict(row.config), row.shapes_us)
        for row in report.rows
        if row.us is not None and not row.is_slow and len(row.shapes_us) == shapes > 0
    }
    if not rows:
        raise UsageError(f"study {report.study}: found no configuration measured at all shapes; valid: sweep on")
    return rows


def replay_study(
    study: Study = None,
    samplers: Annotated[list[str], typer.Option("--sampler", help="What to judge; repeatable.")] = ["tpe", "random"],  # noqa: B006
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Searches of each sampler.")] = 20,
    within: Annotated[float, typer.Option("--within", min=0.0, help="Percent of the best to be found.")] = 2.0,
    shape: Annotated[str | None, typer.Option("--shape", help="By the times at this one of its shapes alone.")] = None,
    predicted: Annotated[
        bool,
        typer.Option("--predicted", help="Try first what the cost model, calibrated without the operator, expects."),
    ] = False,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Configurations that are tried before any counts.")] = 1,
    anywhere: Annotated[
        bool, typer.Option("--anywhere", help="Begin at a random configuration, not the default.")
    ] = False,
    op: select.Op = None,
    arch: select.Arch = None,
    storage: options.Storage = None,
    json: options.Json = False,
) -> None:
    """Judge the search on a recorded sweep of a whole space: trials until within 2 % of its best.

    Example: dsv4-tune replay --op fmha --arch sm_90a --seeds 20
    """
    report = gathered(study, op, arch, storage)
    from dsv4.tuner.recorded import by_shape
    from dsv4.tuner.replay import recording, replay

    if shape is not None:
        told = [",".join(f"{name}={size}" for name, size in sizes.items()) for sizes in report.about["sizes"]]
        if shape not in told:
            raise UsageError(f"--shape: found '{shape}'; valid: {', '.join(told)}")
        report = (by_shape(report) or [report])[told.index(shape)]

    recorded = recording(report)
    weak = recorded.weakness(report.default.us if report.default else None)
    if weak:
        err.print(f"a weak judgement: {weak}", markup=False)

    def progress(sampler: str, seed: int) -> None:
        err.print(f"{sampler}: search {seed + 1} of {seeds}", markup=False)

    starts = []
    if predicted:
        from dsv4.tuner import seeds as sources

        device = str(report.about["device"]["name"])
        starts = sources.predicted(
            recorded.target, report.about["sizes"], device, without=recorded.target.op, begin=recorded.begin()
        )
    scores = replay(
        recorded, samplers, seeds=seeds, within=within / 100, starts=starts, batch=batch, anywhere=anywhere,
        progress=progress,
    )  # fmt: skip
    if json:
        print_json({"study": report.study, "weakness": weak, "scores": [asdict(score) for score in scores]})
        return
    table = Table("sampler", "median trials", "of the space", "fewest", "most")
    for score in scores:
        span = (str(min(score.trials)), str(max(score.trials)))
        table.add_row(score.sampler, f"{score.median:g}", f"{100 * score.share:.1f} %", *span)
    print_table(table)
