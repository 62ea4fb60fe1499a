"""indexer_q's kernels: what the compiled code contains, their values in the emulator, the judge, and folded weights."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch

from dsv4.generator.build import BuildResult
from dsv4.generator.emit import emit
from dsv4.generator.spec import default_plans, plan
from dsv4.generator.verify import cases, judge
from dsv4.generator.verify.case import Case
from dsv4.runtime.reference.indexer_q import fold_weights, indexer_q
from dsv4.runtime.weight import Quantized
from tests.ops import builds as builds

OP = "indexer_q"
Outputs = dict[str, torch.Tensor]
# arch, heads, code, fold, pdl, warps, heads of a lane; such numbers of heads leave parts of a warp without one.
CONFIGURATIONS = {
    "bf16": ("sm_90a", 2, "none", "f32", False, 1, 2),
    "fp8": ("sm_90a", 5, "fp8", "f32", True, 4, 2),
    "fp4": ("sm_90a", 3, "fp4", "bf16", False, 2, 1),
    "fp4 in hardware": ("sm_100a", 3, "fp4", "none", True, 1, 4),
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, BuildResult]:
    plans = []
    for arch, heads, code, fold, pdl, warps, each in CONFIGURATIONS.values():
        variant = {"code": code, "fold": fold, "pdl": pdl}
        config = {"warps": warps, "heads_per_lane": each}
        plans.append(plan(OP, arch, dims={"H": heads}, variant=variant, config=config))
    return dict(zip(CONFIGURATIONS, builds.build_all(plans, tmp_path_factory.mktemp(OP)), strict=True))


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_it_compiles_to_what_was_predicted(built: dict[str, BuildResult], name: str) -> None:
    builds.takes_what_was_predicted(built[name])
    assert ("griddepcontrol.wait" in builds.ptx(built[name])) == CONFIGURATIONS[name][4]


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_three_rounds_of_the_transform_exchange_half_of_the_numbers(built: dict[str, BuildResult], name: str) -> None:
    _, _, code, *_, each = CONFIGURATIONS[name]
    others = {"none": 0, "fp8": 3, "fp4": 2 * 3 + 1}[code]  # the amax; the scales of two pairs of blocks, and the codes
    assert len(re.findall(r"\bshfl\.sync\.bfly", builds.ptx(built[name]))) == each * (3 * 8 + others)
    stores = {"none": {"v2.b32", "b32"}, "fp8": {"b32", "b8"}, "fp4": {"b32"}}[code]
    assert builds.widths(builds.ptx(built[name]), "st.global") == stores


def test_e2m1_is_encoded_in_hardware_only_where_it_can_be(built: dict[str, BuildResult]) -> None:
    assert "e2m1x2" in builds.ptx(built["fp4 in hardware"])
    assert "e2m1x2" not in builds.ptx(built["fp4"])


# Numbers of cases (without the empty one): gaps, magnitudes of heads and of columns, signs, zeros, NaN.
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_values_in_the_emulator(built: dict[str, BuildResult], name: str) -> None:
    assert builds.findings(built[name], (1, 4, 5, 6, 7, 8, 10)) == []


def right(case: Case) -> Outputs:
    """The float32 reference's results."""
    q, cos_sin, weights = case.inputs["q"], case.inputs["cos_sin"], case.inputs.get("weights")
    assert isinstance(q, torch.Tensor) and isinstance(cos_sin, torch.Tensor) and isinstance(weights, torch.Tensor)
    ((name, _),) = case.expected.items()
    made = indexer_q(q, cos_sin, code="fp8" if name == "codes" else "fp4", rotate_hadamard=True)
    assert isinstance(made, Quantized)
    factor = float(case.inputs["factor"] or 0.0)
    return {name: made.codes, "scale": made.scale, "folded": fold_weights(weights, made, scale=factor)}


def code_changed(got: Outputs) -> None:
    (name,) = set(got) & {"codes", "packed"}
    byte = got[name].view(torch.uint8)
    byte[2, 1, 5] = byte[2, 1, 5] ^ 0x66


def heads_swapped(got: Outputs) -> None:
    (name,) = set(got) & {"codes", "packed"}
    got[name] = got[name].view(torch.uint8).flip(1).view(got[name].dtype)


def scale_doubled(got: Outputs) -> None:
    got["scale"].view(torch.uint8)[1, 0, -1] += 1


def weight_off(got: Outputs) -> None:
    got["folded"][1, 2] *= 1 + 2.0**-20


@pytest.mark.parametrize("code", ["fp8", "fp4"])
@pytest.mark.parametrize("mistake", [code_changed, heads_swapped, scale_doubled, weight_off])
def test_the_judge_finds(code: str, mistake: Callable[[Outputs], None]) -> None:
    case = cases(OP, {"H": 3}, {"code": code, "fold": "f32", "pdl": False})[6]
    assert "columns" in case.name
    got = right(case)
    assert judge(OP, got, case).ok, judge(OP, got, case).findings
    mistake(got)
    assert not judge(OP, got, case).ok


def test_folded_weights_take_the_scale_of_fp8_queries_along() -> None:
    generator = torch.Generator().manual_seed(1)
    q, weights = torch.randn(3, 4, 128, generator=generator), torch.randn(3, 4, generator=generator)
    keys = torch.randn(5, 128, generator=generator)
    cos_sin = torch.cat((torch.ones(3, 32), torch.zeros(3, 32)), dim=-1)
    for code in ("none", "fp8", "fp4"):
        made = indexer_q(q, cos_sin, code=code, rotate_hadamard=True)
        folded = fold_weights(weights, made, scale=0.25)
        plain = made.dequantize() if isinstance(made, Quantized) else made
        expected = torch.einsum("th,the->te", 0.25 * weights, (plain @ keys.T).relu())
        codes = made.codes.float() if code == "fp8" else plain
        assert torch.allclose(torch.einsum("th,the->te", folded, (codes @ keys.T).relu()), expected, rtol=1e-5)


def test_default_kernels_are_the_models() -> None:
    for arch in ("sm_90a", "sm_100a"):
        made = {(each.variant["code"], each.variant["fold"]) for each in default_plans(OP, arch)}
        assert made == {("fp8", "f32"), ("fp8", "none"), ("fp4", "f32"), ("fp4", "none")}


def test_an_emitted_file_has_nothing_of_the_other_codes() -> None:
    plain = emit(plan(OP, "sm_90a", variant={"code": "none"})).text
    assert "quantize" not in plain.split("import cutlass", 1)[1] and "factor: Float32" in plain
    fp8 = emit(plan(OP, "sm_90a", variant={"code": "fp8"})).text
    assert "NATIVE_E2M1" not in fp8 and "e8m0_value" not in fp8
