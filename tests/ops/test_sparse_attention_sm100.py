"""sparse_attention_decode for sm_100a: what is compiled, and its values in the emulator."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from dsv4.generator.build import BuildResult
from dsv4.generator.kernel import KernelPlan
from dsv4.generator.ptx_checks import check_ptx
from dsv4.generator.spec import Refused, SpecError, plan
from dsv4.runtime.artifact import Scalar
from tests.ops import builds as builds
from tests.ops.sparse_attention_runs import alone_and_again, apart, every_case, launched, of_shape

OP, ARCH = "sparse_attention_decode", "sm_100a"
ALL: dict[str, Scalar] = {"extra": "rows", "has_length0": True, "has_length1": True, "has_sink": True}
PLAIN: dict[str, Scalar] = {"cache": "plain", "extra": "rows", "has_length0": True, "has_sink": True, "has_max": True}
PAGES: dict[str, Scalar] = {"extra": "pages", "has_length0": True, "has_sink": True}
NARROW: dict[str, Scalar] = {"q_tmem_columns": 256, "pv_n_tile": 128}
ALIGNED: dict[str, Scalar] = {"cache": "kv_fp8_aligned"}
PAIR: dict[str, Scalar] = {"cta_group": 2}
FILLED_UP: dict[str, Scalar] = {"operand_order": "heads_as_rows"}  # not the default up to 32 heads
Wanted = tuple[int, dict[str, Scalar], dict[str, Scalar]]
# heads, flags, configuration
CONFIGURATIONS: dict[str, Wanted] = {
    "80 heads, two splits": (80, {**ALL, "pdl": True}, {"splits": 2}),
    "rows by gather4": (80, {**ALL, **ALIGNED, "pdl": True}, {"splits": 2}),
    "a pair of CTAs": (80, {**ALL, **ALIGNED, "pdl": True}, {**PAIR, "splits": 2}),
}
SWEEP: dict[str, Wanted] = {
    **{f"{heads} heads, {n} splits": (heads, ALL, {"splits": n}) for heads in (64, 128) for n in (0, 1, 8)},
    "window only": (64, {"has_sink": False, "has_max": True}, {"splits": 1, **NARROW}),
    "few heads": (5, {**ALL, "pdl": True}, {**FILLED_UP, "splits": 4, "q_tmem_columns": 256}),
    "pages of a request": (64, PAGES, {"splits": 4, "opt_level": 2}),
    "pages of a request, alone": (16, PAGES, {**FILLED_UP, "splits": 1}),
    **{f"gather4, {n} splits": (64, {**ALL, **ALIGNED}, {"splits": n}) for n in (0, 1, 8)},
    "gather4, few heads": (5, {**ALL, **ALIGNED, "pdl": True}, {**FILLED_UP, "splits": 4, "q_tmem_columns": 256}),
    "gather4, window only": (64, {**ALIGNED, "has_max": True}, {"splits": 1, **NARROW}),
    "gather4, pages of a request": (64, {**PAGES, **ALIGNED}, {"splits": 4, "opt_level": 2}),
    "gather4, pages of a request, alone": (16, {**PAGES, **ALIGNED}, {**FILLED_UP, "splits": 1}),
    "aligned, row by row": (64, {**ALL, **ALIGNED}, {"splits": 1, "load": "bulk_row"}),
    **{f"pair, {n} splits": (128, {**ALL, **ALIGNED}, {**PAIR, "splits": n}) for n in (0, 1, 4)},
    "pair, row by row": (128, ALL, {**PAIR, "splits": 1}),
    "pair, aligned, row by row": (128, {**ALL, **ALIGNED, "pdl": True}, {**PAIR, "splits": 2, "load": "bulk_row"}),
    "pair, window only, 256 heads": (256, {"has_sink": False, "has_max": True}, {**PAIR, "splits": 1, **NARROW}),
    "pair, pages of a request": (128, {**PAGES, **ALIGNED}, {**PAIR, "splits": 4, "opt_level": 2}),
    "pair, pages, row by row": (80, PAGES, PAIR),
    "rows of bf16": (64, PLAIN, {"splits": 2, **NARROW}),
    "rows of bf16, 128 heads, window only": (128, {"cache": "plain"}, {}),
}  # fmt: skip
SHORT_CASES = (0, 3, 6, 10)
"""One key; holes; draft tokens with gaps and lengths; a NaN."""
PAGE_SIZES = ((2, 576), (53, 256), (61, 69), (64, 1))


def plan_of(heads: int, flags: dict[str, Scalar], config: dict[str, Scalar]) -> KernelPlan:
    return plan(OP, ARCH, dims={"H": heads}, variant=dict(flags), config=dict(config))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, BuildResult]:
    plans = [plan_of(*wanted) for wanted in CONFIGURATIONS.values()]
    return dict(zip(CONFIGURATIONS, builds.build_all(plans, tmp_path_factory.mktemp(OP)), strict=True))


def test_the_plan_gives_o_half_of_the_columns() -> None:
    budget = plan(OP, ARCH).budget
    assert budget.tmem_columns == 512 and budget.tmem["O"].columns == 256
    assert budget.tmem["Q"].columns == 192 and budget.tmem["S"].columns == 64
    assert plan(OP, ARCH, config={"q_tmem_columns": 256}).budget.tmem["Q"].columns == 128
    with pytest.raises(Refused, match="has_length1 with extra rows only"):
        plan(OP, ARCH, variant={"has_length1": True})


def test_a_pair_has_128_rows_and_o_takes_256_columns() -> None:
    budget = plan(OP, ARCH, dims={"H": 128}, config=dict(PAIR)).budget
    assert budget.tmem["O"].columns == 256 and budget.tmem_columns == 512 and budget.cluster == (8, 1, 1)
    assert plan(OP, ARCH, dims={"H": 128}, config={**PAIR, "splits": 1}).budget.cluster == (2, 1, 1)
    assert plan(OP, ARCH, dims={"H": 128}).config["cta_group"] == 1  # the default, until one was measured
    for heads, splits, flags in ((64, 1, ALL), (192, 1, ALL), (128, 8, ALL), (128, 1, PLAIN)):
        with pytest.raises(SpecError, match="cta_group"):
            plan(OP, ARCH, dims={"H": heads}, variant=dict(flags), config={**PAIR, "splits": splits})


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_it_compiles_to_what_was_predicted(built: dict[str, BuildResult], name: str) -> None:
    compiled_as_predicted(built[name], *CONFIGURATIONS[name])


def compiled_as_predicted(result: BuildResult, heads: int, flags: dict[str, Scalar], config: dict[str, Scalar]) -> None:
    """Resources and launch as the plan said, no spill, nothing suspicious in the PTX, each product issued once."""
    builds.takes_what_was_predicted(result)
    made = builds.manifest(result)
    assert made.used.tmem_columns == made.predicted.tmem_columns == 512
    (launch,) = made.launches
    group = int(made.config["cta_group"])
    assert launch.block == (448, 1, 1) and launch.cluster == (group * int(config.get("splits") or 1), 1, 1)
    text = builds.ptx(result)
    assert check_ptx(text, 512) == []
    passes = 512 // int(made.config["pv_n_tile"])
    assert text.count(f"tcgen05.mma.cta_group::{group}.kind::f16") == 512 // 16 + passes * 64 // 16
    assert f"cta_group::{3 - group}" not in text
    in_tmem = re.findall(rf"tcgen05\.mma\.cta_group::{group}\.kind::f16\S* \[[^]]+\], \[", text)
    assert len(in_tmem) == int(made.config["q_tmem_columns"]) // 16
    packed, four = flags.get("cache") != "plain", made.config["load"] == "gather4"
    assert text.count("cp.async.bulk.shared::cluster.global") == (4 * group if packed and not four else 0)
    assert text.count("tile::gather4") == (4 * group if four else 0)  # of a pair either CTA has its own code
    assert text.count("cp.async.cg.shared.global") == (0 if packed else 32)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_values_in_the_emulator(built: dict[str, BuildResult], name: str) -> None:
    assert builds.findings(built[name], SHORT_CASES) == []


@pytest.mark.parametrize("name", ["rows by gather4", "a pair of CTAs"])
def test_a_query_depends_on_itself_only_and_on_no_schedule(built: dict[str, BuildResult], name: str) -> None:
    alone_and_again(built[name], (3,))


@pytest.mark.parametrize("more_bytes", [0, 576 * 3])
def test_gather4_gives_the_bits_of_a_copy_for_each_row(built: dict[str, BuildResult], more_bytes: int) -> None:
    """Whatever the page sizes, and with other bytes (NaN) from page to page."""
    for pages in PAGE_SIZES[1:2] if more_bytes else PAGE_SIZES[:1]:
        same_bits(built["80 heads, two splits"], built["rows by gather4"], pages, more_bytes, ("mixed:0",))


def same_bits(
    one: BuildResult, other: BuildResult, pages: tuple[int, int], more_bytes: int, schedules: tuple[str, ...]
) -> None:
    """Two builds of the same flags and cache agree in every bit on rows half of which are missing."""
    case = apart(of_shape(one, pages), more_bytes)
    expected = launched(builds.artifact(one), case, slice(None), "late")
    for schedule in schedules:
        for got, wanted in zip(launched(builds.artifact(other), case, slice(None), schedule), expected, strict=True):
            assert torch.equal(got.view(torch.int16), wanted.view(torch.int16))


@pytest.mark.sweep  # the short version is above
@pytest.mark.parametrize("pages", PAGE_SIZES)
@pytest.mark.parametrize("more_bytes", [0, 576, 576 * 7])
def test_the_same_bits_at_all_page_sizes(
    built: dict[str, BuildResult], pages: tuple[int, int], more_bytes: int
) -> None:
    schedules = ("mixed:0", "mixed:1", "late", "early")
    same_bits(built["80 heads, two splits"], built["rows by gather4"], pages, more_bytes, schedules)


@pytest.mark.sweep  # minutes of emulator; SHORT_CASES are some of these
@pytest.mark.parametrize("name", SWEEP)
def test_every_case_under_three_schedules(name: str, tmp_path: Path) -> None:
    heads, flags, config = SWEEP[name]
    (result,) = builds.build_all([plan_of(heads, flags, config)], tmp_path)
    compiled_as_predicted(result, heads, flags, config)
    every_case(result)
    if flags.get("has_length1") and config.get("splits") in (1, 8):
        alone_and_again(result, (3, 13))
