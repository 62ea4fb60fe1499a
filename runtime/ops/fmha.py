"""fmha: dense attention with online softmax, its log-sum-exp, and an optional attention sink."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

import torch
from torch import bfloat16, empty_like, empty_strided, float32

from dsv4.runtime import contract, dispatch
from dsv4.runtime.artifact import Argument, Contract
from dsv4.runtime.ops.library import register
from dsv4.runtime.ops.outputs import current_device, fast_empty
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

_DOMAINS: dict[str, contract.Domain] = {"sink": contract.not_nan, "softmax_scale": contract.finite_positive}
_table = dispatch.table(OP)

_Shape = tuple[int, ...]
_layouts: dict[torch.Size, tuple[_Shape, _Shape, _Shape, _Shape, int, int]] = {}
"""By the shape of q: shape and strides of an out that we make, those of lse, and the bytes of both."""
_LAYOUTS_MAX = 4096


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
        softmax_scale: positive; 1/√D where it is None.
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
    shape, device = q.shape, q.get_device()
    if out is None and lse is None:
        out, lse = _made(q, shape, device)
    else:
        if out is None or lse is None:
            out, lse = _outputs(q, out, lse)
        _require_apart(q, k, v, sink, out, lse, shape)
    if softmax_scale is None:
        softmax_scale = shape[-1] ** -0.5
    elif not 0.0 < softmax_scale < inf:
        contract.finite_positive(OP, "softmax_scale", softmax_scale)
    # As in _run, which would be one more Python frame here.
    key = (shape, k.shape, causal, sink is None, device)
    entry = _table.get(key)
    if entry is None:
        entry = _find_entry(key, q, k, v, sink, out, lse, softmax_scale)
    try:
        entry(q, k, v, sink, out, lse, softmax_scale)
    except (ValueError, TypeError) as error:
        raise _explained(error, q, k, v, sink, out, lse, softmax_scale) from None
    return out, lse


def _made(q: torch.Tensor, shape: torch.Size, device: int) -> tuple[torch.Tensor, torch.Tensor]:
    """``_outputs`` of a q that a kernel may read, quicker for a shape that was seen before."""
    layout = _layouts.get(shape)
    if layout is None or not q.is_cuda or current_device() != device:
        return _outputs(q)
    out_shape, out_strides, lse_shape, lse_strides, _, _ = layout
    # A q of another dtype is refused before anything is written.
    return fast_empty(out_shape, out_strides, bfloat16), fast_empty(lse_shape, lse_strides, float32)


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


def _remember_layout(shape: torch.Size) -> None:
    """Called after the contract has been checked: the sizes are plain numbers, four of them."""
    batch, queries, heads, _ = shape
    if len(_layouts) >= _LAYOUTS_MAX:
        _layouts.clear()
    out = torch.empty(shape, dtype=bfloat16, device="meta")
    lse_bytes = batch * heads * queries * float32.itemsize
    lse_strides = (heads * queries, queries, 1)
    _layouts[shape] = (tuple(shape), out.stride(), (batch, heads, queries), lse_strides, out.nbytes, lse_bytes)


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
    if not 0.0 < softmax_scale < inf:  # kernels scale the row maximum, which a scale of another sign would move
        contract.finite_positive(OP, "softmax_scale", softmax_scale)
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
    shape: torch.Size,
) -> None:
    """Refuse outputs that share memory; the words are found only where some do. ``shape`` is q's."""
    if type(out) not in PLAIN or type(lse) not in PLAIN:
        contract.require_tensor(OP, "out", out)
        contract.require_tensor(OP, "lse", lse)
    # Written out and without a loop: this is half of what a call with outputs costs on the host. The bytes of a shape
    # seen before are remembered: whatever has another shape or dtype than the contract's is refused before a launch.
    layout = _layouts.get(shape)
    if layout is None:
        q_bytes, out_bytes, lse_bytes = q.nbytes, out.nbytes, lse.nbytes
    else:
        out_bytes, lse_bytes = layout[4], layout[5]
        q_bytes = out_bytes
    k_bytes = k.nbytes
    at_out, at_lse = out.data_ptr(), lse.data_ptr()
    end_out = at_out + (out_bytes if out.is_contiguous() else contract.span_bytes(out))
    end_lse = at_lse + (lse_bytes if lse.is_contiguous() else contract.span_bytes(lse))
    if at_out < at_lse:
        low, high, met = at_out, end_lse if end_lse > end_out else end_out, at_lse < end_out
    else:
        low, high, met = at_lse, end_out if end_out > end_lse else end_lse, at_out < end_lse
    # Where an input starts above both outputs, its end need not be known.
    if (
        met
        or (
            (at := q.data_ptr()) < high
            and (end := at + (q_bytes if q.is_contiguous() else contract.span_bytes(q))) > low
            and ((at < end_out and end > at_out) or (at < end_lse and end > at_lse))
        )
        or (
            (at := k.data_ptr()) < high
            and (end := at + (k_bytes if k.is_contiguous() else contract.span_bytes(k))) > low
            and ((at < end_out and end > at_out) or (at < end_lse and end > at_lse))
        )
        or (
            (at := v.data_ptr()) < high
            and (end := at + (k_bytes if v.is_contiguous() else contract.span_bytes(v))) > low
            and ((at < end_out and end > at_out) or (at < end_lse and end > at_lse))
        )
        or (
            sink is not None
            and (at := sink.data_ptr()) < high
            and (end := at + sink.nbytes) > low
            and ((at < end_out and end > at_out) or (at < end_lse and end > at_lse))
        )
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
    if q.shape not in _layouts:
        _remember_layout(q.shape)
    batch, queries, heads, width = q.shape
    sizes = {"B": batch, "Sq": queries, "Sk": k.shape[1], "Hq": heads, "Hkv": k.shape[2]}
    folds = queries == 1 and heads > k.shape[2] and sink is None
    request = dispatch.Request(
        OP,
        q.device,
        dims={"D": width},
        sizes=sizes,
        # The only query sees every key.
        variant={
            "causal": causal and queries > 1,
            "has_sink": sink is not None,
            "pdl": dispatch.current_settings().pdl,
        },
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
        adapt=lambda kernel: heads_as_queries(kernel.function) if folds else kernel.function,
        check=_check,
        check_values=_check_values,
    )


def heads_as_queries(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` for one query a sequence: the heads that share a key head become queries of it.

    They meet in one tile, which reads the keys once; one tile for each would read them Hq / Hkv times. Views only: q
    and out [B, 1, Hq, D] become [B, Hq / Hkv, Hkv, D], lse [B, Hq, 1] becomes [B, Hkv, Hq / Hkv]. Where the heads of
    lse are apart in memory its queries would be, which the kernel does not take: then nothing is folded.
    """

    def folded(q: Any, k: Any, v: Any, sink: None, out: Any, lse: Any, softmax_scale: float) -> None:
        if lse.stride(1) != 1:
            function(q, k, v, sink, out, lse, softmax_scale)
            return
        batch, kv_heads = q.shape[0], k.shape[2]
        group = q.shape[2] // kv_heads
        rows = (batch, group, kv_heads, q.shape[3])
        q, out = (x.as_strided(rows, (x.stride(0), x.stride(2), group * x.stride(2), 1)) for x in (q, out))
        lse = lse.as_strided((batch, kv_heads, group), (lse.stride(0), group, 1))
        function(q, k, v, sink, out, lse, softmax_scale)

    return folded


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
    if not 0.0 < softmax_scale < inf:
        contract.finite_positive(OP, "softmax_scale", softmax_scale)
    shape, device = q.shape, q.get_device()
    out, lse = _made(q, shape, device)
    key = (shape, k.shape, causal, sink is None, device)
    entry = _table.get(key)
    if entry is None:
        entry = _find_entry(key, q, k, v, sink, out, lse, softmax_scale)
    try:
        entry(q, k, v, sink, out, lse, softmax_scale)
    except (ValueError, TypeError) as error:
        raise _explained(error, q, k, v, sink, out, lse, softmax_scale) from None
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
    _require_apart(q, k, v, sink, out, lse, q.shape)
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
