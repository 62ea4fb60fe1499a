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
from dsv4.generator.spec import list_ops, load_op
from dsv4.runtime.artifact import Scalar, canonical_json
from dsv4.runtime.cache import KernelCache
from dsv4.runtime.dispatch import Call
from dsv4.runtime.files import write_atomically
from dsv4.runtime.tuned import Device, first_problem

Served = Literal["tuned", "predicted", "default", "missing", "no kernel is made"]
ORDER: tuple[Served, ...] = ("missing", "default", "predicted", "tuned", "no kernel is made")
"""Of tables: what is to be done first."""


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


def joined(kinds: Iterable[Asked]) -> list[Asked]:
    """Kinds of calls of several steps, each once, with the calls of all of them counted."""
    found: dict[str, Asked] = {}
    for each in kinds:
        key = canonical_json([each.op, each.sizes, each.variant])
        times = each.times + (found[key].times if key in found else 0)
        found[key] = each.model_copy(update={"times": times})
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
    """What the runtime would take for each, by its own rule: ``predicted`` is an entry that nothing has measured.

    Without a device nothing counts as tuned.
    """
    made = {op for op in list_ops(planned=False) if arch in load_op(op).archs}
    tuned = {(op, entry.key) for op, of in cache.tuned_kinds() if of == arch for entry in cache.tuned(op, arch)}
    found = []
    for asked in calls:
        artifact = cache.find(asked.op, arch, {}, asked.variant, asked.sizes, device=device)
        key = artifact.manifest.key if artifact else None
        served: Served = "default" if artifact else "missing"
        if artifact is None and asked.op not in made:
            served = "no kernel is made"
        elif device is not None and artifact is not None and (asked.op, key) in tuned:
            served = _source(cache, asked, arch, device, artifact.manifest.key) or served
        found.append(Covered(asked, served, key))
    return found


def _source(cache: KernelCache, asked: Asked, arch: str, device: Device, key: str) -> Served | None:
    """Whether the kernel serves by a measured or a predicted entry, or None: by neither."""
    sources = {
        entry.source
        for entry in cache.tuned(asked.op, arch)
        if entry.key == key and entry.serves_on(device) and entry.question.serves(asked.sizes, asked.variant)
    }
    if "measured" in sources:
        return "tuned"
    return "predicted" if sources else None


def device_here(cache: KernelCache, arch: str, name: str | None) -> Device | None:
    """The known device called ``name``; without a name this machine's GPU, if it has one. Raises UsageError."""
    import torch

    if name is not None:
        return known_device(cache, arch, name)
    if not torch.cuda.is_available():
        return None
    from dsv4.runtime.identity import device_identity

    return device_identity(torch.cuda.current_device())


def known_device(cache: KernelCache, arch: str, name: str) -> Device:
    """The device of that name that something was tuned on last. Raises UsageError."""
    devices = [entry.question.device for op, of in cache.tuned_kinds() if of == arch for entry in cache.tuned(op, arch)]
    found = [device for device in devices if device.name == name]
    if not found:
        valid = ", ".join(sorted({device.name for device in devices})) or "none (nothing was tuned yet)"
        raise UsageError(f"--device: found no entries of '{name}'; valid: {valid}")
    return found[-1]
