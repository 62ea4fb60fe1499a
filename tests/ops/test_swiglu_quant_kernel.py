"""swiglu_quant's kernels: what the compiled code contains, its values in the emulator, and what its judge notices."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from dsv4.generator.build import BuildResult
from dsv4.generator.spec import Refused, plan
from dsv4.generator.verify import cases
from dsv4.generator.verify.block_bytes import laid_out, quantized
from dsv4.generator.verify.case import Case
from dsv4.generator.verify.operators import swiglu_quant
from dsv4.runtime.reference.swiglu_quant import swiglu_quant as reference
from tests.ops.builds import build_all, findings, ptx, takes_what_was_predicted, widths

ARCHS = ("sm_90a", "sm_100a")
FP8 = {"weighted": True, "pdl": True}
NVFP4 = {"format": "nvfp4", "scale_layout": "swizzled_128x4", "gate_up_layout": "interleaved_8"}
SEPARATE = {"gate_up_layout": "separate", "weighted": False, "scale_layout": "row_major"}
TWO_TENSORS = {"format": "fp8_32", "gate_up_layout": "separate"}
SHAPES = {
    "fp8": (384, FP8, {"threads_per_part": 32, "rows_per_cta": 2}),
    "nvfp4": (256, NVFP4, {}),
    "two tensors": (640, TWO_TENSORS, {"row_parts": 2, "threads_per_part": 64}),
}


@pytest.fixture(scope="module", params=ARCHS)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, BuildResult]:
    plans = [
        plan("swiglu_quant", request.param, dims={"I": width}, variant=variant, config=config)
        for width, variant, config in SHAPES.values()
    ]
    return dict(zip(SHAPES, build_all(plans, tmp_path_factory.mktemp("swiglu")), strict=True))


@pytest.mark.parametrize("shape", SHAPES)
def test_gates_and_ups_are_read_16_bytes_at_a_time(built: dict[str, BuildResult], shape: str) -> None:
    takes_what_was_predicted(built[shape])
    text = ptx(built[shape])
    vectors = 2 if shape == "fp8" else 1
    assert text.count("ld.global.v4.b32") == 2 * vectors
    one_number = set() if shape == "two tensors" else {"b32"}  # the row's weight, or the tensor's scale
    assert widths(text, "ld.global") == {"v4.b32"} | one_number
    assert widths(text, "st.global") == {"b32" if shape == "nvfp4" else "v2.b32", "b8"}
    assert text.count("ex2.approx") == 8 * vectors
    inverses = 2 if shape == "nvfp4" else 0  # of the tensor's scale and the step
    assert text.count("rcp.approx") == 8 * vectors + inverses
    assert ("griddepcontrol" in text) == (shape == "fp8")


@pytest.mark.parametrize("shape", SHAPES)
def test_values_of_a_kernel_that_is_no_default(built: dict[str, BuildResult], shape: str) -> None:
    assert findings(built[shape], range(13)) == []


def test_what_cannot_work_is_refused() -> None:
    for variant, named in (
        ({"format": "bf16", "scale_layout": "swizzled_128x4"}, "whole groups of 4 blocks"),
        ({"format": "fp8_32", "scale_layout": "m_major"}, "m_major with fp8_128"),
    ):
        with pytest.raises(Refused, match=named):
            plan("swiglu_quant", "sm_90a", variant=variant)


def outputs_of(case: Case, h: torch.Tensor, format: str) -> dict[str, torch.Tensor]:
    """What a kernel would write whose h (float64) is this one."""
    if format == "bf16":
        return {"h": h.to(torch.bfloat16)}
    codes, scale, *_ = quantized(h, format, case.inputs.get("input_scale"))
    return {"codes": codes, "scale": laid_out(scale, "row_major")}


def test_two_tensors_are_read_where_they_lie() -> None:
    """Gates and ups have strides of their own, which no other layout has; NaN lies between their rows."""
    case = cases("swiglu_quant", {"I": 256}, {**SEPARATE, "format": "bf16"})[4]
    gates, ups = case.inputs["gates"], case.inputs["ups"]
    assert isinstance(gates, torch.Tensor) and isinstance(ups, torch.Tensor) and "gate_up" not in case.inputs
    assert (gates.stride(0), ups.stride(0)) == (264, 272) and gates.shape == ups.shape == (9, 256)
    h = reference(gates, ups, limit=10.0, dtype=torch.float64, out_dtype=torch.float64)
    assert swiglu_quant.judge({"h": h.to(torch.bfloat16)}, case).ok
    swapped = reference(ups, gates, limit=10.0, dtype=torch.float64, out_dtype=torch.float64)
    assert not swiglu_quant.judge({"h": swapped.to(torch.bfloat16)}, case).ok


def computed(case: Case, **changes: object) -> torch.Tensor:
    gate, up = swiglu_quant.halves(case.inputs["gate_up"], bool(changes.pop("interleaved", False)))
    options = {"limit": case.inputs["limit"], "dtype": torch.float64, "out_dtype": torch.float64, **changes}
    return reference(gate, up, case.inputs.get("route_weight"), **options)


def gate_clamped_below(case: Case) -> torch.Tensor:
    gate, up = swiglu_quant.halves(case.inputs["gate_up"], False)
    return reference(
        gate.clamp(min=-1.0),
        up,
        case.inputs.get("route_weight"),
        limit=10.0,
        dtype=torch.float64,
        out_dtype=torch.float64,
    )


def no_clamp(case: Case) -> torch.Tensor:
    return computed(case, limit=1e9)


def halves_interleaved(case: Case) -> torch.Tensor:
    return computed(case, interleaved=True)


def rounded_before(case: Case) -> torch.Tensor:
    return computed(case).to(torch.bfloat16).to(torch.float64)


def neighbours_weight(case: Case) -> torch.Tensor:
    return computed(case) * (case.inputs["route_weight"].roll(1) / case.inputs["route_weight"])[:, None]


@pytest.mark.parametrize(
    ("mistake", "format", "number"),
    [
        (gate_clamped_below, "bf16", 2),
        (no_clamp, "bf16", 2),
        (no_clamp, "fp8_128", 7),
        (halves_interleaved, "fp8_128", 1),
        (rounded_before, "fp8_32", 3),
        (neighbours_weight, "nvfp4", 1),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_the_judge_finds_planted_mistakes(mistake: Callable[[Case], torch.Tensor], format: str, number: int) -> None:
    variant = {"format": format, "scale_layout": "row_major", "gate_up_layout": "halves", "weighted": True}
    case = cases("swiglu_quant", {"I": 256}, variant)[number]
    right = outputs_of(case, computed(case), format)
    assert swiglu_quant.judge(right, case).ok
    assert swiglu_quant.first_wrong(right, case, {}) is None
    assert not swiglu_quant.judge(outputs_of(case, mistake(case), format), case).ok
