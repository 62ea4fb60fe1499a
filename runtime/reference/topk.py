"""Selection of the entries with the highest scores, ties to the lowest index (dsv4-reference §6.4)."""

from __future__ import annotations

import torch


def topk(scores: torch.Tensor, visible: torch.Tensor, *, k: int) -> torch.Tensor:
    """i32 [T, k]: the entries of each row by descending score, equal scores by ascending index; −1 past the end.

    scores [T, E] in any float dtype, of which the first ``visible[t]`` of row t count. A row gives min(k, visible[t])
    entries. Ties are common, because the ReLU of the scores makes exact zeros; this order is the definition.
    """
    place = torch.arange(scores.shape[1], device=scores.device)
    masked = scores.masked_fill(place >= visible[:, None], -torch.inf)
    order = torch.sort(masked, dim=-1, descending=True, stable=True).indices[:, :k]
    chosen = order.masked_fill(place[: order.shape[1]] >= visible[:, None], -1).to(torch.int32)
    return torch.nn.functional.pad(chosen, (0, k - chosen.shape[1]), value=-1)
