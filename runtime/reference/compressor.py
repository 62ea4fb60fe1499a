"""Compressed entries from the tokens of a step and the partial state before it, CSA and HCA (dsv4-reference §5).

The state is a ring of rows, one a token: kv ‖ score with the position's ``ape`` added, float32. An entry is made from
the rows of its 4 + 4 (CSA, overlapping) or 128 (HCA) tokens, those before the step from the state. Nothing is shifted,
so that chunks may be cut anywhere, and a ring with spare rows lets rejected tokens be taken back.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from dsv4.runtime.pool import Pool
from dsv4.runtime.reference import pages
from dsv4.runtime.reference.hadamard import hadamard
from dsv4.runtime.reference.rms_norm import rms_norm
from dsv4.runtime.reference.rope import rotate


class Compression(NamedTuple):
    """Which rows go where in one step; the same for all layers of one ratio m. Integer tensors, −1 = none.

    ``phase`` [T]: position mod m. ``fresh`` [N, f·m] and ``stored`` [N, f·m]: for each entry that may be completed in
    this step, its tokens in order, as rows of the step or of the state; a token of neither does not exist.
    ``entry_rows`` [N]: the pool's row of the entry, −1 where it is not complete. ``state_rows`` [T]: the state's row of
    each token, −1 for those that later tokens of this step overwrite. ``apart``: it is known that no row of the state
    that an entry reads is written in this step, so that a kernel need not order the two.
    """

    phase: torch.Tensor
    fresh: torch.Tensor
    stored: torch.Tensor
    entry_rows: torch.Tensor
    state_rows: torch.Tensor
    apart: bool = False


def compressor(
    kv: torch.Tensor,
    score: torch.Tensor,
    ape: torch.Tensor,
    norm: torch.Tensor,
    cos_sin: torch.Tensor,
    state: torch.Tensor,
    pool: Pool,
    compression: Compression,
    *,
    eps: float = 1e-6,
    rotate_hadamard: bool = False,
    stage_dtype: torch.dtype | None = None,
    fake: pages.Fake = "none",
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write the entries that this step completes into ``pool`` and its last tokens into ``state``.

    kv, score [T, f·hd] from wkv and wgate; ape [m, f·hd]; norm [hd]; cos_sin [N, r] at position e·m of each entry;
    state [rows, 2·f·hd] float32, its last row scratch. For each channel the entry is Σ softmax(score + ape) · kv over
    its tokens; CSA takes the earlier 4 tokens through the first half of the channels and the later 4 through the
    second. Then RMSNorm, rotation, with ``rotate_hadamard`` the Hadamard transform (the indexer's keys), and the
    pool's quantisation, or ``fake`` in a plain pool. ``stage_dtype``: round to it after each step (the official code,
    bf16); ``None``: stay in ``dtype``.
    """
    width, tokens = norm.shape[0], kv.shape[0]
    channels = kv.shape[1]
    gates = score.to(dtype) + ape.to(dtype)[compression.phase]
    token_rows = torch.cat((kv.to(dtype), gates), dim=-1)
    stage = stage_dtype or dtype

    entries, span = compression.fresh.shape
    if entries:
        exists = (compression.fresh >= 0) | (compression.stored >= 0)
        members = state[compression.stored.clamp(min=0)].to(dtype)
        if tokens:
            fresh = token_rows[compression.fresh.clamp(min=0)]
            members = torch.where((compression.fresh >= 0)[..., None], fresh, members)
        members = members.masked_fill(~exists[..., None], 0.0)
        values, logits = members.split((channels, channels), dim=-1)
        if channels == 2 * width:
            half = span // 2
            values = torch.cat((values[:, :half, :width], values[:, half:, width:]), dim=1)
            logits = torch.cat((logits[:, :half, :width], logits[:, half:, width:]), dim=1)
        entry = pooled(values, logits, exists).to(stage)
        entry = rms_norm(entry, norm, eps, dtype=dtype, out_dtype=stage)
        entry = rotate(entry, cos_sin, dtype=dtype, out_dtype=stage)
        if rotate_hadamard:
            entry = hadamard(entry.to(dtype)).to(stage)
        pages.write_rows(pool, compression.entry_rows, entry, fake=fake)
    state[compression.state_rows.to(torch.int64)] = token_rows.to(state.dtype)


def pooled(values: torch.Tensor, logits: torch.Tensor, exists: torch.Tensor) -> torch.Tensor:
    """Σ_s softmax_s(logits) · values over the members [N, s, hd] that exist [N, s], per channel; 0 where none does."""
    masked = logits.masked_fill(~exists[..., None], -torch.inf)
    peak = masked.amax(dim=1, keepdim=True)
    weights = (masked - peak.masked_fill(peak.isneginf(), 0.0)).exp()
    total = weights.sum(dim=1)
    return (weights * values).sum(dim=1) / total.masked_fill(total == 0, 1.0)
