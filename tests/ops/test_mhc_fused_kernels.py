"""mhc_post_pre and mhc_head: resources, instructions, values in the emulator, and what the judges notice."""

from __future__ import annotations

import pytest
import torch

from dsv4.generator.build import BuildResult
from dsv4.generator.spec import default_plans, plan
from dsv4.generator.verify import cases
from dsv4.generator.verify.operators import mhc_head, mhc_post_pre
from tests.ops.builds import build_all, findings, ptx, right_outputs, takes_what_was_predicted

# Seven passes of one cluster through two stages, on the arch whose kernel mhc_pre's tests look at least.
# The fusion as it is where registers are scarce: the last term a byte, the next streams in parts.
CONFIG = {"cluster": 4, "clusters": 1, "stages": 2}
SCARCE = {"mhc_post_pre": {"register_terms": 1, "byte_terms": 1}, "mhc_head": {}}
CASES = {"mhc_post_pre": 13, "mhc_head": 12}
OPERATORS = {"mhc_post_pre": ("sm_90a", True), "mhc_head": ("sm_100a", False)}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, BuildResult]:
    plans = [
        plan(op, arch, dims={"d": 256}, variant={"norm": flag, "pdl": flag}, config={**CONFIG, **SCARCE[op]})
        for op, (arch, flag) in OPERATORS.items()
    ]
    return dict(zip(OPERATORS, build_all(plans, tmp_path_factory.mktemp("mhc_fused")), strict=True))


@pytest.mark.parametrize("op", OPERATORS)
def test_it_compiles_without_spills_and_takes_what_was_predicted(built: dict[str, BuildResult], op: str) -> None:
    takes_what_was_predicted(built[op])
    text = ptx(built[op])
    output_tiles = 1 if op == "mhc_head" else 3
    begun = 2 if built[op].plan.config["ahead"] else 1  # the first pass before the loop, the others in it
    assert text.count("mma.sync.aligned.m16n8k16") == begun * 4 * 2 * 3 * output_tiles  # streams, steps, terms
    assert ("griddepcontrol.wait" in text) == OPERATORS[op][1]


@pytest.mark.parametrize("op", OPERATORS)
def test_values_of_kernels_that_are_no_default(built: dict[str, BuildResult], op: str) -> None:
    assert findings(built[op], range(CASES[op])) == []


@pytest.mark.parametrize("op", OPERATORS)
@pytest.mark.parametrize("arch", ["sm_90a", "sm_100a"])
def test_the_models_sizes_are_default_kernels(op: str, arch: str) -> None:
    made = {(each.dims["d"], each.variant["norm"], each.variant["pdl"]) for each in default_plans(op, arch)}
    assert {(d, True, pdl) for d in (512, 4096, 7168) for pdl in (False, True)} <= made


@pytest.mark.parametrize("norm", [False, True])
def test_the_head_judge_finds_planted_mistakes(norm: bool) -> None:
    case = cases("mhc_head", {"d": 512}, {"norm": norm})[1]
    right = right_outputs(case)
    assert mhc_head.judge(right, case).ok
    for name, wrong in (("streams", case.inputs["streams"].flip(1)), ("base", case.inputs["base"] + 0.02)):
        y = mhc_head.expected_float64({**case.inputs, name: wrong}).bfloat16()
        assert not mhc_head.judge({"y": y}, case).ok
    assert not mhc_head.judge({"y": right["y"].roll(1, 0)}, case).ok


def test_the_fused_judge_finds_planted_mistakes() -> None:
    case = cases("mhc_post_pre", {"d": 512}, {"norm": True})[1]
    right = right_outputs(case)
    assert mhc_post_pre.judge(right, case).ok
    old_streams = mhc_post_pre.following(case.inputs, case.inputs["streams"])["y"].bfloat16()
    unrounded = torch.where(torch.arange(512) == 7, right["new_streams"] * 1.01, right["new_streams"])
    mistakes = [
        {"y": old_streams},
        {"next_comb": right["next_comb"].transpose(1, 2).contiguous()},
        {"next_post": case.inputs["post"]},
        {"new_streams": unrounded},
        {"new_streams": right["new_streams"].flip(1).contiguous()},
    ]
    for mistake in mistakes:
        assert not mhc_post_pre.judge({**right, **mistake}, case).ok
