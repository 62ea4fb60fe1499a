"""Which rung of truth a kernel stands on: run the check that this machine can run, and write it into the evidence."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from dsv4.generator.build.evidence import add_check, new_check
from dsv4.generator.ptx_checks import check_ptx
from dsv4.generator.verify.emulator import SCHEDULES, CaseFinding, verify_on_emulator
from dsv4.generator.verify.gpu_client import GpuClient, GpuFailure
from dsv4.runtime.artifact import Check, Manifest, Rung
from dsv4.runtime.cache import Artifact
from dsv4.runtime.errors import ArtifactRefused
from dsv4.runtime.loader import verify

DEVICES = ("auto", "cpu", "gpu", "emulator")


@dataclass(frozen=True)
class Emulation:
    """How to run on the emulator. With ``case`` or ``schedule`` only a part is run, and no evidence is written."""

    schedules: int = SCHEDULES
    case: int | None = None
    schedule: str | None = None
    timeline: Path | None = None

    @property
    def is_part(self) -> bool:
        return self.case is not None or self.schedule is not None


@dataclass(frozen=True)
class Report:
    """What was found of one kernel on one device. The figures are ``None`` where nothing was executed."""

    manifest: Manifest
    device: str
    findings: tuple[str, ...]
    cases: int = 0
    cosine: float | None = None
    rel_l2: float | None = None
    max_abs: float | None = None
    runs: int = 0
    seconds: float = 0.0
    detail: tuple[CaseFinding, ...] = field(default=(), repr=False)
    folder: Path | None = None

    @property
    def ok(self) -> bool:
        return not self.findings


def pick_device(asked: str, artifact: Artifact) -> str:
    """``auto`` is the GPU where one of the kernel's arch is present, else the CPU."""
    if asked != "auto":
        return asked
    if not torch.cuda.is_available():
        return "cpu"
    return "gpu" if torch.cuda.get_device_capability() in artifact.manifest.compute_capabilities else "cpu"


def verify_artifacts(
    artifacts: Iterable[Artifact],
    device: str,
    *,
    seed: int = 0,
    timeout: float = 120.0,
    emulation: Emulation | None = None,
) -> Iterator[Report]:
    """Check each artifact on ``device`` (one of DEVICES), record the outcome in its evidence, and yield the report.

    On the CPU nothing is executed: the artifact's integrity, its predicted against its used resources and the static
    rules over its PTX. On the GPU all cases of the operator run in a worker process, which is killed when it is silent
    for ``timeout`` seconds: only the kernel that it was at fails. On the emulator they run on this machine's processor,
    whatever chip the kernel is for; ``timeout`` bounds each case.
    """
    emulation = emulation or Emulation()
    with GpuClient(seed=seed, timeout=timeout) as client:
        for artifact in artifacts:
            picked = pick_device(device, artifact)
            if picked == "emulator":
                report = _on_emulator(artifact, seed, timeout, emulation)
            else:
                report = _on_gpu(artifact, client) if picked == "gpu" else _on_cpu(artifact)
            if picked != "emulator" or not emulation.is_part:
                add_check(artifact.folder, _check(picked, report, seed, emulation))
            yield report


def _check(picked: str, report: Report, seed: int, emulation: Emulation) -> Check:
    rungs: dict[str, Rung] = {"gpu": "gpu", "cpu": "compiled", "emulator": "emulator"}
    more = {"runs": report.runs, "schedules": emulation.schedules} if picked == "emulator" else {}
    return new_check(
        rungs[picked],
        report.ok,
        device=report.device if picked == "gpu" else None,
        cases=report.cases,
        cosine=report.cosine,
        rel_l2=report.rel_l2,
        max_abs=report.max_abs,
        findings=list(report.findings[:8]),
        seed=seed,
        **more,
    )


def _on_emulator(artifact: Artifact, seed: int, timeout: float, emulation: Emulation) -> Report:
    found = verify_on_emulator(
        artifact,
        seed=seed,
        schedules=emulation.schedules,
        case=emulation.case,
        schedule=emulation.schedule,
        seconds=timeout,
        timeline=emulation.timeline,
    )
    return Report(
        artifact.manifest,
        "emulator",
        tuple(map(str, found.findings)),
        found.cases,
        found.cosine,
        found.rel_l2,
        found.max_abs,
        found.runs,
        found.seconds,
        tuple(found.findings),
        artifact.folder,
    )


def _on_cpu(artifact: Artifact) -> Report:
    manifest = artifact.manifest
    findings = []
    try:
        verify(artifact, manifest.compute_capabilities[0])
    except ArtifactRefused as refused:
        findings.append(str(refused))
    for what in ("smem_bytes", "tmem_columns"):
        predicted, used = getattr(manifest.predicted, what), getattr(manifest.used, what)
        if predicted != used:
            findings.append(f"{what}: predicted {predicted}, the compiled kernel asks for {used}")
    if not findings:
        findings += map(str, check_ptx((artifact.folder / "kernel.ptx").read_text(), manifest.predicted.tmem_columns))
    return Report(manifest, "cpu", tuple(findings))


def _on_gpu(artifact: Artifact, client: GpuClient) -> Report:
    manifest = artifact.manifest
    try:
        found = client.verify(artifact.folder)
    except GpuFailure as failure:
        return Report(manifest, "gpu", (str(failure),))
    return Report(
        manifest,
        found["device"],
        tuple(found["findings"]),
        found["cases"],
        found["cosine"],
        found["rel_l2"],
        found["max_abs"],
    )
