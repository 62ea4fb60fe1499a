"""sparse_attention_decode for Hopper with keys as rows of the products, for 32 heads and fewer: PTX and values."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dsv4.generator.build import BuildResult
from dsv4.generator.kernel import KernelPlan
from dsv4.generator.spec import Refused, plan
from dsv4.runtime.artifact import Scalar
from tests.ops import builds as builds
from tests.ops.sparse_attention_runs import alone_and_again, every_case

OP, ARCH = "sparse_attention_decode", "sm_90a"
ALL: dict[str, Scalar] = {"extra": "rows", "has_length0": True, "has_length1": True, "has_sink": True}
PLAIN: dict[str, Scalar] = {"cache": "plain", "extra": "rows", "has_length0": True, "has_sink": True, "has_max": True}
# heads, flags, configuration
CONFIGURATIONS: dict[str, tuple[int, dict[str, Scalar], dict[str, Scalar]]] = {
    "five heads, two splits": (5, ALL, {"splits": 2}),
    "rows of bf16": (24, PLAIN, {"splits": 1}),
    "more queries than CTAs": (8, {"extra": "rows", "has_sink": True}, {"split_ctas": 8}),
}
SWEEP: dict[str, tuple[int, dict[str, Scalar], dict[str, Scalar]]] = {
    **{
        f"{heads} heads, {splits} splits": (heads, ALL, {"splits": splits})
        for heads in (8, 16, 32)
        for splits in (0, 1, 8)
    },
    "window only": (8, {"has_max": True}, {"splits": 1, "raw_slots": 2}),
    "twelve heads, pages of a request": (12, {"extra": "pages", "has_length0": True, "has_sink": True}, {"splits": 4}),
    "twenty-four heads": (24, {**ALL, "pdl": True}, {"splits": 2}),
    "more queries than CTAs, window only": (32, {"has_max": True, "pdl": True}, {"split_ctas": 8}),
    "rows of bf16, 32 heads": (32, PLAIN, {"splits": 4}),
    "rows of bf16, window only": (16, {"cache": "plain", "has_sink": True}, {}),
}
SHORT_CASES = (0, 2, 3, 5, 6, 9, 10)
"""One key; several tiles; holes; every length; draft tokens with gaps; empty tiles first; a NaN."""


def plan_of(heads: int, flags: dict[str, Scalar], config: dict[str, Scalar]) -> KernelPlan:
    return plan(OP, ARCH, dims={"H": heads}, variant=dict(flags), config=dict(config))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, BuildResult]:
    plans = [plan_of(*wanted) for wanted in CONFIGURATIONS.values()]
    return dict(zip(CONFIGURATIONS, builds.build_all(plans, tmp_path_factory.mktemp(OP)), strict=True))


def test_few_heads_are_columns_unless_asked_otherwise() -> None:
    assert [plan(OP, ARCH, dims={"H": heads}).config["operand_order"] for heads in (1, 32, 33, 64)] == [
        *("keys_as_rows", "keys_as_rows"),
        *("heads_as_rows", "heads_as_rows"),
    ]
    assert plan(OP, ARCH, dims={"H": 8}, config={"operand_order": "heads_as_rows"}).budget.roles["value"].warps == 8
    with pytest.raises(Refused, match="shared memory asked for"):
        plan(OP, ARCH, dims={"H": 32}, config={"raw_slots": 4})


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_it_compiles_to_what_was_predicted(built: dict[str, BuildResult], name: str) -> None:
    heads, flags, config = CONFIGURATIONS[name]
    compiled_as_predicted(built[name], heads, flags, config)


def compiled_as_predicted(result: BuildResult, heads: int, flags: dict[str, Scalar], config: dict[str, Scalar]) -> None:
    """No padding to 64 heads, each product issued once, and the resources that the plan said."""
    builds.takes_what_was_predicted(result)
    (launch,) = builds.manifest(result).launches
    assert launch.block == (512, 1, 1) and launch.cluster == (config.get("splits") or 1, 1, 1)
    text = builds.ptx(result)
    found = re.findall(r"wgmma\.mma_async\.sync\.aligned\.m64n(\d+)k16\.f32\.bf16\.bf16", text)
    made = builds.manifest(result)
    packed, raw_slots = made.variant["cache"] == "kv_fp8", made.config["raw_slots"]
    assert isinstance(raw_slots, int)
    varied = made.variant["has_length0"] or made.variant["has_length1"] or made.variant["extra"] == "pages"
    # Without lengths there is another kernel for more queries than CTAs.
    kernels = 2 if packed and made.config["splits"] == 0 and raw_slots == 2 and not varied else 1
    assert found == [str((heads + 7) // 8 * 8)] * (512 // 16 + 8 * 64 // 16) * kernels
    assert "cp.async.bulk" not in text
    # Packed rows: raw slots of four, before and in the loop, each five times 32 pieces of 16 bytes and fewer.
    assert text.count("cp.async.cg.shared.global") == (5 * (raw_slots + 2) * kernels if packed else 16)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_values_in_the_emulator(built: dict[str, BuildResult], name: str) -> None:
    assert builds.findings(built[name], SHORT_CASES) == []


def test_a_query_depends_on_itself_only_and_on_no_schedule(built: dict[str, BuildResult]) -> None:
    alone_and_again(built["five heads, two splits"], (3, 13))


@pytest.mark.sweep  # minutes of emulator; SHORT_CASES are some of these
@pytest.mark.parametrize("name", SWEEP)
def test_every_case_under_three_schedules(name: str, tmp_path: Path) -> None:
    heads, flags, config = SWEEP[name]
    (result,) = builds.build_all([plan_of(heads, flags, config)], tmp_path)
    compiled_as_predicted(result, heads, flags, config)
    every_case(result)
    if flags is ALL and config["splits"]:
        alone_and_again(result, (3, 13))
