"""rms_norm_quant's kernels: what the compiled code contains, its values in the emulator, what its judge notices."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from dsv4.generator.build import BuildResult
from dsv4.generator.spec import Refused, plan
from dsv4.generator.verify import cases, metrics
from dsv4.generator.verify.block_bytes import laid_out, quantized
from dsv4.generator.verify.case import Case
from dsv4.generator.verify.operators import rms_norm_quant
from tests.ops.builds import build_all, findings, ptx, takes_what_was_predicted, widths

ARCHS = ("sm_90a", "sm_100a")
SHAPES = {
    "fp8": (640, {"with_y": False, "scale_layout": "m_major", "pdl": True}, {"threads_per_row": 64, "rows_per_cta": 2}),
    "nvfp4": (512, {"with_y": True, "format": "nvfp4", "scale_layout": "swizzled_128x4"}, {}),
}


@pytest.fixture(scope="module", params=ARCHS)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, BuildResult]:
    plans = [
        plan("rms_norm_quant", request.param, dims={"d": d}, variant=variant, config=config)
        for d, variant, config in SHAPES.values()
    ]
    return dict(zip(SHAPES, build_all(plans, tmp_path_factory.mktemp("norm_quant")), strict=True))


@pytest.mark.parametrize("shape", SHAPES)
def test_one_barrier_and_16_byte_loads(built: dict[str, BuildResult], shape: str) -> None:
    takes_what_was_predicted(built[shape])
    text = ptx(built[shape])
    assert text.count("bar.sync") + text.count("barrier.sync") == 1
    vectors = 2 if shape == "fp8" else 1
    assert text.count("ld.global.v4.b32") == 2 * vectors
    assert widths(text, "st.global") == ({"v2.b32", "b32"} if shape == "fp8" else {"v4.b32", "b32", "b8"})
    assert ("griddepcontrol.wait" in text) == (shape == "fp8")
    if shape == "fp8":  # the weight is read while the launch before still runs
        before, after = text.split("griddepcontrol.wait")
        assert before.count("ld.global") == after.count("ld.global") == vectors


@pytest.mark.parametrize("shape", SHAPES)
def test_values_of_a_kernel_that_is_no_default(built: dict[str, BuildResult], shape: str) -> None:
    assert findings(built[shape], range(10)) == []


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(Refused, match="whole groups of 4 blocks"):
        plan("rms_norm_quant", "sm_90a", dims={"d": 640}, variant={"scale_layout": "swizzled_128x4"})


def outputs_of(case: Case, y: torch.Tensor, codes_of: torch.Tensor, format: str) -> dict[str, torch.Tensor]:
    """What a kernel would write that rounds ``y`` (float64) and quantises ``codes_of``."""
    codes, scale, *_ = quantized(codes_of, format, case.inputs.get("input_scale"))
    found = {"codes": codes, "scale": laid_out(scale, "row_major")}
    return {**found, "y": metrics.round_to_bf16(y)} if "y" in case.outputs else found


def rounded(y: torch.Tensor) -> torch.Tensor:
    return metrics.round_to_bf16(y)


def without_rounding(y: torch.Tensor) -> torch.Tensor:
    return y


def three_steps_off(y: torch.Tensor) -> torch.Tensor:
    return rounded(y * (1 + 2.0**-6))


def neighbours_row(y: torch.Tensor) -> torch.Tensor:
    return rounded(y.roll(1, 0))


@pytest.mark.parametrize("with_y", [False, True])
@pytest.mark.parametrize("format", ["fp8_128", "nvfp4"])
@pytest.mark.parametrize("mistake", [without_rounding, three_steps_off, neighbours_row], ids=lambda f: f.__name__)
def test_the_judge_finds_planted_mistakes(
    mistake: Callable[[torch.Tensor], torch.Tensor], format: str, with_y: bool
) -> None:
    variant = {"format": format, "scale_layout": "row_major", "with_y": with_y}
    case = cases("rms_norm_quant", {"d": 512}, variant)[2]
    y = case.expected["y"]
    right = outputs_of(case, y, rounded(y), format)
    assert rms_norm_quant.judge(right, case).ok
    assert rms_norm_quant.first_wrong(right, case, {}) is None
    verdict = rms_norm_quant.judge(outputs_of(case, y, mistake(y), format), case)
    assert not verdict.ok and not any(text.startswith("y:") for text in verdict.findings)
