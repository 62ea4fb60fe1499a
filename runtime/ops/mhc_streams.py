"""Which calls of the mHC operators kernels serve: four streams in bf16, parameters and arithmetic in float32."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dsv4.runtime.artifact import Scalar
from dsv4.runtime.ops.kernel import Served, are

STREAMS = 4
ITERATIONS = 20
"""Column steps of the Sinkhorn normalisation that kernels take."""
MIX_COLUMNS_MULTIPLE = 128
"""Columns of a stream that a kernel with a projection can divide among its CTAs come in these."""


def served(
    streams: torch.Tensor,
    narrow: Sequence[torch.Tensor | None],
    wide: Sequence[torch.Tensor],
    *,
    dtype: torch.dtype,
    out_dtype: torch.dtype | None,
    columns_multiple: int = MIX_COLUMNS_MULTIPLE,
    iterations: int = ITERATIONS,
    **flags: Scalar,
) -> Served | None:
    """The kernel with these ``flags`` for streams [T, n, d]. ``narrow`` have to be bf16 like them, ``wide`` float32."""
    tokens, count, columns = streams.shape
    if not are(torch.bfloat16, streams, *narrow) or out_dtype not in (None, torch.bfloat16):
        return None
    if not are(torch.float32, *wide) or dtype != torch.float32:
        return None
    if count != STREAMS or iterations != ITERATIONS or columns % columns_multiple:
        return None
    return Served({"d": columns}, {"T": tokens}, flags)
