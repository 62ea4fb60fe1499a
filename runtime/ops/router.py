"""router: the experts of each token and their weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from dsv4.runtime import dispatch
from dsv4.runtime.ops.kernel import KernelPath, Served, are
from dsv4.runtime.ops.plain import Operator, in_range
from dsv4.runtime.reference import router as reference

ONE_LAUNCH_TOKENS, ONE_LAUNCH_TOKENS_WIDE, ONE_LAUNCH_COLUMNS = 64, 32, 4096
"""Up to so many tokens the product with the gate and the choice are one launch, above them one each; ``_WIDE``: of more
than so many columns. On an H100 64 tokens of 4096 columns took 9.4 µs in one launch and 10.9 in two, of 7168 17.2 and
15.5."""
GATE_GEMM_TOKENS = 768
"""From so many tokens on, which a table routes, the whole gate is a GEMM; below only its named rows are read."""
LOGITS_GEMM_TOKENS = 256
"""From so many tokens on, without a table, the gate is a GEMM of larger tiles."""
WITHOUT_GATE_GEMM = ("sm_100a",)
"""Chips without kernels for that: there two launches of small tiles take many tokens, with a table and without."""
GATE_GEMM_EXPERTS_MAX, GATE_GEMM_K_MAX, GATE_GEMM_COLUMNS_MIN = 384, 8, 512
COUNTED_TOKENS = 16
"""Tokens that share one of the counters by which the last CTA of a token knows that it is the last."""
SPLITS_MAX = 16
"""CTAs that may share the columns of a token in one launch."""
LOGIT_PARTS = {64: 8, 256: 4, 2048: 2}
"""Parts that the columns are cut into for up to so many tokens, so that tiles of 64 tokens fill the chip; 1 above."""
GEMM_PARTS = {2048: 8, 4096: 4, 8192: 2}
"""The same for pairs of tiles of 128 tokens."""
COLUMNS_MULTIPLE, EXPERTS_MULTIPLE, PART_COLUMNS = 256, 8, 64

GATE_GEMM_COUNTERS, GATE_GEMM_PARTS = 132, (264, 128, 8)
"""Of tiles whose columns CTAs share: counters, and the memory for parts of the logits."""

_counters: dict[tuple[torch.device, int], torch.Tensor] = {}


def one_launch_tokens(columns: int) -> int:
    """The most tokens of ``columns`` columns that one launch takes."""
    return ONE_LAUNCH_TOKENS if columns <= ONE_LAUNCH_COLUMNS else ONE_LAUNCH_TOKENS_WIDE


def logit_parts(tokens: int, columns: int, *, gemm: bool = False) -> int:
    """Parts of a logit that CTAs of their own compute, each of 64 columns at least; ``gemm``: with the larger tiles."""
    parts = next((parts for most, parts in (GEMM_PARTS if gemm else LOGIT_PARTS).items() if tokens <= most), 1)
    return min(parts, columns // PART_COLUMNS)


def counters_of(device: torch.device, count: int = -(-ONE_LAUNCH_TOKENS // COUNTED_TOKENS)) -> torch.Tensor:
    """The zeros i32 [``count``] that every launch of a kernel on ``device`` counts in and leaves as zeros.

    They are made by the first call and kept, so that a launch needs no second one that clears them, and a CUDA graph
    holds their address. A capture without a call before it gets zeros of its own, which the graph clears at each
    replay. Launches that share counters must not run at the same time: calls from several streams have to be ordered.
    """
    kept = _counters.get((device, count))
    if kept is None:
        kept = torch.zeros(count, dtype=torch.int32, device=device)
        if device.type != "cuda" or not torch.cuda.is_current_stream_capturing():
            _counters[device, count] = kept
    return kept


def _reference(
    y: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    tid2eid: torch.Tensor | None,
    tokens: torch.Tensor | None,
    *,
    k: int,
    factor: float,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    return reference.router(y, weight, k=k, factor=factor, bias=bias, tid2eid=tid2eid, tokens=tokens, dtype=dtype)


def _check_values(op: str, values: dict[str, Any]) -> None:
    if values["tid2eid"] is not None:
        in_range(op, "tokens", values["tokens"], 0, values["tid2eid"].shape[0])
        in_range(op, "tid2eid", values["tid2eid"], 0, values["weight"].shape[0])


def _fits(
    y: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *, k: int, dtype: torch.dtype, **_: object
) -> bool:
    """Whether kernels are made for a product of these and the choice of k."""
    columns, experts = y.shape[1], weight.shape[0]
    narrow = are(torch.bfloat16, y, weight) and are(torch.float32, bias) and dtype == torch.float32
    return narrow and columns % COLUMNS_MULTIPLE == 0 and experts % EXPERTS_MULTIPLE == 0 and k <= experts


def _has_gate_gemm(y: torch.Tensor, weight: torch.Tensor, k: int) -> bool:
    experts, columns = weight.shape
    if experts > GATE_GEMM_EXPERTS_MAX or experts % (16 if experts <= 256 else 32) or k > GATE_GEMM_K_MAX:
        return False
    return columns >= GATE_GEMM_COLUMNS_MIN and dispatch.arch_of(y.device) not in WITHOUT_GATE_GEMM


def _is_logits_gemm(y: torch.Tensor, weight: torch.Tensor, k: int) -> bool:
    return y.shape[0] >= LOGITS_GEMM_TOKENS and _has_gate_gemm(y, weight, k)


def _serves_one(
    y: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    tid2eid: torch.Tensor | None,
    tokens: torch.Tensor | None,
    *,
    k: int,
    **options: Any,
) -> Served | None:
    """One launch: of few tokens always, of many where a table routes them and the chip has a kernel for it."""
    if not _fits(y, weight, bias, k=k, **options):
        return None
    dims, sizes = {"d": y.shape[1], "E": weight.shape[0], "k": k}, {"T": y.shape[0]}
    few = y.shape[0] <= one_launch_tokens(y.shape[1])
    if tid2eid is None:
        return Served(dims, sizes, {}) if few and bias is not None else None
    if tokens is None or not (few or _has_gate_gemm(y, weight, k)):
        return None
    op = "router_hash" if y.shape[0] < GATE_GEMM_TOKENS else "router_hash_many"
    return Served(dims, {**sizes, "V": tid2eid.shape[0]}, {}, op=op)


def _call_one(
    kernel: Callable[..., None],
    y: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    tid2eid: torch.Tensor | None,
    tokens: torch.Tensor | None,
    *,
    k: int,
    factor: float,
    **_: object,
) -> tuple[torch.Tensor, torch.Tensor]:
    experts, weights = _outputs(y, k)
    if tid2eid is None:
        partials = y.new_empty((SPLITS_MAX, y.shape[0], weight.shape[0]), dtype=torch.float32)
        kernel(y, weight, bias, counters_of(y.device), experts, weights, partials, factor)
    elif y.shape[0] < GATE_GEMM_TOKENS:
        kernel(y, weight, _low_halves(tid2eid), _low_halves(tokens), experts, weights, factor)
    else:
        counters, parts = counters_of(y.device, GATE_GEMM_COUNTERS), y.new_empty(GATE_GEMM_PARTS, dtype=torch.float32)
        kernel(y, weight, _low_halves(tid2eid), _low_halves(tokens), counters, experts, weights, parts, factor)
    return experts, weights


def _serves_many(
    y: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    tid2eid: torch.Tensor | None,
    tokens: torch.Tensor | None,
    *,
    k: int,
    **options: Any,
) -> tuple[Served, Served] | None:
    if not _fits(y, weight, bias, k=k, **options) or (bias if tid2eid is None else tokens) is None:
        return None
    gemm = _is_logits_gemm(y, weight, k)
    experts, sizes = weight.shape[0], {"S": logit_parts(*y.shape, gemm=gemm), "T": y.shape[0]}
    table = {} if tid2eid is None else {"V": tid2eid.shape[0]}
    return (
        Served({"d": y.shape[1], "E": experts}, sizes, {}, op="router_logits_many" if gemm else "router_logits"),
        Served({"E": experts, "k": k}, {**sizes, **table}, {"hash": tid2eid is not None}, op="router_choose"),
    )


def _call_many(
    product: Callable[..., None],
    choose: Callable[..., None],
    y: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    tid2eid: torch.Tensor | None,
    tokens: torch.Tensor | None,
    *,
    k: int,
    factor: float,
    **_: object,
) -> tuple[torch.Tensor, torch.Tensor]:
    experts, weights = _outputs(y, k)
    parts = logit_parts(*y.shape, gemm=_is_logits_gemm(y, weight, k))
    logits = y.new_empty((parts, y.shape[0], weight.shape[0]), dtype=torch.float32)
    product(y, weight, logits)
    if tid2eid is None:
        choose(logits, bias, None, None, experts, weights, factor)
    else:
        choose(logits, None, _low_halves(tid2eid), _low_halves(tokens), experts, weights, factor)
    return experts, weights


def _outputs(y: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (y.shape[0], k)
    return y.new_empty(shape, dtype=torch.int32), y.new_empty(shape, dtype=torch.float32)


def _low_halves(ids: torch.Tensor | None) -> torch.Tensor | None:
    """i32 or i64 as i32 without a copy: kernels take any strides, and numbers of ids are below 2³¹."""
    return ids if ids is None or ids.dtype == torch.int32 else ids.view(torch.int32)[..., ::2]


_operator = Operator(
    "router",
    _reference,
    "y: float [T, d]",
    "weight: float [E, d]",
    "bias?: wide [E]",
    "tid2eid?: int [V, k]",
    "tokens?: int [T]",
    check_values=_check_values,
    kernel=(KernelPath(_serves_one, _call_one), KernelPath(_serves_many, _call_many)),
)


def router(
    y: torch.Tensor,
    weight: torch.Tensor,
    *,
    k: int,
    factor: float,
    bias: torch.Tensor | None = None,
    tid2eid: torch.Tensor | None = None,
    tokens: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(experts i32 [T, k], weights [T, k] in ``dtype``).

    Args:
        y: float [T, d], the normalised input. weight: float [E, d].
        k: experts a token. factor: what the weights of a token sum to.
        bias: [E], added for the choice alone (dense layers).
        tid2eid, tokens: int [V, k] and [T]: the choice by token (hash layers); given together. Tokens from 0 to V − 1
            and experts from 0 to E − 1 are checked in debug mode only; a kernel reads beside the tensors for others.

    Raises ``ContractError``. dsv4-reference §9.1.
    """
    return _operator(y, weight, bias, tid2eid, tokens, k=k, factor=factor, dtype=dtype)
