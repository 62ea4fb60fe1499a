"""The C core: built with gcc once for each state of its sources, kept in the user's cache, opened with ctypes."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np
import platformdirs

from dsv4.runtime.trust import untrusted

FLAGS = ("-O3", "-fPIC", "-mavx2", "-mf16c", "-ffp-contract=off", "-fno-math-errno", "-Wall", "-Wextra")
BUILD_SECONDS_LIMIT = 300


class CoreError(RuntimeError):
    """The core can't be built or opened here. One line."""


class Library:
    """The opened core: `handlers` maps a handler's name to its number."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.c = ctypes.CDLL(str(path))
        except OSError as error:
            raise CoreError(f"{path}: cannot be opened: {error}") from None
        pointer, number = ctypes.c_void_p, ctypes.c_int
        self.c.emu_handler_name.restype = ctypes.c_char_p
        self.c.emu_program.restype = pointer
        self.c.emu_program.argtypes = [
            pointer, number, pointer, number, pointer, number, number, number, ctypes.c_uint32,
        ]  # fmt: skip
        self.c.emu_program_free.argtypes = [pointer]
        self.c.emu_run.argtypes = [
            pointer, pointer, pointer, pointer, number, ctypes.c_uint32, ctypes.c_uint32, number, pointer,
        ]  # fmt: skip
        self.c.emu_run.restype = None
        self.c.emu_outcome_free.argtypes = [pointer]
        self.handlers = {self.c.emu_handler_name(n).decode(): n for n in range(self.c.emu_handler_count())}


@functools.cache
def load() -> Library:
    """The core of this version, built on first use (some ten seconds). Raises :class:`CoreError`."""
    core = Path(str(files("dsv4.emulator"))) / "core"
    return Library(build_shared(sorted(core.glob("*.c")), "core", depends=sorted(core.glob("*.h"))))


def build_shared(sources: Sequence[Path], name: str, *, depends: Sequence[Path] = ()) -> Path:
    """A shared library of C sources in the user's cache, named by the hash of all that goes into it.

    Raises :class:`CoreError` where gcc is missing or refuses, or where the cache belongs to somebody else.
    """
    compiler = shutil.which("gcc")
    if compiler is None:
        raise CoreError("gcc: found none on PATH; the emulator's core is C and is built on first use")
    hasher = hashlib.sha256(" ".join(FLAGS).encode())
    for path in (*sources, *depends):
        hasher.update(path.name.encode() + b"\0" + path.read_bytes())
    root = platformdirs.user_cache_path("dsv4") / "emulator"
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    target = root / f"{name}-{hasher.hexdigest()[:24]}.so"
    for path in (root, *([target] if target.exists() else [])):
        if reason := untrusted(path):
            raise CoreError(reason)
    if not target.exists():
        _build(compiler, sources, depends, target)
    return target


def _build(compiler: str, sources: Sequence[Path], depends: Sequence[Path], target: Path) -> None:
    """Compiles what has changed (objects are kept by the hash of their source and of all headers) and links."""
    kept = target.parent / "objects"
    kept.mkdir(mode=0o700, exist_ok=True)
    common = hashlib.sha256(" ".join(FLAGS).encode() + b"".join(path.read_bytes() for path in depends)).hexdigest()
    objects = {
        path: kept / f"{path.stem}-{hashlib.sha256(common.encode() + path.read_bytes()).hexdigest()[:24]}.o"
        for path in sources
    }
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        jobs: list[tuple[subprocess.Popen[str], Path, Path]] = []
        waiting = [(path, made) for path, made in objects.items() if not made.exists()]
        try:
            while waiting or jobs:
                while waiting and len(jobs) < len(os.sched_getaffinity(0)):
                    source, made = waiting.pop(0)
                    fresh = Path(folder) / made.name
                    command = [compiler, *FLAGS, "-c", str(source), "-o", str(fresh)]
                    jobs.append((subprocess.Popen(command, stderr=subprocess.PIPE, text=True), fresh, made))
                job, fresh, made = jobs[0]
                _, said = job.communicate(timeout=BUILD_SECONDS_LIMIT)
                if job.returncode:
                    raise CoreError(f"gcc refuses {made.name.rsplit('-', 1)[0]}.c: {_first_error(said)}")
                os.replace(fresh, made)
                jobs.pop(0)
        except subprocess.TimeoutExpired:
            raise CoreError(f"gcc did not end within {BUILD_SECONDS_LIMIT} s") from None
        finally:
            for job, _, _ in jobs:
                job.kill()
                job.wait()
        fresh = Path(folder) / "made.so"
        command = [compiler, "-shared", *map(str, objects.values()), "-o", str(fresh), "-lm", "-lpthread"]
        linked = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_SECONDS_LIMIT, check=False)
        if linked.returncode:
            raise CoreError(f"gcc cannot link {target.stem}: {_first_error(linked.stderr)}")
        fresh.chmod(0o700)
        os.replace(fresh, target)


def _first_error(text: str) -> str:
    lines = [line for line in text.splitlines() if "error" in line] or text.splitlines() or ["nothing said"]
    return lines[0][:300]


def pointer(array: np.ndarray) -> ctypes.c_void_p:
    """The address of an array's first element, for a C call."""
    return array.ctypes.data_as(ctypes.c_void_p)
