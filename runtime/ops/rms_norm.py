"""rms_norm: y = weight · x / √(mean(x²) + eps), row by row, in bf16 with float32 inside."""

from __future__ import annotations

from typing import Any

import torch
from torch import empty_like

from dsv4.runtime import contract, dispatch
from dsv4.runtime.artifact import Argument, Contract
from dsv4.runtime.ops.library import register
from dsv4.runtime.reference.rms_norm import rms_norm as reference_rms_norm
from dsv4.runtime.routing import PLAIN, dispatch_modes, functorch_level, is_compiling

OP = "rms_norm"
COLUMNS_MULTIPLE = 8
"""Columns come in vectors of 16 bytes."""

CONTRACT = Contract(
    dims={"T": None, "d": None},
    arguments=(
        Argument(name="x", kind="tensor", dtype="bf16", shape=("T", "d"), strides=("any", 1), stride_multiple=8),
        Argument(name="weight", kind="tensor", dtype="bf16", shape=("d",), strides=(1,)),
        Argument(
            name="out",
            kind="tensor",
            dtype="bf16",
            shape=("T", "d"),
            strides=("any", 1),
            stride_multiple=8,
            role="output",
        ),
        Argument(name="eps", kind="scalar", dtype="f32"),
    ),
)
"""The kernel's contract in the public function's names; a test holds it to the spec's."""

_DOMAINS: dict[str, contract.Domain] = {"weight": contract.not_nan, "eps": contract.finite_not_negative}
_table = dispatch.table(OP)


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, eps: float = 1e-6, *, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Root-mean-square normalisation over the last dimension: bf16(weight · x / √(mean(x²) + eps)).

    Args:
        x: bf16 [..., d], d a multiple of 8, the last stride 1, data aligned to 16 bytes. The leading dimensions must
            flatten to rows of one stride, a multiple of 8 elements; rows may lie apart.
        weight: bf16 [d], aligned to 16 bytes.
        eps: added to the mean of the squares.
        out: bf16 of x's shape, with rows like x's, sharing no memory with x or weight; made where it is None.

    Returns:
        ``out``. Computed in float32 and rounded once; a NaN stays in its row; a tensor without elements gives one. No
        gradient is recorded.

    Raises:
        ContractError: an argument breaks the above; the message names it.
        KernelMissing: no kernel serves these CUDA tensors and ``missing="raise"`` was chosen.

    The formula is that of DeepSeek-V4's RMSNorm (dsv4-reference §3.1).
    """
    if (
        is_compiling()
        or dispatch_modes()
        or functorch_level() is not None
        or type(x) not in PLAIN
        or type(weight) not in PLAIN
    ):
        return _seen_by_torch(x, weight, eps, out)
    if out is None:
        out = empty_like(x, memory_format=torch.contiguous_format)
    else:
        _require_apart(x, weight, out)
    _run(x, weight, out, eps)
    return out


def _run(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, eps: float) -> None:
    entry = _table.get((x.shape, x.get_device()))
    if entry is None:
        entry = _find_entry(x, weight, out, eps)
    try:
        entry(x, weight, out, eps)
    except (ValueError, TypeError) as error:
        raise _explained(error, x, weight, out, eps) from None


def _require_apart(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> None:
    contract.require_tensor(OP, "out", out)
    start = out.data_ptr()
    if (
        not (x.is_contiguous() and out.is_contiguous())
        or abs(start - x.data_ptr()) < x.nbytes
        or -out.nbytes < start - weight.data_ptr() < weight.nbytes
    ):
        contract.refuse_overlap(OP, {"out": out}, {"x": x, "weight": weight})


def _seen_by_torch(x: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor | None) -> torch.Tensor:
    contract.require_tensor(OP, "x", x)
    contract.require_tensor(OP, "weight", weight)
    if out is None:
        return _op(x, weight, eps)
    contract.require_tensor(OP, "out", out)
    _op_out(x, weight, out, eps)
    return out


def _find_entry(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, eps: float) -> dispatch.Entry:
    _check(x, weight, out, eps)
    columns = x.shape[-1]
    request = dispatch.Request(
        OP,
        x.device,
        dims={"d": columns},
        sizes={"T": x.numel() // columns},
        variant=_variant(),
        empty=x.numel() == 0,
    )
    return dispatch.make_entry(
        (x.shape, x.get_device()),
        request,
        reference=_reference,
        empty=_nothing,
        adapt=lambda kernel: kernel.function if x.ndim == 2 else _on_rows(kernel.function),
        check=_check,
        check_values=_check_values,
    )


def _variant() -> dict[str, Any]:
    return {"pdl": dispatch.current_settings().pdl}


def _reference(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, eps: float) -> None:
    out.copy_(reference_rms_norm(x.detach(), weight.detach(), eps))


def _nothing(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, eps: float) -> None:
    """No rows: no launch."""


def _on_rows(function: dispatch.Entry) -> dispatch.Entry:
    """The kernel takes [T, d]: give it views of tensors with another number of leading dimensions."""

    def call(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, eps: float) -> None:
        function(_rows("x", x), weight, _rows("out", out, x.shape), eps)

    return call


def _rows(name: str, tensor: torch.Tensor, shape: torch.Size | None = None) -> torch.Tensor:
    """``tensor`` as [T, d] without a copy. Raises ``ContractError`` where it is not ``shape`` or does not flatten."""
    if shape is not None and tensor.shape != shape:
        raise contract.refusal(OP, name, f"shape {list(tensor.shape)}", f"{list(shape)}, that of x")
    if tensor.ndim == 2:
        return tensor
    if tensor.ndim == 0:
        raise contract.refusal(OP, name, "0 dimensions", "[..., d]")
    columns = tensor.shape[-1]
    try:
        return tensor.view(tensor.numel() // columns if columns else 0, columns)
    except RuntimeError:
        found = f"strides {list(tensor.stride())} of shape {list(tensor.shape)}"
        raise contract.refusal(OP, name, found, "leading dimensions that flatten to rows of one stride") from None


def _values(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, eps: float) -> dict[str, Any]:
    rows, out_rows = _rows("x", x), _rows("out", out, x.shape)
    return {"x": rows, "weight": weight, "out": out_rows, "eps": eps}


def _check(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, eps: float) -> None:
    values = _values(x, weight, out, eps)
    columns = x.shape[-1]
    if columns == 0 or columns % COLUMNS_MULTIPLE:
        valid = f"a positive multiple of {COLUMNS_MULTIPLE}"
        raise contract.refusal(OP, "x", f"a last dimension of {columns}", valid)
    contract.check(OP, CONTRACT, values)


def _check_values(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, eps: float) -> None:
    contract.check_domains(OP, _DOMAINS, {"weight": weight, "eps": eps})


def _explained(error: Exception, x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, eps: float) -> Exception:
    if isinstance(error, contract.ContractError):
        return error
    return contract.explain(OP, CONTRACT, _values(x, weight, out, eps), error)


# torch leaves out an argument that has the schema's default, so these repeat it.
def _implementation(x: torch.Tensor, weight: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    out = empty_like(x, memory_format=torch.contiguous_format)
    _run(x, weight, out, eps)
    return out


def _implementation_out(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, eps: float = 1e-6) -> None:
    _require_apart(x, weight, out)
    _run(x, weight, out, eps)


def _fake(x: torch.Tensor, weight: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    contract.check_dtypes(OP, CONTRACT, {"x": x, "weight": weight})
    torch._check(weight.ndim == 1 and x.ndim >= 1, lambda: f"{OP}: weight: valid: [d] beside x [..., d]")
    torch._check(
        weight.shape[0] == x.shape[-1], lambda: f"{OP}: weight: valid: [{x.shape[-1]}], as many as x's columns"
    )
    return empty_like(x, memory_format=torch.contiguous_format)


def _fake_out(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, eps: float = 1e-6) -> None:
    contract.check_dtypes(OP, CONTRACT, {"x": x, "weight": weight, "out": out})


_op = register(f"{OP}(Tensor x, Tensor weight, float eps=1e-6) -> Tensor", _implementation, _fake)
_op_out = register(
    f"{OP}_out(Tensor x, Tensor weight, Tensor(a!) out, float eps=1e-6) -> ()", _implementation_out, _fake_out
)
