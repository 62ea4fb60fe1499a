"""Load an artifact's host function, after everything that can be known about it has been checked.

A ``kernel.so`` is linked against nothing: it finds the CUDA runtime through our support library, and that through the
libcudart that torch has mapped; both are opened so that all see their symbols (RTLD_GLOBAL) before the first kernel.
"""

from __future__ import annotations

import ctypes
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dsv4.runtime import host
from dsv4.runtime.artifact import MANIFEST_SCHEMA, SUPPORT_ABI, sha256_file
from dsv4.runtime.cache import Artifact
from dsv4.runtime.errors import ArtifactRefused
from dsv4.runtime.trust import untrusted

OBJECT_NAME = "kernel.so"

_global_libraries: dict[str, ctypes.CDLL] = {}
_lock = threading.Lock()


def load(artifact: Artifact, capability: tuple[int, int]) -> Callable[..., Any]:
    """The kernel's host function, to be called with tensors and scalars in the contract's order.

    ``capability`` is the compute capability of the device that it is to run on. Raises ``ArtifactRefused`` where
    ``verify`` does, or where the object cannot be opened.
    """
    verify(artifact, capability)
    support = support_library(artifact.root)
    with _lock:
        if not _global_libraries:
            runtime = cuda_runtime()
            for path in (support,) if runtime is None else (runtime, support):
                _global_libraries[str(path)] = _open_global(path)
    import tvm_ffi

    path = artifact.folder / OBJECT_NAME
    try:
        function: Callable[..., Any] = tvm_ffi.load_module(str(path)).get_function(artifact.manifest.function)
    except Exception as error:  # tvm-ffi raises whatever dlopen's failure becomes
        raise ArtifactRefused(f"{path}: cannot be opened: {_one_line(error)}") from None
    return function


def verify(artifact: Artifact, capability: tuple[int, int]) -> None:
    """Raises ``ArtifactRefused`` with the first reason not to load ``artifact`` on a device of ``capability``.

    Checked are owner and mode of every folder and file, the schema, the support library's ABI, the arch, the host's
    processor and C library, and the sha256 of every file that the manifest names.
    """
    manifest, folder = artifact.manifest, artifact.folder
    for path in (artifact.root, *(folder.parents[i] for i in (2, 1, 0)), folder):
        _require_trusted(path)
    if manifest.manifest_schema != MANIFEST_SCHEMA:
        raise ArtifactRefused(f"{folder}: manifest_schema: found {manifest.manifest_schema}; valid: {MANIFEST_SCHEMA}")
    if manifest.support_abi != SUPPORT_ABI:
        raise ArtifactRefused(f"{folder}: support_abi: found {manifest.support_abi}; valid: {SUPPORT_ABI}")
    if capability not in manifest.compute_capabilities:
        valid = ", ".join(f"{major}.{minor}" for major, minor in manifest.compute_capabilities)
        raise ArtifactRefused(
            f"{folder}: compute_capabilities: found a device of {capability[0]}.{capability[1]}; valid: {valid}"
        )
    if missing := host.missing_features(manifest.host_isa):
        raise ArtifactRefused(f"{folder}: host_isa: found a processor without {', '.join(missing)}; valid: one with")
    _require_glibc(artifact)
    if OBJECT_NAME not in manifest.files:
        raise ArtifactRefused(f"{folder}: files: found no {OBJECT_NAME}; valid: a manifest that names it")
    for name, expected in manifest.files.items():
        if Path(name).name != name:
            raise ArtifactRefused(f"{folder}: files: found {name!r}; valid: a name without a folder")
        _require_sha256(folder / name, expected)


def support_library(root: Path) -> Path:
    """The support library in the cache ``root``, checked. Raises ``ArtifactRefused`` where it is missing or altered."""
    path = root / "support" / f"libdsv4_support-{SUPPORT_ABI}.so"
    record = path.with_suffix(".json")
    _require_trusted(path.parent)
    _require_trusted(record)
    try:
        expected = json.loads(record.read_bytes())["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactRefused(f"{record}: found no readable sha256 ({_one_line(error)}); valid: JSON with it") from None
    _require_sha256(path, expected)
    return path


def cuda_runtime() -> Path | None:
    """The libcudart that torch has mapped into this process; ``None`` where there is none to be seen."""
    import torch

    if torch.version.cuda is not None:
        torch.cuda.init()
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.split(maxsplit=5)[-1]
        if path.rpartition("/")[2].startswith("libcudart"):
            return Path(path)
    return None


def _open_global(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise ArtifactRefused(f"{path}: cannot be opened: {_one_line(error)}") from None


def _require_trusted(path: Path) -> None:
    try:
        reason = untrusted(path)
    except OSError as error:
        reason = f"{path}: found none ({error.strerror}); valid: a whole artifact (build it anew)"
    if reason:
        raise ArtifactRefused(reason)


def _require_sha256(path: Path, expected: str) -> None:
    _require_trusted(path)
    found = sha256_file(path)
    if found != expected:
        raise ArtifactRefused(f"{path}: found sha256 {found[:12]}…; valid: {expected[:12]}… (cut short or altered)")


def _require_glibc(artifact: Artifact) -> None:
    spelled, have = artifact.manifest.glibc, host.glibc_version()
    try:
        needed = host.parse_version(spelled)
    except ValueError:
        raise ArtifactRefused(f"{artifact.folder}: glibc: found {spelled!r}; valid: a version such as 2.31") from None
    if have < needed:
        mine = ".".join(map(str, have)) or "another C library"
        raise ArtifactRefused(f"{artifact.folder}: glibc: found {mine} here; valid: {spelled} or newer")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
