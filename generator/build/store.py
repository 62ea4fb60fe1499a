"""Artifacts on disk: found whole, written whole, or not there."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from dsv4.runtime.artifact import MANIFEST_NAME, Manifest, sha256_file
from dsv4.runtime.host import missing_features

FILES = ("source.py", "kernel.ptx", "kernel.cubin", "kernel.so")
_WORKSPACES = "building"


def artifact_folder(cache_root: Path, op: str, arch: str, key: str) -> Path:
    return cache_root / "kernels" / op / arch / key


def read_whole(folder: Path, key: str) -> Manifest | None:
    """The manifest of a whole artifact that this machine can load; None if it is missing, altered or foreign."""
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST_NAME).read_bytes())
        intact = all(sha256_file(folder / name) == sha for name, sha in manifest.files.items())
    except (OSError, ValidationError):
        return None
    if not intact or manifest.key != key or set(manifest.files) != set(FILES) or missing_features(manifest.host_isa):
        return None
    return manifest


@contextmanager
def workspace(cache_root: Path) -> Iterator[Path]:
    """A folder for one build, on the cache's file system, gone afterwards whatever happens."""
    parent = cache_root / _WORKSPACES
    parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    _sweep(parent)
    folder = parent / f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            parent.rmdir()  # the last one out


def _sweep(parent: Path) -> None:
    """Remove workspaces whose process is gone (killed without a chance to tidy up)."""
    for folder in parent.iterdir():
        pid = folder.name.partition("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(folder, ignore_errors=True)


def publish(prepared: Path, manifest: Manifest, target: Path) -> Path:
    """Move the folder ``prepared`` (it holds FILES) with its manifest to ``target`` in one step.

    If another build of the same key was faster its artifact stays; one that is not whole is replaced. Files that are
    not part of an artifact are removed from ``prepared`` first. Returns ``target``.
    """
    for path in prepared.iterdir():
        if path.name not in FILES:
            path.unlink()
    (prepared / MANIFEST_NAME).write_text(manifest.model_dump_json(indent=1) + "\n")
    for path in prepared.iterdir():
        path.chmod(0o644)  # whatever the umask says: the loader refuses files that anybody may write
        _flush(path)
    _flush(prepared)
    make_private(target.parent)
    for _ in range(3):
        try:
            os.rename(prepared, target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            found = read_whole(target, manifest.key)
            if found is not None and found.files == manifest.files:
                return target
            with contextlib.suppress(FileNotFoundError):
                os.rename(target, prepared.parent / f"replaced-{uuid.uuid4().hex[:8]}")  # goes with the workspace
            continue
        _flush(target.parent)
        return target
    raise OSError(errno.EBUSY, "other builds keep replacing this artifact", str(target))


def make_private(folder: Path) -> None:
    """Make ``folder`` and what is missing above it, each for this user alone (the loader trusts nothing else)."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(mode=0o700, exist_ok=True)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
