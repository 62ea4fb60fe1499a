"""Which module verifies which operator: that of its name in ``operators``, with ``cases``, ``judge``, ``workload``."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from types import ModuleType
from typing import Any

import torch

from dsv4.generator.verify import operators as _modules
from dsv4.generator.verify.case import Case, Value, Verdict
from dsv4.runtime.artifact import Scalar


@cache
def operators() -> tuple[str, ...]:
    """Operators that have verification cases."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(_modules.__path__)))


def _module(op: str) -> ModuleType:
    if op not in operators():
        raise ValueError(f"op: {op!r} has no verification cases; those that have: {', '.join(operators())}")
    return importlib.import_module(f"{_modules.__name__}.{op}")


def cases(
    op: str,
    dims: Mapping[str, int],
    variant: Mapping[str, Scalar],
    *,
    config: Mapping[str, Scalar] | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    empty: bool = False,
) -> list[Case]:
    """Adversarial cases for one kernel: its static ``dims``, its ``variant`` and the tile sizes in its ``config``.

    The same arguments give the same inputs on the same device. ``empty`` adds the cases in which a tensor has no
    elements, for which the public function launches no kernel. Raises ``ValueError`` for an operator without cases.
    """
    found: list[Case] = _module(op).cases(
        dict(dims), dict(variant), config=dict(config or {}), seed=seed, device=torch.device(device)
    )
    return [case for case in found if empty or not case.is_empty]


def thorough(op: str) -> tuple[int, ...]:
    """Numbers of two small cases with several tiles, in ``cases``'s list: those to be run under many schedules."""
    found: tuple[int, ...] = _module(op).THOROUGH_CASES
    return found


def judge(op: str, got: Mapping[str, torch.Tensor], case: Case) -> Verdict:
    """Hold ``got`` (outputs by name) to ``case.expected`` by the operator's rule of accuracy."""
    verdict: Verdict = _module(op).judge(dict(got), case)
    return verdict


def first_wrong(
    op: str, got: Mapping[str, torch.Tensor], case: Case, config: Mapping[str, Scalar]
) -> tuple[str, tuple[int, ...], str] | None:
    """The first element that ``judge`` holds against the kernel: output, index, and in words the tile it lies in.

    None where no single element is to blame.
    """
    found: tuple[str, tuple[int, ...], str] | None = _module(op).first_wrong(dict(got), case, dict(config))
    return found


def workload_sizes(op: str) -> dict[str, int]:
    """The dynamic dimensions that ``workload`` takes where a caller does not give them."""
    known: dict[str, int] = _module(op).WORKLOAD_SIZES
    return dict(known)


def workload(
    op: str,
    dims: Mapping[str, int],
    variant: Mapping[str, Scalar],
    sizes: Mapping[str, int],
    *,
    seed: int = 0,
    device: torch.device | str = "cuda",
) -> dict[str, Value]:
    """Random inputs and empty outputs by argument name, to be timed at ``sizes`` (the dynamic dimensions).

    Raises ``ValueError`` naming a size that is missing or unknown.
    """
    module: Any = _module(op)
    known = workload_sizes(op)
    unknown = set(sizes) - set(known)
    if unknown:
        raise ValueError(f"sizes: {op} has no dimension {sorted(unknown)[0]!r}; it has {', '.join(known)}")
    values: dict[str, Value] = module.workload(
        dict(dims), dict(variant), {**known, **sizes}, seed=seed, device=torch.device(device)
    )
    return values
