"""What would serve the calls of a program: a tuned kernel, a default one, or none.

with dsv4.trace_dispatch() as calls:
    ...                                    # one step of whatever is to be served
write_calls(Path("step.json"), calls)      # then: dsv4-tune coverage step.json --arch sm_90a
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from dsv4.generator.console import UsageError
from dsv4.generator.spec import list_ops
from dsv4.runtime.artifact import Scalar, canonical_json
from dsv4.runtime.cache import KernelCache
from dsv4.runtime.dispatch import Call
from dsv4.runtime.files import write_atomically
from dsv4.runtime.tuned import Device, first_problem

Served = Literal["tuned", "default", "missing", "no kernel is made"]


class Asked(BaseModel):
    """One kind of call: every size, static or not, and the flags; ``times`` is how often it was made."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    op: str
    sizes: dict[str, int]
    variant: dict[str, Scalar]
    times: int = 1


_ASKED = TypeAdapter(list[Asked])


@dataclass(frozen=True)
class Covered:
    """What would serve one kind of call; ``key`` is that of the artifact."""

    asked: Asked
    served: Served
    key: str | None


def distinct(calls: Iterable[Call]) -> list[Asked]:
    """Calls of one kind counted together, in the order in which they first came. Empty ones launch nothing."""
    found: dict[str, Asked] = {}
    for call in calls:
        if call.implementation == "empty":
            continue
        key = canonical_json([call.op, call.sizes, call.variant])
        times = found[key].times + 1 if key in found else 1
        found[key] = Asked(op=call.op, sizes=call.sizes, variant=call.variant, times=times)
    return list(found.values())


def write_calls(path: Path, calls: Iterable[Call]) -> None:
    """Write the kinds of calls that ``dsv4.trace_dispatch`` saw, whole or not at all."""
    rows = [asked.model_dump() for asked in distinct(calls)]
    write_atomically(path, (json.dumps(rows, indent=1) + "\n").encode())


def read_calls(path: Path) -> list[Asked]:
    """Raises UsageError, in one line, for a file of something else."""
    try:
        return _ASKED.validate_json(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; valid: a file of tuner.coverage.write_calls") from None
    except ValidationError as error:
        raise UsageError(f"{path}: {first_problem(error)}") from None


def cover_calls(calls: Sequence[Asked], cache: KernelCache, arch: str, device: Device | None) -> list[Covered]:
    """What the runtime would take for each, by its own rule. Without a device nothing counts as tuned."""
    made = set(list_ops(planned=False))
    tuned = {(op, entry.key) for op, of in cache.tuned_kinds() if of == arch for entry in cache.tuned(op, arch)}
    found = []
    for asked in calls:
        artifact = cache.find(asked.op, arch, {}, asked.variant, asked.sizes, device=device)
        key = artifact.manifest.key if artifact else None
        served: Served = "default" if artifact else "missing"
        if artifact is None and asked.op not in made:
            served = "no kernel is made"
        elif device is not None and artifact is not None and (asked.op, key) in tuned:
            served = "tuned" if _is_chosen(cache, asked, arch, device, artifact.manifest.key) else served
        found.append(Covered(asked, served, key))
    return found


def _is_chosen(cache: KernelCache, asked: Asked, arch: str, device: Device, key: str) -> bool:
    return any(
        entry.key == key and entry.question.device == device and entry.question.serves(asked.sizes, asked.variant)
        for entry in cache.tuned(asked.op, arch)
    )


def known_device(cache: KernelCache, arch: str, name: str) -> Device:
    """The device of that name that something was tuned on last. Raises UsageError."""
    devices = [entry.question.device for op, of in cache.tuned_kinds() if of == arch for entry in cache.tuned(op, arch)]
    found = [device for device in devices if device.name == name]
    if not found:
        valid = ", ".join(sorted({device.name for device in devices})) or "none (nothing was tuned yet)"
        raise UsageError(f"--device: found no entries of '{name}'; valid: {valid}")
    return found[-1]
