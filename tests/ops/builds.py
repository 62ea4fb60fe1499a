"""What the tests of kernels share: build a few kernels once, look at their PTX, run their cases."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch

from dsv4.generator.build import BuildResult, build
from dsv4.generator.kernel import KernelPlan
from dsv4.generator.verify import cases
from dsv4.generator.verify.case import Case
from dsv4.generator.verify.emulator import EmulatedKernel
from dsv4.generator.verify.run import run_case
from dsv4.runtime.artifact import Manifest
from dsv4.runtime.cache import Artifact


def build_all(plans: Sequence[KernelPlan], root: Path) -> list[BuildResult]:
    """Every plan compiled, or an AssertionError with the compiler's words."""
    results = build(list(plans), cache_root=root, jobs=1)
    for result in results:
        assert result.error is None, result.error
    return results


def folder(result: BuildResult) -> Path:
    assert result.artifact is not None
    return result.artifact


def artifact(result: BuildResult) -> Artifact:
    return Artifact.read(folder(result))


def manifest(result: BuildResult) -> Manifest:
    return artifact(result).manifest


def ptx(result: BuildResult) -> str:
    return (folder(result) / "kernel.ptx").read_text()


def takes_what_was_predicted(result: BuildResult) -> None:
    made = manifest(result)
    assert made.used.spill_bytes == 0 and made.used.local_bytes == 0
    assert made.used.smem_bytes == made.predicted.smem_bytes
    assert made.used.threads == made.predicted.threads
    (launch,) = made.launches
    assert launch.pdl == made.variant["pdl"]


def widths(text: str, opcode: str) -> set[str]:
    """The vector widths and types of an opcode's uses, such as ``{"v4.b32"}``."""
    return {match.removeprefix(opcode).lstrip(".") for match in re.findall(rf"\b{re.escape(opcode)}\S*", text)}


def findings(result: BuildResult, numbers: Sequence[int], schedule: str = "mixed:0") -> list[str]:
    """What the emulator and the judge say of the cases with these numbers (of those that are not empty)."""
    artifact = Artifact.read(folder(result))
    made = artifact.manifest
    kernel = EmulatedKernel(artifact)
    kernel.schedule = schedule
    found = cases(made.op, made.dims, made.variant, config=made.config)
    said = []
    for number in numbers:
        verdict = run_case(kernel, made.contract, found[number])
        assert kernel.report is not None
        said += [f"{found[number].name}: {finding.line()}" for finding in kernel.report.findings]
        said += [f"{found[number].name}: {text}" for text in verdict.findings]
    return said


def right_outputs(case: Case) -> dict[str, torch.Tensor]:
    """The float64 answers, rounded to the outputs' dtypes."""
    return {name: case.expected[name].to(layout.dtype) for name, layout in case.outputs.items()}
