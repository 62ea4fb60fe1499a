"""The kernel cache: which compiled kernel serves a request.

``<root>/kernels/<op>/<arch>/<key>/`` holds the artifacts, ``<root>/support/`` the support library and
``<root>/choices/<op>.<arch>.json`` the winners of tuning. Manifests are read once, when an operator is first asked for.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import platformdirs
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from dsv4.runtime.artifact import EVIDENCE_NAME, MANIFEST_NAME, MANIFEST_SCHEMA, RUNGS, Evidence, Manifest, Scalar
from dsv4.runtime.errors import ArtifactRefused, CacheRefused, say_once
from dsv4.runtime.trust import untrusted

Bucket = dict[str, tuple[int, int | None]]


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
            raise ArtifactRefused(f"{path}: {_first_problem(error)}") from None
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
            reason = _first_problem(error) if isinstance(error, ValidationError) else _one_line(error)
            raise ArtifactRefused(f"{path}: {reason}") from None

    def failed_check(self) -> str | None:
        """The first rung whose newest check failed, in one line, or ``None``."""
        newest = {check.rung: check for check in self.evidence().checks}
        for rung in RUNGS:
            if rung in newest and not newest[rung].ok:
                return f"{self.folder}: the {rung} check on {newest[rung].device} failed at {newest[rung].when}"
        return None


class Choice(BaseModel):
    """One winner: for this device, these static dimensions, this variant and sizes in ``bucket`` take ``key``.

    A bucket's bounds are inclusive; an upper bound of ``None`` is none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    device: str
    dims: dict[str, int]
    variant: dict[str, Scalar]
    bucket: Bucket
    key: str


_CHOICES = TypeAdapter(list[Choice])


class KernelCache:
    """The artifacts below ``root`` (made with mode 0700 where it does not exist).

    A root that is world-writable or belongs to somebody else is refused: that is said once, and the cache is then empty
    (``refused`` holds the reason). So is one artifact of which that is true.
    """

    def __init__(self, root: str | Path | None = None) -> None:
        self.root = Path(root).expanduser().absolute() if root is not None else default_root().expanduser().absolute()
        self.refused: str | None = None
        self._artifacts: dict[tuple[str, str], tuple[Artifact, ...]] = {}
        self._choices: dict[tuple[str, str], tuple[Choice, ...]] = {}
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.refused = untrusted(self.root)
        except OSError as error:
            self.refused = f"{self.root}: {_one_line(error)}; valid: a folder that this user may write"
        if self.refused:
            say_once(f"kernel cache refused: {self.refused}")

    def refresh(self) -> None:
        """Forget what was read, so that kernels built or chosen since are seen."""
        self._artifacts.clear()
        self._choices.clear()

    def folder(self, op: str, arch: str, key: str | None = None) -> Path:
        """Where artifacts of ``op`` for ``arch`` lie, or the one with ``key``."""
        parent = self.root / "kernels" / op / arch
        return parent if key is None else parent / key

    def choices_path(self, op: str, arch: str) -> Path:
        return self.root / "choices" / f"{op}.{arch}.json"

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

    def choices(self, op: str, arch: str) -> tuple[Choice, ...]:
        """The winners of ``op`` for ``arch``; an unreadable file is said once and counts as none."""
        found = self._choices.get((op, arch))
        if found is None:
            try:
                found = tuple(self._read_choices(op, arch)) if not self.refused else ()
            except CacheRefused as error:
                say_once(f"tuned choices refused, defaults serve: {error}")
                found = ()
            self._choices[op, arch] = found
        return found

    def candidates(
        self,
        op: str,
        arch: str,
        dims: Mapping[str, int],
        variant: Mapping[str, Scalar],
        sizes: Mapping[str, int],
        *,
        device: str | None = None,
    ) -> list[Artifact]:
        """Artifacts that may serve the request, the best first: the tuned choice, then the defaults.

        ``dims`` and ``sizes`` together give every dimension its size: an artifact fits if its static dimensions have
        these sizes, its variant is ``variant`` and the sizes lie in its bucket. The newest choice that fits ``device``
        wins; among defaults the one with more static dimensions, then the newer.
        """
        every = {**dims, **sizes}
        fitting = [a for a in self.artifacts(op, arch) if _fits(a.manifest, every, variant)]
        chosen: list[Artifact] = []
        for choice in reversed(self.choices(op, arch)):
            if choice.device == device and _agrees(choice, every, variant):
                chosen += [a for a in fitting if a.manifest.key == choice.key and a not in chosen]
        defaults = [a for a in fitting if a.manifest.is_default and a not in chosen]
        return chosen + sorted(defaults, key=lambda a: -len(a.manifest.dims))

    def find(
        self,
        op: str,
        arch: str,
        dims: Mapping[str, int],
        variant: Mapping[str, Scalar],
        sizes: Mapping[str, int],
        *,
        device: str | None = None,
    ) -> Artifact | None:
        """The first of ``candidates``, or ``None``."""
        found = self.candidates(op, arch, dims, variant, sizes, device=device)
        return found[0] if found else None

    def choose(
        self,
        op: str,
        arch: str,
        *,
        device: str,
        dims: Mapping[str, int],
        variant: Mapping[str, Scalar],
        bucket: Mapping[str, tuple[int, int | None]],
        key: str,
    ) -> None:
        """Make the artifact ``key`` the winner, in place of an earlier one for the same request; atomic.

        Raises ``CacheRefused`` where the cache is refused, there is no such artifact, or the file of choices cannot be
        read (it is then left as it is).
        """
        if self.refused:
            raise CacheRefused(self.refused)
        if not (self.folder(op, arch, key) / MANIFEST_NAME).is_file():
            raise CacheRefused(f"key: found {key!r}; valid: the key of an artifact in {self.folder(op, arch)}")
        choice = Choice(device=device, dims=dict(dims), variant=dict(variant), bucket=dict(bucket), key=key)
        path = self.choices_path(op, arch)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        with _locked(path.with_suffix(".lock")):
            kept = [other for other in self._read_choices(op, arch) if not _same_request(other, choice)]
            _replace(path, _CHOICES.dump_json([*kept, choice], indent=1) + b"\n")
        self._choices.pop((op, arch), None)

    def _read(self, op: str, arch: str) -> list[Artifact]:
        if self.refused:
            return []
        try:
            folders = sorted(path for path in self.folder(op, arch).iterdir() if not path.name.startswith("."))
        except FileNotFoundError:
            return []
        found = []
        for folder in folders:
            if not folder.is_dir():
                continue
            try:
                found.append(self._read_one(folder, op, arch))
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
        if reason := artifact.failed_check():
            raise ArtifactRefused(reason)
        return artifact

    def _read_choices(self, op: str, arch: str) -> list[Choice]:
        path = self.choices_path(op, arch)
        try:
            if reason := untrusted(path.parent) or untrusted(path):
                raise CacheRefused(reason)
            return _CHOICES.validate_json(path.read_bytes())
        except FileNotFoundError:
            return []
        except ValidationError as error:
            raise CacheRefused(f"{path}: {_first_problem(error)}") from None


def _fits(manifest: Manifest, sizes: Mapping[str, int], variant: Mapping[str, Scalar]) -> bool:
    return (
        all(sizes.get(name) == size for name, size in manifest.dims.items())
        and manifest.variant == dict(variant)
        and _inside(manifest.bucket, sizes)
    )


def _agrees(choice: Choice, sizes: Mapping[str, int], variant: Mapping[str, Scalar]) -> bool:
    return (
        all(sizes.get(name) == size for name, size in choice.dims.items())
        and choice.variant == dict(variant)
        and _inside(choice.bucket, sizes)
    )


def _inside(bucket: Bucket, sizes: Mapping[str, int]) -> bool:
    return all(
        name in sizes and low <= sizes[name] and (high is None or sizes[name] <= high)
        for name, (low, high) in bucket.items()
    )


def _same_request(one: Choice, other: Choice) -> bool:
    return one.model_copy(update={"key": ""}) == other.model_copy(update={"key": ""})


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on ``path``: two tuners may choose at the same time."""
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _replace(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path``, whole or not at all."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"]) or "the file"
    return f"{where}: found {problem['input']!r:.60}; valid: {problem['msg']}"
