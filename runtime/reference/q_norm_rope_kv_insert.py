"""From the projections to what attention reads: queries normalised and rotated, keys written to the cache (§4.1)."""

from __future__ import annotations

import torch

from dsv4.runtime.pool import Pool
from dsv4.runtime.reference import pages
from dsv4.runtime.reference.q_norm import q_norm
from dsv4.runtime.reference.rms_norm import rms_norm
from dsv4.runtime.reference.rope import rotate


def q_norm_rope_kv_insert(
    q: torch.Tensor,
    kv: torch.Tensor,
    kv_norm: torch.Tensor,
    cos_sin: torch.Tensor,
    pool: Pool,
    rows: torch.Tensor,
    *,
    eps: float = 1e-6,
    stage_dtype: torch.dtype | None = None,
    fake_quantize: bool = False,
    dtype: torch.dtype = torch.float32,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Returns q' [T, H, D] in ``out_dtype`` (default: that of q) and writes kv' into ``rows`` of ``pool``.

    q [T, H, D] from wq_b: each head normalised, then its last r dimensions rotated. kv [T, D] from wkv: RMSNorm with
    ``kv_norm`` [D], rotated, then stored as the pool's format says. cos_sin [T, r] of the tokens' positions; rows [T],
    −1 for a token that is not stored. ``stage_dtype``: round to it after each step (the official code, bf16);
    ``None``: stay in ``dtype`` until the result. ``fake_quantize``: round by FQ64 before storing in a plain pool.
    """
    stage = stage_dtype or dtype
    queries = q_norm(q, eps=eps, stage_dtype=stage_dtype, dtype=dtype, out_dtype=stage)
    queries = rotate(queries, cos_sin, dtype=dtype, out_dtype=out_dtype or q.dtype)
    keys = rms_norm(kv, kv_norm, eps, dtype=dtype, out_dtype=stage)
    keys = rotate(keys, cos_sin, dtype=dtype, out_dtype=stage)
    pages.write_rows(pool, rows, keys, fake="fq64" if fake_quantize else "none")
    return queries
