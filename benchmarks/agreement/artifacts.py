"""Our compiled sm_90a kernels on their verification cases: outputs of the GPU, and of the emulator."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dsv4.generator.verify import cases
from dsv4.generator.verify.case import Case, PoisonedOutputs
from dsv4.generator.verify.run import bind
from dsv4.runtime.cache import Artifact

ARCH = "sm_90a"
SEED = 0


def artifacts(root: Path) -> list[Artifact]:
    """The sm_90a kernels of a cache, without those for programmatic dependent launch (they differ in the launch)."""
    found = [Artifact.read(folder) for folder in sorted(root.glob(f"kernels/*/{ARCH}/*")) if folder.is_dir()]
    return sorted((a for a in found if not a.manifest.variant.get("pdl")), key=label)


def label(artifact: Artifact) -> str:
    manifest = artifact.manifest
    dims = ",".join(f"{name}={size}" for name, size in sorted(manifest.dims.items()))
    flags = ",".join(name for name, value in sorted(manifest.variant.items()) if value is True)
    return f"{manifest.op} {dims} {flags or 'plain'}"


def cases_of(artifact: Artifact, device: str) -> list[Case]:
    manifest = artifact.manifest
    return cases(manifest.op, manifest.dims, manifest.variant, config=manifest.config, seed=SEED, device=device)


def input_hash(case: Case) -> str:
    """A hash of the bytes of every tensor among the inputs, in storage order, gaps included."""
    digest = hashlib.sha256()
    for name, value in sorted(case.inputs.items()):
        if isinstance(value, torch.Tensor):
            whole = value.as_strided((value.untyped_storage().nbytes() // value.element_size(),), (1,), 0)
            digest.update(f"{name} {value.dtype} {tuple(value.shape)} {value.stride()}".encode())
            digest.update(whole.cpu().view(torch.uint8).numpy().tobytes())
        else:
            digest.update(f"{name} {value}".encode())
    return digest.hexdigest()[:16]


def bits(tensor: torch.Tensor) -> np.ndarray:
    """A tensor's bits as unsigned integers of its element size."""
    kinds: dict[int, Any] = {2: (torch.int16, np.uint16), 4: (torch.int32, np.uint32)}
    as_torch, as_numpy = kinds[tensor.element_size()]
    found: np.ndarray = tensor.contiguous().cpu().view(as_torch).numpy().view(as_numpy)
    return found


def on_gpu(artifact: Artifact) -> Iterator[tuple[Case, dict[str, np.ndarray], list[str]]]:
    """Each case with the outputs' bits, and what was written where it should not be."""
    from dsv4.runtime.loader import load

    kernel = load(artifact, torch.cuda.get_device_capability())
    for case in cases_of(artifact, "cuda"):
        outputs = PoisonedOutputs(case.outputs, case.device)
        kernel(*bind(artifact.manifest.contract, {**case.inputs, **outputs.views, **case.inouts}))
        torch.cuda.synchronize()
        yield case, {name: bits(view) for name, view in outputs.views.items()}, outputs.findings()


def on_emulator(artifact: Artifact, schedule: str) -> Iterator[tuple[Case, dict[str, np.ndarray], list[str]]]:
    """The same on the emulator, with its findings."""
    from dsv4.generator.verify.emulator import EmulatedKernel

    kernel = EmulatedKernel(artifact)
    kernel.schedule = schedule
    for case in cases_of(artifact, "cpu"):
        outputs = PoisonedOutputs(case.outputs, case.device)
        kernel(*bind(artifact.manifest.contract, {**case.inputs, **outputs.views, **case.inouts}))
        assert kernel.report is not None
        findings = outputs.findings() + [finding.line() for finding in kernel.report.findings]
        yield case, {name: bits(view) for name, view in outputs.views.items()}, findings
