"""The kernel cache: which compiled kernel serves a request.

``<root>/kernels/<op>/<arch>/<key>/`` holds the artifacts, ``<root>/support/`` the support library and
``<root>/tuned/<op>.<arch>.json`` the winners of tuning. Manifests are read once, when an operator is first asked for.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
from pydantic import ValidationError

from dsv4.runtime.artifact import (
    EVIDENCE_NAME,
    MANIFEST_NAME,
    MANIFEST_SCHEMA,
    RUNGS,
    Evidence,
    Manifest,
    Scalar,
    digest,
)
from dsv4.runtime.errors import ArtifactRefused, CacheRefused, say_once
from dsv4.runtime.files import write_atomically
from dsv4.runtime.trust import untrusted
from dsv4.runtime.tuned import FAKE_DEVICE, Device, Entry, difference, first_problem, inside, merged, read_entries


def default_root() -> Path:
    """``$DSV4_CACHE``, else this user's cache folder."""
    return Path(os.environ.get("DSV4_CACHE") or platformdirs.user_cache_path("dsv4-kernels"))


@dataclass(frozen=True)
class Artifact:
    """One compiled kernel on disk."""

    folder: Path
    manifest: Manifest

    @classmethod
    def read(cls, folder: Path) -> Artifact:
        """Read the manifest in ``folder``. Raises ``ArtifactRefused`` where it is no manifest of this schema."""
        path = folder / MANIFEST_NAME
        try:
            raw = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise ArtifactRefused(f"{path}: found no readable manifest ({_one_line(error)}); valid: JSON") from None
        schema = raw.get("manifest_schema") if isinstance(raw, dict) else None
        if schema != MANIFEST_SCHEMA:
            raise ArtifactRefused(
                f"{path}: manifest_schema: found {schema!r}; valid: {MANIFEST_SCHEMA} (build the kernel anew)"
            )
        try:
            manifest = Manifest.model_validate(raw)
        except ValidationError as error:
            raise ArtifactRefused(f"{path}: {first_problem(error)}") from None
        return cls(folder, manifest)

    @property
    def root(self) -> Path:
        """The cache that this artifact lies in."""
        return self.folder.parents[3]

    @property
    def modified_ns(self) -> int:
        return (self.folder / MANIFEST_NAME).stat().st_mtime_ns

    def evidence(self) -> Evidence:
        """Checks and measurements so far. Raises ``ArtifactRefused`` where the file cannot be read as such."""
        path = self.folder / EVIDENCE_NAME
        try:
            return Evidence.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return Evidence()
        except (OSError, ValidationError) as error:
            reason = first_problem(error) if isinstance(error, ValidationError) else _one_line(error)
            raise ArtifactRefused(f"{path}: {reason}") from None

    def failed_check(self) -> str | None:
        """The first rung whose newest check failed, in one line, or ``None``."""
        newest = {check.rung: check for check in self.evidence().checks}
        for rung in RUNGS:
            if rung in newest and not newest[rung].ok:
                return f"{self.folder}: the {rung} check on {newest[rung].device} failed at {newest[rung].when}"
        return None


class KernelCache:
    """The artifacts below ``root`` (made with mode 0700 where it does not exist).

    A root that is world-writable or belongs to somebody else is refused: that is said once, and the cache is then empty
    (``refused`` holds the reason). So is one artifact of which that is true.
    """

    def __init__(self, root: str | Path | None = None) -> None:
        self.root = Path(root).expanduser().absolute() if root is not None else default_root().expanduser().absolute()
        self.refused: str | None = None
        self._artifacts: dict[tuple[str, str], tuple[Artifact, ...]] = {}
        self._tuned: dict[tuple[str, str], tuple[Entry, ...]] = {}
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.refused = untrusted(self.root)
        except OSError as error:
            self.refused = f"{self.root}: {_one_line(error)}; valid: a folder that this user may write"
        if self.refused:
            say_once(f"kernel cache refused: {self.refused}")

    def refresh(self) -> None:
        """Forget what was read, so that kernels built or tuned since are seen."""
        self._artifacts.clear()
        self._tuned.clear()

    def folder(self, op: str, arch: str, key: str | None = None) -> Path:
        """Where artifacts of ``op`` for ``arch`` lie, or the one with ``key``."""
        parent = self.root / "kernels" / op / arch
        return parent if key is None else parent / key

    def tuned_path(self, op: str, arch: str) -> Path:
        return self.root / "tuned" / f"{op}.{arch}.json"

    def kinds(self) -> tuple[tuple[str, str], ...]:
        """Every (op, arch) for which there is a folder of artifacts."""
        if self.refused:
            return ()
        return tuple(sorted((path.parent.name, path.name) for path in (self.root / "kernels").glob("[!.]*/[!.]*")))

    def artifacts(self, op: str, arch: str) -> tuple[Artifact, ...]:
        """Every artifact of ``op`` for ``arch`` that can be trusted, the newest first."""
        found = self._artifacts.get((op, arch))
        if found is None:
            found = self._artifacts[op, arch] = tuple(self._read(op, arch))
        return found

    def tuned(self, op: str, arch: str) -> tuple[Entry, ...]:
        """The tuned entries of ``op`` for ``arch``, the newest last; what cannot be believed is left out, said once."""
        found = self._tuned.get((op, arch))
        if found is None:
            entries: list[Entry] = []
            try:
                if not self.refused:
                    entries, problems = read_entries(self.tuned_path(op, arch))
                    for problem in problems:
                        say_once(f"tuned entry refused, the default serves: {problem}")
            except CacheRefused as error:
                say_once(f"tuned entries refused, defaults serve: {error}")
            found = self._tuned[op, arch] = tuple(entries)
        return found

    def tuned_kinds(self) -> tuple[tuple[str, str], ...]:
        """Every (op, arch) for which there is a file of tuned entries."""
        if self.refused:
            return ()
        names = (path.stem.rpartition(".") for path in (self.root / "tuned").glob("[!.]*.json"))
        return tuple(sorted((op, arch) for op, _, arch in names if op))

    def candidates(
        self,
        op: str,
        arch: str,
        dims: Mapping[str, int],
        variant: Mapping[str, Scalar],
        sizes: Mapping[str, int],
        *,
        device: Device | None = None,
    ) -> list[Artifact]:
        """Artifacts that may serve the request, the best first: what was tuned, then the defaults.

        ``dims`` and ``sizes`` together give every dimension its size: an artifact fits if its static dimensions have
        these sizes, its variant is ``variant`` and the sizes lie in its bucket. Of the entries for ``device`` a
        measured one goes before a predicted one (which is for every GPU with as many SMs), then the newer; one that was
        tuned for such a device under other conditions, or whose kernel is not here, is said once and does not serve.
        Among defaults one for sizes of its own wins, then the one with more static dimensions, then the newer.
        """
        every = {**dims, **sizes}
        fitting = [a for a in self.artifacts(op, arch) if _fits(a.manifest, every, variant)]
        chosen: list[Artifact] = []
        for entry in self._entries_for(op, arch, every, variant, device):
            chosen += [a for a in fitting if a.manifest.key == entry.key and a not in chosen]
        defaults = [a for a in fitting if a.manifest.is_default and a not in chosen]
        return chosen + sorted(defaults, key=lambda a: (not a.manifest.bucket, -len(a.manifest.dims)))

    def find(
        self,
        op: str,
        arch: str,
        dims: Mapping[str, int],
        variant: Mapping[str, Scalar],
        sizes: Mapping[str, int],
        *,
        device: Device | None = None,
    ) -> Artifact | None:
        """The first of ``candidates``, or ``None``."""
        found = self.candidates(op, arch, dims, variant, sizes, device=device)
        return found[0] if found else None

    def keep(self, entry: Entry) -> Entry:
        """Keep a tuned entry, sealed, in place of an earlier one for the same question; atomic.

        A predicted entry does not replace a measured one, of this question or of the same sizes, flags and SMs; a
        measured one replaces both. Returns the entry that now stands. Raises ``CacheRefused`` where the cache is
        refused, the measurements are made up, or the file holds what cannot be believed (it is then left as it is).
        """
        self._require_keepable([entry])
        op, arch = entry.question.op, entry.question.arch
        with self._tuned_file(op, arch) as known:
            known[:] = merged(known, [entry.sealed()])
        stands = [other for other in known if other.question == entry.question]
        return stands[0] if stands else next(other for other in known if entry.is_overtaken_by(other))

    def keep_all(self, entries: Sequence[Entry]) -> None:
        """The same for many, sealed as they are; one write for each operator and arch."""
        self._require_keepable(entries)
        for op, arch in sorted({(entry.question.op, entry.question.arch) for entry in entries}):
            mine = [entry for entry in entries if (entry.question.op, entry.question.arch) == (op, arch)]
            with self._tuned_file(op, arch) as known:
                known[:] = merged(known, mine)

    def drop_predicted(self, subject: Mapping[str, Any]) -> list[Entry]:
        """Drop the predictions of ``subject`` (``Question.subject``) and return them: something was measured there, and
        the default was the fastest. Raises ``CacheRefused`` where the file holds what cannot be believed."""
        op, arch = str(subject["op"]), str(subject["arch"])

        def is_meant(entry: Entry) -> bool:
            return entry.source == "predicted" and entry.question.subject == subject

        if not any(map(is_meant, self.tuned(op, arch))):
            return []
        with self._tuned_file(op, arch) as known:
            dropped = [entry for entry in known if is_meant(entry)]
            known[:] = [entry for entry in known if not is_meant(entry)]
        return dropped

    def _require_keepable(self, entries: Sequence[Entry]) -> None:
        if self.refused:
            raise CacheRefused(self.refused)
        if any(entry.question.device.name == FAKE_DEVICE for entry in entries):
            raise CacheRefused(f"device: found {FAKE_DEVICE!r}; valid: one that measures (nothing was kept)")

    @contextlib.contextmanager
    def _tuned_file(self, op: str, arch: str) -> Iterator[list[Entry]]:
        """The file's entries, to be changed; what they then are is written when the context ends well."""
        path = self.tuned_path(op, arch)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        with _locked(path.with_suffix(".lock")):
            known, problems = read_entries(path)
            if problems:
                raise CacheRefused(problems[0])
            yield known
            content = json.dumps([entry.model_dump(mode="json") for entry in known], indent=1).encode() + b"\n"
            write_atomically(path, content, mode=0o600)
        self._tuned.pop((op, arch), None)

    def checksum(self) -> str:
        """What ranks compare to know that the same kernels will serve them: a sha256 over every tuned entry, and over
        every artifact's files in the order in which they would be taken."""
        kinds = sorted({*self.kinds(), *self.tuned_kinds()})
        return digest(
            [[op, arch, [entry.sha256 for entry in self.tuned(op, arch)], self._served(op, arch)] for op, arch in kinds]
        )

    def _served(self, op: str, arch: str) -> list[list[object]]:
        tuned = {entry.key for entry in self.tuned(op, arch)}
        return [
            [artifact.manifest.key, artifact.manifest.files]
            for artifact in self.artifacts(op, arch)
            if artifact.manifest.is_default or artifact.manifest.key in tuned
        ]

    def _entries_for(
        self, op: str, arch: str, sizes: Mapping[str, int], variant: Mapping[str, Scalar], device: Device | None
    ) -> list[Entry]:
        """Entries that may serve, the best first."""
        found = []
        kernels = {artifact.manifest.key: artifact.manifest for artifact in self.artifacts(op, arch)}
        for entry in reversed(self.tuned(op, arch)):
            if device is None or not entry.question.serves(sizes, variant):
                continue
            if not entry.serves_on(device):
                if entry.question.device.name == device.name:
                    apart = difference(entry.question.device, device)
                    say_once(f"tuned entry {entry.name} does not serve: {apart}; valid: tune it here")
                continue
            manifest = kernels.get(entry.key)
            missing = "its kernel is not in the cache" if manifest is None else entry.mismatch(manifest)
            if missing:
                say_once(f"tuned entry {entry.name} does not serve: {missing}; valid: build it, or tune anew")
                continue
            found.append(entry)
        return sorted(found, key=lambda entry: entry.source != "measured")

    def _read(self, op: str, arch: str) -> list[Artifact]:
        if self.refused:
            return []
        try:
            folders = sorted(path for path in self.folder(op, arch).iterdir() if not path.name.startswith("."))
        except FileNotFoundError:
            return []
        found = []
        chosen = {entry.key for entry in self.tuned(op, arch)}
        for folder in folders:
            if not folder.is_dir():
                continue
            try:
                artifact = self._read_one(folder, op, arch)
                if reason := artifact.failed_check():
                    # A candidate that failed while it was tuned was never to serve: that it does not is no news.
                    if artifact.manifest.is_default or artifact.manifest.key in chosen:
                        raise ArtifactRefused(reason)
                    continue
                found.append(artifact)
            except (ArtifactRefused, OSError) as error:
                say_once(f"kernel refused: {_one_line(error)}")
        return sorted(found, key=lambda a: (a.modified_ns, a.manifest.key), reverse=True)

    def _read_one(self, folder: Path, op: str, arch: str) -> Artifact:
        for path in (self.root / "kernels", folder.parents[1], folder.parents[0], folder, folder / MANIFEST_NAME):
            if path.exists() and (reason := untrusted(path)):
                raise ArtifactRefused(reason)
        artifact = Artifact.read(folder)
        manifest = artifact.manifest
        said, lies = (manifest.op, manifest.arch, manifest.key), (op, arch, folder.name)
        if said != lies:
            raise ArtifactRefused(f"{folder}: found a manifest of {'/'.join(said)}; valid: {'/'.join(lies)}")
        return artifact


def _fits(manifest: Manifest, sizes: Mapping[str, int], variant: Mapping[str, Scalar]) -> bool:
    return (
        all(sizes.get(name) == size for name, size in manifest.dims.items())
        and manifest.variant == dict(variant)
        and inside(manifest.bucket, sizes)
    )


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on ``path``: two tuners may choose at the same time."""
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
