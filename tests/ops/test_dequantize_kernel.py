"""dequantize's kernels: what the compiled code contains, their bits in the emulator, what the judge notices."""

from __future__ import annotations

import pytest
import torch

from dsv4.generator.build import BuildResult
from dsv4.generator.spec import plan
from dsv4.generator.verify import cases
from dsv4.generator.verify.operators import dequantize
from tests.ops.builds import build_all, findings, ptx, takes_what_was_predicted, widths

ARCHS = ("sm_90a", "sm_100a")
SHAPES = {
    "fp8": (640, {"scale_layout": "m_major", "pdl": True}, {"threads": 64}),
    "nvfp4": (512, {"format": "nvfp4", "scale_layout": "swizzled_128x4"}, {}),
}


@pytest.fixture(scope="module", params=ARCHS)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, BuildResult]:
    plans = [
        plan("dequantize", request.param, dims={"K": columns}, variant=variant, config=config)
        for columns, variant, config in SHAPES.values()
    ]
    return dict(zip(SHAPES, build_all(plans, tmp_path_factory.mktemp("dequantize")), strict=True))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_vectors_codes_are_one_load_and_stores_are_16_bytes_wide(built: dict[str, BuildResult], shape: str) -> None:
    takes_what_was_predicted(built[shape])
    text = ptx(built[shape])
    loads = widths(text.replace("ld.global.b64", "ld.global.v2.b32"), "ld.global")
    assert loads == ({"v2.b32", "b32"} if shape == "fp8" else {"b32", "b8"})
    assert widths(text, "st.global") == {"v4.b32"}
    assert ("griddepcontrol" in text) == (shape == "fp8")


@pytest.mark.parametrize("shape", SHAPES)
def test_bits_of_a_kernel_that_is_no_default(built: dict[str, BuildResult], shape: str) -> None:
    assert findings(built[shape], range(8)) == []


@pytest.mark.parametrize("mistake", ["one step", "sign of a zero", "neighbours row"])
@pytest.mark.parametrize("format", ["fp8_32", "mxfp4"])
def test_the_judge_finds_planted_mistakes(mistake: str, format: str) -> None:
    case = cases("dequantize", {"K": 512}, {"format": format, "scale_layout": "row_major"})[1]
    x = case.expected["x"].clone()
    assert dequantize.judge({"x": x}, case).ok and dequantize.first_wrong({"x": x}, case, {}) is None
    if mistake == "one step":
        x.view(torch.int16)[4, 100] ^= 1
    elif mistake == "sign of a zero":
        row, column = (x == 0).nonzero()[0].tolist()
        x[row, column] = -x[row, column]
    else:
        x[3] = x[2].clone()
    assert not dequantize.judge({"x": x}, case).ok
    found = dequantize.first_wrong({"x": x}, case, {"row_parts": 2})
    assert found is not None and found[0] == "x"
