"""The artifact: one folder per compiled kernel, and the manifest that describes it.

An artifact folder holds ``manifest.json``, ``source.py`` (the emitted CuTeDSL), ``kernel.ptx``, ``kernel.cubin``
and ``kernel.so``. This module owns the manifest's schema and nothing else: who writes artifacts is
``dsv4.generator.build``, who finds them is ``dsv4.runtime.cache``, who loads them is ``dsv4.runtime.loader``.

Evidence (checks climbed, measurements) is kept beside the manifest in ``evidence.json``, because it grows after the
kernel was built while the manifest never changes.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

MANIFEST_SCHEMA = 1
SUPPORT_ABI = 1
MANIFEST_NAME = "manifest.json"
EVIDENCE_NAME = "evidence.json"

Scalar = bool | int | float | str
Rung = Literal["spec", "compiled", "emulator", "gpu"]
RUNGS: tuple[Rung, ...] = ("spec", "compiled", "emulator", "gpu")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Argument(_Strict):
    """One argument of the kernel's host function, in call order.

    ``shape`` and ``strides`` hold integers, names of dimensions (``"T"``) or expressions of them (``"Q*K1"``); a stride
    of ``"any"`` is free up to ``stride_multiple`` (in elements). ``align`` is the alignment in bytes that the data
    pointer must have. ``optional`` says that this variant does not have the argument: ``None`` is passed.
    """

    name: str
    kind: Literal["tensor", "scalar"]
    dtype: str
    shape: tuple[int | str, ...] = ()
    strides: tuple[int | str, ...] = ()
    stride_multiple: int = 1
    align: int = 16
    optional: bool = False
    role: Literal["input", "output", "inout", "workspace"] = "input"


class Contract(_Strict):
    """The argument contract, written once, from the spec. ``dims`` maps a name to its static size or to ``None``."""

    dims: dict[str, int | None]
    arguments: tuple[Argument, ...]


class Launch(_Strict):
    """One launch as the compiled host code asked for it, recorded against a stub CUDA runtime."""

    kernel: str
    block: tuple[int, int, int]
    cluster: tuple[int, int, int]
    smem_bytes: int
    pdl: bool


class Resources(_Strict):
    """What one kernel takes. ``tmem_columns`` is 0 on sm_90a. Bytes are per CTA, registers per thread."""

    smem_bytes: int
    tmem_columns: int
    threads: int
    registers: int | None = None
    spill_bytes: int | None = None
    local_bytes: int | None = None


class Manifest(_Strict):
    """Everything the runtime may know about a kernel. Field order is the order in the file."""

    manifest_schema: int = MANIFEST_SCHEMA
    key: str
    name: str
    function: str
    op: str
    arch: str
    compute_capabilities: tuple[tuple[int, int], ...]
    model: str | None
    dims: dict[str, int]
    variant: dict[str, Scalar]
    config: dict[str, Scalar]
    is_default: bool
    bucket: dict[str, tuple[int, int | None]] = Field(default_factory=dict)
    numeric_class: str
    contract: Contract
    launches: tuple[Launch, ...]
    workspace_bytes: int = 0
    predicted: Resources
    used: Resources
    spec_sha256: str
    source_sha256: str
    ptx_sha256: str
    files: dict[str, str]
    toolchain: dict[str, str]
    host_isa: tuple[str, ...]
    glibc: str
    support_abi: int = SUPPORT_ABI
    seconds: dict[str, float]


class Check(_Strict):
    """One rung climbed (or not): what was run, on what, when, with which outcome."""

    rung: Rung
    device: str
    when: str
    ok: bool
    detail: dict[str, Any] = Field(default_factory=dict)


class Evidence(_Strict):
    checks: tuple[Check, ...] = ()
    measurements: tuple[dict[str, Any], ...] = ()

    def rungs(self) -> tuple[Rung, ...]:
        """Rungs whose newest check passed, in climbing order."""
        newest = {check.rung: check.ok for check in self.checks}
        return tuple(rung for rung in RUNGS if newest.get(rung))


def sha256_file(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def canonical_json(value: Any) -> str:
    """The one spelling of ``value`` that hashes are taken of: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def digest(value: Any) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()
