"""Run compiled kernels in the emulator: the functions that ``dsv4.emulator`` offers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dsv4.emulator import objects, policy
from dsv4.emulator.arguments import Argument
from dsv4.emulator.client import REQUEST_SECONDS, Client, Object, shared
from dsv4.emulator.errors import ArgumentRefused
from dsv4.emulator.outcome import Report
from dsv4.emulator.policy import MAX_INSTRUCTIONS
from dsv4.runtime.artifact import Contract
from dsv4.runtime.cache import Artifact

Schedules = int | str | Sequence[str]
"""How many schedules (the fixed ones first), or their names."""


def run(
    compiled: Any,
    *arguments: Any,
    schedules: Schedules = 1,
    seed: int = 0,
    threads: int = 0,
    max_instructions: int = MAX_INSTRUCTIONS,
    seconds: float = REQUEST_SECONDS,
    timeline: Path | str | None = None,
    probes: Sequence[tuple[str, Sequence[int]]] = (),
    client: Client | None = None,
) -> Report:
    """Run a compiled CuTeDSL function on CPU tensors through its real host code; no GPU is touched.

    ``compiled`` is what ``cute.compile`` returned (with ``--enable-tvm-ffi --keep-ptx --keep-cubin``) or an ``Object``
    of :mod:`dsv4.emulator.objects`; ``arguments`` are those of a call on a GPU: tensors (CPU here, written in place),
    numbers, ``None``, a stream as a number where the function takes one. Marks (``output(y)``, ``reads(x)``,
    ``workspace(w)``) tell the emulator more, and it then sees more. ``schedules`` are tried one after the other on the
    same inputs, and the tensors hold the first one's results. ``max_instructions`` bounds each cluster of CTAs
    (warp-instructions), ``seconds`` the call; ``threads`` 0 takes all cores, clusters running beside each other.
    ``timeline`` names a file that the first schedule is drawn to, for Perfetto. ``probes`` are elements (a tensor's
    name and an index) of which the report's ``writers`` say what wrote them.

    Raises EmulatorError (see :mod:`dsv4.emulator.errors`) where the kernel cannot be run to its end.
    """
    made = compiled if isinstance(compiled, Object) else objects.from_compiled(compiled)
    return sequence(
        (made, *arguments), schedules=schedules, seed=seed, threads=threads, max_instructions=max_instructions,
        seconds=seconds, timeline=timeline, probes=probes, client=client,
    )  # fmt: skip


def sequence(
    *calls: Sequence[Any],
    schedules: Schedules = 1,
    seed: int = 0,
    threads: int = 0,
    max_instructions: int = MAX_INSTRUCTIONS,
    seconds: float = REQUEST_SECONDS,
    timeline: Path | str | None = None,
    probes: Sequence[tuple[str, Sequence[int]]] = (),
    client: Client | None = None,
) -> Report:
    """Several calls on the same stream: ``sequence((first, x, y), (second, y, z))``; options as for ``run``.

    A launch with programmatic stream serialization may begin before the launches before it have ended: what they
    wrote counts as unwritten until it has executed griddepcontrol.wait.
    """
    pairs = [
        (call[0] if isinstance(call[0], Object) else objects.from_compiled(call[0]), list(call[1:])) for call in calls
    ]
    return (client or shared()).request(
        pairs,
        schedules=schedule_names(schedules, seed),
        threads=threads or len(os.sched_getaffinity(0)),
        max_instructions=max_instructions,
        seconds=seconds,
        timeline=timeline,
        probes=probes,
    )


def run_artifact(artifact: Artifact | str | Path, values: Mapping[str, Any], **options: Any) -> Report:
    """Run a kernel of the cache on ``values``, by the names of its contract; options as for ``run``.

    The contract says which tensors are inputs, outputs and workspace. Optional arguments may be left out. Raises
    ArgumentRefused for a name that is missing or unknown, or a tensor of another dtype.
    """
    if not isinstance(artifact, Artifact):
        artifact = Artifact.read(Path(artifact))
    return run(objects.from_artifact(artifact), *bound(artifact.manifest.contract, values), **options)


def bound(contract: Contract, values: Mapping[str, Any]) -> list[Any]:
    """``values`` in the contract's order, tensors marked with their roles and names."""
    names = [argument.name for argument in contract.arguments]
    if unknown := sorted(set(values) - set(names)):
        raise ArgumentRefused(f"arguments: found {unknown[0]!r}; valid: {', '.join(names)}")
    found: list[Any] = []
    for argument in contract.arguments:
        value = values.get(argument.name)
        if value is None and not argument.optional:
            raise ArgumentRefused(f"arguments: {argument.name} is missing; valid: {', '.join(names)}")
        if isinstance(value, torch.Tensor) and argument.kind == "tensor":
            raw = value.dtype == torch.uint8 and argument.dtype in ("e8m0", "e2m1x2", "e4m3", "e5m2")
            value = Argument(value, argument.role, argument.name, argument.dtype if raw else "")
        found.append(value)
    return found


def schedule_names(wanted: Schedules, seed: int) -> list[str]:
    """Names of schedules. Raises ArgumentRefused for a name that there is not, or a count below 1."""
    if isinstance(wanted, int):
        if wanted < 1:
            raise ArgumentRefused(f"schedules: found {wanted}; valid: 1 or more, or names")
        return [each.name for each in policy.schedules(wanted, seed)]
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    try:
        return [policy.by_name(name).name for name in names]
    except ValueError as error:
        raise ArgumentRefused(str(error)) from None
