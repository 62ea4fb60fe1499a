"""The tensors of a case, on any device: FlashMLA's layouts, with the gaps and the NaN that its tests put there.

The rows of a pool are taken from a bank of packed rows whose values are known in float64, by a random number for each
row of the pool. So the reference never reads the bytes that the kernel reads, and a pool takes no time to quantise.
Every byte of a pool that no query may read is 0xFF: NaN as FP8, as bf16 and as a scale.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from benchmarks.flash_mla_cases.product import Decode, Prefill, Scope, seed_of
from dsv4.runtime.pool import KV_WIDTH, PoolFormat, page_bytes
from dsv4.runtime.reference import pages

BANK_ROWS = 65536
BODY_WORDS, ROW_WORDS = 72, 73
"""Of 8 bytes, of a packed row: 448 codes and 64 numbers in bf16, and with its scales."""
GAP = 128
"""Elements after each row of a tensor that is not contiguous."""
NO_ROWS = (-(1 << 31), -123456, -1, 114514, 1919810, 2147480000, (1 << 31) - 1)
"""What stands for no row in the indices of a prefill, beside the first number that is none."""


@dataclass(frozen=True)
class Bank:
    """Packed rows, 73 words of 8 bytes each, and their values, float64 [rows, 512]."""

    words: torch.Tensor
    values: torch.Tensor


def make_bank(device: torch.device, rows: int) -> Bank:
    """Normal numbers of deviation 0.1 up to ±1, quantised."""
    numbers = torch.randn(rows, KV_WIDTH, generator=torch.Generator(device).manual_seed(7), device=device) / 10
    body, tail = pages.pack(PoolFormat.KV_FP8, numbers.clamp(-1, 1).to(torch.bfloat16).float())
    words = torch.cat((body, tail), dim=-1).contiguous().view(torch.int64)
    exponents = tail[:, :7].to(torch.float64) - 127
    codes = body[:, :448].contiguous().view(torch.float8_e4m3fn).to(torch.float64)
    rotary = body[:, 448:].contiguous().view(torch.bfloat16).to(torch.float64)
    scaled = codes * torch.exp2(exponents).repeat_interleave(64, dim=-1)
    return Bank(words, torch.cat((scaled, rotary), dim=-1))


@dataclass(frozen=True)
class Keys:
    """What a query sees of one pool: ``row`` int64 [N, topk] of ``values`` [rows, 512] in float64, where ``valid``."""

    values: torch.Tensor
    row: torch.Tensor
    valid: torch.Tensor


@dataclass(frozen=True)
class Inputs:
    """Arguments of the function by name, and for the reference the queries [N, heads, 512], their keys and the rest."""

    arguments: dict[str, torch.Tensor | float | None]
    q: torch.Tensor
    keys: list[Keys]
    sink: torch.Tensor | None
    scale: float


@dataclass
class Maker:
    """Makes inputs on ``device``; random numbers of a case are its own whatever was made before."""

    device: torch.device
    bank_rows: int = BANK_ROWS
    bank: Bank = field(init=False)
    generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.bank = make_bank(self.device, self.bank_rows)
        self.generator = torch.Generator(self.device)

    def make(self, case: Decode | Prefill) -> Inputs:
        self.generator.manual_seed(seed_of(case))
        return self._decode(case) if isinstance(case, Decode) else self._prefill(case)

    def _decode(self, case: Decode) -> Inputs:
        q = self._normal(case.batch, case.queries, case.heads, KV_WIDTH, dtype=torch.bfloat16).clamp_(-1, 1)
        sink = self._sink(case.heads) if case.has_sink else None
        arguments: dict[str, torch.Tensor | float | None] = {"q": apart(q), "attn_sink": sink}
        keys = []
        names = (
            ("k_cache", "indices", "topk_length"),
            ("extra_k_cache", "extra_indices_in_kvcache", "extra_topk_length"),
        )
        for scope, (cache, indices, length) in zip(case.scopes, names, strict=False):
            arguments[cache], index, arguments[length], seen = self._pool(case, scope)
            arguments[indices] = apart(index)
            keys.append(seen)
        scale = KV_WIDTH**-0.55
        arguments["softmax_scale"] = scale
        return Inputs(arguments, q.flatten(0, 1), keys, sink, scale)

    def _pool(self, case: Decode, scope: Scope) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, Keys]:
        """FlashMLA's envelope of a pool, indices [B, Q, topk], lengths, and the same for the reference."""
        counts = torch.full((case.batch,), scope.rows, device=self.device)
        if case.varies:
            spread = self._normal(case.batch) * (scope.rows / 2) + scope.rows
            counts = spread.long().clamp(min=case.queries)
        if case.has_zero:
            counts = counts.masked_fill(self._normal(case.batch) > 0, 0)
        # Pages of the requests lie in any order; a request has room for four pages more than it may need.
        per_request = max(math.ceil(int(counts.max()) / (4 * scope.page)), 1) * 4
        table = self._permutation(case.batch * per_request).view(case.batch, per_request)
        place = torch.full((case.batch, case.queries, scope.topk), -1, device=self.device)
        if not case.is_empty:
            place = self._distinct(counts.repeat_interleave(case.queries), scope.topk).view(place.shape)
        page = table.gather(1, (place.clamp(min=0) // scope.page).flatten(1)).view(place.shape)
        index = torch.where(place < 0, -1, page * scope.page + place % scope.page)
        length, valid = None, index >= 0
        if scope.has_length:
            length = torch.randint(
                0, scope.topk + 1, (case.batch,), generator=self.generator, device=self.device, dtype=torch.int32
            )
            valid &= torch.arange(scope.topk, device=self.device) < length[:, None, None]
        bank_row = torch.randint(
            0, self.bank.words.shape[0], (table.numel() * scope.page,), generator=self.generator, device=self.device
        )
        cache = packed_pages(self.bank, table.numel(), scope.page, index[valid], bank_row)
        row = bank_row[index.clamp(min=0)].flatten(0, 1)
        return cache, index.to(torch.int32), length, Keys(self.bank.values, row, valid.flatten(0, 1))

    def _prefill(self, case: Prefill) -> Inputs:
        shifts = ((self._uniform(2) - 0.5) / 10).tolist()
        q = self._normal(case.queries, case.heads, KV_WIDTH, dtype=torch.bfloat16).div_(10).add_(shifts[0])
        kv = self._normal(case.rows, 1, KV_WIDTH, dtype=torch.bfloat16).div_(10).add_(shifts[1])
        index = self._distinct(torch.full((case.queries,), case.rows, device=self.device), case.topk)
        none = torch.tensor((*NO_ROWS, case.rows), device=self.device)
        choice = self._uniform(*index.shape).mul(len(none)).long().clamp(max=len(none) - 1)
        index = torch.where(index < 0, none[choice], index)
        if case.is_empty:
            index[self._normal(case.queries) < -2] = none[seed_of(case) % len(none)]
        length = None
        valid = (index >= 0) & (index < case.rows)
        if case.has_length:
            most = max(case.topk, 63)
            length = (self._uniform(case.queries) * (most + 1)).to(torch.int32).clamp(max=case.topk)
            valid &= torch.arange(case.topk, device=self.device) < length[:, None]
        sink = self._sink(case.heads) if case.has_sink else None
        arguments: dict[str, torch.Tensor | float | None] = {
            "q": apart(q),
            "kv": apart(kv),
            "indices": apart(index.to(torch.int32)[:, None]),
            "sm_scale": 0.5,
            "attn_sink": sink,
            "topk_length": length,
        }
        keys = Keys(kv[:, 0].to(torch.float64), index.masked_fill(~valid, 0), valid)
        return Inputs(arguments, q, [keys], sink, 0.5)

    def _normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator, device=self.device, dtype=dtype)

    def _uniform(self, *shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=self.generator, device=self.device)

    def _permutation(self, count: int) -> torch.Tensor:
        return torch.randperm(count, generator=self.generator, device=self.device)

    def _sink(self, heads: int) -> torch.Tensor:
        """Normal numbers, of which those beyond ½ of another normal number are ±∞."""
        chosen = self._normal(heads)
        sink = self._normal(heads).masked_fill(chosen > 0.5, math.inf)
        return sink.masked_fill(chosen < -0.5, -math.inf)

    def _distinct(self, counts: torch.Tensor, topk: int) -> torch.Tensor:
        """int64 [N, topk]: different numbers from 0 to below ``counts`` [N] in any order, −1 when there are no more."""
        width = max(int(counts.max()), topk)
        chance = self._uniform(len(counts), width)
        chance.masked_fill_(torch.arange(width, device=self.device) >= counts[:, None], -1.0)
        found = chance.topk(topk, dim=-1).indices
        return found.masked_fill(found >= counts[:, None], -1)


def packed_pages(bank: Bank, count: int, page: int, used: torch.Tensor, bank_row: torch.Tensor) -> torch.Tensor:
    """float8 [count, page, 1, 584] over packed pages: rows ``used`` (flat numbers) are those of the bank that
    ``bank_row`` says, all other bytes are 0xFF."""
    words = page_bytes(PoolFormat.KV_FP8, page) // 8
    data = torch.full((count, words), -1, dtype=torch.int64, device=bank.words.device)
    bodies = data.as_strided((count, page, BODY_WORDS), (words, BODY_WORDS, 1))
    scales = data.as_strided((count, page), (words, 1), page * BODY_WORDS)
    chosen = bank.words[bank_row[used]]
    bodies[used // page, used % page] = chosen[:, :BODY_WORDS]
    scales[used // page, used % page] = chosen[:, BODY_WORDS]
    row_bytes = 8 * ROW_WORDS
    return data.view(torch.float8_e4m3fn).as_strided((count, page, 1, row_bytes), (8 * words, row_bytes, row_bytes, 1))


def apart(tensor: torch.Tensor) -> torch.Tensor:
    """The same numbers in a larger tensor: one more in each dimension, ``GAP`` more in the last."""
    wide = tensor.new_empty([size + 1 for size in tensor.shape[:-1]] + [tensor.shape[-1] + GAP])
    view = wide[tuple(slice(0, size) for size in tensor.shape)]
    view.copy_(tensor)
    return view
