"""sparse_attention_decode for sm_100a with keys as rows of the products, for 32 heads and fewer: PTX and values."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dsv4.generator.build import BuildResult
from dsv4.generator.device.sm100_few_heads import GROUPS, column_of, product_rows
from dsv4.generator.device.sm100_few_softmax import load_pieces
from dsv4.generator.kernel import KernelPlan
from dsv4.generator.ptx_checks import check_ptx
from dsv4.generator.spec import SpecError, plan
from dsv4.generator.verify.operators.sparse_attention_decode import Shape
from dsv4.runtime.artifact import Scalar
from tests.ops import builds as builds
from tests.ops.sparse_attention_runs import alone_and_again, every_case
from tests.ops.test_sparse_attention_boundaries import case_of, findings

OP, ARCH = "sparse_attention_decode", "sm_100a"
ALL: dict[str, Scalar] = {"extra": "rows", "has_length0": True, "has_length1": True, "has_sink": True}
FOUR: dict[str, Scalar] = {**ALL, "cache": "kv_fp8_aligned"}
PLAIN: dict[str, Scalar] = {"cache": "plain", "extra": "rows", "has_length0": True, "has_sink": True, "has_max": True}
PAGES: dict[str, Scalar] = {"extra": "pages", "has_length0": True, "has_sink": True}
Wanted = tuple[int, dict[str, Scalar], dict[str, Scalar]]
# heads, flags, configuration
CONFIGURATIONS: dict[str, Wanted] = {
    "five heads, two splits": (5, {**FOUR, "pdl": True}, {"splits": 2}),
    "K in shared memory": (16, FOUR, {"splits": 1, "k_operand": "smem"}),
    "rows of bf16": (24, PLAIN, {"splits": 1}),
    "32 heads": (32, FOUR, {"splits": 1}),
}
SWEEP: dict[str, Wanted] = {
    **{f"{heads} heads, {n} splits": (heads, FOUR, {"splits": n}) for heads in (8, 16, 32) for n in (0, 1, 8)},
    "row by row": (16, {**ALL, "pdl": True}, {"splits": 2}),
    "aligned, row by row": (8, FOUR, {"splits": 1, "load": "bulk_row"}),
    "K in shared memory, eight heads": (8, FOUR, {"splits": 2, "k_operand": "smem"}),
    "K in shared memory, pages": (32, {**PAGES, "cache": "kv_fp8_aligned"}, {"splits": 1, "k_operand": "smem"}),
    "window only": (8, {"has_max": True, "cache": "kv_fp8_aligned"}, {"splits": 1}),
    "window only, row by row": (32, {"has_max": True}, {"splits": 1}),
    "twelve heads, pages of a request": (12, {**PAGES, "cache": "kv_fp8_aligned"}, {"splits": 4}),
    "32 heads, pages of a request": (32, {**PAGES, "has_max": True}, {"splits": 0}),
    "twenty-four heads": (24, {**FOUR, "pdl": True}, {"splits": 2, "opt_level": 2}),
    "rows of bf16, 32 heads": (32, PLAIN, {"splits": 4}),
    "rows of bf16, window only": (16, {"cache": "plain", "has_sink": True}, {}),
}
SHORT_CASES = (0, 2, 3, 5, 6, 9, 10)
"""One key; several tiles; holes; every length; draft tokens with gaps; empty tiles first; a NaN."""
TILES = Shape("maxima that rise by more than 2^8 and by less", 1, 1, (64 * 7 + 3, 0), pattern="rising")


def plan_of(heads: int, flags: dict[str, Scalar], config: dict[str, Scalar]) -> KernelPlan:
    return plan(OP, ARCH, dims={"H": heads}, variant=dict(flags), config=dict(config))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, BuildResult]:
    plans = [plan_of(*wanted) for wanted in CONFIGURATIONS.values()]
    return dict(zip(CONFIGURATIONS, builds.build_all(plans, tmp_path_factory.mktemp(OP)), strict=True))


def test_few_heads_are_columns_unless_asked_otherwise() -> None:
    for heads in (1, 8, 32, 33, 64):
        made = plan(OP, ARCH, dims={"H": heads})
        assert made.config["operand_order"] == ("keys_as_rows" if heads <= 32 else "heads_as_rows"), heads
    filled_up = plan(OP, ARCH, dims={"H": 8}, config={"operand_order": "heads_as_rows"})
    assert filled_up.budget.tmem_columns == 512
    for config in ({"operand_order": "keys_as_rows"}, {"cta_group": 2}):
        with pytest.raises(SpecError, match=next(iter(config))):
            plan(OP, ARCH, dims={"H": 48}, config=config)
    with pytest.raises(SpecError, match="q_tmem_columns"):
        plan(OP, ARCH, dims={"H": 8}, config={"q_tmem_columns": 256})


@pytest.mark.parametrize(
    ("heads", "columns", "taken"), [(5, 8, 64), (8, 8, 64), (16, 16, 128), (24, 24, 128), (32, 32, 256)]
)
def test_memory_is_that_of_as_many_heads_as_there_are(heads: int, columns: int, taken: int) -> None:
    """``taken``: columns of tensor memory without K."""
    budget = plan(OP, ARCH, dims={"H": heads}).budget
    assert budget.tmem["O"].columns == GROUPS * columns and budget.tmem["S"].columns == columns
    assert budget.tmem_columns == taken and not {"Q", "K"} & set(budget.tmem)
    assert budget.smem["sQ"].elements == columns * 512 and budget.smem["sP"].elements == 2 * columns * 64
    with_keys = plan(OP, ARCH, dims={"H": heads}, variant=dict(FOUR)).budget
    assert with_keys.tmem["K"].columns == 256 and with_keys.tmem_columns == 512
    assert with_keys.smem_bytes == budget.smem_bytes  # but for mbarriers, in what the last 1024 bytes leave


def test_k_is_in_tensor_memory_where_rows_come_by_gather4() -> None:
    for flags, config, wanted in (
        (FOUR, {}, "tmem"),
        (FOUR, {"load": "bulk_row"}, "smem"),
        (ALL, {}, "smem"),
        (PLAIN, {}, "smem"),
    ):
        assert plan_of(16, flags, config).config["k_operand"] == wanted
    assert plan_of(64, FOUR, {}).config["k_operand"] == "smem"
    with pytest.raises(SpecError, match="k_operand"):
        plan_of(16, ALL, {"k_operand": "tmem"})


@pytest.mark.parametrize("heads", [8, 16, 24, 32])
def test_every_column_of_the_values_has_one_lane_and_group(heads: int) -> None:
    """As the products' rows lie: 128 in as many lanes, or 64 in the lanes 0 … 15 or 16 … 31 of each warp."""
    found = {}
    for group in range(GROUPS):
        for thread in range(128):
            found[column_of(group, thread, heads)] = (group, thread)
    assert sorted(found) == list(range(512))
    for column, (group, lane) in found.items():
        if product_rows(heads) == 128:
            assert (group, lane) == (column // 128, column % 128)
        else:
            row, half = column % 64, column // 64 % 2
            assert (group, lane) == (column // 128, row // 16 * 32 + row % 16 + 16 * half)
    pieces = load_pieces(heads)
    assert [first for first, _ in pieces] == [sum(8 * n for _, n in pieces[:i]) for i in range(len(pieces))]
    assert sum(8 * n for _, n in pieces) == heads and all(n & (n - 1) == 0 for _, n in pieces)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_it_compiles_to_what_was_predicted(built: dict[str, BuildResult], name: str) -> None:
    compiled_as_predicted(built[name], *CONFIGURATIONS[name])


def compiled_as_predicted(result: BuildResult, heads: int, flags: dict[str, Scalar], config: dict[str, Scalar]) -> None:
    """No padding to 64 heads, each product issued once, and the resources that the plan said."""
    builds.takes_what_was_predicted(result)
    made = builds.manifest(result)
    from_tmem = made.config["k_operand"] == "tmem"
    assert made.used.tmem_columns == made.predicted.tmem_columns
    (launch,) = made.launches
    assert launch.block == (448, 1, 1) and launch.cluster == (config.get("splits") or 1, 1, 1)
    text = builds.ptx(result)
    assert check_ptx(text, made.used.tmem_columns) == []
    columns = (heads + 7) // 8 * 8
    rows = 128 if columns % 16 == 0 else 64
    assert text.count("tcgen05.mma.cta_group::1.kind::f16") == 512 // 16 + 512 // rows * 64 // 16
    assert instructions_of(text) == {(64, columns, 0, 0), (rows, columns, 1, 0)}
    in_tmem = re.findall(r"tcgen05\.mma\.cta_group::1\.kind::f16\S* \[[^]]+\], \[", text)
    assert len(in_tmem) == (512 // 16 if from_tmem else 0)
    assert text.count("tcgen05.ld.sync.aligned.16x256b") == len(load_pieces(columns))
    assert text.count("tcgen05.st.sync.aligned.16x256b.x4") == (8 if from_tmem else 0)
    packed, four = flags.get("cache") != "plain", made.config["load"] == "gather4"
    assert text.count("cp.async.bulk.shared::cluster.global") == (4 if packed and not four else 0)
    assert text.count("tile::gather4") == ((6 if from_tmem else 4) if four else 0)
    assert text.count("cp.async.cg.shared.global") == (0 if packed else 32)


def instructions_of(text: str) -> set[tuple[int, int, int, int]]:
    """Rows, columns, and whether A and B have them contiguous, of the products in a PTX text."""
    issued = re.findall(r"tcgen05\.mma\.cta_group::1\.kind::f16\S* \[[^]]+\], [^,]+, [^,]+, ([^,]+),", text)
    assert issued
    numbers = set()
    for name in issued:
        value = re.search(rf"mov\.b32\s+{re.escape(name)}, (-?\d+);", text) if name.startswith("%") else None
        numbers.add(int(value[1]) if value else int(name))
    return {(16 * (n >> 24 & 31), 8 * (n >> 17 & 63), n >> 15 & 1, n >> 16 & 1) for n in numbers}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_values_in_the_emulator(built: dict[str, BuildResult], name: str) -> None:
    assert builds.findings(built[name], SHORT_CASES) == []


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_rising_maxima(built: dict[str, BuildResult], name: str) -> None:
    """O is scaled in some tiles and left as it is in others."""
    assert findings(built[name], [case_of(built[name], TILES)], ("late", "early")) == []


@pytest.mark.parametrize("queries", range(1, 9))
def test_one_to_eight_queries_a_request(built: dict[str, BuildResult], queries: int) -> None:
    """Lengths of the window around one tile and around nothing; requests lie apart in memory."""
    result = built["five heads, two splits"]
    shape = Shape(f"s_q {queries}", 3, queries, (66, 130), gap=8, lengths=(65, -1, 64))
    assert findings(result, [case_of(result, shape)], ("late",)) == []


def test_a_query_depends_on_itself_only_and_on_no_schedule(built: dict[str, BuildResult]) -> None:
    alone_and_again(built["five heads, two splits"], (3, 13))


@pytest.mark.sweep  # minutes of emulator; SHORT_CASES are some of these
@pytest.mark.parametrize("name", SWEEP)
def test_every_case_under_three_schedules(name: str, tmp_path: Path) -> None:
    heads, flags, config = SWEEP[name]
    (result,) = builds.build_all([plan_of(heads, flags, config)], tmp_path)
    compiled_as_predicted(result, heads, flags, config)
    every_case(result)
    if flags is FOUR and config["splits"]:
        alone_and_again(result, (3, 13))
