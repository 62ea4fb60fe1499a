"""Run a kernel over one case: poisoned outputs, arguments in the contract's order, the judge."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from dsv4.generator.verify.case import Case, PoisonedOutputs, Value, Verdict
from dsv4.generator.verify.registry import judge
from dsv4.runtime.artifact import Contract


def bind(contract: Contract, values: dict[str, Value]) -> list[Any]:
    """``values`` in the contract's order. Raises ``KeyError`` where an argument that is not optional is missing."""
    bound: list[Any] = []
    for argument in contract.arguments:
        if argument.name in values:
            bound.append(values[argument.name])
        elif argument.optional:
            bound.append(None)
        else:
            raise KeyError(f"the case has no value for the argument {argument.name!r}")
    return bound


def run_case(kernel: Callable[..., Any], contract: Contract, case: Case) -> Verdict:
    """Call ``kernel`` once on ``case`` with outputs full of poison and judge what it wrote.

    Inputs are compared with a copy afterwards: a kernel that changes an input fails.
    """
    outputs = PoisonedOutputs(case.outputs, case.device)
    before = {name: value.clone() for name, value in case.inputs.items() if isinstance(value, torch.Tensor)}
    changed = {name: value.clone() for name, value in case.inouts.items()}
    kernel(*bind(contract, {**case.inputs, **outputs.views, **changed}))
    if case.device.type == "cuda":
        torch.cuda.synchronize(case.device)
    verdict = judge(case.op, {**outputs.views, **changed}, case)
    findings = outputs.findings()
    for name, copy in before.items():
        now = case.inputs[name]
        assert isinstance(now, torch.Tensor)
        if not torch.equal(_bits(now), _bits(copy)):
            findings.append(f"{name}: the kernel changed an input")
    if not findings:
        return verdict
    return replace(verdict, ok=False, findings=(*findings, *verdict.findings))


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return (
        tensor.clone(memory_format=torch.contiguous_format).flatten().view(torch.uint8)
    )  # contiguous() may keep a stride
