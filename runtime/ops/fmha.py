"""fmha: dense attention with online softmax, its log-sum-exp, and an optional attention sink."""

from __future__ import annotations

from typing import Any

import torch
from torch import empty_like, empty_strided, float32

from dsv4.runtime import contract, dispatch
from dsv4.runtime.artifact import Argument, Contract
from dsv4.runtime.ops.library import register
from dsv4.runtime.reference.fmha import fmha as reference_fmha
from dsv4.runtime.routing import PLAIN, dispatch_modes, functorch_level, is_compiling

OP = "fmha"
HEAD_DIM_MULTIPLE = 8
"""A row of a head is read in vectors of 16 bytes."""


def _heads(name: str, length: str, heads: str, role: str = "input") -> Argument:
    return Argument(
        name=name,
        kind="tensor",
        dtype="bf16",
        shape=("B", length, heads, "D"),
        strides=("any", "any", "any", 1),
        stride_multiple=8,
        role="output" if role == "output" else "input",
    )


CONTRACT = Contract(
    dims={"B": None, "Sq": None, "Sk": None, "Hq": None, "Hkv": None, "D": None},
    arguments=(
        _heads("q", "Sq", "Hq"),
        _heads("k", "Sk", "Hkv"),
        _heads("v", "Sk", "Hkv"),
        Argument(name="sink", kind="tensor", dtype="f32", shape=("Hq",), strides=(1,), align=4, optional=True),
        _heads("out", "Sq", "Hq", "output"),
        Argument(
            name="lse",
            kind="tensor",
            dtype="f32",
            shape=("B", "Hq", "Sq"),
            strides=("any", "any", 1),
            align=4,
            role="output",
        ),
        Argument(name="softmax_scale", kind="scalar", dtype="f32"),
    ),
)
"""The kernel's contract in the public function's names; a test holds it to the spec's."""

_DOMAINS: dict[str, contract.Domain] = {"sink": contract.not_nan, "softmax_scale": contract.finite}
_table = dispatch.table(OP)


def fmha(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    causal: bool = False,
    softmax_scale: float | None = None,
    sink: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    lse: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Dense attention: out = softmax(softmax_scale · q kᵀ) v, and the log of the softmax's denominator.

    Args:
        q: bf16 [B, Sq, Hq, D], D a multiple of 8, the last stride 1, the others multiples of 8, aligned to 16 bytes.
        k, v: bf16 [B, Sk, Hkv, D], laid out likewise. Hq is a multiple of Hkv (MHA, GQA, MQA); query head h reads
            key head h // (Hq / Hkv). Any Sq, Sk ≥ 0.
        causal: query i sees key j iff j ≤ i + Sk − Sq (aligned at the bottom right).
        softmax_scale: 1/√D where it is None.
        sink: float32 [Hq], one more logit a head, a column without a value: out is scaled by 1 / (1 + e^(sink − lse)).
            −∞ has no effect, +∞ gives out = 0.
        out: bf16 [B, Sq, Hq, D], laid out like q, sharing no memory with another argument; made where it is None.
        lse: float32 [B, Hq, Sq], the last stride 1, sharing no memory; made where it is None.

    Returns:
        ``(out, lse)``. lse is the natural logarithm over the real keys and never includes the sink. A row without keys
        has out = 0 and lse = −∞. No gradient is recorded.

    Raises:
        ContractError: an argument breaks the above; the message names it.
        KernelMissing: no kernel serves these CUDA tensors and ``missing="raise"`` was chosen.

    The formula is dsv4-reference §7.2.
    """
    if (
        is_compiling()
        or dispatch_modes()
        or functorch_level() is not None
        or type(q) not in PLAIN
        or type(k) not in PLAIN
        or type(v) not in PLAIN
    ):
        return _seen_by_torch(q, k, v, sink, causal, softmax_scale, out, lse)
    given_out, given_lse = out, lse
    if out is None or lse is None:
        out, lse = _outputs(q, out, lse)
    if given_out is not None or given_lse is not None:
        _require_apart(q, k, v, sink, out, lse)
    shape = q.shape
    if softmax_scale is None:
        softmax_scale = shape[-1] ** -0.5
    # As in _run, which would be one more Python frame here.
    key = (shape, k.shape, causal, sink is None, q.get_device())
    entry = _table.get(key)
    if entry is None:
        entry = _find_entry(key, q, k, v, sink, out, lse, softmax_scale)
    try:
        entry(q, k, v, sink, out, lse, softmax_scale)
    except (ValueError, TypeError) as error:
        raise _explained(error, q, k, v, sink, out, lse, softmax_scale) from None
    return out, lse


def _outputs(
    q: torch.Tensor, out: torch.Tensor | None = None, lse: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Make those of ``out`` and ``lse`` that are None."""
    if q.ndim != 4:
        raise contract.refusal(OP, "q", f"{q.ndim} dimensions", "4, [B, Sq, Hq, D]")
    if out is None:
        out = empty_like(q, memory_format=torch.contiguous_format)
    if lse is None:
        batch, queries, heads, _ = q.shape
        # Half the cost of torch.empty, whose many overloads take long to tell apart.
        lse = empty_strided((batch, heads, queries), (heads * queries, queries, 1), dtype=float32, device=q.device)
    return out, lse


def _run(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    sink: torch.Tensor | None,
    out: torch.Tensor,
    lse: torch.Tensor,
    causal: bool,
    softmax_scale: float,
) -> None:
    key = (q.shape, k.shape, causal, sink is None, q.get_device())
    entry = _table.get(key)
    if entry is None:
        entry = _find_entry(key, q, k, v, sink, out, lse, softmax_scale)
    try:
        entry(q, k, v, sink, out, lse, softmax_scale)
    except (ValueError, TypeError) as error:
        raise _explained(error, q, k, v, sink, out, lse, softmax_scale) from None


def _require_apart(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    sink: torch.Tensor | None,
    out: torch.Tensor,
    lse: torch.Tensor,
) -> None:
    """Refuse outputs that share memory; the words are found only where some do."""
    if type(out) not in PLAIN or type(lse) not in PLAIN:
        contract.require_tensor(OP, "out", out)
        contract.require_tensor(OP, "lse", lse)
    # Written out and without a loop: this is half of what a call with outputs costs on the host.
    at_out, at_lse, at_q, at_k, at_v = out.data_ptr(), lse.data_ptr(), q.data_ptr(), k.data_ptr(), v.data_ptr()
    out_bytes = out.nbytes if out.is_contiguous() else contract.span_bytes(out)
    lse_bytes = lse.nbytes if lse.is_contiguous() else contract.span_bytes(lse)
    q_bytes = q.nbytes if q.is_contiguous() else contract.span_bytes(q)
    k_bytes = k.nbytes if k.is_contiguous() else contract.span_bytes(k)
    v_bytes = k_bytes if v.is_contiguous() else contract.span_bytes(v)
    if (
        -out_bytes < at_out - at_q < q_bytes
        or -out_bytes < at_out - at_k < k_bytes
        or -out_bytes < at_out - at_v < v_bytes
        or -lse_bytes < at_lse - at_q < q_bytes
        or -lse_bytes < at_lse - at_k < k_bytes
        or -lse_bytes < at_lse - at_v < v_bytes
        or -lse_bytes < at_lse - at_out < out_bytes
        or (sink is not None and -lse_bytes < at_lse - sink.data_ptr() < sink.nbytes)
        or (sink is not None and -out_bytes < at_out - sink.data_ptr() < sink.nbytes)
    ):
        contract.refuse_overlap(OP, {"out": out, "lse": lse}, {"q": q, "k": k, "v": v, "sink": sink})


def _seen_by_torch(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    sink: torch.Tensor | None,
    causal: bool,
    softmax_scale: float | None,
    out: torch.Tensor | None,
    lse: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        contract.require_tensor(OP, name, tensor)
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    if out is None and lse is None:
        made: tuple[torch.Tensor, torch.Tensor] = _op(q, k, v, sink, causal, scale)
        return made
    out, lse = _outputs(q, out, lse)
    _op_out(q, k, v, sink, out, lse, causal, scale)
    return out, lse


def _find_entry(
    key: Any,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    sink: torch.Tensor | None,
    out: torch.Tensor,
    lse: torch.Tensor,
    softmax_scale: float,
) -> dispatch.Entry:
    _check(q, k, v, sink, out, lse, softmax_scale)
    causal = key[2]
    if not isinstance(causal, bool):
        raise contract.refusal(OP, "causal", repr(causal), "True or False")
    batch, queries, heads, width = q.shape
    sizes = {"B": batch, "Sq": queries, "Sk": k.shape[1], "Hq": heads, "Hkv": k.shape[2]}
    request = dispatch.Request(
        OP,
        q.device,
        dims={"D": width},
        sizes=sizes,
        variant={"causal": causal, "has_sink": sink is not None, "pdl": dispatch.current_settings().pdl},
        empty=q.numel() == 0 or k.numel() == 0 or q.is_meta,
    )

    def reference(q: Any, k: Any, v: Any, sink: Any, out: Any, lse: Any, softmax_scale: float) -> None:
        values = reference_fmha(q, k, v, causal=causal, softmax_scale=softmax_scale, sink=sink)
        out.copy_(values[0])
        lse.copy_(values[1])

    return dispatch.make_entry(
        key,
        request,
        reference=torch.no_grad()(reference),
        empty=_no_keys,
        adapt=lambda function: function,
        check=_check,
        check_values=_check_values,
    )


def _no_keys(q: Any, k: Any, v: Any, sink: Any, out: torch.Tensor, lse: torch.Tensor, softmax_scale: float) -> None:
    """No queries, or none that sees a key: no launch of a kernel of ours."""
    out.zero_()
    lse.fill_(float("-inf"))


def _values(q: Any, k: Any, v: Any, sink: Any, out: Any, lse: Any, softmax_scale: float) -> dict[str, Any]:
    return {"q": q, "k": k, "v": v, "sink": sink, "out": out, "lse": lse, "softmax_scale": softmax_scale}


def _check(q: Any, k: Any, v: Any, sink: Any, out: Any, lse: Any, softmax_scale: float) -> None:
    width = q.shape[-1]
    if width == 0 or width % HEAD_DIM_MULTIPLE:
        valid = f"a positive multiple of {HEAD_DIM_MULTIPLE}"
        raise contract.refusal(OP, "q", f"a head dimension of {width}", valid)
    sizes = contract.check(OP, CONTRACT, _values(q, k, v, sink, out, lse, softmax_scale))
    if sizes["Hkv"] == 0 or sizes["Hq"] % sizes["Hkv"]:
        raise contract.refusal(OP, "q", f"{sizes['Hq']} heads", f"a multiple of k's {sizes['Hkv']} heads")


def _check_values(q: Any, k: Any, v: Any, sink: Any, out: Any, lse: Any, softmax_scale: float) -> None:
    contract.check_domains(OP, _DOMAINS, {"sink": sink, "softmax_scale": softmax_scale})


def _explained(error: Exception, *arguments: Any) -> Exception:
    if isinstance(error, contract.ContractError):
        return error
    return contract.explain(OP, CONTRACT, _values(*arguments), error)


def _implementation(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sink: torch.Tensor | None, causal: bool, softmax_scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    out, lse = _outputs(q)
    _run(q, k, v, sink, out, lse, causal, softmax_scale)
    return out, lse


def _implementation_out(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    sink: torch.Tensor | None,
    out: torch.Tensor,
    lse: torch.Tensor,
    causal: bool,
    softmax_scale: float,
) -> None:
    _require_apart(q, k, v, sink, out, lse)
    _run(q, k, v, sink, out, lse, causal, softmax_scale)


def _fake(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sink: torch.Tensor | None, causal: bool, softmax_scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    contract.check_dtypes(OP, CONTRACT, {"q": q, "k": k, "v": v, "sink": sink})
    torch._check(k.ndim == 4 and v.ndim == 4, lambda: f"{OP}: k, v: valid: 4 dimensions, [B, Sk, Hkv, D]")
    torch._check(k.shape[-1] == q.shape[-1], lambda: f"{OP}: k: valid: a head dimension of {q.shape[-1]}, as q has")
    return _outputs(q)


def _fake_out(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    sink: torch.Tensor | None,
    out: torch.Tensor,
    lse: torch.Tensor,
    causal: bool,
    softmax_scale: float,
) -> None:
    contract.check_dtypes(OP, CONTRACT, {"q": q, "k": k, "v": v, "sink": sink, "out": out, "lse": lse})


_op = register(
    f"{OP}(Tensor q, Tensor k, Tensor v, Tensor? sink, bool causal, float softmax_scale) -> (Tensor, Tensor)",
    _implementation,
    _fake,
)
_op_out = register(
    f"{OP}_out(Tensor q, Tensor k, Tensor v, Tensor? sink, Tensor(a!) out, Tensor(b!) lse, bool causal, "
    "float softmax_scale) -> ()",
    _implementation_out,
    _fake_out,
)
