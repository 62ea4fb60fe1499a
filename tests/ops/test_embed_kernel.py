"""embed's kernel: what the compiled code contains, its values in the emulator, and what its judge notices."""

from __future__ import annotations

import pytest
import torch

from dsv4.generator.build import BuildResult
from dsv4.generator.spec import Refused, default_plans, plan
from dsv4.generator.verify import cases
from dsv4.generator.verify.operators import embed
from tests.ops.builds import build_all, findings, ptx, takes_what_was_predicted, widths

ARCHS = ("sm_90a", "sm_100a")


@pytest.fixture(scope="module", params=ARCHS)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> BuildResult:
    variant = {"long_tokens": False, "copies": 4, "pdl": True}
    made = plan("embed", request.param, dims={"d": 768}, variant=variant, config={"threads": 32})
    return build_all([made], tmp_path_factory.mktemp("embed"))[0]


def test_a_row_is_read_once_and_written_once_a_stream(built: BuildResult) -> None:
    takes_what_was_predicted(built)
    text = ptx(built)
    assert widths(text, "st.global") == {"v4.b32"} and text.count("st.global") == 4
    assert text.count("ld.global") == 2  # the token, its row
    assert "griddepcontrol" not in text.split("ld.global")[-1]


def test_values_of_a_kernel_that_is_no_default(built: BuildResult) -> None:
    assert findings(built, range(8)) == []


@pytest.mark.parametrize("arch", ARCHS)
def test_the_models_sizes_are_default_kernels(arch: str) -> None:
    made = {(each.dims["d"], each.variant["copies"], each.variant["pdl"]) for each in default_plans("embed", arch)}
    assert {(d, 4, pdl) for d in (512, 4096, 7168) for pdl in (False, True)} <= made


def test_threads_that_do_not_divide_a_row_are_refused() -> None:
    with pytest.raises(Refused, match="threads that divide"):
        plan("embed", "sm_90a", dims={"d": 7168}, config={"threads": 512})


def test_the_judge_finds_planted_mistakes() -> None:
    every = cases("embed", {"d": 512}, {"copies": 4})
    case, bits = every[1], every[-1]
    right = embed._rows(case)
    assert embed.judge({"streams": right}, case).ok
    negative_zero = torch.where(right == right[0, 0, 0], -right, right)
    for wrong in (right.roll(1, 0), torch.cat([right[:, :3], right[:, 3:].roll(1, 2)], 1), negative_zero):
        assert not embed.judge({"streams": wrong.contiguous()}, case).ok
        assert embed.first_wrong({"streams": wrong.contiguous()}, case, {"threads": 64}) is not None
    quiet = embed._rows(bits).float().bfloat16()
    quiet[quiet.isnan()] = float("nan")  # as arithmetic would leave them
    assert not embed.judge({"streams": quiet}, bits).ok
