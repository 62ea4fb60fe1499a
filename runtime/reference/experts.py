"""The routed experts: each token through its k experts, row by row or expert by expert (dsv4-reference §9.2 – §9.4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch

from dsv4.runtime.reference.linear import dense
from dsv4.runtime.reference.quantize import quantize_fp8, quantize_nvfp4
from dsv4.runtime.reference.swiglu_quant import swiglu_quant
from dsv4.runtime.weight import Quantized, Weight

Rule = Literal["none", "fp8_128", "fp8_32", "nvfp4"]
"""How activations are quantised before a linear: not, or FP8 by 128 or 32 columns, or NVFP4 by the input scale."""
GATHER_BYTES_MAX = 256 << 20
"""Dequantised weights held at a time when every row fetches its own expert."""


def quantized_by(
    rule: Rule, x: torch.Tensor, weight: Weight, experts: torch.Tensor | None = None
) -> torch.Tensor | Quantized:
    """x as the linear with ``weight`` takes it: x [.., in] with [out, in], or x [R, .., in] with [R, out, in].

    ``experts`` [R]: where weight is [E, out, in], the expert of each row of x [R, in].
    Raises ``ValueError`` for NVFP4 without an input scale.
    """
    if rule == "none":
        return x
    if rule == "nvfp4":
        if weight.input_scale is None:
            raise ValueError(
                "nvfp4: the weight has no input_scale; valid: a calibrated one, or unquantised activations"
            )
        scale = weight.input_scale if experts is None else weight.input_scale[experts]
        return quantize_nvfp4(x, scale.view(-1, *[1] * (x.ndim - 1)) if weight.codes.ndim == 3 else scale)
    return quantize_fp8(x, 128 if rule == "fp8_128" else 32)


def experts(
    y: torch.Tensor,
    ids: torch.Tensor,
    route_weights: torch.Tensor,
    w1: Weight,
    w3: Weight,
    w2: Weight,
    *,
    limit: float,
    rule: Rule = "none",
    stage_dtype: torch.dtype | None = None,
    round_hidden: bool = False,
    sync_free: bool = False,
    dtype: torch.dtype = torch.float32,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """y [T, d], ids [T, k], route_weights [T, k]; w1, w3 [E, I, d], w2 [E, d, I]: each route's result [T, k, d].

    A route's result is w2 · h, h as in ``swiglu_quant`` with its weight, in ``out_dtype`` (default: that of y).
    ``rule``: how y and h are quantised. ``stage_dtype``: what the products of w1, w3 are rounded to (bf16), and with
    ``round_hidden`` h too before it is quantised (the official code; kernels quantise it unrounded).
    ``sync_free``: every row fetches its own expert's weights, so that nothing waits for the device (for CUDA graphs);
    else rows are sorted by expert, whose counts the host reads. Tensors without data (``meta``) give one without data.
    """
    stage = stage_dtype or dtype
    k, width = ids.shape[1], y.shape[1]
    rows, flat = y.repeat_interleave(k, dim=0), ids.reshape(-1).to(torch.int64)

    def through(
        x: torch.Tensor, route: torch.Tensor, weights: Three, dense_by: Dense, product: Product
    ) -> torch.Tensor:
        w1, w3, w2 = weights
        wide = dense_by(x, w1)
        gate, up = (product(wide, weight).to(stage) for weight in (w1, w3))
        h = swiglu_quant(gate, up, route, limit=limit, dtype=dtype, out_dtype=stage if round_hidden else dtype)
        assert isinstance(h, torch.Tensor)
        return product(dense_by(h, w2), w2)

    run = _row_by_row if sync_free else _expert_by_expert
    out = torch.empty(rows.shape, dtype=out_dtype or y.dtype, device=y.device)
    if y.is_meta:  # there are no counts to read
        return out.view(-1, k, width)
    run(out, through, rows, route_weights.reshape(-1), flat, (w1, w3, w2), rule, dtype)
    return out.view(-1, k, width)


Three = tuple[Weight, Weight, Weight]
Dense = Callable[[torch.Tensor, Weight], torch.Tensor]
"""Rows quantised as a weight takes them, as numbers."""
Product = Callable[[torch.Tensor, Weight], torch.Tensor]
Through = Callable[[torch.Tensor, torch.Tensor, Three, Dense, Product], torch.Tensor]


def _expert_by_expert(
    out: torch.Tensor,
    through: Through,
    rows: torch.Tensor,
    route: torch.Tensor,
    ids: torch.Tensor,
    weights: Three,
    rule: Rule,
    dtype: torch.dtype,
) -> None:
    """Only the products go expert by expert; what is done to single rows is done to all of them at once."""
    order = torch.sort(ids, stable=True).indices
    counts = torch.bincount(ids, minlength=weights[0].shape[0]).tolist()
    sorted_ids = ids[order]

    def dense_by(x: torch.Tensor, weight: Weight) -> torch.Tensor:
        return dense(quantized_by(rule, x, weight, sorted_ids), dtype)

    def product(x: torch.Tensor, weight: Weight) -> torch.Tensor:
        made = x.new_empty(x.shape[0], weight.shape[1])
        first = 0
        for expert, count in enumerate(counts):
            if count:
                here = slice(first, first + count)
                torch.mm(x[here], weight[expert].dequantize(dtype).transpose(0, 1), out=made[here])
                first += count
        return made

    out[order] = through(rows[order], route[order], weights, dense_by, product).to(out.dtype)


def _row_by_row(
    out: torch.Tensor,
    through: Through,
    rows: torch.Tensor,
    route: torch.Tensor,
    ids: torch.Tensor,
    weights: Three,
    rule: Rule,
    dtype: torch.dtype,
) -> None:
    def dense_by(x: torch.Tensor, weight: Weight) -> torch.Tensor:
        return dense(quantized_by(rule, x, weight), dtype)

    def product(x: torch.Tensor, weight: Weight) -> torch.Tensor:
        return x @ weight.dequantize(dtype).transpose(-1, -2)

    _, inner, width = weights[0].shape
    step = max(1, GATHER_BYTES_MAX // (12 * inner * width))
    for first in range(0, rows.shape[0], step):
        here = slice(first, first + step)
        w1, w3, w2 = (weight[ids[here]] for weight in weights)
        made = through(rows[here, None], route[here, None], (w1, w3, w2), dense_by, product)
        out[here] = made.squeeze(1).to(out.dtype)
