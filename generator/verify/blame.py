"""Where wrong values come from: the first wrong element, the tile that it lies in, and the store that wrote it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from dsv4.emulator.outcome import Report, Written
from dsv4.generator.verify.case import Case, PoisonedOutputs
from dsv4.generator.verify.registry import first_wrong
from dsv4.generator.verify.run import bind
from dsv4.runtime.artifact import Contract, Scalar


class ProbedKernel(Protocol):
    """A kernel on the emulator; ``probes`` are the elements of whose writers ``report`` is to tell."""

    probes: Sequence[tuple[str, Sequence[int]]]
    report: Report | None

    def __call__(self, *arguments: Any) -> None: ...


@dataclass(frozen=True)
class WrongElement:
    """An element that is not what it should be. ``tile`` is in words: which tile of the kernel's, and its head or row.

    ``written`` is None where the emulator does not know who wrote it (nobody did, or it is an element of a view).
    """

    output: str
    index: tuple[int, ...]
    got: float
    expected: float
    tile: str
    written: Written | None = None

    def __str__(self) -> str:
        value = f"{self.output}{list(self.index)} is {self.got:.6g} instead of {self.expected:.6g}"
        if self.written is None:
            return f"the first wrong element, {value}, lies in {self.tile}"
        where = self.written.source or "no source line"
        by = f"{where} (PTX line {self.written.ptx_line}: {self.written.opcode})"
        return f"the first wrong element, {value}, lies in {self.tile} and was written by {by}"


def wrong_element(
    kernel: ProbedKernel, contract: Contract, case: Case, config: Mapping[str, Scalar]
) -> WrongElement | None:
    """Run the case twice more, to look at its values and then at who wrote the first wrong one; None if none is wrong.

    Raises EmulatorError as the kernel does.
    """
    outputs = PoisonedOutputs(case.outputs, case.device)
    changed = _call(kernel, contract, case, outputs, ())
    got = {**outputs.views, **changed}
    found = first_wrong(case.op, got, case, config)
    if found is None:
        return None
    output, index, tile = found
    wrong = WrongElement(output, index, float(got[output][index]), float(case.expected[output][index]), tile)
    _call(kernel, contract, case, PoisonedOutputs(case.outputs, case.device), [(output, index)])
    report = kernel.report
    return replace(wrong, written=report.writers[0] if report is not None and report.writers else None)


def _call(
    kernel: ProbedKernel,
    contract: Contract,
    case: Case,
    outputs: PoisonedOutputs,
    probes: Sequence[tuple[str, Sequence[int]]],
) -> dict[str, torch.Tensor]:
    """Run the case; what the arguments that are changed in place hold afterwards."""
    changed = {name: value.clone() for name, value in case.inouts.items()}
    kernel.probes = probes
    try:
        kernel(*bind(contract, {**case.inputs, **outputs.views, **changed}))
    finally:
        kernel.probes = ()
    return changed
