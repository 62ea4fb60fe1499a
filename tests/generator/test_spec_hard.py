"""Two hard specs load, plan and print a budget, and are not taken for kernels that exist.

One is a plan for the decoding attention on both chips with everything that the schema can say, kept as data of this
test; the other is the expert product.
"""

from pathlib import Path

import pytest

from dsv4.generator.resources import Refused
from dsv4.generator.spec import SpecError, default_plans, list_ops, load_op, plan, space, work
from dsv4.generator.spec.load import read_op

ARCHS = ("sm_90a", "sm_100a")
DECODE = read_op((Path(__file__).parent / "data" / "hard_decode.yaml").read_text(), "hard_decode.yaml")
HARD = (pytest.param(DECODE, id="decode"), "moe_l1")


@pytest.mark.parametrize("model", ["flash", "pro", "tiny"])
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("op", HARD)
def test_plans_and_prints_a_budget(op, arch, model):
    lines = plan(op, arch, model=model).budget.table()
    assert any(line.startswith("smem") and " B of 232,448 B" in line for line in lines)
    assert any(line.startswith("tmem") and ("columns" in line) == (arch == "sm_100a") for line in lines)
    assert any(line.startswith("threads") for line in lines)


def test_planned_operators_have_no_default_kernels():
    assert "moe_l1" in list_ops() and "moe_l1" not in list_ops(planned=False)
    for spec in (load_op("moe_l1"), DECODE):
        assert spec.status == "planned" and default_plans(spec, "sm_90a", "flash") == []


def test_what_needs_a_model_says_so():
    with pytest.raises(SpecError, match=r"dims\.H: found no model; valid: a model \(it is \$model\.local_heads\)"):
        plan(DECODE, "sm_90a")
    assert plan(DECODE, "sm_90a", dims={"H": 16}).dims["H"] == 16


def test_packed_pages():
    layout = DECODE.layouts["dsv4_page"]
    assert (layout.row_bytes, layout.tail_bytes) == (576, 8)
    assert layout.page_bytes(64) == 37440 and layout.page_bytes(64) % 576 == 0  # 64 × 584 = 37,376 B, rounded up
    pool = next(a for a in plan(DECODE, "sm_90a", model="pro").contract.arguments if a.name == "pool0")
    assert pool.dtype == "u8" and pool.shape == ("N0", "round_up(P0*584, 576)") and pool.stride_multiple == 576


def test_the_naive_plan_of_the_64_head_decode_is_refused():
    """Q + 2 × K + raw ring + P are 241,664 B before any barrier: the case that the performance notes work through."""
    config = {"kv_tile": 64, "kv_stage": 2, "raw_stage": 2}
    with pytest.raises(Refused, match=r"storage\.smem: 242,688 B of shared memory asked for, 232,448 B per CTA"):
        plan(DECODE, "sm_90a", model="flash", config=config)


def test_registers_of_the_64_head_decode():
    budget = plan(DECODE, "sm_90a", model="flash").budget
    assert budget.threads == 640 and budget.launch_registers == 96
    assert sum(role.registers * role.threads for role in budget.roles.values()) == 60416


def test_a_second_launch_and_its_workspace_exist_only_with_the_combine_kernel():
    alone = plan(DECODE, "sm_100a", model="flash")
    two = plan(DECODE, "sm_100a", model="flash", config={"combine": "kernel"})
    assert list(alone.budget.further) == [] and list(two.budget.further) == ["combine"]
    optional = {a.name: a.optional for a in two.contract.arguments if a.role == "workspace"}
    assert optional == {"o_part": False, "lse_part": False}
    assert all(a.optional for a in alone.contract.arguments if a.role == "workspace")
    assert any("combine on sm_100a" in line for line in two.budget.table())


def test_a_cluster_of_sixteen_splits_is_refused_by_name():
    with pytest.raises(Refused, match=r"splits = 16.*at most 8 splits"):
        plan(DECODE, "sm_90a", model="flash", config={"splits": 16})


def test_a_tunable_whose_condition_is_false_is_fixed():
    with pytest.raises(SpecError, match=r"swap_ab: found true; valid: false \(it is searched only when H < 64\)"):
        plan(DECODE, "sm_90a", model="flash", config={"swap_ab": True})
    assert plan(DECODE, "sm_90a", model="tiny", config={"swap_ab": True}).config["swap_ab"] is True


def test_operands_become_codes_and_scales():
    arguments = {a.name: a for a in plan("moe_l1", "sm_100a", model="flash").contract.arguments}
    assert arguments["w"].dtype == "e2m1x2" and arguments["w"].shape == (256, 4096, 2048)
    assert arguments["w_scale"].dtype == "e8m0" and arguments["w_scale"].shape == (256, 4096, 128)
    assert arguments["a_scale"].shape == ("SP", 128) and arguments["h_scale"].role == "output"
    assert arguments["expert_start"].shape == (257,)


def test_epilogue_ragged_and_domains_are_kept():
    moe, decode = load_op("moe_l1"), DECODE
    assert [(stage.stage, stage.operand) for stage in moe.epilogue][1:3] == [
        ("clamp_gate_max", 10),
        ("clamp_up_abs", 10),
    ]
    assert moe.ragged["M"].offsets == "expert_start" and moe.equivalent_to == ("grouped_linear", "swiglu_quant")
    assert decode.tensors["index0"].domain.skip == (-1, "out_of_range")
    assert decode.tensors["length0"].domain.range[1].text == "K0"
    assert moe.tensors["expert_start"].domain.order == "nondecreasing"


def test_work_of_the_expert_product():
    kernel = plan("moe_l1", "sm_100a", model="flash")
    counts = work(load_op("moe_l1"), kernel, {"T": 2})
    assert counts["mma"] == 2 * 12 * 4096 * 4096
    assert counts["bytes"] == pytest.approx(12 * 4096 * 4096 * 0.53125 + 12 * 4096 * 1.03 + 12 * 2048 * 1.03)


@pytest.mark.parametrize("arch", ARCHS)
def test_the_space_of_the_expert_product_has_both_kinds(arch):
    kinds = [isinstance(kernel, Refused) for _, kernel in space("moe_l1", arch, model="pro")]
    assert any(kinds) and not all(kinds)
