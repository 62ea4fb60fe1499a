"""The router: which experts a token goes to, and with what weights (dsv4-reference §9.1)."""

from __future__ import annotations

import torch
from torch.nn.functional import softplus


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
    """y [T, d], weight [E, d]: (experts i32 [T, k], weights [T, k] in ``dtype``).

    With a = √softplus(weight · y): the k experts with the largest a + ``bias`` [E] (equal ones by ascending index), in
    that order; or in hash layers the row of ``tid2eid`` [vocabulary, k] that ``tokens`` [T] names. The weights are the
    chosen a (without the bias) divided by their sum, times ``factor``.
    """
    affinity = softplus(y.to(dtype) @ weight.to(dtype).transpose(0, 1)).sqrt()
    if tid2eid is not None:
        assert tokens is not None
        experts = tid2eid[tokens].to(torch.int64)
    else:
        ranked = affinity if bias is None else affinity + bias.to(dtype)
        experts = torch.sort(ranked, dim=-1, descending=True, stable=True).indices[:, :k]
    chosen = affinity.gather(1, experts)
    return experts.to(torch.int32), chosen / chosen.sum(dim=-1, keepdim=True) * factor
