"""moe_combine's kernels: what the compiled code contains, their values in the emulator, what the judge notices."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from dsv4.generator.build import BuildResult
from dsv4.generator.spec import Refused, plan
from dsv4.generator.verify import cases
from dsv4.generator.verify.case import Case
from dsv4.generator.verify.operators import moe_combine
from tests.ops.builds import build_all, findings, ptx, takes_what_was_predicted, widths

ARCHS = ("sm_90a", "sm_100a")
SHAPES = {
    "of the token": (1544, 5, {"gathered": False, "pdl": True}, {"threads": 128, "row_parts": 1}),
    "gathered": (768, 6, {"gathered": True}, {"threads": 32, "row_parts": 3}),
}


@pytest.fixture(scope="module", params=ARCHS)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, BuildResult]:
    plans = [
        plan("moe_combine", request.param, dims={"d": d, "k": k}, variant=variant, config=config)
        for d, k, variant, config in SHAPES.values()
    ]
    return dict(zip(SHAPES, build_all(plans, tmp_path_factory.mktemp("combine")), strict=True))


@pytest.mark.parametrize("shape", SHAPES)
def test_every_row_is_read_16_bytes_at_a_time(built: dict[str, BuildResult], shape: str) -> None:
    takes_what_was_predicted(built[shape])
    text = ptx(built[shape])
    assert text.count("ld.global.v4.b32") == (2 * (5 + 1) if shape == "of the token" else 6 + 1)
    assert widths(text, "st.global") == {"v4.b32"}
    assert ("griddepcontrol" in text) == (shape == "of the token")


@pytest.mark.parametrize("shape", SHAPES)
def test_values_of_a_kernel_that_is_no_default(built: dict[str, BuildResult], shape: str) -> None:
    assert findings(built[shape], range(10)) == []


def test_too_many_rows_in_registers_are_refused() -> None:
    with pytest.raises(Refused, match="more threads or row_parts"):
        plan("moe_combine", "sm_90a", dims={"d": 4096}, config={"row_parts": 1, "threads": 128})


def sum_of(case: Case, index: torch.Tensor) -> torch.Tensor:
    rows = case.inputs["rows"].double()
    terms = torch.where((index >= 0)[..., None], rows[index.clamp(min=0).long()], 0.0)
    return terms.sum(1) + case.inputs["shared"].double()


def absent_is_row_0(case: Case) -> torch.Tensor:
    return sum_of(case, case.inputs["index"].clamp(min=0)).nan_to_num(nan=1.0)


def last_route_left_out(case: Case) -> torch.Tensor:
    return sum_of(case, torch.cat((case.inputs["index"][:, :-1], case.inputs["index"][:, -1:] * 0 - 1), dim=1))


def shared_left_out(case: Case) -> torch.Tensor:
    return sum_of(case, case.inputs["index"]) - case.inputs["shared"].double()


def neighbours_shared(case: Case) -> torch.Tensor:
    return shared_left_out(case) + case.inputs["shared"].double().roll(1, 0)


def added_in_bf16(case: Case) -> torch.Tensor:
    return shared_left_out(case).to(torch.bfloat16).double() + case.inputs["shared"].double()


@pytest.mark.parametrize(
    "mistake",
    [absent_is_row_0, last_route_left_out, shared_left_out, neighbours_shared, added_in_bf16],
    ids=lambda f: f.__name__,
)
def test_the_judge_finds_planted_mistakes(mistake: Callable[[Case], torch.Tensor]) -> None:
    case = cases("moe_combine", {"d": 256, "k": 6}, {"gathered": True})[1]
    right = {"out": sum_of(case, case.inputs["index"]).to(torch.bfloat16)}
    assert moe_combine.judge(right, case).ok and moe_combine.first_wrong(right, case, {}) is None
    wrong = {"out": mistake(case).to(torch.bfloat16)}
    assert not moe_combine.judge(wrong, case).ok
    assert moe_combine.first_wrong(wrong, case, {"row_parts": 1}) is not None
