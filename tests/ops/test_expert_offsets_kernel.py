"""expert_offsets' kernel: what it takes, its permutations in the emulator, and what its judge notices."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch

from dsv4.generator.build import BuildResult
from dsv4.generator.spec import Refused, plan
from dsv4.generator.verify import cases, judge
from tests.ops.builds import build_all, findings, ptx, takes_what_was_predicted

ARCHS = ("sm_90a", "sm_100a")
# E, k, align_m, pdl, warps, few_routes, few_chunk, ranked_routes; none is a default kernel
SHAPES = {
    "few experts": (16, 6, 8, True, 32, 4096, 256, 256),
    "two of many": (200, 2, 1, False, 16, 8192, 128, 0),
    "all that threads are for": (24, 3, 4, False, 16, 4096, 128, 512),
}


@pytest.fixture(scope="module", params=ARCHS)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, BuildResult]:
    plans = [
        plan(
            "expert_offsets",
            request.param,
            dims={"E": experts, "k": k, "align_m": align},
            variant={"pdl": pdl},
            config={"warps": warps, "few_routes": few, "few_chunk": chunk, "ranked_routes": ranked},
        )
        for experts, k, align, pdl, warps, few, chunk, ranked in SHAPES.values()
    ]
    return dict(zip(SHAPES, build_all(plans, tmp_path_factory.mktemp("offsets")), strict=True))


@pytest.mark.parametrize("shape", SHAPES)
def test_it_takes_what_was_predicted(built: dict[str, BuildResult], shape: str) -> None:
    takes_what_was_predicted(built[shape])
    text, pdl = ptx(built[shape]), SHAPES[shape][3]
    # The launch behind count_kernel waits for it in either variant.
    assert text.count("griddepcontrol.wait") == (4 if pdl else 1)
    # Nothing depends on who comes first: what was there before an addition is never looked at.
    kernels = [kernel for kernel in text.split(".entry")[1:] if "atom" in kernel]
    assert len(kernels) == 3
    for kernel in kernels:
        for register in re.findall(r"\batom\S*\s+(%r\d+),", kernel):
            assert len(re.findall(rf"{register}\b", kernel)) == 1


@pytest.mark.parametrize("shape", SHAPES)
def test_permutations_of_a_kernel_that_is_no_default(built: dict[str, BuildResult], shape: str) -> None:
    assert findings(built[shape], range(10)) == []


def test_more_routes_than_threads_are_refused() -> None:
    with pytest.raises(Refused) as refusal:
        plan("expert_offsets", "sm_90a", config={"warps": 16, "ranked_routes": 1024})
    assert any("a thread a route" in reason for reason in refusal.value.reasons)


def test_more_experts_than_threads_are_refused() -> None:
    with pytest.raises(Refused) as refusal:
        plan("expert_offsets", "sm_90a", dims={"E": 768}, config={"warps": 16})
    assert any("more warps" in reason for reason in refusal.value.reasons)


def two_routes_exchanged(got: dict[str, torch.Tensor]) -> None:
    got["route_row"][[0, 1], 0] = got["route_row"][[1, 0], 0]


def padding_left(got: dict[str, torch.Tensor]) -> None:
    got["row_token"][(got["row_token"] < 0).nonzero()[0]] = 0


def one_count(got: dict[str, torch.Tensor]) -> None:
    got["counts"][3] += 1


def unaligned(got: dict[str, torch.Tensor]) -> None:
    got["offsets"][5] -= 1


@pytest.mark.parametrize("mistake", [two_routes_exchanged, padding_left, one_count, unaligned])
def test_the_judge_finds(mistake: Callable[[dict[str, torch.Tensor]], None]) -> None:
    case = cases("expert_offsets", {"E": 16, "k": 6, "align_m": 8}, {})[1]
    got = {name: value.clone() for name, value in case.expected.items()}
    assert judge("expert_offsets", got, case).ok
    mistake(got)
    assert not judge("expert_offsets", got, case).ok
