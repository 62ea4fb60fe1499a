"""`dsv4-tune predict`: a ranking without a GPU, kept as what may serve until something is measured; and its score."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from dsv4.generator.commands import select
from dsv4.generator.console import CheckFailed, UsageError, err, out, print_json, print_table
from dsv4.runtime.artifact import canonical_json
from dsv4.tuner.commands import options
from dsv4.tuner.commands.report import gathered
from dsv4.tuner.cost.calibration import shipped
from dsv4.tuner.cost.entry import MARGIN, Choice, choose, entry, passed
from dsv4.tuner.cost.launches import known_ops
from dsv4.tuner.cost.model import rates
from dsv4.tuner.cost.rank import Predictor, Ranked
from dsv4.tuner.target import changes
from dsv4.tuner.tried import spelled

if TYPE_CHECKING:
    from dsv4.runtime.cache import KernelCache
    from dsv4.tuner.cost.score import Score, Transfer


def predict_configurations(
    studies: Annotated[
        list[str] | None,
        typer.Argument(
            help="With --score: studies, or how their names begin, or files of recorded sweeps.", show_default=False
        ),
    ] = None,
    op: select.Op = None,
    arch: select.Arch = None,
    model: options.Model = None,
    dims: options.Dims = [],  # noqa: B006
    variant: options.Variant = [],  # noqa: B006
    pinned: options.Set = [],  # noqa: B006
    shape: options.Shape = [],  # noqa: B006
    bucket: options.Bucket = [],  # noqa: B006
    limit: Annotated[int, typer.Option("--limit", min=1, help="Configurations to list.")] = 10,
    verify: Annotated[
        int, typer.Option("--verify", min=0, help="First compile so many of the best and run them in the emulator.")
    ] = 0,
    keep: Annotated[bool, typer.Option("--keep/--no-keep", help="Write the cache entry.")] = True,
    score: Annotated[bool, typer.Option("--score", help="Judge the ranking on recorded studies instead.")] = False,
    storage: options.Storage = None,
    jobs: options.Jobs = 0,
    json: options.Json = False,
) -> None:
    """Rank configurations by a cost model, without a GPU. Nothing is measured, and the entry says so.

    Of the configurations that the emulator has passed, the best one becomes a predicted entry of the cache, if it is
    predicted to beat the default by 5 %: it serves until anything is measured there.

    Example: dsv4-tune predict --op fmha --arch sm_100a --dims D=128 --verify 4
    """
    if score:
        score_studies(studies or [], op, arch, storage, json)
        return
    if studies:
        raise UsageError(f"predict: found {studies[0]}; valid: studies with --score")
    if op is None or arch is None:
        missing = "--op" if op is None else "--arch"
        raise UsageError(f"{missing}: found nothing; valid: --op OP --arch ARCH (or --score)")
    if op not in known_ops():
        raise UsageError(f"--op: the cost model does not know {op}; valid: {', '.join(known_ops())}")
    wanted = options.make_target(op, arch, model, dims, variant, pinned)
    arch = wanted.arch
    sizes, bounds = options.make_shapes(op, shape, bucket)
    calibration = shipped()
    predictor = Predictor(op, sizes, rates(arch), calibration.of())
    default = predictor.predict(options.untuned_at(wanted, sizes))
    ranked = predictor.rank(wanted.space(), default.plan)
    cache = options.usable_cache()
    if verify:
        verify_best(ranked[:verify], cache, jobs)
    artifacts = passed(cache, default.plan)
    choice = choose(ranked, default, artifacts, MARGIN)
    kept = None
    if keep and choice.artifact is not None:
        made = entry(choice, default, ranked, sizes, bucket=bounds, trust=calibration.trust(arch))
        stands = cache.keep(made)
        kept = stands.name if stands.source == "predicted" else None
        if kept is None:
            choice = Choice(None, choice.ranked, choice.gain, f"{stands.name} was measured and stays")
    rows = [row(rank, each, default, artifacts) for rank, each in enumerate(ranked[:limit], start=1)]
    if json:
        print_json(
            {
                "op": op, "arch": arch, "dims": default.plan.dims, "variant": default.plan.variant,
                "shapes": list(sizes), "source": "predicted", "trust": calibration.trust(arch),
                "default_us": default.us, "ranked": len(ranked), "entry": kept, "why": choice.why,
                "configurations": rows,
            }
        )  # fmt: skip
    else:
        title = f"{op} on {arch}: {spelled(default.plan.dims)} {spelled(default.plan.variant)}"
        show(title, rows, default, len(ranked), calibration.trust(arch))
        out.print(f"{f'kept as {kept}' if kept else 'not kept'}: {choice.why}", highlight=False, markup=False)
    if choice.ranked is None and keep:
        raise CheckFailed(
            f"no entry for {op} on {arch}: the emulator has passed none of {len(ranked)} configurations; "
            f"valid: --verify N, or dsv4-gen build and dsv4-gen verify --device emulator"
        )


def verify_best(best: list[Ranked], cache: KernelCache, jobs: int) -> None:
    """Compile ``best`` and run each in the emulator; what it finds goes into their evidence."""
    from dsv4.generator.verify.climb import verify_artifacts
    from dsv4.runtime.cache import Artifact
    from dsv4.tuner.builders import Compiler

    built = Compiler(cache, jobs or os.cpu_count()).build([each.plan for each in best], lambda one: None)
    for one in built:
        if one.artifact is None:
            err.print(f"{spelled(one.plan.config)}: {one.error}", markup=False)
            continue
        (report,) = verify_artifacts([Artifact.read(one.artifact)], "emulator")
        found = "passed" if report.ok else report.findings[0]
        err.print(f"{spelled(one.plan.config)}: emulator, {report.runs} runs: {found}", markup=False)
    cache.refresh()


def row(rank: int, each: Ranked, default: Ranked, artifacts: dict[str, Any]) -> dict[str, Any]:
    """One configuration as ``predict --json`` prints it."""
    return {
        "rank": rank,
        "config": each.plan.config,
        "is_default": each.plan.config == default.plan.config,
        "changes": changes(each.plan, default.plan),
        "predicted_us": each.us,
        "over_default": default.us / each.us,
        "bounds": [shape.bound for shape in each.shapes],
        "emulator": canonical_json(each.plan.config) in artifacts,
    }


def show(title: str, rows: list[dict[str, Any]], default: Ranked, ranked: int, trust: str) -> None:
    """The ranking for a person."""
    table = Table(
        "rank", "differs from the default in", "predicted µs", "× default", "bound by", "emulator", title=title
    )
    for each in rows:
        differs = "the default" if each["is_default"] else spelled(each["changes"])
        bounds = ", ".join(dict.fromkeys(each["bounds"]))
        passes = "passed" if each["emulator"] else "–"
        figures = (f"{each['predicted_us']:.2f}", f"{each['over_default']:.3f}", bounds, passes)
        table.add_row(str(each["rank"]), differs, *figures)
    print_table(table)
    out.print(
        f"{ranked:,} configurations ranked; the default: {default.us:.2f} µs. {trust[0].upper()}{trust[1:]}.",
        highlight=False,
    )


def score_studies(studies: list[str], op: str | None, arch: str | None, storage: str | None, json: bool) -> None:
    """Print how well the model ranks what these studies have measured (none named: the newest one)."""
    reports = [gathered(study, op, arch, storage) for study in (studies or (None,))]
    from dsv4.tuner.cost.score import Recorded, score, transfers
    from dsv4.tuner.recorded import by_shape

    recorded = [Recorded.of(report) for report in reports]
    scores = [score(report, shipped()) for report in recorded]
    single = [score(Recorded.of(each), shipped()) for report in reports for each in by_shape(report)]
    moved = transfers(recorded)
    if json:
        print_json(
            {
                "scores": [asdict(each) for each in scores],
                "single_shapes": [asdict(each) for each in single],
                "transfers": [asdict(each) for each in moved],
            }
        )
        return
    _show_scores(scores, single, moved)


def _show_scores(scores: list[Score], single: list[Score], moved: list[Transfer]) -> None:
    from dsv4.tuner.cost import score as aims

    table = Table("study", "GPU", "configurations", "Spearman", f"best of the first {aims.TOP}", "default", "off by")
    for each in (*scores, *single):
        rank = "–" if each.spearman is None else f"{each.spearman:.2f}"
        default = "–" if each.default_loss is None else f"+{each.default_loss:.1%}"
        table.add_row(
            each.study,
            each.device,
            str(each.configurations),
            rank,
            f"+{each.top_loss:.1%}",
            default,
            f"{each.error:.1%}",
        )
    print_table(table)
    for what, judged in (("sweeps", scores), ("single shapes", single)):
        if judged:
            reached = sum((each.spearman or 0) >= aims.SPEARMAN_AIM for each in judged)
            hits = sum(each.top_hits for each in judged)
            out.print(
                f"Spearman of {aims.SPEARMAN_AIM} or more in {reached} of {len(judged)} {what}; a configuration within "
                f"{aims.TOP_WITHIN:.0%} of the best among the first {aims.TOP} in {hits} of {len(judged)} (aim: "
                f"{aims.TOP_SHARE_AIM:.0%}).",
                highlight=False,
            )
    out.print("Coefficients found without the operator.", highlight=False)
    for each in scores:
        notes = ["its times are made up"] if each.is_fake else []
        notes += [each.weak] if each.weak else []
        notes += [f"{each.left_out} configurations are none any more"] if each.left_out else []
        if notes:
            err.print(f"{each.study}: {'; '.join(notes)}", markup=False)
    for pair in moved:
        rank = "–" if pair.spearman is None else f"{pair.spearman:.2f}"
        out.print(
            f"{pair.devices[0]} → {pair.devices[1]}: {pair.configurations} configurations of both, Spearman {rank}, "
            f"the best of the first loses {pair.loss:.1%} on the second",
            highlight=False,
        )
