"""Registration of the operators under ``torch.ops.dsv4``.

``Library.define`` and ``impl`` are used, not the ``custom_op`` decorator: a call through the latter costs 20 µs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.library import Library

NAMESPACE = "dsv4"
_library = Library(NAMESPACE, "DEF")


def register(schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Define ``schema`` for CPU and CUDA tensors with ``implementation`` and return the operator (an OpOverload).

    ``fake`` gives outputs without data, of the shapes, dtypes and strides that ``implementation`` gives.
    """
    name = schema.partition("(")[0]
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    for key in ("CPU", "CUDA"):
        _library.impl(name, implementation, key)
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_library)
    return getattr(getattr(torch.ops, NAMESPACE), name).default
