"""rms_norm in plain PyTorch: the oracle of the kernel and the CPU path."""

from __future__ import annotations

import torch


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float = 1e-6,
    *,
    dtype: torch.dtype = torch.float32,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """y = weight · x / √(mean(x²) + eps), the mean over the last dimension (dsv4-reference §3.1).

    x [..., d] and weight [d] in any floating dtype on any device. Computed in ``dtype``; the product with the weight is
    taken before the result is rounded to ``out_dtype`` (default: that of ``x``). Returns [..., d], contiguous. A NaN
    stays in its row.
    """
    wide = x.to(dtype)
    scale = (wide.square().mean(dim=-1, keepdim=True) + eps).sqrt()
    return (weight.to(dtype) * (wide / scale)).to(out_dtype or x.dtype).contiguous()
