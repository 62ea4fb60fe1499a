"""Arguments that a kernel's contract allows, as plain numbers: what the probe calls the kernel with."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from dsv4.generator.spec.expression import parse_expression
from dsv4.runtime.artifact import Argument, Contract

_TRY_SIZES = (16, 64, 128, 256, 8, 1024, 1)
_FLOATS = ("bf16", "f16", "f32", "f64")


def candidates(contract: Contract, bucket: Mapping[str, tuple[int, int | None]]) -> Iterator[list[dict[str, Any]]]:
    """Lists of arguments to try in turn: every dynamic dimension gets one size, inside its bucket.

    There are several because the host code may ask for more than the contract says (a multiple of 64). An argument is
    ``{"dtype", "shape", "strides"}`` in elements, ``{"scalar"}``, or ``{"none"}`` for a tensor that this variant lacks.
    Raises :class:`ValueError` for a size that the dimensions do not give.
    """
    for size in _TRY_SIZES:
        sizes = {name: static or _inside(size, bucket.get(name)) for name, static in contract.dims.items()}
        yield [_described(argument, sizes) for argument in contract.arguments]


def _inside(size: int, bounds: tuple[int, int | None] | None) -> int:
    low, high = bounds or (1, None)
    return max(low, 1, size if high is None else min(size, high))


def _described(argument: Argument, sizes: Mapping[str, int]) -> dict[str, Any]:
    if argument.optional:
        return {"none": True}
    if argument.kind == "scalar":
        return {"scalar": 1.0 if argument.dtype in _FLOATS else 1}
    shape = [_number(item, sizes) for item in argument.shape]
    dense = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    given = argument.strides or ("any",) * len(shape)
    free = [-(-each // argument.stride_multiple) * argument.stride_multiple for each in dense[:-1]] + dense[-1:]
    strides = [each if item == "any" else _number(item, sizes) for item, each in zip(given, free, strict=True)]
    return {"dtype": argument.dtype, "shape": shape, "strides": strides}


def _number(item: int | str, sizes: Mapping[str, int]) -> int:
    return item if isinstance(item, int) else parse_expression(item).integer(dict(sizes))
