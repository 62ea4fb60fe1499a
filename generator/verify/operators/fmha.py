"""fmha: O and LSE of dense attention, judged row by row.

The rule: cosine ≥ 0.99999, and every output row's relative L2 error is at most 1.5 × the error that torch's own bf16
attention makes in its worst row of the same case. Rows without keys are exactly 0 with an LSE of exactly −∞.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from dsv4.generator.verify import metrics
from dsv4.generator.verify.case import Case, OutputLayout, Value, Verdict
from dsv4.runtime.artifact import Scalar
from dsv4.runtime.reference import fmha as reference

COSINE_MIN = 0.99999
ROW_ERROR_RATIO_MAX = 1.5
LSE_ABS_MAX, LSE_REL_MAX = 1e-5, 1e-5

FUSED_BACKENDS = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION]

THOROUGH_CASES = (3, 4)
"""Two KV tiles cut short and three whole ones, few heads: cheap, and more tiles than pipeline stages."""

WORKLOAD_SIZES = {"B": 4, "Hq": 32, "Hkv": 32, "Sq": 4096, "Sk": 4096}


@dataclass(frozen=True)
class Shape:
    """One case before its values: sizes, and how the row maxima move along the keys."""

    batch: int
    queries: int
    keys: int
    heads: int
    kv_heads: int
    pattern: str = "random"
    packed: bool = False

    def __str__(self) -> str:
        heads = f"{self.heads} heads over {self.kv_heads}"
        packed = ", all tensors with gaps" if self.packed else ""
        return f"B={self.batch} Sq={self.queries} Sk={self.keys} {heads}, {self.pattern}{packed}"


def _shapes(tile_m: int, tile_n: int) -> list[Shape]:
    """1, 2, 3, 5 and 17 KV tiles, whole and cut short; queries never as many as keys; MHA, GQA and MQA."""
    return [
        Shape(1, tile_m - 24, tile_n, 2, 2),
        Shape(2, 1, tile_n - 9, 4, 2),
        Shape(1, tile_m + 5, 2 * tile_n, 3, 1, "rising"),
        Shape(2, 3, 2 * tile_n - 1, 2, 2, "falling"),
        Shape(1, 2 * tile_m + 17, 3 * tile_n, 2, 1, "falling"),
        Shape(2, tile_m - 3, 3 * tile_n - 31, 6, 2, "mixed", packed=True),
        Shape(1, 2 * tile_m, 5 * tile_n, 4, 4, "rising"),
        Shape(3, 37, 5 * tile_n - 64, 8, 1, "mixed"),
        Shape(1, tile_m + 1, 17 * tile_n, 2, 2, "mixed"),
        Shape(1, 11, 17 * tile_n - 3, 4, 1, "random"),
        Shape(1, 3 * tile_m + 2, tile_n + 1, 2, 1, "rising"),  # causal: two thirds of the rows have no key
        Shape(2, 0, 2 * tile_n, 2, 1),
        Shape(2, tile_m + 7, 0, 2, 1),
        Shape(1, 1, 1, 1, 1),
    ]


def visible(queries: int, keys: int, causal: bool, device: torch.device) -> torch.Tensor:
    """Boolean [queries, keys]: query i sees key j iff not causal or j ≤ i + keys − queries (bottom-right aligned)."""
    seen = torch.ones(queries, keys, dtype=torch.bool, device=device)
    return seen.tril(keys - queries) if causal else seen


def _per_query_head(kv: torch.Tensor, heads: int) -> torch.Tensor:
    """[B, Sk, Hkv, D] → [B, Hq, Sk, D]; query head h reads key head h // (Hq / Hkv)."""
    return kv.transpose(1, 2).repeat_interleave(heads // kv.shape[2], dim=1)


def expected_float64(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sink: torch.Tensor | None, *, causal: bool, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """O [B, Sq, Hq, D] and LSE [B, Hq, Sq] of the reference, computed and kept in float64."""
    wide = torch.float64
    return reference.fmha(q, k, v, causal=causal, softmax_scale=scale, sink=sink, dtype=wide, out_dtype=wide)


def torch_bf16(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sink: torch.Tensor | None, *, causal: bool, scale: float
) -> torch.Tensor:
    """torch's own bf16 attention, O [B, Sq, Hq, D] as float64; rows without keys are 0.

    The sink becomes one key of zeros with a zero value, whose mask entry is the sink's logit. Only fused backends take
    part: the unfused one rounds the logits themselves to bf16, and would excuse errors that no good kernel makes.
    """
    if q.numel() == 0 or k.numel() == 0:
        return torch.zeros_like(q, dtype=torch.float64)
    heads, queries, keys = q.shape[2], q.shape[1], k.shape[1]
    kh, vh = _per_query_head(k, heads), _per_query_head(v, heads)
    seen = visible(queries, keys, causal, q.device)
    mask = torch.zeros(queries, keys, dtype=q.dtype, device=q.device).masked_fill(~seen, -math.inf)
    mask = mask.expand(q.shape[0], heads, queries, keys)
    if sink is not None:
        column = sink.to(q.dtype)[None, :, None, None].expand(q.shape[0], heads, queries, 1)
        mask = torch.cat([mask, column], dim=-1)
        kh, vh = (torch.cat([t, t.new_zeros(*t.shape[:2], 1, t.shape[3])], dim=2) for t in (kh, vh))
    with sdpa_kernel(FUSED_BACKENDS):
        out = torch.nn.functional.scaled_dot_product_attention(
            q.transpose(1, 2), kh, vh, attn_mask=mask.contiguous(), scale=scale
        )
    out = out.masked_fill(~seen.any(dim=-1)[:, None], 0.0)
    return out.transpose(1, 2).to(torch.float64)


def _values(
    shape: Shape, columns: int, generator: torch.Generator, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q, k, v in bf16. The pattern moves the logits of later keys up or down by about 4 a KV tile of 128."""

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator)

    q = normal(shape.batch, shape.queries, shape.heads, columns)
    k = normal(shape.batch, shape.keys, shape.kv_heads, columns)
    v = normal(shape.batch, shape.keys, shape.kv_heads, columns)
    if shape.pattern != "random":
        direction = normal(columns).sign()
        sign = {"rising": 1.0, "falling": -1.0, "mixed": 1.0}[shape.pattern]
        slope = torch.linspace(-0.5, 0.5, max(shape.keys, 1))[: shape.keys] * (shape.keys / 128) * 4.0 / columns**0.5
        k = k + (sign * slope)[None, :, None, None] * direction
        lean = torch.ones(shape.queries)
        if shape.pattern == "mixed":  # neighbouring rows differ in sign and strength: one maximum for all rows shows
            lean = torch.tensor([1.0, -1.0, 0.25, -2.0, 3.0]).repeat(shape.queries // 5 + 1)[: shape.queries]
        q = q + lean[None, :, None, None] * direction

    def placed(t: torch.Tensor) -> torch.Tensor:
        t = t.to(torch.bfloat16)
        if not shape.packed:
            return t.to(device)
        wide = torch.full((*t.shape[:2], t.shape[2] + 1, columns), math.nan, dtype=torch.bfloat16)
        wide[:, :, :-1] = t
        return wide.to(device)[:, :, :-1]

    return placed(q), placed(k), placed(v)


def _outputs(shape: Shape, columns: int) -> dict[str, OutputLayout]:
    """Contiguous, or with gaps between heads, rows and batches where the case is ``packed``."""
    gap = 1 if shape.packed else 0
    head = columns + 8 * gap
    row = shape.heads * head + 64 * gap
    lse_row = shape.queries + 3 * gap
    o = (shape.batch, shape.queries, shape.heads, columns)
    lse = (shape.batch, shape.heads, shape.queries)
    return {
        "o": OutputLayout(o, (shape.queries * row + 16 * gap, row, head, 1), torch.bfloat16),
        "lse": OutputLayout(lse, (shape.heads * lse_row + 5 * gap, lse_row, 1), torch.float32),
    }


def cases(
    dims: dict[str, int], variant: dict[str, Scalar], *, config: dict[str, Scalar], seed: int, device: torch.device
) -> list[Case]:
    generator = torch.Generator(device="cpu").manual_seed(seed)
    shapes = _shapes(int(config.get("tile_m", 128)), int(config.get("tile_n", 128)))
    return [case_of(shape, dims, variant, generator, device) for shape in shapes]


def case_of(
    shape: Shape, dims: dict[str, int], variant: dict[str, Scalar], generator: torch.Generator, device: torch.device
) -> Case:
    """One case of this shape; the values are the next that ``generator`` (on the CPU) gives."""
    columns = dims["D"]
    causal, has_sink = bool(variant.get("causal", False)), bool(variant.get("has_sink", False))
    scale = columns**-0.5
    q, k, v = _values(shape, columns, generator, device)
    sink = torch.randn(shape.heads, generator=generator).mul(2).to(torch.bfloat16).float() if has_sink else None
    sink = None if sink is None else sink.to(device)
    out, lse = expected_float64(q, k, v, sink, causal=causal, scale=scale)
    baseline = torch_bf16(q, k, v, sink, causal=causal, scale=scale)
    rows = metrics.row_rel_l2(baseline, out)
    inputs: dict[str, Value] = {"q": q, "k": k, "v": v, "softmax_scale": scale}
    if has_sink:
        inputs["sink"] = sink
    return Case(
        op="fmha",
        name=str(shape),
        inputs=inputs,
        outputs=_outputs(shape, columns),
        expected={"o": out, "lse": lse},
        limits={"torch_worst_row_rel_l2": float(rows.max()) if rows.numel() else 0.0},
    )


def judge(got: dict[str, torch.Tensor], case: Case) -> Verdict:
    out, expected = got["o"].to(torch.float64), case.expected["o"]
    lse, expected_lse = got["lse"].to(torch.float64), case.expected["lse"]
    findings = []
    if not bool(torch.isfinite(out).all()):
        findings.append(f"o: {int((~torch.isfinite(out)).sum())} elements are not finite")
    empty = torch.isneginf(expected_lse)
    if bool(out.transpose(1, 2)[empty].ne(0).any()):
        findings.append("o: rows without keys are not exactly 0")
    if bool(lse[empty].ne(-math.inf).any()):
        findings.append("lse: rows without keys are not exactly -inf")
    cosine = metrics.cosine(out, expected)
    if not cosine >= COSINE_MIN:
        findings.append(f"o: cosine {cosine:.7f} is below {COSINE_MIN}")
    rows = metrics.row_rel_l2(out, expected)
    limit = ROW_ERROR_RATIO_MAX * case.limits["torch_worst_row_rel_l2"]
    worst_row = int(rows.argmax()) if rows.numel() else -1
    worst = float(rows[worst_row]) if rows.numel() else 0.0
    if worst > limit:
        place = [int(i) for i in torch.unravel_index(torch.tensor(worst_row), out.shape[:-1])]
        bad = int((rows > limit).sum())
        findings.append(
            f"o: {bad} of {rows.numel()} rows have a relative L2 error above {limit:.3g} (1.5 × torch's worst row), "
            f"the worst is {worst:.3g} at [batch, query, head] = {place}"
        )
    error = torch.where(empty, 0.0, (lse - expected_lse).abs()).nan_to_num(nan=math.inf)
    bad_lse = error > LSE_ABS_MAX + LSE_REL_MAX * torch.where(empty, 0.0, expected_lse.abs())
    lse_max = float(error.max()) if error.numel() else 0.0
    if bool(bad_lse.any()):
        place = bad_lse.nonzero()[0].tolist()
        findings.append(
            f"lse: {int(bad_lse.sum())} of {lse.numel()} rows are off by up to {lse_max:.3g} "
            f"(allowed {LSE_ABS_MAX:g} + {LSE_REL_MAX:g}·|lse|), the first at [batch, head, query] = {place}"
        )
    difference = (out - expected).abs().nan_to_num(nan=math.inf)
    return Verdict(
        ok=not findings,
        cosine=cosine,
        rel_l2=metrics.rel_l2(out, expected),
        max_abs=float(difference.max()) if difference.numel() else 0.0,
        worst_row=worst_row,
        findings=tuple(findings),
        detail={"worst_row_rel_l2": worst, "row_rel_l2_limit": limit, "lse_max_abs": lse_max},
    )


def first_wrong(
    got: dict[str, torch.Tensor], case: Case, config: dict[str, Scalar]
) -> tuple[str, tuple[int, ...], str] | None:
    """In the first row of O that is too far off its element that is off the most, else the first wrong LSE."""
    tile_m = int(config.get("tile_m", 128))

    def tile(batch: int, query: int, head: int) -> str:
        return (
            f"query tile {query // tile_m} ({tile_m} queries) of head {head}, batch {batch}, row {query % tile_m} of it"
        )

    out, expected = got["o"].to(torch.float64), case.expected["o"]
    rows = metrics.row_rel_l2(out, expected).reshape(expected.shape[:-1])
    wrong = rows > ROW_ERROR_RATIO_MAX * case.limits["torch_worst_row_rel_l2"]
    if bool(wrong.any()):
        batch, query, head = wrong.nonzero()[0].tolist()
        column = int((out - expected)[batch, query, head].abs().nan_to_num(nan=math.inf).argmax())
        return "o", (batch, query, head, column), tile(batch, query, head)
    bad = _wrong_lse(got["lse"].to(torch.float64), case.expected["lse"])
    if not bool(bad.any()):
        return None
    batch, head, query = bad.nonzero()[0].tolist()
    return "lse", (batch, head, query), tile(batch, query, head)


def _wrong_lse(lse: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    empty = torch.isneginf(expected)
    error = torch.where(empty & torch.isneginf(lse), 0.0, (lse - expected).abs()).nan_to_num(nan=math.inf)
    return error > LSE_ABS_MAX + LSE_REL_MAX * torch.where(empty, 0.0, expected.abs())


def workload(
    dims: dict[str, int], variant: dict[str, Scalar], sizes: dict[str, int], *, seed: int, device: torch.device
) -> dict[str, Value]:
    generator = torch.Generator(device=device).manual_seed(seed)
    columns, batch, heads = dims["D"], sizes["B"], sizes["Hq"]

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator, device=device, dtype=torch.bfloat16)

    q = normal(batch, sizes["Sq"], heads, columns)
    values: dict[str, Value] = {
        "q": q,
        "k": normal(batch, sizes["Sk"], sizes["Hkv"], columns),
        "v": normal(batch, sizes["Sk"], sizes["Hkv"], columns),
        "softmax_scale": columns**-0.5,
        "o": torch.empty_like(q),
        "lse": torch.empty(batch, heads, sizes["Sq"], device=device),
    }
    if variant.get("has_sink"):
        values["sink"] = torch.randn(heads, generator=generator, device=device)
    return values
