"""Cases for the lessons: attention over so many key tiles, with row maxima that move; and a rule against squares."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from dsv4.generator.verify import fmha, metrics
from dsv4.generator.verify.case import Case, OutputLayout

DISTINCT = 3
"""A tensor counts as square when two of its sizes above this are equal; a case when two lengths of it are."""


def attention(
    tiles: int, *, head_dim: int = 64, tile_n: int = 32, queries: int = 37, has_sink: bool = False,
    pattern: str = "falling", stretch: float = 1.0, seed: int = 5,
) -> Case:  # fmt: skip
    """One batch, two heads over one, ``tiles`` key tiles of which the last is cut short.

    ``pattern`` moves the logits along the keys ("falling" raises the row maxima where tiles are visited from the last
    to the first); ``stretch`` multiplies every third query, so that neighbouring rows have very different logits.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = fmha.Shape(1, queries, tiles * tile_n - 5, 2, 1, pattern)
    variant = {"has_sink": has_sink}
    case = fmha.case_of(shape, {"D": head_dim}, variant, generator, torch.device("cpu"))
    if stretch == 1.0:
        return case
    q, k, v, scale = (case.inputs[name] for name in ("q", "k", "v", "softmax_scale"))
    assert isinstance(q, torch.Tensor) and isinstance(k, torch.Tensor) and isinstance(v, torch.Tensor)
    assert isinstance(scale, float)
    q[:, ::3] *= stretch
    out, lse = fmha.expected_float64(q, k, v, None, causal=False, scale=scale)
    rows = metrics.row_rel_l2(fmha.torch_bf16(q, k, v, None, causal=False, scale=scale), out)
    limits = {"torch_worst_row_rel_l2": float(rows.max())}
    return Case(case.op, f"{case.name}, stretched", case.inputs, case.outputs, {"o": out, "lse": lse}, limits)


def squares(cases: Iterable[Case]) -> list[str]:
    """Cases that a transposed layout or two exchanged sizes could pass: sizes that ought to differ and do not.

    Queries, keys and head dimension of attention are compared with one another, and rows and columns of a matrix.
    """
    found = []
    for case in cases:
        sizes = _sizes(case)
        names = sorted(sizes)
        for index, one in enumerate(names):
            for other in names[index + 1 :]:
                if sizes[one] == sizes[other] and sizes[one] > DISTINCT:
                    found.append(f"{case.op}, {case.name}: {one} and {other} are both {sizes[one]}")
    return found


def _sizes(case: Case) -> dict[str, int]:
    if case.op == "fmha":
        q, k = case.inputs["q"], case.inputs["k"]
        assert isinstance(q, torch.Tensor) and isinstance(k, torch.Tensor)
        return {"queries": q.shape[1], "keys": k.shape[1], "head dimension": q.shape[3]}
    x = next(value for value in case.inputs.values() if isinstance(value, torch.Tensor) and value.dim() == 2)
    return {"rows": x.shape[0], "columns": x.shape[1]}


def square_case() -> Case:
    """A case that the rule is there to refuse: as many keys as queries as columns."""
    q, k, v = (torch.randn(1, 64, 1, 64).bfloat16() for _ in range(3))
    out, lse = fmha.expected_float64(q, k, v, None, causal=False, scale=1 / math.sqrt(64))
    layouts = {"o": OutputLayout((1, 64, 1, 64), (4096, 64, 64, 1), torch.bfloat16)}
    return Case("fmha", "square", {"q": q, "k": k, "v": v, "softmax_scale": 0.125}, layouts, {"o": out, "lse": lse})
