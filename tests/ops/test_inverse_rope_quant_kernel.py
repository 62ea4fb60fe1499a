"""inverse_rope_quant's kernels: what the compiled code contains, their values in the emulator, and the judge."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from dsv4.generator.build import BuildResult
from dsv4.generator.emit import emit
from dsv4.generator.spec import Refused, default_plans, plan
from dsv4.generator.verify import cases, judge
from dsv4.generator.verify.case import Case
from dsv4.runtime.reference.inverse_rope_quant import inverse_rope_quant
from dsv4.runtime.weight import Quantized
from tests.ops import builds as builds

OP = "inverse_rope_quant"
Outputs = dict[str, torch.Tensor]
# arch, heads, groups, output, layout of the scales, pdl, warps, heads of a warp
CONFIGURATIONS = {
    "plain": ("sm_100a", 6, 2, "bf16", "row_major", True, 2, 2),
    "float32": ("sm_90a", 4, 2, "fp8", "m_major_f32", False, 8, 1),
    "packed": ("sm_100a", 6, 3, "fp8", "m_major_packed", True, 2, 2),
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, BuildResult]:
    plans = []
    for arch, heads, groups, output, layout, pdl, warps, each in CONFIGURATIONS.values():
        variant = {"output": output, "scale_layout": layout, "pdl": pdl}
        config = {"warps": warps, "heads_per_warp": each}
        plans.append(plan(OP, arch, dims={"H": heads, "G": groups}, variant=variant, config=config))
    return dict(zip(CONFIGURATIONS, builds.build_all(plans, tmp_path_factory.mktemp(OP)), strict=True))


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_it_compiles_to_what_was_predicted(built: dict[str, BuildResult], name: str) -> None:
    builds.takes_what_was_predicted(built[name])
    assert ("griddepcontrol.wait" in builds.ptx(built[name])) == CONFIGURATIONS[name][5]


def test_accesses_are_wide(built: dict[str, BuildResult]) -> None:
    assert all(builds.widths(builds.ptx(result), "ld.global") <= {"v4.b32", "v2.b64"} for result in built.values())
    assert builds.widths(builds.ptx(built["plain"]), "st.global") <= {"v4.b32", "v2.b64"}
    for name in ("float32", "packed"):  # eight codes, one scale or word of scales
        assert builds.widths(builds.ptx(built[name]), "st.global") <= {"v2.b32", "b64", "b32"}


# Numbers of cases (without the empty one): padding, gaps, magnitudes, edges of scales, NaN.
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_values_in_the_emulator(built: dict[str, BuildResult], name: str) -> None:
    assert builds.findings(built[name], (1, 4, 5, 7, 8)) == []


def right(case: Case) -> Outputs:
    """The float32 reference's result, laid out as the case's outputs are."""
    attention, cos_sin = case.inputs["attention"], case.inputs["cos_sin"]
    assert isinstance(attention, torch.Tensor) and isinstance(cos_sin, torch.Tensor)
    (name,) = case.expected
    made = inverse_rope_quant(attention, cos_sin, groups=case.expected[name].shape[1], quantize=name == "codes")
    if not isinstance(made, Quantized):
        return {"grouped": made}
    scale = made.scale.view(torch.uint8).to(torch.int32).permute(1, 2, 0)
    layout = case.outputs["scale_i32"]
    words = scale.unflatten(1, (-1, 4))
    packed = words[:, :, 0] | words[:, :, 1] << 8 | words[:, :, 2] << 16 | words[:, :, 3] << 24
    padded = torch.nn.functional.pad(packed, (0, layout.shape[-1] - packed.shape[-1]))
    return {"codes": made.codes, "scale_i32": padded.contiguous()}


def code_changed(got: Outputs) -> None:
    got["codes"].view(torch.uint8)[2, 1, 5] ^= 1


def turned_forward(got: Outputs) -> None:
    got["codes"].view(torch.uint8)[:, :, 449:512:2] ^= 0x80


def scale_doubled(got: Outputs) -> None:
    got["scale_i32"][1, 0, 2] += 1 << 24


def scales_swapped(got: Outputs) -> None:
    got["scale_i32"] = got["scale_i32"].flip(1)


def padding_written(got: Outputs) -> None:
    got["scale_i32"][0, 0, -1] = 127


@pytest.mark.parametrize("mistake", [code_changed, turned_forward, scale_doubled, scales_swapped, padding_written])
def test_the_judge_finds(mistake: Callable[[Outputs], None]) -> None:
    variant = {"output": "fp8", "scale_layout": "m_major_packed", "pdl": False}
    case = cases(OP, {"H": 4, "G": 2}, variant)[5]
    assert "magnitudes" in case.name
    got = right(case)
    assert judge(OP, got, case).ok, judge(OP, got, case).findings
    mistake(got)
    assert not judge(OP, got, case).ok


@pytest.mark.parametrize("place", [(2, 0, 3), (1, 1, 500)])
def test_the_judge_finds_a_wrong_plain_number(place: tuple[int, int, int]) -> None:
    case = cases(OP, {"H": 4, "G": 2}, {"output": "bf16", "scale_layout": "row_major", "pdl": False})[1]
    got = right(case)
    assert judge(OP, got, case).ok
    got["grouped"].view(torch.int16)[place] += 2
    assert not judge(OP, got, case).ok


def test_the_models_sizes_are_default_kernels() -> None:
    made = {(each.dims["H"], each.dims["G"], each.variant["output"]) for each in default_plans(OP, "sm_90a")}
    assert {(64, 8, "bf16"), (64, 8, "fp8"), (128, 16, "fp8")} <= made


def test_an_emitted_file_has_nothing_of_the_other_outputs() -> None:
    plain = emit(plan(OP, "sm_90a")).text
    assert "scales" not in plain.split("def launch")[0].split("import cutlass")[1]
    packed = emit(plan(OP, "sm_90a", variant={"output": "fp8", "scale_layout": "m_major_packed"})).text
    assert "e8m0_value" not in packed and "rotate_bf16_row" not in packed


@pytest.mark.parametrize(
    ("dims", "variant", "named"),
    [
        ({"H": 6, "G": 4}, {}, "divides H"),
        ({"H": 64, "G": 8}, {"output": "bf16", "scale_layout": "m_major_f32"}, "without scales"),
    ],
)
def test_what_cannot_work_is_refused(dims: dict[str, int], variant: dict[str, str], named: str) -> None:
    with pytest.raises(Refused, match=named):
        plan(OP, "sm_90a", dims=dims, variant=variant)
