"""sparse_attention_decode for sm_100a: what is compiled, and its values in the emulator."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dsv4.generator.build import BuildResult
from dsv4.generator.kernel import KernelPlan
from dsv4.generator.ptx_checks import check_ptx
from dsv4.generator.spec import Refused, plan
from dsv4.generator.verify import cases
from dsv4.runtime.artifact import Scalar
from tests.ops import builds as builds
from tests.ops.sparse_attention_runs import alone_and_again

OP, ARCH = "sparse_attention_decode", "sm_100a"
ALL: dict[str, Scalar] = {"extra": "rows", "has_length0": True, "has_length1": True, "has_sink": True}
PLAIN: dict[str, Scalar] = {"cache": "plain", "extra": "rows", "has_length0": True, "has_sink": True, "has_max": True}
PAGES: dict[str, Scalar] = {"extra": "pages", "has_length0": True, "has_sink": True}
NARROW: dict[str, Scalar] = {"q_tmem_columns": 256, "pv_n_tile": 128}
Wanted = tuple[int, dict[str, Scalar], dict[str, Scalar]]
# heads, flags, configuration
CONFIGURATIONS: dict[str, Wanted] = {"80 heads, two splits": (80, {**ALL, "pdl": True}, {"splits": 2})}
SWEEP: dict[str, Wanted] = {
    **{f"{heads} heads, {n} splits": (heads, ALL, {"splits": n}) for heads in (64, 128) for n in (0, 1, 8)},
    "window only": (64, {"has_sink": False, "has_max": True}, {"splits": 1, **NARROW}),
    "few heads": (5, {**ALL, "pdl": True}, {"splits": 4, "q_tmem_columns": 256}),
    "pages of a request": (64, PAGES, {"splits": 4, "opt_level": 2}),
    "pages of a request, alone": (16, PAGES, {"splits": 1}),
    "rows of bf16": (64, PLAIN, {"splits": 2, **NARROW}),
    "rows of bf16, 128 heads, window only": (128, {"cache": "plain"}, {}),
}  # fmt: skip
SHORT_CASES = (0, 3, 6, 10)
"""One key; holes; draft tokens with gaps and lengths; a NaN."""


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


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_it_compiles_to_what_was_predicted(built: dict[str, BuildResult], name: str) -> None:
    compiled_as_predicted(built[name], *CONFIGURATIONS[name])


def compiled_as_predicted(result: BuildResult, heads: int, flags: dict[str, Scalar], config: dict[str, Scalar]) -> None:
    """Resources and launch as the plan said, no spill, nothing suspicious in the PTX, each product issued once."""
    builds.takes_what_was_predicted(result)
    made = builds.manifest(result)
    assert made.used.tmem_columns == made.predicted.tmem_columns == 512
    (launch,) = made.launches
    assert launch.block == (448, 1, 1) and launch.cluster == (config.get("splits") or 1, 1, 1)
    text = builds.ptx(result)
    assert check_ptx(text, 512) == []
    passes = 512 // int(made.config["pv_n_tile"])
    assert text.count("tcgen05.mma.cta_group::1.kind::f16") == 512 // 16 + passes * 64 // 16
    in_tmem = re.findall(r"tcgen05\.mma\.cta_group::1\.kind::f16\S* \[[^]]+\], \[", text)
    assert len(in_tmem) == int(made.config["q_tmem_columns"]) // 16
    packed = flags.get("cache", "kv_fp8") == "kv_fp8"
    assert text.count("cp.async.bulk.shared::cluster.global") == (4 if packed else 0)
    assert text.count("cp.async.cg.shared.global") == (0 if packed else 32)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_values_in_the_emulator(built: dict[str, BuildResult], name: str) -> None:
    assert builds.findings(built[name], SHORT_CASES) == []


def test_a_query_depends_on_itself_only_and_on_no_schedule(built: dict[str, BuildResult]) -> None:
    alone_and_again(built["80 heads, two splits"], (3,))


@pytest.mark.sweep  # minutes of emulator; SHORT_CASES are some of these
@pytest.mark.parametrize("name", SWEEP)
def test_every_case_under_three_schedules(name: str, tmp_path: Path) -> None:
    heads, flags, config = SWEEP[name]
    (result,) = builds.build_all([plan_of(heads, flags, config)], tmp_path)
    compiled_as_predicted(result, heads, flags, config)
    made = builds.manifest(result)
    count = len(cases(OP, made.dims, made.variant, config=made.config))
    for schedule in ("mixed:0", "late", "early"):
        assert builds.findings(result, range(count), schedule) == []
    if flags is ALL and config["splits"]:
        alone_and_again(result, (3, 13))
