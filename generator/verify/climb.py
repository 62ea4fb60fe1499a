"""Which rung of truth a kernel stands on: run the check that this machine can run, and write it into the evidence."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass

import torch

from dsv4.generator.build.evidence import add_check, new_check
from dsv4.generator.ptx_checks import check_ptx
from dsv4.runtime.artifact import Manifest
from dsv4.runtime.cache import Artifact
from dsv4.runtime.errors import ArtifactRefused
from dsv4.runtime.loader import verify

DEVICES = ("auto", "cpu", "gpu")


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


def verify_artifact(artifact: Artifact, device: str, *, seed: int = 0, timeout: float = 120.0) -> Report:
    """Check ``artifact`` on ``device`` (``cpu`` or ``gpu``) and record the outcome.

    On the CPU nothing is executed: the artifact's integrity, its predicted against its used resources and the static
    rules over its PTX. On the GPU all cases of the operator run in a child process, killed after ``timeout`` seconds.
    """
    report = _on_gpu(artifact, seed, timeout) if device == "gpu" else _on_cpu(artifact)
    check = new_check(
        "gpu" if device == "gpu" else "compiled",
        report.ok,
        device=report.device if device == "gpu" else None,
        cases=report.cases,
        cosine=report.cosine,
        rel_l2=report.rel_l2,
        max_abs=report.max_abs,
        findings=list(report.findings[:8]),
        seed=seed,
    )
    add_check(artifact.folder, check)
    return report


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


def _on_gpu(artifact: Artifact, seed: int, timeout: float) -> Report:
    manifest = artifact.manifest
    command = [sys.executable, "-m", "dsv4.generator.verify.child", str(artifact.folder), "--seed", str(seed)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        printed, complaints = child.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        return Report(manifest, "gpu", (f"killed after {timeout:.0f} s: the kernel hangs or is far too slow",))
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    if child.returncode:
        last = complaints.strip().splitlines()[-1] if complaints.strip() else f"exit code {child.returncode}"
        return Report(manifest, "gpu", (f"the kernel's process failed: {last}",))
    found = json.loads(printed.splitlines()[-1])
    return Report(
        manifest,
        found["device"],
        tuple(found["findings"]),
        found["cases"],
        found["cosine"],
        found["rel_l2"],
        found["max_abs"],
    )
