"""One case: inputs by argument name, the float64 answer, and output buffers that cannot look right by accident."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

Value = torch.Tensor | float | int | None

GUARD_ELEMENTS = 64
"""Poisoned elements before and after each output: a kernel that writes them wrote outside its tensor."""

# NaNs with payloads that no arithmetic makes, numbers that no index is: an element that still holds one was never
# written.
POISON_BITS = {
    torch.bfloat16: (torch.int16, 0x7FA5),
    torch.float32: (torch.int32, 0x7FA5A5A5),
    torch.int32: (torch.int32, 0x5AA5A5A5),
    torch.int64: (torch.int64, 0x5AA5A5A55AA5A5A5),
}
BYTE_POISON = 0x5A
"""Of dtypes of one byte, which may be right by accident: whether they were written, only the judge can tell."""


@dataclass(frozen=True)
class OutputLayout:
    """Where an output lies: shape and strides in elements. Strides may leave gaps, which must stay untouched."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Case:
    """Inputs, the float64 answer and what the answer is judged by.

    ``inputs`` maps argument names to tensors, numbers or ``None`` (an optional tensor that this variant lacks);
    ``outputs`` says which tensors the kernel writes; ``expected`` holds the float64 answers, same names and shapes;
    ``limits`` holds numbers that the operator's judge needs (such as the error of torch's own bf16 result). ``inouts``
    maps the arguments that the kernel changes in place to what they hold before; the judge gets what they hold after,
    and what must not change is its to compare.
    """

    op: str
    name: str
    inputs: dict[str, Value]
    outputs: dict[str, OutputLayout]
    expected: dict[str, torch.Tensor]
    limits: dict[str, float] = field(default_factory=dict)
    inouts: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        return next(iter(self.expected.values())).device

    @property
    def is_empty(self) -> bool:
        """Some tensor has no elements: the public function answers such a call without launching a kernel."""
        tensors = [*self.inputs.values(), *self.expected.values()]
        return any(isinstance(tensor, torch.Tensor) and tensor.numel() == 0 for tensor in tensors)


@dataclass(frozen=True)
class Verdict:
    """What the judge found. ``findings`` is empty exactly when ``ok``; each finding is one line.

    ``cosine`` and ``rel_l2`` are over the whole output, ``max_abs`` is the largest absolute error over finite answers,
    ``worst_row`` the index (flat over all but the last axis) of the row with the largest relative L2 error, or -1.
    """

    ok: bool
    cosine: float
    rel_l2: float
    max_abs: float
    worst_row: int
    findings: tuple[str, ...] = ()
    detail: dict[str, Any] = field(default_factory=dict)


class PoisonedOutputs:
    """Output tensors cut out of larger poisoned buffers, for one call of a kernel.

    ``views[name]`` goes to the kernel; afterwards ``findings()`` says what was left unwritten or written outside.
    """

    def __init__(self, layouts: dict[str, OutputLayout], device: torch.device) -> None:
        self._layouts = layouts
        self._buffers: dict[str, torch.Tensor] = {}
        self.views: dict[str, torch.Tensor] = {}
        for name, layout in layouts.items():
            if 0 in layout.shape:
                span = 0
            else:
                span = 1 + sum((n - 1) * s for n, s in zip(layout.shape, layout.strides, strict=True))
            bits, poison = POISON_BITS.get(layout.dtype, (torch.uint8, BYTE_POISON))
            buffer = torch.full((span + 2 * GUARD_ELEMENTS,), poison, dtype=bits, device=device)
            self._buffers[name] = buffer
            self.views[name] = buffer.view(layout.dtype).as_strided(layout.shape, layout.strides, GUARD_ELEMENTS)

    def findings(self) -> list[str]:
        """One line per output with unwritten elements or with elements written outside of it."""
        found = []
        for name, layout in self._layouts.items():
            told = layout.dtype in POISON_BITS
            _, poison = POISON_BITS.get(layout.dtype, (torch.uint8, BYTE_POISON))
            untouched = self._buffers[name] == poison
            inside = torch.zeros_like(untouched)
            inside.as_strided(layout.shape, layout.strides, GUARD_ELEMENTS).fill_(True)
            unwritten = int((untouched & inside).sum()) if told else 0
            outside = int((~untouched & ~inside).sum())
            if unwritten:
                first = (untouched & inside).as_strided(layout.shape, layout.strides, GUARD_ELEMENTS).nonzero()[0]
                found.append(f"{name}: {unwritten} elements were never written, the first at {first.tolist()}")
            if outside:
                found.append(f"{name}: {outside} elements outside the tensor were overwritten")
        return found
