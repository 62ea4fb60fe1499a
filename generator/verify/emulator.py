"""Verify kernels in the emulator: the operator's cases against float64, under several schedules, with what was found.

The same cases and the same judge as on a GPU, through the kernel's real host code, for either chip on any machine.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from dsv4.emulator.arguments import Argument
from dsv4.emulator.client import Client, Object
from dsv4.emulator.errors import EmulatorError
from dsv4.emulator.launcher import bound, run, schedule_names
from dsv4.emulator.objects import from_artifact
from dsv4.emulator.outcome import Finding, Report
from dsv4.emulator.policy import FIXED
from dsv4.emulator.policy import schedules as policies
from dsv4.generator.verify import registry
from dsv4.generator.verify.blame import wrong_element
from dsv4.generator.verify.case import Case, Verdict
from dsv4.generator.verify.run import run_case
from dsv4.runtime.artifact import Contract, Manifest
from dsv4.runtime.cache import Artifact
from dsv4.runtime.errors import ArtifactRefused

SCHEDULES = 9
"""The fixed schedules, one warp starved, one seeded mix."""
HANG = "hang"
WRONG_VALUES = "wrong values"
PREFLIGHT_SCHEDULES = ("late", "early", "mixed:0")


@dataclass(frozen=True)
class Run:
    """One case under one schedule. ``case`` is its number in the operator's list."""

    case: int
    schedule: str


@dataclass(frozen=True)
class CaseFinding:
    """What a run showed first. ``command`` repeats it, ``repeats`` counts the other runs that showed the same.

    ``findings`` are the emulator's (of a hang one for each warp that waits); there are none where the judge of the
    values, or an error that kept the kernel from its end, says it.
    """

    case: int
    case_name: str
    schedule: str
    message: str
    command: str
    findings: tuple[Finding, ...] = ()
    repeats: int = 0

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.case_name}: {self.message} — again: {self.command}"


@dataclass
class Outcome:
    """What all runs of one artifact showed; the figures are the worst ones, ``None`` where nothing ran to its end."""

    runs: int = 0
    cases: int = 0
    cosine: float | None = None
    rel_l2: float | None = None
    max_abs: float | None = None
    instructions: int = 0
    seconds: float = 0.0
    findings: list[CaseFinding] = field(default_factory=list)

    def judged(self, verdict: Verdict) -> None:
        self.cosine = verdict.cosine if self.cosine is None else min(self.cosine, verdict.cosine)
        self.rel_l2 = max(self.rel_l2 or 0.0, verdict.rel_l2)
        self.max_abs = max(self.max_abs or 0.0, verdict.max_abs)

    def add(self, found: CaseFinding) -> None:
        """Keep a finding, or count it where the emulator has found the same before."""
        for index, known in enumerate(self.findings):
            if found.findings and known.findings and _place(found.findings[0]) == _place(known.findings[0]):
                self.findings[index] = replace(known, repeats=known.repeats + 1)
                return
        self.findings.append(found)


def _place(finding: Finding) -> tuple[str, int, int, int]:
    return finding.kind, finding.launch, finding.ptx_line, finding.other_ptx_line


class EmulatedObject:
    """A compiled kernel that ``run_case`` can call; ``report`` is the last call's.

    ``prior`` names tensors that the launch before this one may still be using (a kernel with PDL must wait for it).
    """

    def __init__(
        self,
        made: Object,
        contract: Contract,
        *,
        prior: Collection[str] = (),
        client: Client | None = None,
        **options: Any,
    ) -> None:
        self._object, self._contract, self._prior = made, contract, prior
        self._client, self._options = client, options
        self.schedule = FIXED[0].name
        self.probes: Sequence[tuple[str, Sequence[int]]] = ()
        self.report: Report | None = None

    def __call__(self, *arguments: Any) -> None:
        named = dict(zip((each.name for each in self._contract.arguments), arguments, strict=True))
        values = bound(self._contract, {name: value for name, value in named.items() if value is not None})
        values = [
            replace(each, prior=True) if isinstance(each, Argument) and each.name in self._prior else each
            for each in values
        ]
        self.report = run(
            self._object, *values, schedules=self.schedule, probes=self.probes, client=self._client, **self._options
        )


class EmulatedKernel(EmulatedObject):
    """A kernel of the cache that ``run_case`` can call."""

    def __init__(self, artifact: Artifact, **options: Any) -> None:
        super().__init__(from_artifact(artifact), artifact.manifest.contract, **options)


def plan_runs(cases: int, thorough: Sequence[int], schedules: int, *, seed: int, warps: int) -> list[Run]:
    """Each of so many ``cases`` under one schedule, another for each, and the ``thorough`` ones under ``schedules``.

    ``warps`` of a CTA: those that are starved in turn.
    """
    names = [policy.name for policy in policies(max(schedules, cases), seed, warps)]
    once = [Run(index, names[index]) for index in range(cases) if index not in thorough]
    return once + [Run(index, name) for index in thorough if index < cases for name in names[:schedules]]


def verify_on_emulator(
    artifact: Artifact,
    *,
    seed: int = 0,
    schedules: int = SCHEDULES,
    case: int | None = None,
    schedule: str | None = None,
    seconds: float = 120.0,
    timeline: Path | None = None,
    client: Client | None = None,
) -> Outcome:
    """Run the artifact's cases (:func:`plan_runs`); with ``case`` only that one, with ``schedule`` only under that one.

    ``seconds`` bounds each run, ``timeline`` names a file that the last run is drawn to. Raises ValueError for a case
    that there is not, ArgumentRefused for a schedule that there is not. Whatever keeps the kernel from running is a
    finding.
    """
    manifest = artifact.manifest
    found = registry.cases(manifest.op, manifest.dims, manifest.variant, config=manifest.config, seed=seed)
    if case is not None and not 0 <= case < len(found):
        raise ValueError(f"case: found {case}; valid: 0 to {len(found) - 1}")
    warps = max(-(-math.prod(launch.block) // 32) for launch in manifest.launches)
    names = [policy.name for policy in policies(schedules, seed, warps)]
    if schedule is not None:
        names = schedule_names(schedule, seed)
        runs = [Run(index, names[0]) for index in range(len(found))]
    else:
        runs = plan_runs(len(found), registry.thorough(manifest.op), schedules, seed=seed, warps=warps)
    if case is not None:
        runs = [Run(case, name) for name in names]
    return _run(artifact, found, runs, seed=seed, client=client, seconds=seconds, timeline=timeline)


def preflight(artifact: Artifact | Path, *, seed: int = 0, seconds: float = 60.0) -> list[str]:
    """Findings of a quick look: the operator's two small cases of several tiles, under three schedules.

    One line for each finding, with the command that shows it again; empty for a kernel that may be tried on a GPU.
    """
    if not isinstance(artifact, Artifact):
        artifact = Artifact.read(artifact)
    manifest = artifact.manifest
    found = registry.cases(manifest.op, manifest.dims, manifest.variant, config=manifest.config, seed=seed)
    runs = [Run(index, name) for index in registry.thorough(manifest.op) for name in PREFLIGHT_SCHEDULES]
    return [str(each) for each in _run(artifact, found, runs, seed=seed, seconds=seconds).findings]


def command(manifest: Manifest, run: Run, seed: int) -> str:
    """The command line that repeats a run."""
    return (
        f"dsv4-gen verify --device emulator --kernel {manifest.key[:12]} --case {run.case} --schedule {run.schedule} "
        f"--seed {seed}"
    )


def _run(
    artifact: Artifact,
    cases: Sequence[Case],
    runs: Sequence[Run],
    *,
    seed: int,
    client: Client | None = None,
    **options: Any,
) -> Outcome:
    outcome = Outcome(cases=len({run.case for run in runs}))
    began = time.monotonic()
    try:
        kernel = EmulatedKernel(artifact, client=client, **options)
    except (EmulatorError, ArtifactRefused) as refused:
        outcome.findings.append(CaseFinding(-1, "no case", "", str(refused), command(artifact.manifest, runs[0], seed)))
        return outcome
    for each in runs:
        outcome.runs += 1
        _run_one(kernel, artifact, cases[each.case], each, seed, outcome)
        if outcome.findings and outcome.findings[-1].message.startswith("killed:"):
            break  # the next run would take as long
    outcome.seconds = time.monotonic() - began
    return outcome


def _run_one(kernel: EmulatedKernel, artifact: Artifact, case: Case, run: Run, seed: int, outcome: Outcome) -> None:
    """What the emulator finds comes first; the judge speaks where it finds nothing, or found values too."""
    kernel.schedule, kernel.report = run.schedule, None
    again = command(artifact.manifest, run, seed)

    def add(message: str, *findings: Finding) -> None:
        outcome.add(CaseFinding(run.case, case.name, run.schedule, message, again, findings))

    try:
        verdict = run_case(kernel, artifact.manifest.contract, case)
    except EmulatorError as error:
        add(str(error))
        return
    report = kernel.report
    assert report is not None
    outcome.instructions += report.stats.get("instructions", 0)
    waiting = [finding for finding in report.findings if finding.kind == HANG]
    for finding in report.findings:
        if finding.kind != HANG:
            add(finding.line(), finding)
    if waiting:
        more = f" (and {len(waiting) - 1} more warps wait)" if len(waiting) > 1 else ""
        add(f"{waiting[0].line()}{more}", *waiting)
    if not report.findings:
        outcome.judged(verdict)
        if verdict.ok:
            return
        wrong = wrong_element(kernel, artifact.manifest.contract, case, artifact.manifest.config)
        blamed = f"; {wrong}" if wrong else ""
        for text in verdict.findings:
            add(f"{WRONG_VALUES}: {text}{blamed} [schedule {run.schedule}]")
