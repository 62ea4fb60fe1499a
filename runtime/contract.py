"""Checks at an operator's door, and the wording of what they find.

The compiled host function of a kernel checks dtype, rank, shape, strides, device and alignment itself, on every call
and before it launches anything. What it cannot know is checked here: memory that arguments share, and in debug mode
the domain of values. Where no kernel runs (the CPU, empty tensors), and to word a kernel's complaint in the names of
the public function, ``check`` goes through the same contract in Python.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from dsv4.runtime.artifact import Argument, Contract
from dsv4.runtime.errors import ContractError

TORCH_DTYPES: dict[str, torch.dtype] = {
    "bf16": torch.bfloat16,
    "f16": torch.float16,
    "f32": torch.float32,
    "f64": torch.float64,
    "i8": torch.int8,
    "u8": torch.uint8,
    "i32": torch.int32,
    "i64": torch.int64,
    "e4m3": torch.float8_e4m3fn,
    "e5m2": torch.float8_e5m2,
    "e8m0": torch.float8_e8m0fnu,
    "e2m1x2": torch.float4_e2m1fn_x2,
    "bool": torch.bool,
}

_PYTHON_SCALARS: dict[str, tuple[type, ...]] = {"bool": (bool,), "i32": (int,), "i64": (int,)}

Domain = Callable[[str, str, Any], None]


def check(op: str, contract: Contract, values: Mapping[str, Any]) -> dict[str, int]:
    """Hold ``values`` (by argument name, ``None`` for an optional one that is not given) to ``contract``.

    Returns every dimension's size. Raises ``ContractError`` for the first argument that breaks the contract.
    """
    sizes = {name: size for name, size in contract.dims.items() if size is not None}
    device: torch.device | None = None
    owner = ""
    for argument in contract.arguments:
        value = values[argument.name]
        if value is None and argument.optional:
            continue
        if argument.kind == "scalar":
            _check_scalar(op, argument, value)
            continue
        require_tensor(op, argument.name, value)
        _check_layout(op, argument, value, sizes)
        if device is None:
            device, owner = value.device, argument.name
        elif value.device != device:
            raise refusal(op, argument.name, f"device {value.device}", f"{device}, the device of {owner}")
    return sizes


def check_dtypes(op: str, contract: Contract, values: Mapping[str, Any]) -> None:
    """Dtypes alone, of the tensors in ``values``: what can be said of tensors whose sizes are symbols."""
    for argument in contract.arguments:
        tensor = values.get(argument.name)
        if tensor is not None and tensor.dtype != TORCH_DTYPES[argument.dtype]:
            raise refusal(op, argument.name, str(tensor.dtype), str(TORCH_DTYPES[argument.dtype]))


def require_tensor(op: str, name: str, value: Any) -> None:
    """Raises ``ContractError`` unless ``value`` is a tensor."""
    if not isinstance(value, torch.Tensor):
        raise refusal(op, name, f"{type(value).__name__}", "torch.Tensor")


def refusal(op: str, name: str, found: str, valid: str) -> ContractError:
    return ContractError(f"{op}: {name}: found {found}; valid: {valid}")


def _check_scalar(op: str, argument: Argument, value: Any) -> None:
    valid = _PYTHON_SCALARS.get(argument.dtype, (float, int))
    if not isinstance(value, valid) or (isinstance(value, bool) and bool not in valid):
        raise refusal(op, argument.name, f"{type(value).__name__}", " or ".join(kind.__name__ for kind in valid))


def _check_layout(op: str, argument: Argument, tensor: torch.Tensor, sizes: dict[str, int]) -> None:
    name, dtype = argument.name, TORCH_DTYPES[argument.dtype]
    if tensor.dtype != dtype:
        raise refusal(op, name, str(tensor.dtype), str(dtype))
    shape = tuple(tensor.shape)
    if len(shape) != len(argument.shape):
        raise refusal(op, name, f"{len(shape)} dimensions", f"{len(argument.shape)}, {_spell(argument.shape)}")
    for place, dimension in enumerate(argument.shape):
        expected = dimension if isinstance(dimension, int) else sizes.setdefault(dimension, shape[place])
        if shape[place] != expected:
            valid = _spell(tuple(sizes.get(d, d) if isinstance(d, str) else d for d in argument.shape))
            raise refusal(op, name, f"shape {_spell(shape)}", f"{valid}, that is {_spell(argument.shape)}")
    if tensor.numel():
        _check_strides(op, argument, tensor, sizes)
        if tensor.device.type != "meta" and _has_address(tensor) and tensor.data_ptr() % argument.align:
            past = tensor.data_ptr() % argument.align
            raise refusal(op, name, f"data {past} bytes past a boundary", f"data aligned to {argument.align} bytes")


def _check_strides(op: str, argument: Argument, tensor: torch.Tensor, sizes: dict[str, int]) -> None:
    if not argument.strides:
        if not tensor.is_contiguous():
            raise refusal(op, argument.name, f"strides {_spell(tensor.stride())}", "a contiguous tensor")
        return
    for place, (found, rule) in enumerate(zip(tensor.stride(), argument.strides, strict=True)):
        if tensor.shape[place] == 1:
            continue
        dimension = argument.shape[place]
        if rule == "any":
            if found % argument.stride_multiple:
                valid = f"a multiple of {argument.stride_multiple} elements"
                raise refusal(op, argument.name, f"stride {found} in dimension {dimension}", valid)
            continue
        # A rule that is an expression of dimensions is known to the host function alone.
        expected = rule if isinstance(rule, int) else sizes.get(rule, found)
        if found != expected:
            raise refusal(op, argument.name, f"stride {found} in dimension {dimension}", f"stride {expected}")


def _has_address(tensor: torch.Tensor) -> bool:
    """A fake tensor has none; a plain one or a parameter has."""
    return type(tensor) in (torch.Tensor, torch.nn.Parameter)


def _spell(parts: Sequence[Any]) -> str:
    return "[" + ", ".join(map(str, parts)) + "]"


_spans: dict[tuple[torch.Size, tuple[int, ...], int], int] = {}
_SPANS_MAX = 4096


def span_bytes(tensor: torch.Tensor) -> int:
    """Bytes from the first element of ``tensor`` to the end of its last, gaps included; 0 for an empty one."""
    if tensor.is_contiguous():
        return tensor.nbytes
    key = (tensor.shape, tensor.stride(), tensor.itemsize)
    span = _spans.get(key)
    if span is None:
        last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        span = 0 if 0 in tensor.shape else (last + 1) * tensor.itemsize
        if len(_spans) >= _SPANS_MAX:
            _spans.clear()
        _spans[key] = span
    return span


def refuse_overlap(op: str, outputs: Mapping[str, torch.Tensor], inputs: Mapping[str, torch.Tensor | None]) -> None:
    """Raises ``ContractError`` where the memory of an output meets that of an input or of another output."""
    taken = {name: tensor for name, tensor in inputs.items() if tensor is not None}
    for name, output in outputs.items():
        start, end = output.data_ptr(), output.data_ptr() + span_bytes(output)
        for other, tensor in taken.items():
            first = tensor.data_ptr()
            if start < first + span_bytes(tensor) and first < end and output.device == tensor.device:
                raise refusal(op, name, f"memory that {other} uses too", "memory of its own")
        taken[name] = output


def not_nan(op: str, name: str, value: Any) -> None:
    """Domain: no NaN, in a scalar or in any element (reads the tensor, hence for debug mode only)."""
    bad = bool(torch.isnan(value).any()) if isinstance(value, torch.Tensor) else math.isnan(value)
    if bad:
        raise refusal(op, name, "NaN", "no NaN")


def finite_positive(op: str, name: str, value: float) -> None:
    """Domain of a scalar: finite and > 0."""
    if not 0.0 < value < math.inf:
        raise refusal(op, name, f"{value}", "a finite number > 0")


def finite_not_negative(op: str, name: str, value: float) -> None:
    """Domain of a scalar: finite and ≥ 0."""
    if not (math.isfinite(value) and value >= 0):
        raise refusal(op, name, f"{value}", "a finite number ≥ 0")


def check_domains(op: str, domains: Mapping[str, Domain], values: Mapping[str, Any]) -> None:
    """Debug mode: raises ``ContractError`` for the first value outside its domain."""
    for name, domain in domains.items():
        if values[name] is not None:
            domain(op, name, values[name])


_CALL_TEXT = re.compile(r"\s*when calling: `.*`(?=,|$)|\s*when calling: `[^`]*`", re.DOTALL)


def explain(op: str, contract: Contract, values: Mapping[str, Any], error: Exception) -> Exception:
    """What a kernel's host function complained of, as a ``ContractError`` in the public function's argument names.

    The contract is gone through in Python first; where that finds nothing, the host function's own words are kept,
    with ``argument #1`` replaced by the argument's name.
    """
    try:
        check(op, contract, values)
    except ContractError as found:
        return found
    names = [argument.name for argument in contract.arguments]

    def named(match: re.Match[str]) -> str:
        place = int(match.group(1))
        return f"argument {names[place]}" if place < len(names) else match.group(0)

    said = re.sub(r"argument #(\d+)", named, _CALL_TEXT.sub("", str(error)))
    return ContractError(f"{op}: {' '.join(said.split())}")
