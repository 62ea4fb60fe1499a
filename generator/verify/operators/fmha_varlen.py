"""fmha_varlen: O and LSE of every sequence, judged row by row as fmha's are, and nothing written beside them.

Sequences of 0, 1, a tile ± 1 and 17 tiles lie next to one another, in any order. What belongs to no sequence is NaN:
keys and values before the first and behind the last sequence, rows of a page behind its sequence's end, pages that no
table names; the table's entries behind a sequence's pages are numbers of no page.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from dsv4.generator.verify.case import Case, OutputLayout, Value, Verdict
from dsv4.generator.verify.operators import fmha
from dsv4.runtime.artifact import Scalar

THOROUGH_CASES = (0, 1)
"""Five short sequences of which two are empty, and two of several tiles: few heads, and neighbours on both sides."""

WORKLOAD_SIZES = {"B": 4, "TQ": 16384, "P": 256, "T": 64, "PT": 64, "Hq": 32, "Hkv": 32}

NO_PAGE = 0x3FFFFFF0
OUTSIDE = 5
"""Rows of NaN before the first sequence's keys, and twice as many behind the last one's."""


@dataclass(frozen=True)
class Shape:
    """The sequences of one case as (queries, keys), heads, keys of a page, and how fmha's values move."""

    sequences: tuple[tuple[int, int], ...]
    heads: int
    kv_heads: int
    page: int
    pattern: str = "random"
    packed: bool = False

    @property
    def queries(self) -> int:
        return sum(queries for queries, _ in self.sequences)

    def __str__(self) -> str:
        lengths = " ".join(f"{queries}/{keys}" for queries, keys in self.sequences)
        packed = ", all tensors with gaps" if self.packed else ""
        return f"queries/keys {lengths}, {self.heads} heads over {self.kv_heads}, {self.pattern}{packed}"


def _shapes(m: int, n: int, rows: int) -> list[Shape]:
    """``m``, ``n``: tiles of queries and keys; ``rows``: keys that one copy takes from a page."""
    return [
        Shape(((3, 5), (0, n + 2), (m - 1, n - 1), (2, 0), (1, 1)), 2, 1, rows),
        Shape(((m + 1, 2 * n + 1), (5, 3 * n - 7)), 2, 2, 2 * rows, "falling"),
        Shape(((1, n), (1, n + 1), (1, n - 1), (1, 1), (1, 0), (1, 3 * n + 5)), 4, 2, 3 * rows, "mixed"),
        Shape(((m, n), (m - 1, n + 1), (m + 1, n - 1), (2 * m + 17, 3 * n)), 3, 1, rows, "rising"),
        Shape(((7, 17 * n - 3), (m + 9, 40), (11, 2 * n)), 4, 1, 5 * rows, "mixed", packed=True),
        Shape(((2 * m + 3, n + 1), (0, 0), (3 * m, 9)), 6, 3, 2 * rows, "mixed"),  # causal: many rows have no key
        Shape(((3 * m - 5, 2 * n), (4 * m + 1, 30)), 24, 1, rows, "falling"),  # causal: tiles in pairs
        Shape(((9, 0), (4, 0)), 2, 1, rows),
        Shape(((0, 7), (0, 9)), 2, 1, rows),
    ]


def cases(
    dims: dict[str, int], variant: dict[str, Scalar], *, config: dict[str, Scalar], seed: int, device: torch.device
) -> list[Case]:
    generator = torch.Generator(device="cpu").manual_seed(seed)
    rows = int(variant.get("page_rows", 0))
    shapes = _shapes(int(config.get("tile_m", 128)), int(config.get("tile_n", 128)), rows or 16)
    return [case_of(shape, dims, variant, generator, device) for shape in shapes]


def case_of(
    shape: Shape, dims: dict[str, int], variant: dict[str, Scalar], generator: torch.Generator, device: torch.device
) -> Case:
    """One case of this shape; the values are the next that ``generator`` (on the CPU) gives."""
    columns, causal = dims["D"], bool(variant.get("causal", False))
    scale = columns**-0.5
    sink = None
    if variant.get("has_sink"):
        sink = torch.randn(shape.heads, generator=generator).mul(2).to(torch.bfloat16).float().to(device)
    parts, out, lse, worst = [], [], [], 0.0
    for queries, keys in shape.sequences:
        one = fmha.Shape(1, queries, keys, shape.heads, shape.kv_heads, shape.pattern)
        q, k, v = fmha._values(one, columns, generator, device)
        expected, expected_lse = fmha.expected_float64(q, k, v, sink, causal=causal, scale=scale)
        baseline = fmha.torch_bf16(q, k, v, sink, causal=causal, scale=scale)
        rows = fmha.metrics.row_rel_l2(baseline, expected)
        worst = max(worst, float(rows.max()) if rows.numel() else 0.0)
        parts.append((q[0], k[0], v[0]))
        out.append(expected[0])
        lse.append(expected_lse[0])
    q = torch.cat([part[0] for part in parts])
    keys_of = [(part[1], part[2]) for part in parts]
    inputs: dict[str, Value] = {
        "q": _spread(q, shape.packed),
        **(_pages(keys_of, shape, generator) if variant.get("page_rows") else _rows(keys_of, shape)),
        "cu_seqlens_q": _starts([queries for queries, _ in shape.sequences], 0, device),
        "sink": sink,
        "softmax_scale": scale,
    }
    return Case(
        op="fmha_varlen",
        name=str(shape),
        inputs=inputs,
        outputs=_outputs(shape, columns),
        expected={"o": torch.cat(out), "lse": torch.cat(lse, dim=1)},
        limits={"torch_worst_row_rel_l2": worst},
    )


def _starts(lengths: list[int], first: int, device: torch.device) -> torch.Tensor:
    return torch.tensor([0, *lengths], device=device).cumsum(0).add(first).to(torch.int32)


def _spread(rows: torch.Tensor, packed: bool) -> torch.Tensor:
    """``rows`` [… , heads, D], with a head of NaN between each row and the next where ``packed``."""
    if not packed:
        return rows
    wide = rows.new_full((*rows.shape[:-2], rows.shape[-2] + 1, rows.shape[-1]), math.nan)
    wide[..., :-1, :] = rows
    return wide[..., :-1, :]


def _rows(keys_of: list[tuple[torch.Tensor, torch.Tensor]], shape: Shape) -> dict[str, Value]:
    """k and v [1, T, Hkv, D] of all sequences, among rows of NaN."""
    lengths = [k.shape[0] for k, _ in keys_of]
    given: dict[str, Value] = {}
    outside = OUTSIDE if sum(lengths) else 0
    for name, pieces in (("k", [k for k, _ in keys_of]), ("v", [v for _, v in keys_of])):
        joined = torch.cat(pieces)
        whole = joined.new_full((3 * outside + joined.shape[0], *joined.shape[1:]), math.nan)
        whole[outside : outside + joined.shape[0]] = joined
        given[name] = _spread(whole, shape.packed)[None]
    return {**given, "cu_seqlens_k": _starts(lengths, outside, keys_of[0][0].device)}


def _pages(
    keys_of: list[tuple[torch.Tensor, torch.Tensor]], shape: Shape, generator: torch.Generator
) -> dict[str, Value]:
    """k and v [P, T, Hkv, D] in pages in any order, every second one of NaN, and the table of each sequence's."""
    device, lengths = keys_of[0][0].device, [k.shape[0] for k, _ in keys_of]
    counts = [-(-keys // shape.page) for keys in lengths]
    pages = 2 * sum(counts) + 1 if sum(counts) else 0
    order = torch.randperm(pages, generator=generator)
    table = torch.full((len(lengths), max(counts) + 2), NO_PAGE, dtype=torch.int32)
    pools = [keys_of[0][0].new_full((pages, shape.page, *keys_of[0][0].shape[1:]), math.nan) for _ in range(2)]
    taken = 0
    for b, (pair, count) in enumerate(zip(keys_of, counts, strict=True)):
        table[b, :count] = order[taken : taken + count].to(torch.int32)
        for pool, rows in zip(pools, pair, strict=True):
            own = rows.new_full((count * shape.page, *rows.shape[1:]), math.nan)
            own[: rows.shape[0]] = rows
            pool[order[taken : taken + count].to(device)] = own.view(count, shape.page, *rows.shape[1:])
        taken += count
    k, v = (_spread(pool, shape.packed) for pool in pools)
    seqlens = torch.tensor(lengths, dtype=torch.int32, device=device)
    return {"k": k, "v": v, "seqlens_k": seqlens, "block_table": table.to(device)}


def _outputs(shape: Shape, columns: int) -> dict[str, OutputLayout]:
    """Contiguous, or with gaps between heads and rows where the case is ``packed``."""
    gap = 1 if shape.packed else 0
    head = columns + 8 * gap
    row = shape.heads * head + 64 * gap
    return {
        "o": OutputLayout((shape.queries, shape.heads, columns), (row, head, 1), torch.bfloat16),
        "lse": OutputLayout((shape.heads, shape.queries), (shape.queries + 3 * gap, 1), torch.float32),
    }


def _as_one_batch(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor[None] for name, tensor in tensors.items()}


def judge(got: dict[str, torch.Tensor], case: Case) -> Verdict:
    whole = Case(case.op, case.name, {}, {}, _as_one_batch(case.expected), case.limits)
    return fmha.judge(_as_one_batch(got), whole)


def first_wrong(
    got: dict[str, torch.Tensor], case: Case, config: dict[str, Scalar]
) -> tuple[str, tuple[int, ...], str] | None:
    """As fmha's, of the row among all sequences' rows."""
    whole = Case(case.op, case.name, {}, {}, _as_one_batch(case.expected), case.limits)
    found = fmha.first_wrong(_as_one_batch(got), whole, config)
    if found is None:
        return None
    output, (_, *index), _ = found
    row, head = (index[0], index[1]) if output == "o" else (index[1], index[0])
    starts = case.inputs["cu_seqlens_q"]
    assert isinstance(starts, torch.Tensor)
    sequence = int(torch.searchsorted(starts, row, right=True)) - 1
    query, tile_m = row - int(starts[sequence]), int(config.get("tile_m", 128))
    where = f"query tile {query // tile_m} ({tile_m} queries) of head {head}, sequence {sequence}"
    return output, tuple(index), f"{where}, row {query % tile_m} of it"


def workload(
    dims: dict[str, int], variant: dict[str, Scalar], sizes: dict[str, int], *, seed: int, device: torch.device
) -> dict[str, Value]:
    """Sequences of equal lengths, as many queries as keys if there are as many of both; pages in random order."""
    generator = torch.Generator(device=device).manual_seed(seed)
    columns, heads, batch = dims["D"], sizes["Hq"], sizes["B"]
    paged = bool(variant.get("page_rows"))
    pages, page = (sizes["P"], sizes["T"]) if paged else (1, sizes["P"] * sizes["T"])

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator, device=device, dtype=torch.bfloat16)

    def even(total: int) -> torch.Tensor:
        return (torch.arange(batch + 1, device=device) * total // batch).to(torch.int32)

    q = normal(sizes["TQ"], heads, columns)
    values: dict[str, Value] = {
        "q": q,
        "k": normal(pages, page, sizes["Hkv"], columns),
        "v": normal(pages, page, sizes["Hkv"], columns),
        "cu_seqlens_q": even(sizes["TQ"]),
        "softmax_scale": columns**-0.5,
        "o": torch.empty_like(q),
        "lse": torch.empty(heads, sizes["TQ"], device=device),
    }
    if paged:
        columns_of_table = min(sizes["PT"], pages // batch)
        order = torch.randperm(pages, generator=generator, device=device).to(torch.int32)
        values["block_table"] = order[: batch * columns_of_table].view(batch, columns_of_table)
        values["seqlens_k"] = torch.full((batch,), columns_of_table * page, dtype=torch.int32, device=device)
    else:
        values["cu_seqlens_k"] = even(page)
    if variant.get("has_sink"):
        values["sink"] = torch.randn(heads, generator=generator, device=device)
    return values
