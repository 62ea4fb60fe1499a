"""attention_combine: attention over parts of the keys put together."""

from __future__ import annotations

from collections.abc import Callable

import torch

from dsv4.runtime.artifact import Scalar
from dsv4.runtime.ops.kernel import KernelPath, Served, are
from dsv4.runtime.ops.plain import Operator
from dsv4.runtime.reference import attention_combine as reference

PARTS_DTYPES = {torch.float32: "f32", torch.bfloat16: "bf16"}


def _serves(
    parts: torch.Tensor,
    part_lse: torch.Tensor,
    sink: torch.Tensor | None,
    *,
    dtype: torch.dtype,
    out_dtype: torch.dtype | None,
) -> Served | None:
    if parts.dtype not in PARTS_DTYPES or (out_dtype or parts.dtype) != torch.bfloat16:
        return None
    if dtype != torch.float32 or not are(torch.float32, part_lse, sink):
        return None
    count, tokens, heads, width = parts.shape
    flags: dict[str, Scalar] = {"parts_dtype": PARTS_DTYPES[parts.dtype], "has_sink": sink is not None}
    return Served({"D": width}, {"P": count, "T": tokens, "H": heads}, flags)


def _call(
    kernel: Callable[..., None], parts: torch.Tensor, part_lse: torch.Tensor, sink: torch.Tensor | None, **_: object
) -> tuple[torch.Tensor, torch.Tensor]:
    out = parts.new_empty(parts.shape[1:], dtype=torch.bfloat16)
    lse = part_lse.new_empty(part_lse.shape[1:])
    kernel(parts, part_lse, sink, out, lse)
    return out, lse


_operator = Operator(
    "attention_combine",
    reference.attention_combine,
    "parts: float [P, T, H, D]",
    "part_lse: wide [P, T, H]",
    "sink?: wide [H]",
    dynamic=("P", "T"),
    kernel=KernelPath(_serves, _call),
    returns=2,
)


def attention_combine(
    parts: torch.Tensor,
    part_lse: torch.Tensor,
    sink: torch.Tensor | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    out_dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(out [T, H, D], lse [T, H]) of parts [P, T, H, D] without sink and their lse [P, T, H]; the sink is applied once.

    A part without keys has lse −∞ or +∞, whatever its values. Raises ``ContractError``. dsv4-reference §7.2.
    """
    return _operator(parts, part_lse, sink, dtype=dtype, out_dtype=out_dtype)
