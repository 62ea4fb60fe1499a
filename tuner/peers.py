"""Times of other implementations, from the dated result files of ``benchmarks``: shown beside a study's, never mixed.

A case of such a file is one of the study's where every size and flag that it names agrees.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dsv4.generator.console import UsageError
from dsv4.generator.spec.plan import default_plans
from dsv4.generator.verify.registry import workload_sizes
from dsv4.runtime.tuned import Question, first_problem

RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "results"
"""In a checkout; an installed package has no result files."""
SCHEMA = 1


class _Case(BaseModel):
    model_config = ConfigDict(frozen=True)

    label: str
    sizes: dict[str, Any]
    peers: dict[str, dict[str, Any]]


class _Device(BaseModel):
    name: str


class ResultFile(BaseModel):
    """What is needed of a result file; ``void`` says why its run does not count."""

    model_config = ConfigDict(frozen=True)

    op: str
    date: str
    device: _Device
    ours: str = ""
    void: list[Any] = Field(default_factory=list)
    cases: list[_Case]


@dataclass(frozen=True)
class Peer:
    """A peer's median at the study's shape number ``place``. ``is_ours``: the file's own kernel, as it was then;
    ``same_device``: the study's GPU has that name."""

    place: int
    name: str
    label: str
    us: float
    date: str
    device: str
    is_ours: bool
    same_device: bool


def read_result(path: Path) -> ResultFile:
    """Raises UsageError, in one line, for what is no result file of schema 1."""
    valid = f"a result file of benchmarks (schema {SCHEMA})"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        schema = raw.get("schema") if isinstance(raw, dict) else None
        if schema != SCHEMA:
            raise UsageError(f"--peers: {path}: schema: found {schema!r:.40}; valid: {valid}")
        return ResultFile.model_validate(raw)
    except ValidationError as error:
        raise UsageError(f"--peers: {path}: {first_problem(error)}") from None
    except OSError as error:
        raise UsageError(f"--peers: {path}: {error.strerror}; valid: {valid}") from None
    except ValueError as error:
        raise UsageError(f"--peers: {path}: found no JSON ({error}); valid: {valid}") from None


def shipped(op: str, folder: Path = RESULTS) -> list[ResultFile]:
    """The result files of ``op`` in ``folder``; files of other kinds lie there, too."""
    found = []
    for path in sorted(folder.glob(f"*_{op}*.json")):
        try:
            found.append(read_result(path))
        except UsageError:
            continue
    return [result for result in found if result.op == op]


def matching(about: Mapping[str, Any], files: Iterable[ResultFile]) -> list[Peer]:
    """The peers' times at the study's shapes, those of the newest file that has them; shape by shape, the fastest
    first. None where calls were launched one by one, which the files do not time."""
    policy = about.get("policy", {})
    if policy.get("launch", "graph") != "graph":
        return []
    newest: dict[tuple[int, str, str, str], Peer] = {}
    for result in sorted(files, key=lambda each: each.date):
        if result.op != about["op"] or result.void:
            continue
        same = result.device.name == about.get("device", {}).get("name")
        for place, sizes in enumerate(about["sizes"]):
            for case in result.cases:
                if not _is_asked(case, about, sizes):
                    continue
                for name, modes in case.peers.items():
                    us = modes.get(policy.get("l2", "cold"), {}).get("median_us")
                    if us:
                        date, device = result.date[:10], result.device.name
                        peer = Peer(place, name, case.label, us, date, device, name.startswith("dsv4"), same)
                        newest[place, name, case.label, device] = peer
    return sorted(newest.values(), key=lambda peer: (peer.place, not peer.same_device, peer.us))


def of_entry(question: Question, sizes: Sequence[Mapping[str, int]]) -> list[dict[str, Any]]:
    """For an entry's proof: what others were measured to take on the same device at ``sizes``, the fastest first."""
    about = {
        "op": question.op,
        "arch": question.arch,
        "dims": question.dims,
        "variant": question.variant,
        "device": question.device.model_dump(),
        "policy": question.policy.model_dump(),
        "sizes": sizes,
    }
    return [
        {"sizes": dict(sizes[peer.place]), "name": peer.name, "us": peer.us, "date": peer.date}
        for peer in matching(about, shipped(question.op))
        if peer.same_device and not peer.is_ours
    ]


def _is_asked(case: _Case, about: Mapping[str, Any], sizes: Mapping[str, int]) -> bool:
    """Whether all that the case names is so in the study, and all sizes that the study was asked about are named."""
    known = {**workload_sizes(about["op"]), **about["dims"], **sizes}
    if any(name not in case.sizes for name in sizes):
        return False
    usual = _usual_dims(about["op"], about["arch"])
    if any(name not in case.sizes and usual.get(name) != size for name, size in about["dims"].items()):
        return False
    return all(_agrees(name, value, case, known, about["variant"]) for name, value in case.sizes.items())


@lru_cache(maxsize=64)
def _usual_dims(op: str, arch: str) -> dict[str, int]:
    """The static dimensions that have one value in every default kernel: a file may leave them out."""
    plans = default_plans(op, arch)
    names = {name for plan in plans for name in plan.dims}
    values = {name: {plan.dims.get(name) for plan in plans} for name in names}
    return {name: size for name, each in values.items() if len(each) == 1 and (size := each.pop()) is not None}


def _agrees(name: str, value: Any, case: _Case, known: Mapping[str, int], variant: Mapping[str, Any]) -> bool:
    if name in known:
        return bool(known[name] == value)
    if name not in variant:  # named after a flag's value: fp8: true
        return bool(value) == (name in variant.values())
    if type(value) is type(variant[name]):
        return bool(variant[name] == value)
    return str(variant[name]) in case.label.split()  # a flag that the file has by number: its label says which


def summary(peers: Sequence[Peer]) -> str:
    """The files that peers come from, in words."""
    return "; ".join(dict.fromkeys(f"{peer.date} on {peer.device}" for peer in peers))
