"""fmha for Blackwell: what is emitted, what compiles, what the PTX shows, what is refused, and the barrier schedule.

Nothing here has run on a B200: the values are for the emulator, these are the rungs below it.
"""

from __future__ import annotations

import ast
import dataclasses
import re
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Any

import fmha_sm100_schedule as schedule
import pytest

from dsv4.generator.build import BuildResult, build
from dsv4.generator.build.ptx import untaken_lines
from dsv4.generator.emit import emit, served_variants
from dsv4.generator.kernel import KernelPlan
from dsv4.generator.ptx_checks import check_counts, check_ptx, describe, parse, products
from dsv4.generator.spec import Refused, default_plans, plan, space
from dsv4.runtime.artifact import MANIFEST_NAME, Manifest

MMA_K = 16
BLOCK_COLUMNS = 64
ALL_FLAGS = {"causal": True, "has_sink": True, "pdl": True}

# name: (head dimension, flags, configuration where it is not the default)
KERNELS: dict[str, tuple[int, dict[str, bool], dict[str, Any]]] = {
    "128": (128, {}, {}),
    "128 causal, sink, pdl": (128, ALL_FLAGS, {}),
    "64 in one query tile": (64, {"causal": True}, {"q_tiles": 1, "kv_stage": 3}),
    "256 in two passes": (256, {"has_sink": True}, {}),
    "512 over two CTAs": (512, {"causal": True}, {}),
}
STAGES = ("scores", "identity")


def make_plan(name: str) -> KernelPlan:
    head_dim, flags, config = KERNELS[name]
    return plan("fmha", "sm_100a", dims={"D": head_dim}, variant=dict(flags), config=dict(config))


def stage_plan(stage: str) -> KernelPlan:
    """The kernel with less than the whole softmax, as it was brought up. Spills do not matter there."""
    kernel = make_plan("128")
    return dataclasses.replace(kernel, config={**kernel.config, "stage": stage}, forbid_spills=False)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, BuildResult]:
    plans = {name: make_plan(name) for name in KERNELS} | {stage: stage_plan(stage) for stage in STAGES}
    results = build(list(plans.values()), cache_root=tmp_path_factory.mktemp("fmha_sm100"), jobs=2)
    return dict(zip(plans, results, strict=True))


def folder(result: BuildResult) -> Path:
    assert result.error is None, result.error
    assert result.artifact is not None
    return result.artifact


def ptx_of(result: BuildResult) -> str:
    return (folder(result) / "kernel.ptx").read_text()


# ---------------------------------------------------------------------------------------------------------------------
# Emitted source


@pytest.mark.parametrize("name", KERNELS)
def test_the_constants_come_from_the_plan(name):
    kernel = make_plan(name)
    text = emit(kernel).text
    constants = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            constants[node.targets[0].id] = ast.literal_eval(node.value)
    q_tiles, config, budget = kernel.config["q_tiles"], kernel.config, kernel.budget
    assert constants["HEAD_DIM"] == kernel.dims["D"]
    assert constants["TMEM_COLUMNS"] == budget.tmem_columns
    for letter, known in (("S", "S_COLUMNS"), ("P", "P_COLUMNS"), ("O", "O_FIRST_COLUMNS")):
        assert constants[known] == tuple(budget.tmem[f"{letter}{i}"].first_column for i in range(q_tiles))
    assert constants["THREADS"] == budget.threads == 32 * (4 * q_tiles + 8)
    assert constants["Q_BYTES"] * q_tiles == budget.smem["sQ"].size_bytes
    assert constants["K_BYTES"] * config["kv_stage"] == budget.smem["sK"].size_bytes
    assert constants["V_BYTES"] * config["kv_stage"] == budget.smem["sV"].size_bytes
    assert constants["PV_PASSES"] * constants["PV_N_TILE"] * constants["COLUMN_SPLIT"] == constants["HEAD_DIM"]
    assert constants["STAGE"] == "online"
    for region in budget.smem_members:
        assert re.search(rf"^    {region.name}: cute\.struct\.", text, re.MULTILINE), region.name


def test_one_file_serves_every_flag():
    text = emit(make_plan("128")).text
    assert text == emit(make_plan("128 causal, sink, pdl")).text
    served = served_variants(text)
    assert len(served) == 8
    assert all(dict(zip(ALL_FLAGS, flags, strict=True)) in served for flags in product((False, True), repeat=3))


def test_the_template_is_mostly_code():
    text = resources.files("dsv4.generator").joinpath("templates", "attention", "fmha_sm100.py.j2").read_text()
    lines = [line for line in text.splitlines() if line.strip()]
    assert sum(line.lstrip().startswith("{%") for line in lines) < 0.1 * len(lines)
    assert len(text.splitlines()) <= 600


def test_p_lies_on_s_and_nothing_else_overlaps():
    for name in KERNELS:
        regions = make_plan(name).budget.tmem
        for one, two in product(regions.values(), repeat=2):
            if one.name != two.name and one.touches(two):
                assert {one.name[0], two.name[0]} == {"S", "P"} and one.name[1] == two.name[1]


# ---------------------------------------------------------------------------------------------------------------------
# Compiled


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_take_what_was_predicted_and_do_not_spill(built, name):
    manifest = Manifest.model_validate_json((folder(built[name]) / MANIFEST_NAME).read_text())
    assert (manifest.used.spill_bytes, manifest.used.local_bytes) == (0, 0)
    for resource in ("smem_bytes", "tmem_columns", "threads"):
        assert getattr(manifest.used, resource) == getattr(manifest.predicted, resource)
    (launch,) = manifest.launches
    assert launch.pdl == KERNELS[name][1].get("pdl", False)
    assert launch.cluster == (1, 1, 1)


@pytest.mark.parametrize("name", [*KERNELS, *STAGES])
def test_static_checks_find_nothing(built, name):
    findings = check_ptx(ptx_of(built[name]), built[name].plan.budget.tmem_columns)
    assert not findings, describe(findings)


@pytest.mark.parametrize("name", KERNELS)
def test_static_instructions_are_as_many_as_the_schedule_has(built, name):
    kernel = built[name].plan
    config, head_dim = kernel.config, kernel.dims["D"]
    q_tiles, o_columns = config["q_tiles"], head_dim // config["column_split"]
    passes = o_columns // config["pv_n_tile"]
    qk_blocks, pv_blocks = head_dim // MMA_K, config["tile_n"] // MMA_K
    (listing,) = parse(ptx_of(built[name]))
    # Q·Kᵀ stands before the loop and in it, P·V in it and after it; a K extent of one instruction would show here.
    lengths = sorted(len(run) for run in products(listing))
    assert lengths == sorted([qk_blocks] * 2 * q_tiles + [pv_blocks] * 2 * q_tiles * passes)
    loads = (q_tiles + 1) * head_dim // BLOCK_COLUMNS + passes * config["pv_n_tile"] // BLOCK_COLUMNS
    expected = {
        "cp.async.bulk.tensor.4d.shared": loads,
        "cp.async.bulk.tensor.4d.global": q_tiles * o_columns // BLOCK_COLUMNS,
        "mbarrier.init": kernel.budget.barriers,
        "setmaxnreg": 3,
        "griddepcontrol.wait": 3 if kernel.variant["pdl"] else 0,
        "griddepcontrol.launch_dependents": 1 if kernel.variant["pdl"] else 0,
        "ld.global": 1 if kernel.variant["has_sink"] else 0,
    }
    assert not (findings := check_counts(listing, expected)), describe(findings)


@pytest.mark.parametrize("name", KERNELS)
def test_no_line_of_a_branch_that_is_not_taken(built, name):
    source = (folder(built[name]) / "source.py").read_text()
    assert untaken_lines(source, ptx_of(built[name]), built[name].plan.variant) == []


def test_the_stages_of_the_bring_up_are_emitted_and_differ(built):
    for stage in STAGES:
        assert f'STAGE = "{stage}"' in (folder(built[stage]) / "source.py").read_text()
        assert len(parse(ptx_of(built[stage]))[0].of("ex2.")) == 0
    (scores,), (identity,) = (parse(ptx_of(built[stage])) for stage in STAGES)
    assert {len(run) for run in products(scores)} == {128 // MMA_K}
    assert len(products(identity)) == 2 * len(products(scores))
    assert len(parse(ptx_of(built["128"]))[0].of("ex2.")) >= 128


# ---------------------------------------------------------------------------------------------------------------------
# Refused


@pytest.mark.parametrize(
    ("head_dim", "config", "reason"),
    [
        (256, {"q_tiles": 2, "column_split": 1, "kv_stage": 2}, "512 available"),
        (512, {"column_split": 1}, "512 available"),
        (128, {"tile_n": 128, "kv_stage": 3}, "too many"),
        (128, {"column_split": 2, "pv_n_tile": 64}, "column_split 1 below D 256"),
        (128, {"pv_n_tile": 64, "kv_stage": 1}, "kv_stage at least"),
    ],
)
def test_what_cannot_be_is_refused_with_its_reason(head_dim, config, reason):
    with pytest.raises(Refused, match=re.escape(reason)):
        plan("fmha", "sm_100a", dims={"D": head_dim}, config=config)


def test_defaults_and_space_are_planned():
    kernels = default_plans("fmha", "sm_100a")
    assert len(kernels) == 16
    assert all(kernel.config["opt_level"] == 2 for kernel in kernels)
    planned = [kernel for d in (64, 128) for _, kernel in space("fmha", "sm_100a", dims={"D": d})]
    assert sum(not isinstance(kernel, Refused) for kernel in planned) >= 100


# ---------------------------------------------------------------------------------------------------------------------
# The schedule


def schedules() -> list[tuple[int, int, int]]:
    """(q_tiles, pieces of V, stages) that the spec's constraints allow."""
    return [
        (q_tiles, pieces, stages)
        for q_tiles, pieces, stages in product((1, 2), (1, 2, 3), (1, 2, 3, 4))
        if q_tiles == 1 or pieces <= stages
    ]


@pytest.mark.parametrize(("q_tiles", "pieces", "stages"), schedules())
def test_the_schedule_ends_in_any_order_of_events(q_tiles, pieces, stages):
    for tiles, seed, engines in product((1, 2, 3, 5), range(3), (0.0, 0.3, 1.0)):
        schedule.run(schedule.Cta(q_tiles, tiles, pieces, stages), seed, engines)


def test_two_query_tiles_need_a_slot_for_each_piece():
    with pytest.raises(AssertionError, match="deadlock"):
        schedule.run(schedule.Cta(2, 3, 2, 1), seed=0, engines=0.5)


@pytest.mark.parametrize("barrier", ["k_full", "v_full", "p_full", "s_full", "stat_full", "k_empty", "v_empty"])
def test_the_model_finds_a_barrier_that_is_not_waited_for(barrier):
    """A wait left out of the schedule is found in some order of events, so the model says something."""
    found = False
    for seed, engines in product(range(20), (0.0, 0.2, 0.9)):
        cta = schedule.Cta(2, 5, 1, 2)
        for item in getattr(cta, barrier):
            item.passes = lambda parity: True
        try:
            schedule.run(cta, seed, engines)
        except AssertionError:
            found = True
            break
    assert found
