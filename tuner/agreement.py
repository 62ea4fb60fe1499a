"""Whether a candidate says at a shape that is timed what the default says there.

The cases that a kernel is held to the reference by are adversarial and small. A shape of a bucket may be larger than
all of them, and a kernel that is wrong there alone (an index that overflows, a row that no CTA takes) would be timed
and kept. So it is called once on the inputs that it is timed with, over outputs full of poison, beside the default.
What another order of additions changes is allowed; it is not what decides whether a kernel is right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from dsv4.generator.verify.run import bind
from dsv4.runtime.artifact import Contract

POISON = 0xA5
COSINE_MIN = 0.999
FAR = 0.05
"""Of an element's size, or of a row's usual one where that is more: farther off than any rounding."""
FAR_SHARE_MAX = 1e-3
CODES_SHARE_MAX = 0.01
"""Codes, indices and scales that may differ: a value between two of them falls to either side. One always may."""

Kernel = Callable[..., Any]
Outcome = dict[str, torch.Tensor]


class Disagrees(Exception):
    """What a candidate writes at a timed shape is not what the default writes. One line."""


class Sample:
    """The inputs of one shape (``values`` by name), and what kernels make of them."""

    def __init__(self, values: Mapping[str, Any], contract: Contract) -> None:
        self._values = dict(values)
        tensors = {name for name, value in self._values.items() if isinstance(value, torch.Tensor)}
        roles = {each.name: each.role for each in contract.arguments if each.name in tensors}
        self._outputs = [name for name, role in roles.items() if role == "output"]
        self._before = {name: self._values[name].clone() for name, role in roles.items() if role == "inout"}

    def outcome(self, kernel: Kernel, contract: Contract) -> Outcome:
        """What ``kernel`` has written when it has been called once."""
        for name in self._outputs:
            poison(self._values[name])
        for name, before in self._before.items():
            self._values[name].copy_(before)
        kernel(*bind(contract, self._values))
        return {name: self._values[name].clone() for name in (*self._outputs, *self._before)}


def poison(tensor: torch.Tensor) -> None:
    """Fill ``tensor`` with bytes that no kernel leaves by chance, unless its elements lie apart."""
    if tensor.dim() and tensor.numel() and tensor.stride(-1) == 1:
        tensor.view(torch.uint8).fill_(POISON)


def require_agreement(got: Outcome, wanted: Outcome, where: str) -> None:
    """Raises ``Disagrees`` for the first output that is another one than the default's, at the shape ``where``."""
    for name, expected in wanted.items():
        if problem := difference(got[name], expected):
            raise Disagrees(f"at {where} it does not agree with the default: {name}: {problem}")


def difference(got: torch.Tensor, wanted: torch.Tensor) -> str | None:
    """In words how ``got`` is another tensor than ``wanted``; None where it is the same but for rounding."""
    if wanted.dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        return _of_floats(got, wanted)
    one, other = (each.view(torch.uint8) if each.dtype.itemsize == 1 else each for each in (got, wanted))
    different = int((one != other).sum())
    if different <= max(1, int(CODES_SHARE_MAX * wanted.numel())):
        return None
    return f"{different} of {wanted.numel()} elements are others"


def _of_floats(got: torch.Tensor, wanted: torch.Tensor) -> str | None:
    one, other = got.double(), wanted.double()
    finite = torch.isfinite(other)
    if unlike := int((torch.isfinite(one) != finite).sum()):
        return f"{unlike} of {wanted.numel()} elements are finite in one of the two only"
    one, other = (torch.where(finite, each, 0.0) for each in (one, other))
    norms = float(one.norm() * other.norm())
    cosine = float((one * other).sum()) / norms if norms else float(one.norm() == other.norm())
    usual = other.square().mean(dim=-1, keepdim=True).sqrt() if other.dim() else other.abs()
    far = int(((one - other).abs() > FAR * torch.maximum(other.abs(), usual)).sum())
    if cosine >= COSINE_MIN and far <= FAR_SHARE_MAX * wanted.numel():
        return None
    return f"cosine {cosine:.6f}, {far} of {wanted.numel()} elements are more than {100 * FAR:g} % off"
