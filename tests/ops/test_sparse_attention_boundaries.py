"""Attention over gathered rows at its boundaries: no key, every number of tiles, s_q 1 … 8, pools beyond 2³¹ bytes.

Every wait of every kernel has to be reached by an arrival when there is nothing to do: the emulator reports a hang.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dsv4.generator.build import BuildResult
from dsv4.generator.spec import plan
from dsv4.generator.verify import judge
from dsv4.generator.verify.case import Case, PoisonedOutputs
from dsv4.generator.verify.emulator import EmulatedKernel
from dsv4.generator.verify.operators import sparse_attention_decode as decode
from dsv4.generator.verify.operators import sparse_attention_prefill as prefill
from dsv4.generator.verify.operators.sparse_attention_decode import Shape
from dsv4.generator.verify.run import bind, run_case
from dsv4.runtime.artifact import Scalar
from dsv4.runtime.pool import PoolFormat, page_bytes
from tests.ops import builds as builds

DECODE, PREFILL = "sparse_attention_decode", "sparse_attention_prefill"
ROWS: dict[str, Scalar] = {"extra": "rows", "has_length0": True, "has_length1": True, "has_sink": True}
PAGES: dict[str, Scalar] = {"extra": "pages", "has_length0": True, "has_sink": True}
WINDOW: dict[str, Scalar] = {"has_length0": True, "has_max": True}
BF16: dict[str, Scalar] = {**ROWS, "cache": "plain", "has_max": True}
FOUR: dict[str, Scalar] = {"cache": "kv_fp8_aligned"}
Wanted = tuple[str, str, int, dict[str, Scalar], dict[str, Scalar]]
# operator, chip, heads, flags, configuration
KERNELS: dict[str, Wanted] = {
    "sm_90a, few heads": (DECODE, "sm_90a", 8, ROWS, {"splits": 2}),
    "sm_100a, gather4": (DECODE, "sm_100a", 64, {**ROWS, **FOUR}, {"splits": 1}),
    "sm_100a, few heads": (DECODE, "sm_100a", 16, {**ROWS, **FOUR}, {"splits": 2}),
}
ON_SM_90A: dict[str, tuple[int, dict[str, Scalar], dict[str, Scalar]]] = {
    "window": (64, WINDOW, {"splits": 1}),
    "rows, eight gathering warps": (64, ROWS, {"splits": 8, "gather_warps": 8}),
    "pages, by the batch": (64, PAGES, {}),
    "rows, by the batch": (128, ROWS, {"small_batch": "alike"}),
    "bf16 window": (64, {**WINDOW, "cache": "plain"}, {"splits": 2}),
    "bf16 rows": (64, BF16, {}),
    "pair": (128, ROWS, {"splits": 2, "pair": 1}),
    "pair of pages": (128, PAGES, {"pair": 1}),
    "pair, bf16": (128, BF16, {"splits": 1, "pair": 1}),
    "few heads, window": (16, WINDOW, {}),
    "few heads, pages": (32, PAGES, {"splits": 4}),
    "few heads, bf16": (24, BF16, {"splits": 1}),
}
ON_SM_100A: dict[str, tuple[int, dict[str, Scalar], dict[str, Scalar]]] = {
    "window": (64, WINDOW, {"splits": 1}),
    "rows": (128, ROWS, {"splits": 4}),
    "pages, by the batch": (64, PAGES, {}),
    "bf16 window": (64, {**WINDOW, "cache": "plain"}, {"splits": 2}),
    "bf16 rows": (5, BF16, {"operand_order": "heads_as_rows"}),
    "few heads, window": (32, {**WINDOW, **FOUR}, {"splits": 1}),
    "few heads, rows by the batch": (8, ROWS, {}),
    "few heads, pages": (16, {**PAGES, **FOUR}, {"splits": 8}),
    "few heads, bf16": (24, BF16, {"splits": 4}),
    "gather4, window": (64, {**WINDOW, **FOUR}, {"splits": 8}),
    "gather4, rows by the batch": (128, {**ROWS, **FOUR}, {}),
    "gather4, pages": (64, {**PAGES, **FOUR}, {"splits": 1}),
    "pair, window": (128, WINDOW, {"splits": 1, "cta_group": 2}),
    "pair, gather4": (128, {**ROWS, **FOUR}, {"splits": 4, "cta_group": 2}),
    "pair, pages by the batch": (80, {**PAGES, **FOUR}, {"cta_group": 2}),
}
VARIANTS: dict[str, Wanted] = {
    **{f"sm_90a, {name}": (DECODE, "sm_90a", *wanted) for name, wanted in ON_SM_90A.items()},
    **{f"sm_100a, {name}": (DECODE, "sm_100a", *wanted) for name, wanted in ON_SM_100A.items()},
    "sm_90a, prefill": (PREFILL, "sm_90a", 64, {"has_length": True, "has_sink": True}, {}),
    "sm_90a, prefill of 128 heads": (PREFILL, "sm_90a", 128, {"has_length": True}, {}),
}
NOTHING = (
    Shape("no key in any request", 4, 2, (130, 70), lengths=(0, -1, 0, -(1 << 31))),
    Shape("no key in one of the segments", 4, 1, (130, 70), (64, 2), lengths=(0, 65, -1, 130)),
    Shape("no row that is one", 2, 1, (130, 70), holes=1.0, lengths=(130, 0)),
)
AROUND_TILES = (0, -1, 1, 63, 64, 65, 127, 128, 129, 191, 192, 193, 255, 256, 257, 319, 320)
"""0 to 5 tiles; the second segment has them the other way round, so that together there are 5 to 8."""
TILES = Shape("every number of tiles", len(AROUND_TILES), 1, (320, 200), (64, 53), "mixed", lengths=AROUND_TILES)
FAR = (
    "sm_90a, few heads",
    "sm_90a, window",
    "sm_90a, bf16 window",
    "sm_90a, pair",
    "sm_90a, prefill",
    "sm_100a, gather4",
    "sm_100a, rows",
    "sm_100a, bf16 rows",
    "sm_100a, few heads",
    "sm_100a, few heads, bf16",
)


def build(wanted: Wanted, root: Path) -> BuildResult:
    op, arch, heads, flags, config = wanted
    (result,) = builds.build_all([plan(op, arch, dims={"H": heads}, variant=dict(flags), config=dict(config))], root)
    return result


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, BuildResult]:
    root = tmp_path_factory.mktemp(DECODE)
    return {name: build(wanted, root) for name, wanted in KERNELS.items()}


def case_of(result: BuildResult, shape: Shape) -> Case:
    made = builds.manifest(result)
    module = prefill if made.op == PREFILL else decode
    if made.op == PREFILL:
        lengths = tuple(each for each in shape.lengths for _ in range(shape.queries))
        shape = replace(shape, requests=shape.requests * shape.queries, queries=1, keys=(shape.keys[0], 0))
        shape = replace(shape, lengths=lengths)
    return module.case_of(shape, made.dims, made.variant, torch.Generator().manual_seed(7), torch.device("cpu"))


def findings(result: BuildResult, found: Sequence[Case], schedules: Sequence[str]) -> list[str]:
    artifact = builds.artifact(result)
    kernel = EmulatedKernel(artifact)
    said = []
    for case in found:
        for schedule in schedules:
            kernel.schedule = schedule
            verdict = run_case(kernel, artifact.manifest.contract, case)
            assert kernel.report is not None
            said += [f"{case.name}, {schedule}: {finding.line()}" for finding in kernel.report.findings]
            said += [f"{case.name}, {schedule}: {text}" for text in verdict.findings]
    return said


@pytest.mark.parametrize("name", KERNELS)
def test_nothing_to_look_at(built: dict[str, BuildResult], name: str) -> None:
    result = built[name]
    found = [case_of(result, shape) for shape in NOTHING]
    assert found[0].expected["out"].eq(0).all() and found[0].expected["lse"].isneginf().all()
    assert findings(result, found, ("late", "early")) == []


@pytest.mark.parametrize("name", KERNELS)
def test_every_number_of_tiles_and_lengths_around_them(built: dict[str, BuildResult], name: str) -> None:
    assert findings(built[name], [case_of(built[name], TILES)], ("mixed:0",)) == []


@pytest.mark.parametrize("queries", range(1, 9))
def test_one_to_eight_queries_a_request(built: dict[str, BuildResult], queries: int) -> None:
    """By one kernel after another; requests lie apart in memory."""
    result = built[list(KERNELS)[queries % len(KERNELS)]]
    shape = Shape(f"s_q {queries}", 2, queries, (65, 3), gap=8, lengths=(65, 2))
    assert findings(result, [case_of(result, shape)], ("late",)) == []


def far_away(result: BuildResult) -> Case:
    """A case whose last pool spans more than 2³¹ bytes, with all keys at its end, its last slot among them."""
    case = case_of(result, Shape("far away", 1, 1, (70, 3), (64, 64), duplicates=True, lengths=(70,)))
    made, inputs = builds.manifest(result), dict(case.inputs)
    number = 0 if made.variant.get("extra", "none") == "none" else 1
    packed = made.op == DECODE and made.variant["cache"] != "plain"
    pool, rows = ("kv", "rows") if made.op == PREFILL else (f"{'pool' if packed else 'kv'}{number}", f"index{number}")
    near, index = inputs[pool], inputs[rows]
    assert isinstance(near, torch.Tensor) and isinstance(index, torch.Tensor)
    page, size = (64, page_bytes(PoolFormat.KV_FP8, 64)) if packed else (1, near.shape[1])
    more = (1 << 31) // (size * near.element_size()) + 1
    far = torch.empty(more + near.shape[0], size, dtype=near.dtype)  # the caller's takes memory where it is written
    far[more:, : near.shape[1]] = near
    moved = torch.where((index >= 0) & (index < near.shape[0] * page), index + more * page, index)
    assert bool((moved == far.shape[0] * page - 1).any())
    return replace(case, inputs={**inputs, pool: far, rows: moved})


@pytest.mark.sweep  # 5 GB of memory: the emulator has a byte for each byte
@pytest.mark.parametrize("name", FAR)
def test_pools_beyond_31_bits_of_bytes(name: str, tmp_path: Path) -> None:
    result = build({**KERNELS, **VARIANTS}[name], tmp_path)
    case = far_away(result)
    outputs = PoisonedOutputs(case.outputs, case.device)
    artifact = builds.artifact(result)
    kernel = EmulatedKernel(artifact)
    kernel(*bind(artifact.manifest.contract, {**case.inputs, **outputs.views, **case.inouts}))
    assert kernel.report is not None and kernel.report.ok and outputs.findings() == []
    assert judge(artifact.manifest.op, outputs.views, case).findings == ()


@pytest.mark.sweep  # minutes of compiler and emulator; KERNELS go through the same
@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant(name: str, tmp_path: Path) -> None:
    result = build(VARIANTS[name], tmp_path)
    shapes = [*NOTHING, TILES]
    assert findings(result, [case_of(result, shape) for shape in shapes], ("late", "early", "mixed:0")) == []
