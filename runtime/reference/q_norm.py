"""The normalisation of each query head, without a weight (dsv4-reference §3.2)."""

from __future__ import annotations

import torch


def q_norm(
    q: torch.Tensor,
    *,
    eps: float = 1e-6,
    stage_dtype: torch.dtype | None = None,
    dtype: torch.dtype = torch.float32,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """q / √(mean(q²) + eps) over the last dimension of q [.., D], in ``out_dtype`` (default: that of q).

    With ``stage_dtype`` (bf16) the square, the mean, the sum with eps, its inverse root and the product are each
    rounded to it, as the official code does on a GPU; engines compute in float32. The roundings are written out,
    because torch's own bf16 root on a CPU rounds once or twice, depending on where in a tensor the value lies.
    """

    def staged(x: torch.Tensor) -> torch.Tensor:
        return x if stage_dtype is None else x.to(stage_dtype).to(dtype)

    wide = staged(q.to(dtype))
    mean = staged(staged(wide.square()).mean(dim=-1, keepdim=True))
    return staged(wide * staged(staged(mean + eps).rsqrt())).to(out_dtype or q.dtype)
