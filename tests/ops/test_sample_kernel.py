"""sample's kernel: what the compiled code contains, its tokens in the emulator, and what its judge notices."""

from __future__ import annotations

import re

import pytest
import torch

from dsv4.generator.build import BuildResult
from dsv4.generator.emit import emit
from dsv4.generator.spec import Refused, plan
from dsv4.generator.verify import cases, judge
from dsv4.generator.verify.operators.sample import PARAMETERS, acceptable
from tests.ops.builds import build_all, findings, ptx, takes_what_was_predicted

ARCHS = ("sm_90a", "sm_100a")
CASES = 21  # that are not empty
# V, bf16, pdl, configuration; none is a default kernel
SHAPES = {
    "one CTA": (320, False, False, {"ctas": 1, "threads": 64}),
    "a cluster": (1000, False, True, {"ctas": 4, "threads": 64}),
    "bf16": (1048, True, True, {"ctas": 2, "threads": 64}),
}


@pytest.fixture(scope="module", params=ARCHS)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, BuildResult]:
    plans = [
        plan("sample", request.param, dims={"V": size}, variant={"bf16_logits": bf16, "pdl": pdl}, config=config)
        for size, bf16, pdl, config in SHAPES.values()
    ]
    return dict(zip(SHAPES, build_all(plans, tmp_path_factory.mktemp("sample")), strict=True))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_logits_are_read_once_16_bytes_at_a_time(built: dict[str, BuildResult], shape: str) -> None:
    takes_what_was_predicted(built[shape])
    size, bf16, pdl, config = SHAPES[shape]
    text = ptx(built[shape])
    vectors = -(-(-(-size // (8 if bf16 else 4)) // config["ctas"]) // config["threads"])
    assert len(re.findall(r"ld\.global\.(?:v4\.b32|v2\.b64)", text)) == vectors
    assert ("griddepcontrol" in text) == pdl
    assert ("barrier.cluster" in text) == ("mapa" in text) == (config["ctas"] > 1)


@pytest.mark.parametrize("shape", SHAPES)
def test_tokens_of_a_kernel_that_is_no_default(built: dict[str, BuildResult], shape: str) -> None:
    assert findings(built[shape], range(CASES)) == []


@pytest.mark.parametrize("schedule", ["late", "early", "newest-first", "starve:0:0", "mixed:1"])
def test_a_list_digits_ties_and_shares_under_other_schedules(built: dict[str, BuildResult], schedule: str) -> None:
    assert findings(built["a cluster"], (1, 3, 8, 11, 13, 19, 20), schedule) == []


def test_two_ctas_share_an_sm() -> None:
    """Top-k and top-p take no more registers than a row that wants neither."""
    assert plan("sample", "sm_90a").budget.blocks_per_sm == 2
    assert plan("sample", "sm_90a", config={"ctas": 8, "threads": 512}).budget.blocks_per_sm == 1
    text = emit(plan("sample", "sm_90a")).text
    assert "min_blocks_per_mp=2" in text and "GROUP_LANES = 32 " in text


def test_an_emitted_file_has_nothing_of_a_cluster_where_one_cta_has_the_row() -> None:
    text = emit(plan("sample", "sm_90a", dims={"V": 1024})).text
    assert "cluster_arrive" not in text and "cluster=" not in text and "BFloat16" not in text


def test_too_many_logits_for_a_thread_are_refused() -> None:
    with pytest.raises(Refused) as refusal:
        plan("sample", "sm_90a", config={"ctas": 8, "threads": 256})
    assert any("more ctas or threads" in reason for reason in refusal.value.reasons)


def test_the_judge_accepts_the_references_tokens_and_few_others() -> None:
    for case in cases("sample", {"V": 1000}, {"bf16_logits": False}, empty=True):
        assert judge("sample", {"token": case.expected["token"]}, case).ok, case.name
        assert (case.expected["accepted"].sum(dim=1) <= 2).all()


def test_the_judge_finds_another_token() -> None:
    made = cases("sample", {"V": 1000}, {"bf16_logits": False})
    assert len(made) == CASES
    for case in made:
        assert not judge("sample", {"token": (case.expected["token"] + 1) % 1000}, case).ok, case.name


def test_the_edge_of_a_case_is_where_one_more_token_changes_the_draw() -> None:
    made = [case for case in cases("sample", {"V": 1000}, {"bf16_logits": False}) if "by the edge" in case.name]
    assert len(made) == 8
    for case in made:
        outside, inside = case.expected["token"].tolist()
        assert outside != inside, case.name


def test_only_a_mass_close_to_p_leaves_a_choice() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    probability = logits.double().softmax(dim=-1)[0]
    fixed = (torch.ones(1), torch.zeros(1, dtype=torch.int64))

    def accepted(p: float, seed: int) -> torch.Tensor:
        values = (*fixed, torch.tensor([p]), torch.tensor([seed]), torch.tensor([0]))
        return acceptable(logits, *values)[1][0]

    assert len(PARAMETERS) == 5
    for seed in range(50):
        edge = float(probability[0])  # the second token is kept or not, depending on the last bits of the mass
        assert int(accepted(edge, seed).sum()) in (1, 2) and not accepted(edge, seed)[2:].any()
        assert int(accepted(edge - 1e-3, seed).sum()) == 1 and bool(accepted(edge - 1e-3, seed)[0])
