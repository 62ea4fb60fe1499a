"""Logits over the vocabulary (dsv4-reference §10.1)."""

from __future__ import annotations

import torch


def lm_head(h: torch.Tensor, weight: torch.Tensor, *, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """h [R, d] (normalised), weight [vocabulary, d]: logits [R, vocabulary] in ``dtype``, never rounded to bf16."""
    return h.to(dtype) @ weight.to(dtype).transpose(0, 1)
