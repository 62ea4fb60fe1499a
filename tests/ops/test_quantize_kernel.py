"""quantize's kernels: what the compiled code contains, its bytes in the emulator, and what its judge notices."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from dsv4.generator.build import BuildResult
from dsv4.generator.emit import emit
from dsv4.generator.spec import Refused, plan
from dsv4.generator.verify import cases
from dsv4.generator.verify.block_bytes import FORMATS, laid_out, row_scales
from dsv4.generator.verify.case import Case
from dsv4.generator.verify.operators import quantize
from tests.ops.builds import build_all, findings, ptx, takes_what_was_predicted, widths

ARCHS = ("sm_90a", "sm_100a")
# K, format, layout of the scales, pdl, configuration
SHAPES = {
    "fp8": (1536, "fp8_128", "m_major", True, {"row_parts": 3, "threads_per_part": 32, "rows_per_cta": 2}),
    "nvfp4": (512, "nvfp4", "swizzled_128x4", False, {}),
}


@pytest.fixture(scope="module", params=ARCHS)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, BuildResult]:
    plans = [
        plan(
            "quantize",
            request.param,
            dims={"K": columns},
            variant={"format": format, "scale_layout": layout, "pdl": pdl},
            config=config,
        )
        for columns, format, layout, pdl, config in SHAPES.values()
    ]
    return dict(zip(SHAPES, build_all(plans, tmp_path_factory.mktemp("quantize")), strict=True))


@pytest.mark.parametrize("shape", SHAPES)
def test_loads_are_16_bytes_wide_and_a_vectors_codes_are_one_store(built: dict[str, BuildResult], shape: str) -> None:
    takes_what_was_predicted(built[shape])
    text = ptx(built[shape])
    x, codes, scale = "v4.b32", "v2.b32" if shape == "fp8" else "b32", "b32" if shape == "fp8" else "b8"
    assert widths(text, "ld.global") == ({x} if shape == "fp8" else {x, "b32"})  # and the tensor's scale
    assert widths(text, "st.global") == {codes, scale}
    assert ("griddepcontrol" in text) == SHAPES[shape][3]
    lanes = FORMATS[SHAPES[shape][1]].block // 8
    vectors = 2 if shape == "fp8" else 1
    assert text.count("shfl.sync.bfly") == vectors * (lanes.bit_length() - 1)


def test_only_sm_100a_converts_to_e2m1_in_hardware(built: dict[str, BuildResult]) -> None:
    text = ptx(built["nvfp4"])
    assert ("e2m1x2" in text) == ("sm_100" in text)
    assert ".rn.f32" not in "".join(line for line in text.splitlines() if "div" in line or "rcp" in line)
    assert text.count("rcp.approx.ftz.f32") == 2  # of the tensor's scale and of the step, corrected afterwards


@pytest.mark.parametrize("shape", SHAPES)
def test_bytes_of_a_kernel_that_is_no_default(built: dict[str, BuildResult], shape: str) -> None:
    assert findings(built[shape], range(11)) == []


def test_an_emitted_file_has_nothing_of_the_other_formats() -> None:
    text = emit(plan("quantize", "sm_90a", dims={"K": 4096}, config={"rows_per_cta": 1})).text
    assert not any(word in text for word in ("input_scale[", "swizzle", "E2M1", "if row", "{%"))
    text = emit(plan("quantize", "sm_100a", variant={"format": "mxfp4", "scale_layout": "swizzled_128x4"})).text
    assert "NATIVE_E2M1 = True" in text and "fp8" not in text


@pytest.mark.parametrize(
    ("columns", "variant", "config", "named"),
    [
        (1536, {}, {"row_parts": 8}, "whole blocks"),
        (4096, {}, {"row_parts": 1, "threads_per_part": 32}, "more threads_per_part or row_parts"),
        (4096, {"format": "fp8_32", "scale_layout": "m_major"}, {}, "m_major with fp8_128"),
        (640, {"scale_layout": "swizzled_128x4"}, {}, "whole groups of 4 blocks"),
    ],
)
def test_what_cannot_work_is_refused(columns: int, variant: dict, config: dict, named: str) -> None:
    with pytest.raises(Refused) as refusal:
        plan("quantize", "sm_90a", dims={"K": columns}, variant=variant, config=config)
    assert any(named in reason for reason in refusal.value.reasons)


def first_case(format: str, layout: str, columns: int = 512) -> Case:
    return cases("quantize", {"K": columns}, {"format": format, "scale_layout": layout})[1]


def right(case: Case) -> dict[str, torch.Tensor]:
    return {name: case.expected[name].clone() for name in case.outputs}


def one_code(got: dict[str, torch.Tensor], layout: str) -> None:
    got["codes"].view(torch.uint8)[3, 77] ^= 1


def swapped_nibbles(got: dict[str, torch.Tensor], layout: str) -> None:
    raw = got["codes"].view(torch.uint8)
    raw.copy_(raw << 4 | raw >> 4)


def neighbours_scale(got: dict[str, torch.Tensor], layout: str) -> None:
    got["scale"].copy_(laid_out(row_scales(got["scale"], layout, 7).roll(1, 1).view(torch.float8_e8m0fnu), layout))


def row_of_another(got: dict[str, torch.Tensor], layout: str) -> None:
    got["codes"].view(torch.uint8)[5] = got["codes"].view(torch.uint8)[4]


def filled_up_with_the_last_row(got: dict[str, torch.Tensor], layout: str) -> None:
    raw = got["scale"].view(torch.uint8)
    raw[raw == 0] = 3


@pytest.mark.parametrize(
    ("mistake", "format", "layout", "output"),
    [
        (one_code, "fp8_128", "row_major", "codes"),
        (one_code, "nvfp4", "row_major", "codes"),
        (swapped_nibbles, "mxfp4", "row_major", "codes"),
        (neighbours_scale, "fp8_32", "row_major", "scale"),
        (neighbours_scale, "fp8_128", "m_major", "scale"),
        (neighbours_scale, "mxfp4", "swizzled_128x4", "scale"),
        (filled_up_with_the_last_row, "mxfp4", "swizzled_128x4", "scale"),
        (row_of_another, "fp8_128", "row_major", "codes"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_the_judge_finds_planted_mistakes(
    mistake: Callable[[dict[str, torch.Tensor], str], None], format: str, layout: str, output: str
) -> None:
    case = first_case(format, layout)
    got = right(case)
    assert quantize.judge(got, case).ok
    mistake(got, layout)
    verdict = quantize.judge(got, case)
    assert not verdict.ok and verdict.findings[0].startswith(output)
    found = quantize.first_wrong(got, case, {"rows_per_cta": 2, "row_parts": 1})
    assert found is not None and found[0] == output


def test_scales_of_a_case_belong_to_its_rows() -> None:
    """A case's scales have to differ from row to row and from block to block, or a misplaced one would not show."""
    case = cases("quantize", {"K": 512}, {"format": "fp8_128", "scale_layout": "row_major"})[4]
    scale = case.expected["scale"].view(torch.uint8)
    assert len(scale.unique()) > 10
    assert len(scale.unique(dim=0)) == len(scale)
