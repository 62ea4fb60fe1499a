"""Configurations of a space timed on a GPU that has the runtime alone: a recorded sweep's again on another GPU (what is
one GPU's sweep worth on the other?), or some of a space that was never measured (how well was it predicted?).

    python -m benchmarks.transfer prepare FOLDER --cache KERNELS FILE...    here: questions, kernels of recorded sweeps
    python -m benchmarks.transfer ask FOLDER --cache KERNELS --op OP ...    here: those of a space without one
    bash FOLDER/measure.sh KERNELS OUT                                      there
    python -m benchmarks.transfer keep OUT FILE...                          here: dated files, compared with FILE

FILE is a recorded sweep of ``benchmarks/results/spaces``. Of each a subset is timed: the default, the best at every
shape, and the rest evenly from fast to slow; of a new space the default and a uniform draw. None is given up as slow.
Kernels of recorded sweeps, which passed on the first GPU, are not checked again; new ones are, before they are timed.
"""

from __future__ import annotations

import json
import random
import shutil
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.harness.machine import device_slug
from benchmarks.harness.result import RESULTS, replace_text
from dsv4.generator.kernel import KernelPlan
from dsv4.generator.resources import Refused
from dsv4.runtime.artifact import canonical_json
from dsv4.runtime.cache import Artifact, KernelCache
from dsv4.runtime.tuned import Policy
from dsv4.tuner.builders import Prebuilt
from dsv4.tuner.commands.options import make_target
from dsv4.tuner.cost.score import Recorded, Transfer, transfer
from dsv4.tuner.protocol import Event, Request, Timing, geometric_mean
from dsv4.tuner.recorded import RECORDED_SCHEMA, by_shape, read_report
from dsv4.tuner.report import Report, Row
from dsv4.tuner.shapes import shapes
from dsv4.tuner.space import Config
from dsv4.tuner.target import Target
from dsv4.tuner.tried import spelled

FOLDER = RESULTS / "transfer"
MOST = 64
BEST = 4
"""Of the subset, so many of the fastest over all and at each shape."""
ROUNDS = 9
KERNELS = "KERNELS"
"""What stands in a question for the folder of kernels, which ``measure.sh`` puts in."""
MEASURE = f"""#!/bin/bash
# measure.sh KERNELS OUT [SECONDS]: times every question of this folder with the kernels unpacked in KERNELS; each may
# take SECONDS, and what it had by then counts. python3 has to find dsv4; torch, tvm_ffi and pydantic are needed.
here=$(cd "$(dirname "$0")" && pwd); mkdir -p "$2"; cp "$here"/*.configs.json "$here"/*.about.json "$2"
python3 -c 'import torch; from dsv4.runtime.identity import device_identity
print(device_identity(torch.cuda.current_device()).model_dump_json())' > "$2/device.json" &
for question in "$here"/*.request.json; do
  name=$(basename "$question" .request.json)
  sed "s|{KERNELS}/|$1/|g" "$question" | timeout -k 2 "${{3:-34}}" python3 -m dsv4.tuner.measure --out "$2/$name.events"
  echo "$name: rc $?, $(grep -c '"event":"measured"' "$2/$name.events") timings"
done
wait
"""


def subset(report: Report, most: int = MOST, best: int = BEST, seed: int = 0) -> list[Row]:
    """The rows to time again, at most ``most``: the default, the fastest, the others evenly by rank. Shuffled, so that
    any beginning of them tells the same, but for the default, which is first."""
    rows = [row for row in report.rows if row.us is not None and row.config != report.about["default"]]
    taken: dict[str, Row] = {}
    for each in (report, *by_shape(report)):
        known = sorted((row for row in each.rows if row.us is not None), key=lambda row: row.us or 0.0)
        taken |= {canonical_json(row.config): row for row in known[:best]}
    chosen = [row for row in rows if canonical_json(row.config) in taken]
    rest = sorted((row for row in rows if row not in chosen), key=lambda row: row.us or 0.0)
    room = max(0, min(most - 1 - len(chosen), len(rest)))
    chosen += [rest[place * len(rest) // room] for place in range(room)]
    random.Random(seed).shuffle(chosen)
    return [*([report.default] if report.default else []), *chosen[: most - 1]]


def question(
    about: Mapping[str, Any],
    plans: Sequence[KernelPlan],
    cache: KernelCache,
    rounds: int,
    default_us: Sequence[float] = (),
) -> tuple[Request, list[Artifact]]:
    """What the other GPU is asked of ``plans``, the default first, and the kernels for it. ``default_us``: what the
    first GPU has for the default at each shape; without it kernels are checked before they are timed.

    Raises SystemExit where the default has no kernel in ``cache``.
    """
    found = [Artifact.read(one.artifact) for one in Prebuilt(cache).build(plans, lambda one: None) if one.artifact]
    if not found or found[0].manifest.config != about["default"]:
        raise SystemExit(
            f"{about['op']}: found no kernel of its default in {cache.root}; valid: dsv4-tune compile first"
        )
    names = [f"{KERNELS}/kernels/{about['op']}/{about['arch']}/{each.manifest.key}" for each in found]
    request = Request(
        artifacts=tuple(names[1:]),
        passed=tuple(names[1:]) if default_us else (),
        beside=(names[0],),
        sizes=tuple(about["sizes"]),
        default_us=tuple(default_us) or (1.0,) * len(about["sizes"]),
        rungs=(rounds,),
        policy=about["policy"],
    )
    return request, found


def put(
    folder: Path, about: Mapping[str, Any], request: Request, artifacts: Sequence[Artifact], cache: KernelCache
) -> None:
    """Write a question with its kernels to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    op = about["op"]
    configs = {each.manifest.key: each.manifest.config for each in artifacts}
    (folder / f"{op}.request.json").write_text(request.model_dump_json() + "\n")
    (folder / f"{op}.configs.json").write_text(json.dumps(configs) + "\n")
    (folder / f"{op}.about.json").write_text(json.dumps(about) + "\n")
    for each in artifacts:
        place = folder / "kernels" / op / each.manifest.arch / each.manifest.key
        shutil.copytree(each.folder, place, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.o"))
    if (cache.root / "support").is_dir():
        shutil.copytree(cache.root / "support", folder / "support", dirs_exist_ok=True)
    (folder / "measure.sh").write_text(MEASURE)
    print(f"{op}: {len(artifacts)} configurations at {len(request.sizes)} shapes")


def timed_there(
    about: Mapping[str, Any], events: Iterable[Event], configs: Mapping[str, Config], device: Mapping[str, Any]
) -> dict[str, Any]:
    """A recorded sweep of the GPU ``device``, of the configurations that were timed at every shape. ``configs``: by the
    keys of their kernels.

    A configuration's time is its ratio to the default, in whose company it was timed, times the median of the default
    over the whole run there. What failed is a row with its failure.
    """
    sizes = [dict(each) for each in about["sizes"]]
    timings: dict[str, dict[int, Timing]] = {}
    failed: dict[str, str] = {}
    for event in events:
        key = Path(event.artifact).name
        if event.event == "measured":
            timing = Timing.model_validate(event.data)
            timings.setdefault(key, {})[sizes.index(timing.sizes)] = timing
        elif event.event == "failed" or (event.event == "checked" and not event.data["ok"]):
            failed[key] = str(event.data.get("error") or event.data["findings"][0])
    places = range(len(sizes))
    whole = {key: [each[place] for place in places] for key, each in timings.items() if len(each) == len(sizes)}
    if not whole:
        raise SystemExit(f"{about['op']}: found no configuration timed at every shape; valid: a longer run")
    beside = [[each[place].beside for each in whole.values()] for place in places]
    default_us = [statistics.median(one.default_us for one in at if one is not None) for at in beside]
    rows = [_row(about["default"], default_us, 0.0)]
    for key, each in whole.items():
        ratios = [1.0 if one.beside is None else one.beside.ratio for one in each]
        us = [ratio * default for ratio, default in zip(ratios, default_us, strict=True)]
        rows.append(_row(configs[key], us, max(one.spread for one in each)))
    rows += [{"config": configs[key], "failure": why} for key, why in failed.items() if key in configs]
    return {
        "recorded_schema": RECORDED_SCHEMA,
        "study": f"{about['op']}.{about['arch']} on {device['name']}, some of its space",
        "about": {**about, "device": device},
        "gpu": {},
        "winners": [],
        "rows": rows,
    }


def _row(config: Any, shapes_us: Sequence[float], spread: float) -> dict[str, Any]:
    return {"config": config, "us": geometric_mean(shapes_us), "shapes_us": list(shapes_us), "spread": spread}


@dataclass(frozen=True)
class Told:
    """A comparison at ``sizes`` (all shapes: of the geometric mean). ``default_loss``: by how much the second GPU's
    default is slower than its best of those that were timed."""

    op: str
    sizes: list[dict[str, int]]
    transfer: Transfer
    default_loss: float


def told(first: Report, second: Report) -> list[Told]:
    """Over all shapes, then at each of them; only configurations that both have count."""
    found = []
    for one, other in zip((first, *by_shape(first)), (second, *by_shape(second)), strict=True):
        compared = transfer(Recorded.of(one), Recorded.of(other))
        if compared is not None and other.default is not None and other.best is not None:
            loss = (other.default.us or 0.0) / (other.best.us or 1.0) - 1
            found.append(Told(one.about["op"], list(one.about["sizes"]), compared, loss))
    return found


app = typer.Typer(add_completion=False)
Files = Annotated[list[Path], typer.Argument(help="Recorded sweeps of one GPU.", exists=True, dir_okay=False)]
Folder = Annotated[Path, typer.Argument(help="Where questions and kernels go.", file_okay=False)]
Kernels = Annotated[Path, typer.Option(help="A cache that has the kernels.", exists=True, file_okay=False)]
Most = Annotated[int, typer.Option(min=2, help="Configurations of each space.")]
Rounds = Annotated[int, typer.Option(min=3, help="Timing rounds of each at each shape.")]


@app.command()
def prepare(folder: Folder, files: Files, cache: Kernels, most: Most = MOST, rounds: Rounds = ROUNDS) -> None:
    """Write the questions, kernels and measure.sh that time recorded sweeps again."""
    known = KernelCache(cache)
    for path in files:
        report = read_report(path)
        if report.default is None:
            raise SystemExit(f"{path}: found no times of the default; valid: a sweep that has them")
        about = report.about
        planner = Target(about["op"], about["arch"], None, about["dims"], about["variant"], about["pinned"]).planner()
        plans = [planner.plan(row.config) for row in subset(report, most)]
        put(folder, about, *question(about, plans, known, rounds, report.default.shapes_us), known)


@app.command()
def ask(
    folder: Folder,
    op: Annotated[str, typer.Option(help="The operator.")],
    cache: Kernels,
    shape: Annotated[list[str], typer.Option(help="Sizes, NAME=SIZE,...; repeatable.")],
    dims: Annotated[list[str], typer.Option(help="A dimension, NAME=SIZE; repeatable.")] = [],  # noqa: B006
    pinned: Annotated[list[str], typer.Option("--set", help="Hold a tunable, NAME=VALUE; repeatable.")] = [],  # noqa: B006
    arch: Annotated[str, typer.Option(help="The chip.")] = "sm_90a",
    most: Most = MOST,
    rounds: Rounds = ROUNDS,
) -> None:
    """Write the question, kernels and measure.sh for some configurations of a space that nobody measured."""
    known = KernelCache(cache)
    target = make_target(op, arch, None, dims, [], pinned)
    default, space = target.default(), target.space()
    compiled = [config for config in Prebuilt(known).only(space) or [] if config != default.config]
    drawn = random.Random(0).sample(compiled, min(most - 1, len(compiled)))
    plans = [plan for config in drawn if not isinstance(plan := space.plan(config), Refused)]
    about = {
        "op": op, "arch": arch, "dims": default.dims, "variant": default.variant, "pinned": target.pinned,
        "device": {"name": ""}, "policy": Policy().model_dump(), "sizes": list(shapes(op, shape)),
        "default": default.config, "allowed": space.tally().allowed,
    }  # fmt: skip
    put(folder, about, *question(about, [default, *plans], known, rounds), known)


@app.command()
def keep(
    answers: Annotated[Path, typer.Argument(help="What measure.sh wrote.", exists=True, file_okay=False)],
    files: Files = [],  # noqa: B006
    date: Annotated[str | None, typer.Option(help="Day of the measurement (default: today).")] = None,
    into: Annotated[Path, typer.Option(help="Where the dated files go.")] = FOLDER,
) -> None:
    """Keep the times as dated files, and print how far those of FILE tell them."""
    day = date or datetime.now(UTC).date().isoformat()
    device = json.loads((answers / "device.json").read_text(encoding="utf-8"))
    slug = f"{day}_{device_slug(device['name'])}"
    into.mkdir(parents=True, exist_ok=True)
    recorded = {report.about["op"]: report for report in map(read_report, files)}
    rows: list[Told] = []
    for path in sorted(answers.glob("*.events")):
        op = path.stem
        configs, about = (
            json.loads((answers / f"{op}.{what}.json").read_text(encoding="utf-8")) for what in ("configs", "about")
        )
        there = {"date": day, **timed_there(about, read_events(path), configs, device)}
        place = into / f"{slug}_{op}.json"
        replace_text(place, json.dumps(there, separators=(",", ":")).replace('},{"config"', '},\n{"config"') + "\n")
        print(f"{place}: {len(there['rows'])} configurations")
        rows += told(recorded[op], read_report(place)) if op in recorded else []
    if not rows:
        return
    summary = {"date": day, "device": device, "sources": [path.name for path in files], "rows": list(map(asdict, rows))}
    replace_text(into / f"{slug}_transfer.json", json.dumps(summary, indent=1) + "\n")
    table = Table("operator", "shapes", "configurations", "Spearman", "loss of the first's winner", "of the default")
    for row in rows:
        found = row.transfer
        rank = "-" if found.spearman is None else f"{found.spearman:.3f}"
        losses = (f"{100 * found.loss:.1f} %", f"{100 * row.default_loss:.1f} %")
        table.add_row(row.op, " ".join(map(spelled, row.sizes)), str(found.configurations), rank, *losses)
    Console().print(table)


def read_events(path: Path) -> list[Event]:
    """The worker's lines, but for a last one that was cut off."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [Event.model_validate_json(line) for line in lines if line.endswith("}")]


if __name__ == "__main__":
    app()
