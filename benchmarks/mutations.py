"""Does the emulator find planted mistakes? ``python -m benchmarks.mutations --write`` for the dated result file.

Every mutation (``dsv4.emulator.mutations``) of the default kernels is run over small cases under nine schedules, until
something is found. What nothing finds is held against the table of reasons, ``benchmarks/mutation_reasons.yaml``.

The kernels are those of fmha and RMSNorm; with ``--operators`` one of each other operator, at its smallest sizes; with
``--attention`` those of attention over gathered rows: two small cases under five schedules, long ones under two.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.table import Table

from benchmarks.attention_kinds import attention_kernels, long_cases
from benchmarks.emulator_seeds import ALL
from benchmarks.harness.check_file import check_path, head
from benchmarks.harness.result import replace_text
from benchmarks.mutated_kernels import kernels, operator_kernels
from dsv4.emulator.mutations import FAMILIES, Mutation
from dsv4.generator.build import build
from dsv4.generator.ptx_checks import check_ptx
from dsv4.generator.verify.emulator import SCHEDULES
from dsv4.generator.verify.mutation_run import ERROR, Subject, Trial, attempt_all, subject
from dsv4.runtime.artifact import Manifest, Scalar
from dsv4.runtime.cache import Artifact, KernelCache

REASONS = Path(__file__).with_name("mutation_reasons.yaml")
EQUIVALENT, NOT_REACHED, NOT_JUDGED, MISSED = KINDS = ("equivalent", "not_reached", "not_judged", "missed")
STATIC = "static"
ATTENTION_SCHEDULES = 5
"""Copies that are late when products are not, and the other way round: a slot that is freed too early, or as another
one, shows as a hang in one of the two."""


@dataclass(frozen=True)
class Reason:
    """Why mutations survive: patterns of OP/ARCH/ID, one of KINDS, the text.

    ``where`` limits them to kernels with these flags, dimensions or tunables.
    """

    match: tuple[str, ...]
    kind: str
    reason: str
    where: Mapping[str, Scalar] = field(default_factory=dict)

    def fits(self, manifest: Manifest, mutation: Mutation | SimpleNamespace) -> bool:
        known = {**manifest.config, **manifest.dims, **manifest.variant}
        if any(known.get(name) != value for name, value in self.where.items()):
            return False
        name = f"{manifest.op}/{manifest.arch}/{mutation.id}"
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.match)


def read_reasons(path: Path = REASONS) -> list[Reason]:
    """The table. Raises ValueError for a kind that there is not or an entry without a pattern or a text."""
    reasons = []
    for raw in yaml.safe_load(path.read_text()):
        made = Reason(tuple(raw["match"]), raw["kind"], " ".join(raw["reason"].split()), raw.get("where", {}))
        if made.kind not in KINDS or not made.match or not made.reason:
            raise ValueError(
                f"{path.name}: {made.match}: kind: found {made.kind}; valid: {', '.join(KINDS)}, with a reason"
            )
        reasons.append(made)
    return reasons


@dataclass(frozen=True)
class Survivor:
    """A mutation that no run showed. ``static`` names the static rules over its PTX that do, ``reason`` says why."""

    trial: Trial
    static: tuple[str, ...] = ()
    reason: Reason | None = None

    @property
    def kind(self) -> str:
        """``static``, one of KINDS, or empty for what nobody explains."""
        return STATIC if self.static else self.reason.kind if self.reason else ""


def explain(whole: Subject, trial: Trial, reasons: Sequence[Reason]) -> Survivor:
    """What else is known of a mutation that no run showed."""
    columns = whole.manifest.predicted.tmem_columns
    static: tuple[str, ...] = ()
    if "{" not in trial.mutation.after:  # their reader does not know braces within a line
        before = {(each.check, each.line) for each in check_ptx(whole.text, columns)}
        after = {(each.check, each.line) for each in check_ptx(trial.mutation.apply(whole.text), columns)}
        static = tuple(sorted({check for check, _ in after - before}))  # some rules do not fit every kernel
    fitting = [reason for reason in reasons if reason.fits(whole.manifest, trial.mutation)]
    return Survivor(trial, static, fitting[0] if fitting else None)


def run_kernel(
    artifact: Artifact, reasons: Sequence[Reason], jobs: int, console: Console, *, few: bool = False
) -> dict[str, Any]:
    """All mutations of one kernel, as plain data for the result file; with ``few`` over small and long cases only."""
    if few:
        by_turns = artifact.manifest.config.get("splits") == 0  # kernels whose only cases are the long ones
        many = ATTENTION_SCHEDULES if by_turns else 2
        more = long_cases(artifact.manifest)
        whole = subject(artifact, schedules=ATTENTION_SCHEDULES, wide=False, more=more, more_schedules=many)
    else:
        whole = subject(artifact)
    chosen = whole.mutations()
    trials = []
    with console.status(f"{whole.name}: {len(chosen)} mutations") as status:
        for trial in attempt_all(whole, chosen, jobs=jobs):
            trials.append(trial)
            status.update(f"{whole.name}: {len(trials)} of {len(chosen)} mutations")
    return summary(whole, trials, reasons)


def summary(whole: Subject, trials: Sequence[Trial], reasons: Sequence[Reason]) -> dict[str, Any]:
    """Counts, shares and every survivor. ``of_wrong`` leaves out what is argued to be right or never executed."""
    manifest = whole.manifest
    survivors = [explain(whole, trial, reasons) for trial in trials if not trial.category]
    kinds = Counter(each.kind or "unexplained" for each in survivors)
    found = sum(trial.found for trial in trials)
    families = {
        family: [sum(t.found for t in trials if t.mutation.family == family), n]
        for family in FAMILIES
        if (n := sum(t.mutation.family == family for t in trials))
    }
    return {
        "name": manifest.name, "op": manifest.op, "arch": manifest.arch, "dims": manifest.dims,
        "variant": manifest.variant, "config": manifest.config, "ptx_sha256": manifest.ptx_sha256,
        "cases": list(dict.fromkeys(case.name for case, _ in whole.runs)), "runs_at_most": len(whole.runs),
        "mutations": len(trials), "found": found, "survived": dict(sorted(kinds.items())),
        "errors": sum(trial.category == ERROR for trial in trials),
        "share": shares(len(trials), found, kinds),
        "found_by": dict(Counter(t.category for t in trials if t.found).most_common()),
        "points_at": dict(Counter(t.place or "no line" for t in trials if t.found).most_common()),
        "in_first_schedule": sum(t.found and t.schedule == whole.runs[0][1] for t in trials),
        "families": families,
        "survivors": [
            {
                "id": each.trial.mutation.id, "ptx_line": each.trial.mutation.ptx_line,
                "source": each.trial.mutation.source.rpartition("/")[2],
                "description": each.trial.mutation.description, "kind": each.kind, "static_rules": list(each.static),
                "reason": each.reason.reason if each.reason else "",
            }
            for each in survivors
        ],
        "errors_said": [t.message for t in trials if t.category == ERROR],
        "rows": [[t.mutation.id, t.category, t.place, t.schedule, t.runs] for t in trials],
    }  # fmt: skip


def explained_anew(row: Mapping[str, Any], reasons: Sequence[Reason]) -> dict[str, Any]:
    """A kernel's entry of a result file with its survivors held against the table as it is now; nothing is run."""
    manifest: Any = SimpleNamespace(**{name: row[name] for name in ("op", "arch", "dims", "variant", "config")})
    survivors = []
    for each in row["survivors"]:
        fitting = [reason for reason in reasons if reason.fits(manifest, SimpleNamespace(id=each["id"]))]
        reason = fitting[0] if fitting else None
        kind = STATIC if each["static_rules"] else reason.kind if reason else ""
        survivors.append({**each, "kind": kind, "reason": reason.reason if reason else ""})
    kinds = Counter(each["kind"] or "unexplained" for each in survivors)
    return {
        **row,
        "survived": dict(sorted(kinds.items())),
        "share": shares(row["mutations"], row["found"], kinds),
        "survivors": survivors,
    }


def shares(mutated: int, found: int, kinds: Mapping[str, int]) -> dict[str, float]:
    """Of all mutations, and of those not argued to be right or never executed, without and with static rules."""
    wrong = mutated - kinds.get(EQUIVALENT, 0) - kinds.get(NOT_REACHED, 0)
    return {
        "of_all": round(found / mutated, 4),
        "of_wrong": round(found / wrong, 4) if wrong else 1.0,
        "of_wrong_with_static": round((found + kinds.get(STATIC, 0)) / wrong, 4) if wrong else 1.0,
    }


def printed(results: Sequence[Mapping[str, Any]]) -> Table:
    table = Table("kernel", "mutations", "found", "of all", "of wrong", "with static rules", "survived", "unexplained")
    for each in results:
        share = each["share"]
        rest = ", ".join(
            f"{n} {kind.replace('_', ' ')}" for kind, n in each["survived"].items() if kind != "unexplained"
        )
        table.add_row(
            each["name"], str(each["mutations"]), str(each["found"]), f"{share['of_all']:.1%}",
            f"{share['of_wrong']:.1%}", f"{share['of_wrong_with_static']:.1%}", rest or "none",
            str(each["survived"].get("unexplained", 0)),
        )  # fmt: skip
    return table


def stale(reasons: Sequence[Reason], results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Patterns of the table for these operators that no survivor fits any more."""
    ops = {each["op"] for each in results}
    names = [f"{each['op']}/{each['arch']}/{row['id']}" for each in results for row in each["survivors"]]
    patterns = (
        pattern for reason in reasons for pattern in reason.match if fnmatch.filter(ops, pattern.partition("/")[0])
    )
    return [pattern for pattern in patterns if not any(fnmatch.fnmatchcase(name, pattern) for name in names)]


def main(
    write: Annotated[
        bool, typer.Option("--write", help="Write the dated result file, after each kernel; with --only into it.")
    ] = False,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Mutations at a time.")] = len(os.sched_getaffinity(0)),
    operators: Annotated[
        bool, typer.Option("--operators", help="One kernel of each operator but attention and RMSNorm.")
    ] = False,
    attention: Annotated[bool, typer.Option("--attention", help="The kinds of attention over gathered rows.")] = False,
    op: Annotated[
        list[str] | None, typer.Option("--op", help="With --operators only those with this name (* and ?; ! for not).")
    ] = None,
    only: Annotated[str, typer.Option("--only", help="Kernels whose name contains this.")] = "",
    anew: Annotated[
        bool, typer.Option("--explain", help="Run nothing: hold today's file against the table of reasons anew.")
    ] = False,
    cache: Annotated[Path | None, typer.Option("--cache", help="Build in this kernel cache.")] = None,
) -> None:
    """Mutate the default kernels, print what was found, and with --write keep it under benchmarks/results/checks."""
    console = Console(width=150)
    reasons, now = read_reasons(), datetime.now(UTC)
    group = "_operators" if operators else "_attention" if attention else ""
    path = check_path(now, "emulator_mutations" + group)
    every = operator_kernels() if operators else attention_kernels() if attention else kernels()
    plans = [each for each in (operator_kernels(op or ALL) if operators else every) if only in each.name]
    if anew:
        held = json.loads(path.read_text())
        rows = [explained_anew(each, reasons) for each in held["kernels"]]
        unused = stale(reasons, rows) if len(rows) == len(every) else []
        replace_text(path, dumped({**held, "total": total(rows), "stale_reasons": unused, "kernels": rows}))
        console.print(printed(rows))
        return
    goes_on = write and (only or op) and path.exists()
    results: list[dict[str, Any]] = json.loads(path.read_text())["kernels"] if goes_on else []
    for built in build(plans, cache_root=cache or KernelCache().root, jobs=min(jobs, 2)):
        if built.artifact is None:
            raise RuntimeError(f"{built.plan.name}: {built.error}")
        made = run_kernel(Artifact.read(built.artifact), reasons, jobs, console, few=attention)
        results = [each for each in results if each["name"] != made["name"]] + [made]
        console.print(printed([made]))
        for survivor in made["survivors"]:
            if not survivor["kind"]:
                console.print(f"unexplained: {survivor['id']} ({survivor['description']})", markup=False)
        if write:
            unused = stale(reasons, results) if len(results) == len(every) else []
            body = {"families": FAMILIES, "total": total(results), "stale_reasons": unused, "kernels": results}
            schedules = ATTENTION_SCHEDULES if attention else SCHEDULES
            replace_text(path, dumped({**head(now), "schedules": schedules, **body}))
    if write:
        console.print(f"{path.name} is written")


def total(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Sums over all kernels."""
    kinds: Counter[str] = Counter()
    for each in results:
        kinds.update(each["survived"])
    mutated, found = (sum(each[name] for each in results) for name in ("mutations", "found"))
    share = {f"share_{name}": value for name, value in shares(mutated, found, kinds).items()}
    return {"mutations": mutated, "found": found, "survived": dict(sorted(kinds.items())), **share}


def dumped(result: Mapping[str, Any]) -> str:
    """JSON text with the innermost lists on one line each."""
    text = json.dumps(result, indent=1, ensure_ascii=False)
    innermost = re.compile(r"\[\n\s+([^\[\]{}]*?)\n\s+\]")
    return innermost.sub(lambda match: "[" + re.sub(r"\s*\n\s*", " ", match[1]) + "]", text) + "\n"


if __name__ == "__main__":
    typer.run(main)
