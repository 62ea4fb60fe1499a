"""The smallest arguments that a kernel takes, made from its contract, to run it once and load its module."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch

from dsv4.runtime.artifact import Argument, Manifest
from dsv4.runtime.contract import TORCH_DTYPES

BEHIND_BYTES = 1 << 16
"""Memory of its own behind each tensor. A dimension of 1 may be less than any call has, which no contract tells (a page
has the bytes of a row at least, experts' rows are padded): a kernel then writes more than the tensor."""


def tiny_arguments(manifest: Manifest, device: torch.device) -> list[Any]:
    """Tensors of zeros (a valid index, length and logit) and scalars of 1, in contract order; a dynamic dimension has
    size 1, or its bucket's lower bound.

    An argument that the manifest calls optional is one that this variant does not have: ``None``.
    """
    sizes: dict[str, int] = {}
    for name, static in manifest.contract.dims.items():
        low = manifest.bucket.get(name, (1, None))[0]
        sizes[name] = static if static is not None else manifest.dims.get(name, max(low, 1))
    return [_tiny(argument, sizes, device) for argument in manifest.contract.arguments]


_ARITHMETIC: dict[type, Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
}


def extent(dimension: int | str, sizes: Mapping[str, int]) -> int:
    """The size of a dimension of a contract: a number, a name in ``sizes``, or ``+ - * //`` of such ("B + 1").

    Raises ``ValueError`` for anything else.
    """

    def value(node: ast.AST) -> int:
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return node.value
        if isinstance(node, ast.Name) and node.id in sizes:
            return sizes[node.id]
        if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
            return _ARITHMETIC[type(node.op)](value(node.left), value(node.right))
        raise ValueError(f"dimension: found {dimension!r}; valid: + - * // of numbers and {', '.join(sizes)}")

    return dimension if isinstance(dimension, int) else value(ast.parse(dimension, mode="eval").body)


def _tiny(argument: Argument, sizes: dict[str, int], device: torch.device) -> Any:
    if argument.optional:
        return None
    if argument.kind == "scalar":
        return True if argument.dtype == "bool" else 1 if argument.dtype.startswith(("i", "u")) else 1.0
    shape = [extent(dimension, sizes) for dimension in argument.shape]
    dtype = TORCH_DTYPES[argument.dtype]
    size_bytes = math.prod(shape) * dtype.itemsize
    held = torch.zeros(size_bytes + BEHIND_BYTES, dtype=torch.uint8, device=device)
    return held[:size_bytes].view(dtype).view(shape)
