"""Tuned entries: which compiled kernel was measured to be the fastest for a request, and what proves it.

``<root>/tuned/<op>.<arch>.json`` holds those of one operator. An entry carries the sha256 of itself: one that was
altered by hand or cut short is not believed. Entries are plain JSON, to be committed, merged and shipped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dsv4.runtime.artifact import Manifest, Scalar, digest
from dsv4.runtime.errors import CacheRefused
from dsv4.runtime.trust import untrusted

TUNED_SCHEMA = 1
FAKE_DEVICE = "made-up device"
"""The name of what measures nothing; what it found is never kept as a winner."""
ANY_DEVICE = "any"
"""The name that a prediction for every GPU of its arch with so many SMs has in place of a device's."""

Bucket = dict[str, tuple[int, int | None]]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Device(_Strict):
    """A GPU with what drives it. Two are the same only if all of it is: boards of one name differ in memory and SMs."""

    name: str
    memory_bytes: int
    sms: int
    driver: str
    cuda: str


def any_device(sms: int) -> Device:
    """What a prediction is for: a GPU with ``sms`` SMs, whichever it is and whatever drives it."""
    return Device(name=ANY_DEVICE, memory_bytes=0, sms=sms, driver=ANY_DEVICE, cuda=ANY_DEVICE)


class Policy(_Strict):
    """How calls were timed: as serving calls them (replayed from a CUDA graph or launched one by one), with inputs that
    the L2 cache holds or not."""

    launch: Literal["graph", "eager"] = "graph"
    l2: Literal["cold", "warm"] = "cold"


class Question(_Strict):
    """What an entry answers. Bounds of the bucket are inclusive; an upper bound of ``None`` is none."""

    op: str
    arch: str
    spec_sha256: str
    dims: dict[str, int]
    variant: dict[str, Scalar]
    bucket: Bucket
    numeric_class: str
    device: Device
    toolchain: dict[str, str]
    policy: Policy

    @classmethod
    def about(cls, manifest: Manifest, bucket: Bucket, device: Device, policy: Policy) -> Question:
        """What an entry for the kernel of ``manifest`` answers."""
        return cls(
            op=manifest.op,
            arch=manifest.arch,
            spec_sha256=manifest.spec_sha256,
            dims=manifest.dims,
            variant=manifest.variant,
            bucket=bucket,
            numeric_class=manifest.numeric_class,
            device=device,
            toolchain=manifest.toolchain,
            policy=policy,
        )

    @property
    def subject(self) -> dict[str, Any]:
        """What is answered, without what the answer depends on besides: the kernels' sizes and flags, and the SMs."""
        names = {"op", "arch", "dims", "variant", "bucket"}
        return {**self.model_dump(include=names), "sms": self.device.sms}

    def serves(self, sizes: Mapping[str, int], variant: Mapping[str, Scalar]) -> bool:
        """Whether a call of these sizes (static and dynamic) and flags is one that this question is about."""
        return (
            all(sizes.get(name) == size for name, size in self.dims.items())
            and self.variant == dict(variant)
            and inside(self.bucket, sizes)
        )


class Entry(_Strict):
    """An answer: the artifact ``key`` with ``config``.

    ``source`` is ``measured``, or ``predicted`` for a guess that any measurement replaces. ``proof`` holds medians and
    spreads, the comparison with the default, errors against the reference, the environment, and what was refused.
    """

    tuned_schema: int = TUNED_SCHEMA
    question: Question
    key: str
    config: dict[str, Scalar]
    source: Literal["measured", "predicted"] = "measured"
    when: str
    proof: dict[str, Any] = Field(default_factory=dict)
    sha256: str = ""

    def sealed(self) -> Entry:
        """The same with its own sha256."""
        return self.model_copy(update={"sha256": self._own_sha256()})

    def is_whole(self) -> bool:
        return self.sha256 == self._own_sha256()

    def _own_sha256(self) -> str:
        return digest(self.model_dump(mode="json", exclude={"sha256"}))

    def serves_on(self, device: Device) -> bool:
        """Whether it was made for ``device``: measured on it, or predicted for any of its SMs."""
        mine = self.question.device
        return mine == device or (self.source == "predicted" and mine == any_device(device.sms))

    def is_overtaken_by(self, other: Entry) -> bool:
        """Whether this is a prediction of what ``other`` has measured, by whatever spec and under whatever driver."""
        is_guess = (self.source, other.source) == ("predicted", "measured")
        return is_guess and self.question.subject == other.question.subject

    @property
    def name(self) -> str:
        """Short, for people and the command line: ``rms_norm.sm_90a.1a2b3c4d``."""
        return f"{self.question.op}.{self.question.arch}.{self.sha256[:8]}"

    def mismatch(self, manifest: Manifest) -> str | None:
        """Why the artifact is not the kernel that was measured, or None."""
        question = self.question
        expected: dict[str, Any] = {
            "spec_sha256": question.spec_sha256,
            "toolchain": question.toolchain,
            "numeric_class": question.numeric_class,
            "config": self.config,
            "dims": question.dims,
            "variant": question.variant,
        }
        for field, value in expected.items():
            if getattr(manifest, field) != value:
                return f"{field} of the kernel {self.key[:12]} is not the one that was measured"
        return None


def inside(bucket: Bucket, sizes: Mapping[str, int]) -> bool:
    """Whether every bounded size is there and within its bounds."""
    return all(
        name in sizes and low <= sizes[name] and (high is None or sizes[name] <= high)
        for name, (low, high) in bucket.items()
    )


def difference(one: Device, other: Device) -> str:
    """The first field in which two devices differ, in words; empty if they are the same."""
    for name in Device.model_fields:
        mine, theirs = getattr(one, name), getattr(other, name)
        if mine != theirs:
            return f"{name} {mine} there, {theirs} here"
    return ""


def merged(known: Sequence[Entry], more: Sequence[Entry]) -> list[Entry]:
    """``known`` with ``more`` at the end, in place of what answered the same questions.

    What was measured is not replaced by what was predicted.
    """
    found = list(known)
    for entry in more:
        same = [other for other in found if other.question == entry.question]
        if entry.source == "predicted" and any(other.source == "measured" for other in same):
            continue
        if any(entry.is_overtaken_by(other) for other in found):
            continue
        found = [other for other in found if other.question != entry.question and not other.is_overtaken_by(entry)]
        found.append(entry)
    return found


def parse_entries(raw: Any, where: str) -> tuple[list[Entry], list[str]]:
    """The entries in parsed JSON (a list), and one line for each that cannot be believed."""
    if not isinstance(raw, list):
        return [], [f"{where}: found {type(raw).__name__}; valid: a list of tuned entries"]
    entries, problems = [], []
    for number, item in enumerate(raw):
        place = f"{where}: entry {number}"
        schema = item.get("tuned_schema") if isinstance(item, dict) else None
        if schema != TUNED_SCHEMA:
            problems.append(f"{place}: tuned_schema: found {schema!r:.40}; valid: {TUNED_SCHEMA} (tune it anew)")
            continue
        try:
            entry = Entry.model_validate(item)
        except ValidationError as error:
            problems.append(f"{place}: {first_problem(error)}")
            continue
        if not entry.is_whole():
            problems.append(f"{place}: sha256: found {entry.sha256[:12]}…; valid: that of the entry (it was altered)")
            continue
        entries.append(entry)
    return entries, problems


def read_entries(path: Path) -> tuple[list[Entry], list[str]]:
    """The entries of a cache's file, none where there is no file, and what is wrong with it, one line each.

    Raises CacheRefused for a file that is not JSON or not to be trusted.
    """
    try:
        if reason := untrusted(path.parent) or untrusted(path):
            raise CacheRefused(reason)
        return parse_entries(json.loads(path.read_bytes()), str(path))
    except FileNotFoundError:
        return [], []
    except (OSError, ValueError) as error:
        raise CacheRefused(f"{path}: found no readable JSON ({' '.join(str(error).split()):.80})") from None


def first_problem(error: ValidationError) -> str:
    """``field: found …; valid: …`` for the first of pydantic's findings."""
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"]) or "the file"
    return f"{where}: found {problem['input']!r:.60}; valid: {problem['msg']}"
