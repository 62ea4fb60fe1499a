"""Our own C, compiled on this machine: the support library that kernels call, and the probe's recording stub."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import tempfile
from importlib import resources
from pathlib import Path

from dsv4.generator.build.host import c_compiler, c_compiler_version
from dsv4.runtime.artifact import SUPPORT_ABI, sha256_file

_FLAGS = ("-std=gnu11", "-O2", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror")


class SupportError(RuntimeError):
    """The support library cannot be compiled. One line: what the compiler said first."""


def build_support_library(cache_root: Path) -> Path:
    """``<cache_root>/support/libdsv4_support-<abi>.so``, compiled if it is missing, altered or out of date.

    The file beside it, ``.json`` instead of ``.so``, holds its ``sha256``, the ``source_sha256``, ``abi`` and
    ``compiler``; the runtime's loader checks the first. Raises :class:`SupportError`, or :class:`FileNotFoundError`
    where there is no C compiler.
    """
    source = resources.files("dsv4.runtime.support").joinpath("support.c").read_text()
    target = cache_root / "support" / f"libdsv4_support-{SUPPORT_ABI}.so"
    return _compile(source, target, ("-ldl", "-pthread"))


def build_probe_stub(cache_root: Path) -> Path:
    """``<cache_root>/support/libdsv4_probe.so``: the recording stub of :mod:`dsv4.generator.build.probe`."""
    source = resources.files("dsv4.generator.build").joinpath("stub_cudart.c").read_text()
    return _compile(source, cache_root / "support" / "libdsv4_probe.so", ())


def _compile(source: str, target: Path, libraries: tuple[str, ...]) -> Path:
    facts = {
        "abi": SUPPORT_ABI,
        "source_sha256": hashlib.sha256(source.encode()).hexdigest(),
        "compiler": f"gcc {c_compiler_version()}",
    }
    note = target.with_suffix(".json")
    with contextlib.suppress(OSError, ValueError):
        if json.loads(note.read_text()) == {**facts, "sha256": sha256_file(target)}:
            return target
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".building-") as folder:
        built, noted = Path(folder) / target.name, Path(folder) / note.name
        command = [c_compiler(), *_FLAGS, "-x", "c", "-", "-o", str(built), *libraries]
        done = subprocess.run(command, input=source, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip())
            raise SupportError(f"gcc cannot build {target.name}: {first}")
        noted.write_text(json.dumps({**facts, "sha256": sha256_file(built)}, indent=1) + "\n")
        for path in (built, noted):
            path.chmod(0o644)
        os.replace(built, target)
        os.replace(noted, note)
    return target
