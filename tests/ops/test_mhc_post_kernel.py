"""mhc_post's kernel: what the compiled code contains, its values in the emulator, and what its judge notices."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from dsv4.generator.build import BuildResult
from dsv4.generator.spec import Refused, default_plans, plan
from dsv4.generator.verify import cases
from dsv4.generator.verify.operators import mhc_post
from tests.ops.builds import build_all, findings, ptx, right_outputs, takes_what_was_predicted, widths

ARCHS = ("sm_90a", "sm_100a")
# d, threads, pdl, few_columns
SHAPES = {"4096": (4096, 128, False, 8), "768 in three CTAs": (768, 32, True, 2)}


@pytest.fixture(scope="module", params=ARCHS)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, BuildResult]:
    plans = [
        plan(
            "mhc_post",
            request.param,
            dims={"d": d},
            variant={"pdl": pdl},
            config={"threads": threads, "few_columns": few, "few_tokens": 4},
        )
        for d, threads, pdl, few in SHAPES.values()
    ]
    return dict(zip(SHAPES, build_all(plans, tmp_path_factory.mktemp("mhc_post")), strict=True))


@pytest.mark.parametrize("shape", SHAPES)
def test_it_compiles_without_spills_and_moves_16_bytes_at_a_time(built: dict[str, BuildResult], shape: str) -> None:
    result, (_, _, pdl, few) = built[shape], SHAPES[shape]
    takes_what_was_predicted(result)
    kernels = ptx(result).split(".entry")[1:]
    wide = [text for text in kernels if "v4.b32" in widths(text, "st.global")]
    assert len(wide) == 1 and len(kernels) == (1 if few == 8 else 2)
    for text in kernels:
        columns, width = (8, "v4.b32") if text in wide else (few, "b32")
        assert widths(text, "ld.global") == {"v4.b32", width} and widths(text, "st.global") == {width}
        assert text.count("ld.global") == 5 + 1 + 4 and text.count("st.global") == 4
        if "target sm_90a" in ptx(result):  # the other arch's compiler takes packed additions instead
            assert text.count("fma.rn.f32") == 4 * 4 * columns
        assert ("griddepcontrol" in text) == pdl
        if pdl:  # only the update can come from the launch before
            before, after = text.split("griddepcontrol.wait")
            assert before.count("ld.global") == 9 and after.count("ld.global") == 1


def test_values_of_a_kernel_that_is_no_default(built: dict[str, BuildResult]) -> None:
    assert findings(built["768 in three CTAs"], range(2, 12)) == []


@pytest.mark.parametrize("arch", ARCHS)
def test_the_models_sizes_are_default_kernels(arch: str) -> None:
    made = {(each.dims["d"], each.variant["pdl"]) for each in default_plans("mhc_post", arch)}
    assert made == {(d, pdl) for d in (512, 4096, 7168) for pdl in (False, True)}


def test_threads_that_do_not_divide_a_row_are_refused() -> None:
    with pytest.raises(Refused, match="threads that divide"):
        plan("mhc_post", "sm_90a", dims={"d": 7168}, config={"threads": 512})


def transposed(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return mhc_post.reference.mhc_post(**{**inputs, "comb": inputs["comb"].transpose(1, 2)})


def without_update(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return mhc_post.reference.mhc_post(**{**inputs, "post": torch.zeros_like(inputs["post"])})


def weights_in_bf16(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return mhc_post.reference.mhc_post(**{**inputs, "comb": inputs["comb"].bfloat16().float()})


def rounded_twice(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    mixed = mhc_post.reference.mhc_post(**{**inputs, "post": torch.zeros_like(inputs["post"])})
    return mixed + (inputs["post"][..., None] * inputs["update"][:, None].float()).bfloat16()


def neighbours_token(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return mhc_post.reference.mhc_post(**{**inputs, "post": inputs["post"].roll(1, 0)})


@pytest.mark.parametrize(
    "mistake", [transposed, without_update, weights_in_bf16, rounded_twice, neighbours_token], ids=lambda f: f.__name__
)
def test_the_judge_finds_planted_mistakes(mistake: Callable[[dict[str, torch.Tensor]], torch.Tensor]) -> None:
    case = cases("mhc_post", {"d": 512}, {"pdl": False})[1]
    assert mhc_post.judge(right_outputs(case), case).ok
    wrong = {"new_streams": mistake(case.inputs).bfloat16()}
    verdict = mhc_post.judge(wrong, case)
    assert not verdict.ok and "new_streams" in verdict.findings[0]
    assert mhc_post.first_wrong(wrong, case, {"threads": 64}) is not None
