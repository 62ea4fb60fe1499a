"""sparse_attention_decode: out and lse over gathered rows of packed pages, judged as FlashMLA's own tests judge them.

The rule (dsv4-reference §7.4, §13): every element of out is within 1e-3 or within 2.01/128 of its size, and
1 − 2⟨a, r⟩ / (‖a‖² + ‖r‖²) ≤ 5e-6 over all of them; every lse is within 1e-6 or within 8.01/65536 of its size. A query
without keys is exactly 0 with an lse of −∞; one with a NaN among its keys is NaN, and nothing else is. Rows that no
query uses are full of NaN.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial

import torch

from dsv4.generator.verify import judging
from dsv4.generator.verify.case import Case, OutputLayout, Value, Verdict
from dsv4.runtime.artifact import Scalar
from dsv4.runtime.ops.sparse_attention_decode import PART_NUMBERS, PARTS
from dsv4.runtime.pool import KV_WIDTH, Pool, PoolFormat, page_bytes
from dsv4.runtime.reference import pages
from dsv4.runtime.reference.sparse_attention import sparse_attention

OUT_ABS_MAX, OUT_REL_MAX, OUT_DISTANCE_MAX = 1e-3, 2.01 / 128, 5e-6
LSE_ABS_MAX, LSE_REL_MAX = 1e-6, 8.01 / 65536
TILE = 64
NOBODY = (-1, -1, -7, 1 << 30, -(1 << 31), (1 << 31) - 1)
"""What stands in an index where there is no key: −1, and numbers outside the pool."""

ABSENT = ("pool0", "kv0", "length0", "pool1", "kv1", "index1", "length1", "table1", "count1", "parts")
"""Arguments that only some variants have."""

THOROUGH_CASES = (2, 6)
"""Two tiles and a bit of another, and draft tokens with lengths (numbers in the list without empty cases)."""

WORKLOAD_SIZES = {"B": 64, "Q": 1, "K0": 128, "K1": 512, "page0": 256, "page1": 64, "rows": 1 << 18}


@dataclass(frozen=True)
class Shape:
    """One case before its values. ``keys``: columns of the two indices; ``holes``: the share of entries without a key.

    ``lengths``: those of the requests in the first segment, and in the second the other way round.
    """

    name: str
    requests: int
    queries: int
    keys: tuple[int, int]
    pages: tuple[int, int] = (64, 64)
    pattern: str = "random"
    holes: float = 0.0
    lengths: tuple[int, ...] = ()
    gap: int = 0
    duplicates: bool = False
    nan: bool = False
    sink: float | None = None


def _shapes() -> list[Shape]:
    every_length = (0, -3, 1, 15, 16, 17, 63, 64, 65, 127, 128, 129, 191, 400, 1 << 30)
    few_keys = tuple(13 * number % 64 + 1 if number % 4 == 0 else 0 for number in range(20))
    return [
        Shape("one key", 1, 1, (1, 1)),
        Shape("one tile, another page", 2, 1, (64, 64), (53, 2)),
        Shape("two tiles and a bit of another", 1, 2, (129, 140), (256, 64), "rising"),
        Shape("window and top-k, half of them missing", 2, 1, (128, 192), (64, 61), "falling", holes=0.5),
        Shape("seventeen tiles, a row more than one", 1, 1, (64 * 17 - 5, 1), (69, 1), "mixed"),
        Shape("rows of every length", len(every_length), 1, (192, 130), (64, 2), "random", lengths=every_length),
        Shape("draft tokens, everything with gaps", 2, 3, (128, 64), (64, 64), "mixed", gap=8, lengths=(100, 128)),
        Shape("the same rows many times, the last of the pool among them", 1, 2, (128, 128), duplicates=True),
        Shape("queries without a single key", 3, 1, (128, 64), holes=1.0),
        Shape("five tiles, the first ones empty", 1, 1, (320, 65), pattern="late"),
        Shape("a NaN in one row: its queries only", 3, 1, (128, 64), nan=True),
        Shape("an infinite sink leaves nothing", 2, 1, (64, 64), sink=math.inf),
        Shape("a sink of minus infinity takes nothing", 2, 1, (64, 64), sink=-math.inf),
        Shape("a sink far above the scores", 2, 1, (65, 64), sink=30.0),
        Shape("many queries of a tile in one segment, or of none", len(few_keys), 1, (64, 1), lengths=few_keys),
        Shape("a request more than eight, its first tiles empty", 9, 1, (320, 130), pattern="late", holes=0.2),
        Shape("no request", 0, 1, (128, 64)),
        Shape("no columns", 2, 1, (0, 0)),
    ]


def cases(
    dims: dict[str, int], variant: dict[str, Scalar], *, config: dict[str, Scalar], seed: int, device: torch.device
) -> list[Case]:
    generator = torch.Generator(device="cpu").manual_seed(seed)
    parts = int(config.get("split_ctas", 0))
    return [case_of(shape, dims, variant, generator, device, parts=parts) for shape in _shapes()]


def case_of(
    shape: Shape,
    dims: dict[str, int],
    variant: dict[str, Scalar],
    generator: torch.Generator,
    device: torch.device,
    *,
    parts: int = PARTS,
) -> Case:
    """One case of this shape; the values are the next that ``generator`` (on the CPU) gives.

    With more queries and blocks of 64 heads than ``parts`` the workspace has room for so many, and for none else.
    """
    requests, queries, heads, gap = shape.requests, shape.queries, dims["H"], shape.gap
    tokens, scale = requests * queries, KV_WIDTH**-0.5
    direction = torch.randn(KV_WIDTH, generator=generator).sign()
    lean = torch.tensor([1.0, -1.0, 0.25, -2.0, 3.0]).repeat(heads // 5 + 1)[:heads]
    q = torch.randn(tokens, heads, KV_WIDTH, generator=generator).clamp(-1, 1)
    if shape.pattern in ("rising", "falling", "mixed"):
        q = q + (lean if shape.pattern == "mixed" else torch.ones(heads))[:, None] * direction
    inputs: dict[str, Value] = {"q": _gapped(q.to(torch.bfloat16).view(requests, queries, heads, KV_WIDTH), gap)}
    inputs |= dict.fromkeys(ABSENT) | {"page1": 1}
    pools: list[Pool] = []
    counted: list[torch.Tensor] = []
    for number in range(1 if variant["extra"] == "none" else 2):
        lengths = torch.tensor(shape.lengths[:: 1 - 2 * number] or [1 << 30] * requests, dtype=torch.int32)
        if number and variant["extra"] == "pages":
            pool, table, counts, rows = _paged(shape, lengths, direction, generator)
            inputs["table1"], inputs["count1"] = _gapped(table, 3 if gap else 0), counts
        else:
            pool, index = _segment(shape, number, tokens, direction, generator, packed=variant["cache"] != "plain")
            inputs[f"index{number}"] = _gapped(index.view(requests, queries, shape.keys[number]), 3 if gap else 0)
            count = torch.full_like(lengths, 1 << 30)
            if variant[f"has_length{number}"]:
                inputs[f"length{number}"] = count = lengths
            beyond = torch.arange(index.shape[1]) >= count.repeat_interleave(queries)[:, None]
            rows = index.masked_fill(beyond | (index < 0) | (index >= pool.rows), -1)
        inputs[f"page{number}"] = pool.page
        if pool.format is PoolFormat.PLAIN:
            inputs[f"kv{number}"] = _gapped(pool.data[:, 0], gap)
        else:
            inputs[f"pool{number}"] = pool.data
        pools.append(pool)
        counted.append(rows)
    sink = None
    if variant["has_sink"]:
        sink = torch.randn(heads, generator=generator) * 2 if shape.sink is None else torch.full((heads,), shape.sink)
    inputs.update(sink=sink, softmax_scale=scale, empty_lse=-math.inf)
    held = inputs["q"]
    assert isinstance(held, torch.Tensor)
    more, more_rows = (pools[1], counted[1]) if len(pools) == 2 else (None, None)
    attend = partial(sparse_attention, softmax_scale=scale, dtype=torch.float64, out_dtype=torch.float64)
    out, lse = attend(held.reshape(tokens, heads, KV_WIDTH), pools[0], counted[0], more, more_rows, sink)
    expected = {"out": out, "lse": lse}
    if variant["has_max"]:
        expected["max_logits"] = _max_logits(held.reshape(tokens, heads, KV_WIDTH), pools, counted, scale)
    return Case(
        op="sparse_attention_decode",
        name=shape.name,
        inputs={name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in inputs.items()},
        outputs=_outputs(requests, queries, heads, gap, has_max=bool(variant["has_max"])),
        inouts={"parts": _workspace(tokens, heads, parts, device)} if _has_parts(dims, variant) else {},
        expected={
            name: value.unflatten(0, (requests, queries)).to(device)
            if name == "out"
            else value.view(requests, queries, heads).transpose(1, 2).to(device)
            for name, value in expected.items()
        },
    )


def _has_parts(dims: dict[str, int], variant: dict[str, Scalar]) -> bool:
    """Whether the kernel is given room for parts of queries' keys."""
    varied = variant["has_length0"] or variant["has_length1"] or variant["extra"] == "pages"
    return variant["cache"] == "kv_fp8" and dims["H"] > 32 and not varied


def _workspace(tokens: int, heads: int, parts: int, device: torch.device) -> torch.Tensor:
    """Room for ``parts`` parts, full of NaN, where there are more queries and blocks of 64 heads; for none else."""
    return torch.full((parts if tokens * -(-heads // 64) > parts else 0, PART_NUMBERS), math.nan, device=device)


def _max_logits(q: torch.Tensor, pools: list[Pool], rows: list[torch.Tensor], scale: float) -> torch.Tensor:
    """The largest scaled logit [tokens, heads] in float64; NaN where one of them is, −∞ without keys."""
    top = torch.full(q.shape[:2], -math.inf, dtype=torch.float64)
    for pool, own in zip(pools, rows, strict=True):
        keys = pages.read_rows(pool, own, dtype=torch.float64)
        logits = (q.double() @ keys.transpose(-1, -2) * scale).masked_fill((own < 0)[:, None], -math.inf)
        if own.shape[1]:
            top = torch.maximum(top, logits.amax(-1))
    return top


def _segment(
    shape: Shape,
    number: int,
    tokens: int,
    direction: torch.Tensor,
    generator: torch.Generator,
    *,
    packed: bool = True,
) -> tuple[Pool, torch.Tensor]:
    """A pool in which only what is used is written, and flat rows int32 [tokens, keys], holes among them."""
    keys, page = shape.keys[number], shape.pages[number] if packed else 1
    used = max(1, keys if shape.duplicates else tokens * keys)
    page_count = -(-2 * used // page) + 1
    if packed:
        data = torch.full((page_count, page_bytes(PoolFormat.KV_FP8, page)), 0xFF, dtype=torch.uint8)
        pool = Pool(data, PoolFormat.KV_FP8, page)
    else:
        pool = Pool(torch.full((page_count, 1, KV_WIDTH), math.nan, dtype=torch.bfloat16), PoolFormat.PLAIN, 1)
    rows = torch.randperm(pool.rows, generator=generator)[:used]
    values = (torch.randn(used, KV_WIDTH, generator=generator) / 10).clamp(-1, 1)  # the tolerances are made for these
    if shape.pattern in ("rising", "falling", "mixed"):
        slope = torch.linspace(-0.5, 0.5, max(keys, 1)) * (keys / TILE) * 4.0 / KV_WIDTH**0.5
        values = values + (-1 if shape.pattern == "falling" else 1) * slope.repeat(used)[:used, None] * direction
    if shape.duplicates:
        rows[-1] = pool.rows - 1
        index = rows[torch.randint(0, max(1, used // 3), (tokens, keys), generator=generator)]
        index[:, ::5] = pool.rows - 1
    else:
        index = rows[: tokens * keys].view(tokens, keys)
    if shape.nan and tokens and keys:
        values[used // tokens // 2, 300] = math.nan
    pages.write_rows(pool, rows, values)
    index = index.to(torch.int32)
    if shape.pattern == "late" and number == 0:
        index[:, : 4 * TILE + 3] = -1
    absent = torch.rand(tokens, keys, generator=generator) < shape.holes
    nobody = torch.tensor(NOBODY, dtype=torch.int64)[torch.randint(0, len(NOBODY), (tokens, keys), generator=generator)]
    return pool, torch.where(absent, nobody.to(torch.int32), index)


def _paged(
    shape: Shape, lengths: torch.Tensor, direction: torch.Tensor, generator: torch.Generator
) -> tuple[Pool, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A pool, the pages [B, PT] of every request, the keys [B, Q] that its queries see, and those keys' rows.

    A query sees one key more than the one before it. Of the table a share of ``holes`` is no page, and its last column.
    """
    requests, queries, keys, page = shape.requests, shape.queries, shape.keys[1], shape.pages[1]
    width = -(-keys // page)
    one = replace(shape, requests=requests, queries=1, keys=(0, width * page), holes=0.0, duplicates=False)
    pool, rows = _segment(one, 1, requests, direction, generator)
    values = pages.read_rows(pool, rows.view(-1))
    order = torch.randperm(pool.data.shape[0], generator=generator)[: requests * width]
    pool.data.fill_(0xFF)
    rows = (order[:, None] * page + torch.arange(page)).view(requests, width * page)
    pages.write_rows(pool, rows.view(-1), values)
    table = order.view(requests, width).to(torch.int32)
    absent = torch.rand(requests, width, generator=generator) < shape.holes
    table = torch.cat((torch.where(absent, -1 if page > 2 else (1 << 30), table), torch.full((requests, 1), -5)), 1)
    counts = lengths.clamp(max=keys)[:, None] - (queries - 1 - torch.arange(queries))
    seen = torch.arange(keys) < counts[..., None]
    found = rows[:, None, :keys].masked_fill(absent.repeat_interleave(page, 1)[:, None, :keys] | ~seen, -1)
    return pool, table.to(torch.int32), counts.to(torch.int32), found.reshape(requests * queries, keys)


def _gapped(tensor: torch.Tensor, gap: int) -> torch.Tensor:
    """The same numbers with ``gap`` elements between the rows of the last dimension, which nobody may read."""
    if not gap:
        return tensor.contiguous()
    fill = math.nan if tensor.is_floating_point() else -1
    wide = torch.full((*tensor.shape[:-1], tensor.shape[-1] + gap), fill, dtype=tensor.dtype)
    wide[..., : tensor.shape[-1]] = tensor
    return wide[..., : tensor.shape[-1]]


def _outputs(requests: int, queries: int, heads: int, gap: int, *, has_max: bool) -> dict[str, OutputLayout]:
    head = KV_WIDTH + gap
    query = heads * head + 2 * gap
    lse_row = queries + gap
    numbers = OutputLayout((requests, heads, queries), (heads * lse_row + gap, lse_row, 1), torch.float32)
    shape, strides = (requests, queries, heads, KV_WIDTH), (queries * query + 8 * gap, query, head, 1)
    outputs = {"out": OutputLayout(shape, strides, torch.bfloat16), "lse": numbers}
    return {**outputs, "max_logits": numbers} if has_max else outputs


def judge(got: dict[str, torch.Tensor], case: Case) -> Verdict:
    out, expected = got["out"].to(torch.float64), case.expected["out"]
    lse, expected_lse = got["lse"].to(torch.float64), case.expected["lse"]
    findings = []
    empty = torch.isneginf(expected_lse)
    if bool(out.transpose(1, 2)[empty].ne(0).any()):
        findings.append("out: queries without keys are not exactly 0")
    compared = [("out", _wrong_out(out, expected), out, expected)]
    compared += [("lse", _wrong_lse(lse, expected_lse), lse, expected_lse)]
    if "max_logits" in got:
        top, expected_top = got["max_logits"].to(torch.float64), case.expected["max_logits"]
        known_top = ~expected_top.isnan()  # beside a NaN the largest of the others may stand
        wrong_top = _off(top, expected_top, LSE_ABS_MAX, LSE_REL_MAX) & known_top
        compared += [("max_logits", wrong_top, top, expected_top)]
    for name, wrong, what, shown in compared:
        if bool(wrong.any()):
            place = wrong.nonzero()[0].tolist()
            findings.append(
                f"{name}: {int(wrong.sum())} of {wrong.numel()} elements are too far off, the first at {place}: "
                f"{float(what[tuple(place)]):.6g} instead of {float(shown[tuple(place)]):.6g}"
            )
    known = ~expected.isnan()
    ours, theirs = torch.where(known, out, 0.0), torch.where(known, expected, 0.0)
    sizes = float(ours.square().sum() + theirs.square().sum())
    distance = 1 - 2 * float((ours * theirs).sum()) / sizes if sizes else 0.0
    if not distance <= OUT_DISTANCE_MAX:
        findings.append(f"out: 1 - 2<a,r>/(|a|^2 + |r|^2) is {distance:.3g}; allowed {OUT_DISTANCE_MAX:g}")
    return judging.verdict(out, expected, findings, {"distance": distance})


def _off(got: torch.Tensor, expected: torch.Tensor, absolute: float, relative: float) -> torch.Tensor:
    """Neither within ``absolute`` nor within ``relative``; NaN and infinities have to be the same."""
    error = (got - expected).abs().nan_to_num(nan=math.inf)
    off = (error > absolute) & (error > relative * expected.abs())
    same = (got == expected) | (got.isnan() & expected.isnan())
    return torch.where(expected.isfinite(), off, ~same)


def _wrong_out(out: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    return _off(out, expected, OUT_ABS_MAX, OUT_REL_MAX)


def _wrong_lse(lse: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    return _off(lse, expected, LSE_ABS_MAX, LSE_REL_MAX)


def first_wrong(
    got: dict[str, torch.Tensor], case: Case, config: dict[str, Scalar]
) -> tuple[str, tuple[int, ...], str] | None:
    """The first wrong element of out, else the first wrong lse."""
    splits = int(config.get("splits", 1))
    wrong = _wrong_out(got["out"].to(torch.float64), case.expected["out"])
    if bool(wrong.any()):
        request, query, head, column = wrong.nonzero()[0].tolist()
        owner = f"columns of value warpgroup {column // 256}"
        if config.get("operand_order") == "keys_as_rows":
            owner = f"block {column // 64} of value warp {column % 64 // 16}"
            if "k_operand" in config:  # sm_100a
                owner = f"group {column // 128} of the correction's columns"
        owner = f"request {request}, query {query}, head {head}, {owner}"
        return "out", (request, query, head, column), owner + f", split {column * splits // KV_WIDTH} stores it"
    wrong = _wrong_lse(got["lse"].to(torch.float64), case.expected["lse"])
    if not bool(wrong.any()):
        return None
    request, head, query = wrong.nonzero()[0].tolist()
    return "lse", (request, head, query), f"request {request}, query {query}, head {head}"


def workload(
    dims: dict[str, int], variant: dict[str, Scalar], sizes: dict[str, int], *, seed: int, device: torch.device
) -> dict[str, Value]:
    generator = torch.Generator(device=device).manual_seed(seed)
    requests, queries, heads = sizes["B"], sizes["Q"], dims["H"]
    q = torch.randn(requests, queries, heads, KV_WIDTH, generator=generator, device=device, dtype=torch.bfloat16)
    values: dict[str, Value] = {
        "q": q,
        "sink": torch.randn(heads, generator=generator, device=device) if variant["has_sink"] else None,
        "softmax_scale": KV_WIDTH**-0.5,
        "empty_lse": -math.inf,
        "out": torch.empty_like(q),
        "lse": torch.empty(requests, heads, queries, device=device),
    }
    values |= dict.fromkeys(ABSENT) | {"page1": 1}
    values["max_logits"] = torch.empty(requests, heads, queries, device=device) if variant["has_max"] else None
    values["parts"] = _workspace(requests * queries, heads, PARTS, device) if _has_parts(dims, variant) else None
    for number in range(1 if variant["extra"] == "none" else 2):
        keys, page, rows = sizes[f"K{number}"], sizes[f"page{number}"], sizes["rows"]
        if variant["cache"] == "plain":
            page = 1
            values[f"kv{number}"] = torch.ones(rows, KV_WIDTH, device=device, dtype=torch.bfloat16)
        else:
            pool = Pool.allocate(rows, format=PoolFormat.KV_FP8, page=page, device=device)
            body, tail = pages.packed_views(pool)
            body[..., : KV_WIDTH - 64] = 0x38  # 1.0
            tail[:] = 127
            values[f"pool{number}"] = pool.data
        values[f"page{number}"] = page
        if number and variant["extra"] == "pages":
            table = torch.randint(0, rows // page, (requests, -(-keys // page)), generator=generator, device=device)
            values["table1"] = table.to(torch.int32)
            values["count1"] = torch.full((requests, queries), keys, dtype=torch.int32, device=device)
            continue
        shape = (requests, queries, keys)
        index = torch.randint(0, rows, shape, generator=generator, device=device, dtype=torch.int32)
        values[f"index{number}"] = index
        if variant[f"has_length{number}"]:
            values[f"length{number}"] = torch.full((requests,), keys, dtype=torch.int32, device=device)
    return values
