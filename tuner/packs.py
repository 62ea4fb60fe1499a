"""Packs: kernels with all that is known of them in one archive, for a machine that has no compiler.

A pack is a gzipped tar whose first member, ``pack.json``, names every other with its sha256. Nothing in it is
executed, unpickled or believed before its hash was compared; nothing is written outside the cache's own folders.
Needs the runtime only.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import shutil
import tarfile
import uuid
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dsv4.runtime.artifact import EVIDENCE_NAME, MANIFEST_NAME, SUPPORT_ABI, sha256_file
from dsv4.runtime.cache import Artifact, KernelCache
from dsv4.runtime.errors import ArtifactRefused, CacheRefused
from dsv4.runtime.files import write_atomically
from dsv4.runtime.tuned import Entry, first_problem
from dsv4.tuner.job import Job

PACK_SCHEMA = 1
CONTENTS = "pack.json"
CONTENTS_BYTES_MAX = 64 << 20
_KERNEL = re.compile(r"kernels/([A-Za-z0-9_]+)/([A-Za-z0-9_]+)/([0-9a-f]{8,64})/([A-Za-z0-9_.]+)\Z")
_SUPPORT = re.compile(r"support/([A-Za-z0-9_.-]+)\Z")


class PackRefused(CacheRefused):
    """A pack is damaged, altered or of another version; nothing of it was kept."""


class Contents(BaseModel):
    """``pack.json``: the sha256 of every member, the tuned entries, and for a pack to be measured the job."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dsv4_pack: int = PACK_SCHEMA
    kind: Literal["winners", "candidates"]
    files: dict[str, str]
    entries: list[Entry] = Field(default_factory=list)
    job: Job | None = None


def write_pack(
    path: Path,
    cache: KernelCache,
    artifacts: Sequence[Artifact],
    *,
    kind: Literal["winners", "candidates"],
    entries: Sequence[Entry] = (),
    job: Job | None = None,
) -> Contents:
    """Write the artifacts, and the support library that loads them, to ``path``. Equal contents give equal bytes.

    Raises PackRefused for an artifact whose files are not those that its manifest names.
    """
    members: dict[str, Path] = {}
    for artifact in artifacts:
        manifest = artifact.manifest
        for name, expected in manifest.files.items():
            if not (artifact.folder / name).is_file() or sha256_file(artifact.folder / name) != expected:
                raise PackRefused(f"{artifact.folder / name}: found another sha256 than its manifest's; build it anew")
        names = [MANIFEST_NAME, *manifest.files]
        names += [EVIDENCE_NAME] if (artifact.folder / EVIDENCE_NAME).exists() else []
        for name in names:
            members[f"kernels/{manifest.op}/{manifest.arch}/{manifest.key}/{name}"] = artifact.folder / name
    for name in (f"libdsv4_support-{SUPPORT_ABI}.so", f"libdsv4_support-{SUPPORT_ABI}.json"):
        if (cache.root / "support" / name).exists():
            members[f"support/{name}"] = cache.root / "support" / name
    content = {name: source.read_bytes() for name, source in sorted(members.items())}
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in content.items()}
    contents = Contents(kind=kind, files=hashes, entries=list(entries), job=job)
    buffer = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        _add(archive, CONTENTS, (contents.model_dump_json(indent=1) + "\n").encode())
        for name, data in content.items():
            _add(archive, name, data)
    write_atomically(path, buffer.getvalue())
    return contents


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(data), 0o644
    archive.addfile(member, io.BytesIO(data))


def read_contents(path: Path) -> Contents:
    """What a pack says that it holds. Raises PackRefused."""
    with _opened(path) as archive:
        return _contents(path, archive)


def unpack(path: Path, cache: KernelCache) -> Contents:
    """Put a pack's kernels and entries into the cache, after everything was compared; what the cache has stays.

    Raises PackRefused, and nothing was kept; CacheRefused where the cache cannot be trusted.
    """
    if cache.refused:
        raise CacheRefused(cache.refused)
    staging = cache.root / "building" / f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
    staging.mkdir(parents=True, mode=0o700)
    try:
        with _opened(path) as archive:
            contents = _contents(path, archive)
            _extract(path, archive, contents, staging)
        for manifest in sorted(staging.glob(f"kernels/*/*/*/{MANIFEST_NAME}")):
            _require_own_manifest(path, manifest.parent)
        _publish(staging, cache.root)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    cache.keep_all(contents.entries)
    cache.refresh()
    return contents


def _opened(path: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(path, mode="r:gz")
    except (OSError, tarfile.TarError, EOFError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "no gzipped tar"
        raise PackRefused(f"{path}: {reason}; valid: a file of dsv4-tune pack") from None


def _contents(path: Path, archive: tarfile.TarFile) -> Contents:
    try:
        first = archive.next()
        stream = archive.extractfile(first) if first and first.name == CONTENTS and first.isfile() else None
        if first is None or stream is None or first.size > CONTENTS_BYTES_MAX:
            raise PackRefused(f"{path}: found no {CONTENTS} at its start; valid: a file of dsv4-tune pack")
        raw: Any = json.loads(stream.read())
    except (tarfile.TarError, OSError, EOFError, ValueError, zlib.error) as error:
        raise PackRefused(f"{path}: it is damaged ({' '.join(str(error).split()):.80})") from None
    schema = raw.get("dsv4_pack") if isinstance(raw, dict) else None
    if schema != PACK_SCHEMA:
        raise PackRefused(f"{path}: dsv4_pack: found {schema!r:.40}; valid: {PACK_SCHEMA} (pack it anew)")
    try:
        contents = Contents.model_validate(raw)
    except ValidationError as error:
        raise PackRefused(f"{path}: {first_problem(error)}") from None
    for name in contents.files:
        if not (_KERNEL.match(name) or _SUPPORT.match(name)):
            raise PackRefused(f"{path}: files: found {name!r:.80}; valid: names below kernels/ and support/")
    for entry in contents.entries:
        if not entry.is_whole():
            raise PackRefused(f"{path}: entries: found {entry.name} altered; valid: entries with their own sha256")
    return contents


def _extract(path: Path, archive: tarfile.TarFile, contents: Contents, staging: Path) -> None:
    """Every member that the contents name, hashes compared; raises for one more, one less or another one."""
    left = dict(contents.files)
    try:
        while (member := archive.next()) is not None:
            expected = left.pop(member.name, None)
            stream = archive.extractfile(member) if member.isfile() else None
            if expected is None or stream is None:
                raise PackRefused(f"{path}: found {member.name!r:.80}, which {CONTENTS} does not name once as a file")
            data = stream.read()
            if hashlib.sha256(data).hexdigest() != expected:
                raise PackRefused(f"{path}: {member.name}: found another sha256 than {CONTENTS} names")
            target = staging / member.name
            target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            target.write_bytes(data)
            target.chmod(0o644)
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise PackRefused(f"{path}: it is damaged ({' '.join(str(error).split()):.80})") from None
    if left:
        raise PackRefused(f"{path}: found no {next(iter(left))}, which {CONTENTS} names")


def _require_own_manifest(path: Path, folder: Path) -> None:
    try:
        manifest = Artifact.read(folder).manifest
    except ArtifactRefused as error:
        raise PackRefused(f"{path}: {str(error).replace(str(folder), folder.name)}") from None
    if (manifest.op, manifest.arch, manifest.key) != folder.parts[-3:]:
        raise PackRefused(f"{path}: found the manifest of {manifest.key[:12]} in the folder of {folder.name[:12]}")
    for name, expected in manifest.files.items():
        if not (folder / name).is_file() or sha256_file(folder / name) != expected:
            raise PackRefused(f"{path}: {folder.name[:12]}/{name}: found another sha256 than its manifest's")


def _publish(staging: Path, root: Path) -> None:
    """Folders and files move into place one by one, each whole; those that are there already stay."""
    for source in [*sorted(staging.glob("kernels/*/*/*")), *sorted(staging.glob("support/*"))]:
        target = root / source.relative_to(staging)
        for parent in reversed([folder for folder in target.parents if root in (folder, *folder.parents)]):
            parent.mkdir(mode=0o700, exist_ok=True)
        if not target.exists():
            os.rename(source, target)
