"""Cases for the lessons: attention over so many key tiles, with row maxima that move; and a rule against squares."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from dsv4.generator.verify import metrics
from dsv4.generator.verify.case import Case, OutputLayout
from dsv4.generator.verify.operators import fmha

DISTINCT = 3
"""So few rows are too few to be told from anything."""


def attention(
    tiles: int, *, head_dim: int = 64, tile_n: int = 32, queries: int = 37, has_sink: bool = False,
    pattern: str = "falling", stretch: float = 1.0, seed: int = 5,
) -> Case:  # fmt: skip
    """One batch, two heads over one, ``tiles`` key tiles of which the last is cut short.

    ``pattern`` moves the logits along the keys ("falling" raises the row maxima where tiles are visited from the last
    to the first); ``stretch`` multiplies every third query, so that neighbouring rows have very different logits. The
    sinks weigh about as much as all keys of a row with random logits do.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = fmha.Shape(1, queries, tiles * tile_n - 5, 2, 1, pattern)
    case = fmha.case_of(shape, {"D": head_dim}, {"has_sink": has_sink}, generator, torch.device("cpu"))
    q, k, v = case.inputs["q"], case.inputs["k"], case.inputs["v"]
    assert isinstance(q, torch.Tensor) and isinstance(k, torch.Tensor) and isinstance(v, torch.Tensor)
    q[:, ::3] *= stretch
    sink = torch.tensor([4.5, 5.5]) if has_sink else None
    scale = head_dim**-0.5
    out, lse = fmha.expected_float64(q, k, v, sink, causal=False, scale=scale)
    rows = metrics.row_rel_l2(fmha.torch_bf16(q, k, v, sink, causal=False, scale=scale), out)
    inputs = case.inputs if sink is None else {**case.inputs, "sink": sink}
    name = case.name if stretch == 1.0 else f"{case.name}, stretched"
    limits = {"torch_worst_row_rel_l2": float(rows.max())}
    return Case(case.op, name, inputs, case.outputs, {"o": out, "lse": lse}, limits)


def squares(cases: Iterable[Case]) -> list[str]:
    """Cases that a transposed layout or two exchanged sizes could pass: sizes that ought to differ and do not.

    Compared are the queries of attention with its keys and with its head dimension, and rows with columns of a matrix.
    (A whole key tile may have as many keys as the head has columns: the cases of more tiles tell those apart.)
    """
    found = []
    for case in cases:
        rows, others = _sizes(case)
        found += [f"{case.op}, {case.name}: {rows} rows and as many {name}" for name, n in others.items() if n == rows]
    return found


def _sizes(case: Case) -> tuple[int, dict[str, int]]:
    """The rows of the output (0 where there are too few to tell), and the sizes that have to differ from them."""
    if case.op == "fmha":
        q, k = case.inputs["q"], case.inputs["k"]
        assert isinstance(q, torch.Tensor) and isinstance(k, torch.Tensor)
        rows, others = q.shape[1], {"keys": k.shape[1], "columns of a head": q.shape[3]}
    else:
        x = next(value for value in case.inputs.values() if isinstance(value, torch.Tensor) and value.dim() >= 2)
        rows, others = x.shape[0], {"columns": x.shape[-1]}
    return (rows if rows > DISTINCT else 0), others


def square_case() -> Case:
    """A case that the rule is there to refuse: as many keys as queries as columns."""
    q, k, v = (torch.randn(1, 64, 1, 64).bfloat16() for _ in range(3))
    out, lse = fmha.expected_float64(q, k, v, None, causal=False, scale=1 / math.sqrt(64))
    layouts = {"o": OutputLayout((1, 64, 1, 64), (4096, 64, 64, 1), torch.bfloat16)}
    return Case("fmha", "square", {"q": q, "k": k, "v": v, "softmax_scale": 0.125}, layouts, {"o": out, "lse": lse})
