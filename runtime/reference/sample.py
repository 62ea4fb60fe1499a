"""Choosing the next token: greedy, temperature, top-k, top-p, with noise that depends on nothing but seed and position.

The Gumbel-max trick (dsv4-reference §10.3): argmax of log p + G is a draw from p. The noise is computed from
(seed, position, token) by integer mixing, so that a sequence's text depends neither on the batch around it nor on the
device.
"""

from __future__ import annotations

import torch

_MIX_1, _MIX_2 = -4658895280553007687, -7723592293110705685  # splitmix64's multipliers as signed numbers
_STEP = -7046029254386353131  # 2⁶⁴ / golden ratio


def sample(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    seed: torch.Tensor,
    position: torch.Tensor,
    *,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """i64 [R]: one token for each row of logits [R, V].

    ``temperature`` f32 [R]: 0 takes the largest logit (the lowest index of equal ones). ``top_k`` i64 [R]: only the k
    largest, 0 for all. ``top_p`` f32 [R]: only the fewest most probable tokens whose probabilities sum to p or more, 1
    for all; at least one is left. Both order equal logits by index, and top-p counts among what top-k left.
    ``seed`` and ``position`` i64 [R] decide the noise. A NaN counts as the largest logit.
    """
    order = descending(logits.to(dtype))
    greedy = temperature <= 0
    warmth = torch.where(greedy, 1.0, temperature).to(dtype)[:, None]
    ranked = order.values / warmth
    rank = torch.arange(logits.shape[-1], device=logits.device)
    kept = (rank < top_k[:, None]) | (top_k[:, None] <= 0)
    probability = torch.softmax(ranked.masked_fill(~kept, -torch.inf), dim=-1)
    before = probability.cumsum(dim=-1) - probability
    kept = kept & ((before < top_p.to(dtype)[:, None]) | (rank == 0) | (top_p[:, None] >= 1))
    noisy = ranked + gumbel(seed[:, None], position[:, None], order.indices, dtype=dtype)
    drawn = noisy.masked_fill(~kept, -torch.inf).argmax(dim=-1)
    place = torch.where(greedy, 0, drawn)
    return order.indices.gather(1, place[:, None]).squeeze(1)


def descending(logits: torch.Tensor) -> torch.return_types.sort:
    """The sorted values and their indices: NaN first, equal values by index.

    On a GPU torch.sort takes long rows by their bits, a NaN with the sign set last (pytorch issue 190781), and a
    conversion to bf16 on the CPU makes such NaNs; so all become the one NaN without a sign.
    """
    return torch.sort(logits.masked_fill(logits.isnan(), torch.nan), dim=-1, descending=True, stable=True)


def gumbel(
    seed: torch.Tensor, position: torch.Tensor, token: torch.Tensor, *, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """−log(−log u), u uniform in (0, 1) in steps of 2⁻⁵², a function of the three i64 tensors, which broadcast."""
    mixed = _mixed(_mixed(seed * _STEP + position) + token * _STEP)
    uniform = (_shifted(mixed, 12).to(torch.float64) + 0.5) * 2.0**-52  # never 0 or 1
    return (-(-uniform.log()).log()).to(dtype)


def _mixed(x: torch.Tensor) -> torch.Tensor:
    """splitmix64's finaliser; sums and products wrap around."""
    x = (x ^ _shifted(x, 30)) * _MIX_1
    x = (x ^ _shifted(x, 27)) * _MIX_2
    return x ^ _shifted(x, 31)


def _shifted(x: torch.Tensor, places: int) -> torch.Tensor:
    """x >> places as if it were unsigned."""
    return (x >> places) & ((1 << (64 - places)) - 1)
