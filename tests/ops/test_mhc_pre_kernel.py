"""mhc_pre's kernel: what the compiled code contains, its values in the emulator, and what its judge notices."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch

from dsv4.generator.build import BuildResult
from dsv4.generator.device.mhc_tiling import Tiling
from dsv4.generator.spec import Refused, default_plans, plan
from dsv4.generator.verify import cases
from dsv4.generator.verify.operators import mhc_pre
from tests.ops.builds import build_all, findings, ptx, right_outputs, takes_what_was_predicted

ARCHS = ("sm_90a", "sm_100a")
# Seven passes of one cluster through two stages; two tiles of tokens a pass, the third term in a byte.
SHAPES = {
    "many passes": ({"d": 512}, {"cluster": 4, "clusters": 1, "stages": 2, "register_terms": 3}, True),
    "two tiles": (
        {"d": 512},
        {"cluster": 8, "clusters": 2, "token_tiles": 2, "stages": 1, "register_terms": 1, "byte_terms": 1, "ahead": 0},
        False,
    ),
}


@pytest.fixture(scope="module", params=ARCHS)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, BuildResult]:
    plans = [
        plan("mhc_pre", request.param, dims=dims, variant={"norm": flag, "pdl": flag}, config=config)
        for dims, config, flag in SHAPES.values()
    ]
    return dict(zip(SHAPES, build_all(plans, tmp_path_factory.mktemp("mhc_pre")), strict=True))


@pytest.mark.parametrize("shape", SHAPES)
def test_it_compiles_without_spills_and_with_the_expected_instructions(
    built: dict[str, BuildResult], shape: str
) -> None:
    result = built[shape]
    takes_what_was_predicted(result)
    text = ptx(result)
    tiles = int(result.plan.config["token_tiles"])
    begun = 2 if result.plan.config["ahead"] else 1  # the first pass before the loop, the others in it
    products = tiles * 4 * 2 * 3 * 3  # streams, steps, output tiles, terms
    assert text.count("mma.sync.aligned.m16n8k16") == begun * products
    assert text.count("cp.async.cg.shared.global") > 0
    before = text.split("cp.async")[0]
    assert len(re.findall(r"ld\.global\.(v4\.b32|v2\.b64)", before)) >= 24  # the weights: all before the streams
    pdl = bool(result.plan.variant["pdl"])
    assert ("griddepcontrol.wait" in text) == ("griddepcontrol.launch_dependents" in text) == pdl
    assert text.count("barrier.cluster.arrive") == 1  # what is said later is said by stores that are counted


@pytest.mark.parametrize("shape", SHAPES)
def test_values_of_kernels_that_are_no_default(built: dict[str, BuildResult], shape: str) -> None:
    numbers = range(13) if built[shape].plan.arch == "sm_90a" else (1, 3)
    assert findings(built[shape], numbers) == []


@pytest.mark.parametrize("arch", ARCHS)
def test_the_models_sizes_are_default_kernels(arch: str) -> None:
    made = {(each.dims["d"], each.variant["norm"], each.variant["pdl"]) for each in default_plans("mhc_pre", arch)}
    assert {(d, True, pdl) for d in (512, 4096, 7168) for pdl in (False, True)} <= made


@pytest.mark.parametrize("d", [4096, 7168])
def test_as_many_tokens_as_there_are_rows_in_a_pass_of_all_clusters_have_a_kernel_without_roles(d: int) -> None:
    few = [each for each in default_plans("mhc_pre", "sm_90a") if each.dims["d"] == d and each.bucket]
    assert {each.variant["pdl"] for each in few} == {False, True}
    for each in few:
        config = each.config
        assert each.bucket == {"T": (0, 16 * config["token_tiles"] * config["clusters"])}  # type: ignore[operator]
        assert (config["mixers"], config["stages"]) == (0, 1)
    assert not any(each.bucket for each in default_plans("mhc_pre", "sm_100a"))


@pytest.mark.parametrize(
    ("d", "config", "named"),
    [
        (7168, {"cluster": 8}, "a larger cluster"),
        (7168, {"register_terms": 2}, "register_terms"),
        (4096, {"byte_terms": 1, "register_terms": 3}, "three terms in all"),
        (4096, {"stages": 6}, "shared memory"),
        (384, {"cluster": 16}, "divides d / 32"),
    ],
)
def test_what_cannot_work_is_refused_with_what_to_change(d: int, config: dict[str, int], named: str) -> None:
    with pytest.raises(Refused) as refusal:
        plan("mhc_pre", "sm_90a", dims={"d": d}, config=config)
    assert any(named in reason for reason in refusal.value.reasons)


def test_every_token_of_a_pass_has_one_owner_and_every_byte_is_counted() -> None:
    tiling = Tiling(columns=4096, cluster=16, outputs=24, token_tiles=2, stages=1, register_terms=2)
    assert (tiling.tokens, tiling.owned, tiling.warps, tiling.quads) == (32, 2, 8, 7)
    assert tiling.partial_bytes == 16 * 2 * (24 + 4) * 4
    assert (tiling.weight_bytes, tiling.square_bytes) == (32 * 16, 32 * 16 * 4)


def test_the_worked_example_of_the_reference() -> None:
    """dsv4-reference §2.6, to the digits given there; the case holds the kernel to float64."""
    case = next(each for each in cases("mhc_pre", {"d": 512}, {"norm": False}) if "2.6" in each.name)
    post, comb = case.expected["post"][0], case.expected["comb"][0]
    assert post.tolist() == pytest.approx([0.75508134, 1.04995837, 1.63514895, 0.23840584], abs=1e-8)
    assert comb[0].tolist() == pytest.approx([0.52968737, 0.05005191, 0.09813259, 0.32212717], abs=1e-8)
    assert comb[3].tolist() == pytest.approx([0.03910981, 0.66986952, 0.16083064, 0.13018902], abs=1e-8)
    assert comb.sum(0).tolist() == pytest.approx([0.999999] * 4, abs=1e-8)
    pre = mhc_pre.stream_weights(case.inputs)[0]
    assert pre.tolist() == pytest.approx([0.57444352, 0.23147622, 0.66818877, 0.88079808], abs=1.01e-6)


Outputs = dict[str, torch.Tensor]


def one_step_less(inputs: dict[str, torch.Tensor], right: Outputs) -> Outputs:
    fewer = mhc_pre.reference.mhc_pre(*(inputs[name] for name in ("streams", "fn", "base", "scale")), iterations=4)
    return {**right, "comb": fewer[2].float()}


def transposed(inputs: dict[str, torch.Tensor], right: Outputs) -> Outputs:
    return {**right, "comb": right["comb"].transpose(1, 2).contiguous()}


def weights_in_bf16(inputs: dict[str, torch.Tensor], right: Outputs) -> Outputs:
    rounded = {**inputs, "fn": inputs["fn"].bfloat16().float()}
    return {**right, "post": mhc_pre.expected_float64(rounded)["post"].float()}


def streams_swapped(inputs: dict[str, torch.Tensor], right: Outputs) -> Outputs:
    swapped = {**inputs, "streams": inputs["streams"].flip(1)}
    return {**right, "y": mhc_pre.expected_float64(swapped)["y"].bfloat16()}


def no_eps_in_pre(inputs: dict[str, torch.Tensor], right: Outputs) -> Outputs:
    return {**right, "y": (right["y"].double() * (1 + 2**-6)).bfloat16()}


def two_terms_of_a_weight(inputs: dict[str, torch.Tensor], right: Outputs) -> Outputs:
    fn = inputs["fn"]
    first = fn.bfloat16().float()
    expected = mhc_pre.expected_float64({**inputs, "fn": first + (fn - first).bfloat16().float()})
    return {"y": expected["y"].bfloat16(), "post": expected["post"].float(), "comb": expected["comb"].float()}


def test_the_judge_notices_that_a_term_of_the_weights_is_lost() -> None:
    case = next(each for each in cases("mhc_pre", {"d": 512}, {"norm": False}) if "lost term" in each.name)
    right = right_outputs(case)
    assert mhc_pre.judge(right, case).ok
    assert any("post" in finding for finding in mhc_pre.judge(two_terms_of_a_weight(case.inputs, right), case).findings)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(
    "mistake",
    [one_step_less, transposed, weights_in_bf16, streams_swapped, no_eps_in_pre],
    ids=lambda function: function.__name__,
)
def test_the_judge_finds_planted_mistakes(mistake: Callable[..., Outputs], norm: bool) -> None:
    case = cases("mhc_pre", {"d": 512}, {"norm": norm})[1]
    right = right_outputs(case)
    assert mhc_pre.judge(right, case).ok
    assert not mhc_pre.judge(mistake(case.inputs, right), case).ok
