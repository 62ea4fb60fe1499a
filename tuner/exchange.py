"""Tuned entries as files: exported, committed, shipped, compared, merged. Plain JSON, checked before it is believed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dsv4.generator.console import UsageError
from dsv4.runtime.artifact import digest
from dsv4.runtime.cache import KernelCache
from dsv4.runtime.files import write_atomically
from dsv4.runtime.tuned import Entry, Question, merged, parse_entries
from dsv4.tuner.tried import changed, spelled

EXPORT_SCHEMA = 1
Prefer = Literal["newest", "ours", "theirs"]


def cached_entries(cache: KernelCache, op: str | None = None, arch: str | None = None) -> list[Entry]:
    """Every believable entry of the cache, of ``op`` and ``arch`` where they are given."""
    kinds = [kind for kind in cache.tuned_kinds() if op in (None, kind[0]) and arch in (None, kind[1])]
    return [entry for kind in kinds for entry in cache.tuned(*kind)]


def checksum(entries: Sequence[Entry]) -> str:
    """One sha256 for a set of entries, whatever their order."""
    return digest(sorted(entry.sha256 for entry in entries))


def write_export(path: Path, entries: Sequence[Entry]) -> None:
    """Write entries to a file, whole or not at all; equal entries give equal bytes."""
    ordered = sorted(entries, key=lambda entry: (entry.question.op, entry.question.arch, entry.when, entry.sha256))
    exported = {
        "dsv4_tuned": EXPORT_SCHEMA,
        "checksum": checksum(entries),
        "entries": [entry.model_dump(mode="json") for entry in ordered],
    }
    write_atomically(path, (json.dumps(exported, indent=1) + "\n").encode())


def read_export(path: Path) -> list[Entry]:
    """The entries of an exported file. Raises UsageError, in one line, for anything in it that cannot be believed: a
    file is taken as a whole or not at all."""
    raw = read_json(path)
    schema = raw.get("dsv4_tuned") if isinstance(raw, dict) else None
    if schema != EXPORT_SCHEMA:
        raise UsageError(
            f"{path}: dsv4_tuned: found {schema!r:.40}; valid: {EXPORT_SCHEMA} (a file of dsv4-tune export)"
        )
    entries, problems = parse_entries(raw.get("entries"), str(path))
    if problems:
        raise UsageError(problems[0])
    if checksum(entries) != raw.get("checksum"):
        raise UsageError(f"{path}: checksum: found {raw.get('checksum')!r:.20}; valid: that of its entries")
    return entries


def read_json(path: Path) -> Any:
    """Raises UsageError for a file that cannot be read as JSON."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; valid: a file that can be read") from None
    except ValueError as error:
        raise UsageError(f"{path}: found no JSON ({' '.join(str(error).split()):.80})") from None


def merge(ours: Sequence[Entry], theirs: Sequence[Entry], prefer: Prefer = "newest") -> list[Entry]:
    """One entry for each question. Of two answers a measured one goes before a predicted one; of two alike the newer
    (``newest``), or that of the side that is preferred."""
    if prefer == "ours":
        return merged(theirs, ours)
    if prefer == "theirs":
        return merged(ours, theirs)
    return merged([], sorted([*ours, *theirs], key=lambda entry: (entry.when, entry.sha256)))


@dataclass(frozen=True)
class Difference:
    """What two sets answer differently: ``ours`` or ``theirs`` is None where one has no answer."""

    question: Question
    ours: Entry | None
    theirs: Entry | None

    def words(self) -> str:
        """One line for a person."""
        question = self.question
        where = f"{question.op} {question.arch} {spelled(question.dims)} {spelled(question.variant)}".strip()
        bucket = ",".join(f"{name}={low}:{high or ''}" for name, (low, high) in question.bucket.items())
        place = f"{where} [{bucket or 'every size'}] on {question.device.name}"
        if self.ours is None or self.theirs is None:
            side, entry = ("ours", self.ours) if self.theirs is None else ("theirs", self.theirs)
            assert entry is not None
            return f"{place}: only {side}: {spelled(entry.config)}"
        apart = changed(self.theirs.config, self.ours.config)
        if not apart:
            return f"{place}: the same configuration, measured {self.ours.when} and {self.theirs.when}"
        mine = {name: self.ours.config[name] for name in apart if name in self.ours.config}
        return f"{place}: ours {spelled(mine)}, theirs {spelled(apart)}"


def differences(ours: Sequence[Entry], theirs: Sequence[Entry]) -> list[Difference]:
    """Questions that the two sets do not answer with the same entry, ours first."""
    found = []
    for entry in ours:
        other = next((each for each in theirs if each.question == entry.question), None)
        if other is None or other.sha256 != entry.sha256:
            found.append(Difference(entry.question, entry, other))
    found += [
        Difference(each.question, None, each)
        for each in theirs
        if not any(entry.question == each.question for entry in ours)
    ]
    return found


def foreign(entry: Entry, cache: KernelCache) -> str | None:
    """Why an entry cannot serve in this cache, or None: its kernel is missing, or another one."""
    question = entry.question
    artifacts = {each.manifest.key: each.manifest for each in cache.artifacts(question.op, question.arch)}
    if entry.key not in artifacts:
        return f"its kernel {entry.key[:12]} is not in the cache"
    return entry.mismatch(artifacts[entry.key])
