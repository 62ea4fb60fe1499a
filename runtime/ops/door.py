"""What an operator's arguments must be, written in a line each, and the check of a call against it.

A line names the argument, its kind and its shape::

    streams: float [T, n, d]       a tensor in bf16, float32 or float64
    fn:      wide [m, n*d]         float32 or float64; sizes may be products of names and numbers
    x:       activation [.., i]    a float tensor or a Quantized; ".." stands for any leading dimensions
    w:       weight [o, i]         a Weight
    pool:    pool [D]              a Pool with rows of D numbers
    plan:    compression [T, N, s] a Compression of T tokens, N entries of s tokens
    lengths: lengths [S, T]        a tuple of S integers whose sum is T
    bias?:   wide [E]              may be None

A name takes its size from the first argument that has it; later ones must agree. All tensors lie on one device.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dsv4.runtime import contract
from dsv4.runtime.pool import Pool
from dsv4.runtime.reference.compressor import Compression
from dsv4.runtime.weight import Quantized, Weight

_FLOATS = (torch.bfloat16, torch.float32, torch.float64)
DTYPES: dict[str, tuple[torch.dtype, ...]] = {
    "float": _FLOATS,
    "wide": (torch.float32, torch.float64),
    "int": (torch.int32, torch.int64),
    "i32": (torch.int32,),
    "i64": (torch.int64,),
    "f32": (torch.float32,),
    "codes": (torch.float8_e4m3fn, torch.uint8),
    "scales": (torch.float8_e8m0fnu, torch.float8_e4m3fn, torch.float32),
}
RECORDS: dict[str, type] = {"weight": Weight, "pool": Pool, "compression": Compression, "lengths": tuple}
KINDS = (*DTYPES, "activation", *RECORDS)
LEADING = ".."
ROWS = "rows"
"""The name of the product of the leading dimensions."""
_LINE = re.compile(r"(?P<name>\w+)(?P<optional>\?)?:\s*(?P<kind>\w+)\s*\[(?P<shape>[^\]]*)\]")


@dataclass(frozen=True)
class Port:
    """One argument, read from its line."""

    name: str
    kind: str
    shape: tuple[str, ...]
    optional: bool

    @classmethod
    def read(cls, line: str) -> Port:
        found = _LINE.fullmatch(line)
        if found is None or found["kind"] not in KINDS:
            raise ValueError(f"port: found {line!r}; valid: 'name: kind [sizes]' with a kind of {', '.join(KINDS)}")
        shape = tuple(size.strip() for size in found["shape"].split(",") if size.strip())
        return cls(found["name"], found["kind"], shape, found["optional"] is not None)


def check(op: str, ports: Sequence[Port], values: Sequence[Any]) -> tuple[dict[str, int], torch.device]:
    """The size of every name, and the device. Raises ``ContractError`` for the first argument that breaks its line."""
    sizes: dict[str, int] = {}
    device: torch.device | None = None
    owner = ""
    for port, value in zip(ports, values, strict=True):
        if value is None and port.optional:
            continue
        _check_kind(op, port, value)
        _check_shape(op, port, _shape(value), sizes)
        for tensor in tensors(value):
            if device is None:
                device, owner = tensor.device, port.name
            elif tensor.device != device:
                raise contract.refusal(op, port.name, f"device {tensor.device}", f"{device}, the device of {owner}")
    assert device is not None, f"{op} has no tensor among its ports"
    return sizes, device


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """The tensors that an argument consists of."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Weight):
        yield from value.tensors().values()
    elif isinstance(value, Pool):
        yield value.data
    elif isinstance(value, tuple):
        yield from (part for part in value if isinstance(part, torch.Tensor))


def _check_kind(op: str, port: Port, value: Any) -> None:
    record = RECORDS.get(port.kind)
    if record is not None and not isinstance(value, record):
        raise contract.refusal(op, port.name, type(value).__name__, record.__name__)
    if record is not None or (port.kind == "activation" and isinstance(value, Quantized)):
        return
    if not isinstance(value, torch.Tensor):
        valid = "torch.Tensor or Quantized" if port.kind == "activation" else "torch.Tensor"
        raise contract.refusal(op, port.name, type(value).__name__, valid)
    valid_dtypes = DTYPES["float" if port.kind == "activation" else port.kind]
    if value.dtype not in valid_dtypes:
        raise contract.refusal(op, port.name, str(value.dtype), " or ".join(map(str, valid_dtypes)))


def _shape(value: Any) -> tuple[int, ...]:
    if isinstance(value, Pool):
        return (value.width,)
    if isinstance(value, Quantized):
        return (*value.codes.shape[:-1], value.width)
    if isinstance(value, Compression):
        return (*value.phase.shape, *value.fresh.shape)
    if isinstance(value, tuple):
        return (len(value), sum(value))
    return tuple(value.shape)


def _check_shape(op: str, port: Port, shape: tuple[int, ...], sizes: dict[str, int]) -> None:
    wanted = port.shape
    if wanted and wanted[0] == LEADING:
        wanted = wanted[1:]
        kept = max(0, len(shape) - len(wanted))
        sizes.setdefault(ROWS, math.prod(shape[:kept]))
        shape = shape[kept:]
    if len(shape) != len(wanted):
        raise contract.refusal(op, port.name, f"shape {list(shape)}", f"{_spell(port.shape)}")
    before = dict(sizes)
    for found, size in zip(shape, wanted, strict=True):
        expected = _product(size, sizes)
        if expected is None:
            sizes[size] = found
        elif found != expected:
            known = [_told(each, before) for each in port.shape]
            raise contract.refusal(
                op, port.name, f"shape {list(shape)}", f"{_spell(known)}, that is {_spell(port.shape)}"
            )


def _product(size: str, sizes: dict[str, int]) -> int | None:
    """The value of a size, ``None`` for a name that has none yet. A product's names must be known."""
    if size in sizes:
        return sizes[size]
    factors = size.split("*")
    if len(factors) == 1 and not size.isdigit():
        return None
    value = 1
    for factor in factors:
        value *= int(factor) if factor.isdigit() else sizes[factor]
    return value


def _told(size: str, sizes: dict[str, int]) -> str:
    """A size as a number where earlier arguments have decided it, else as it is written."""
    known = all(factor.isdigit() or factor in sizes for factor in size.split("*"))
    return str(_product(size, sizes)) if known else size


def _spell(parts: Sequence[str]) -> str:
    return "[" + ", ".join(parts) + "]"
