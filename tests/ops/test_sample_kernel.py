"""sample's kernel: what the compiled code contains, its tokens in the emulator, and what its judge notices."""

from __future__ import annotations

import re

import pytest
import torch

from dsv4.generator.build import BuildResult
from dsv4.generator.device.filtered_noise import BOUND_ERROR, LOG2_E, MARGIN, MOST_BITS, SCALED_ERROR
from dsv4.generator.device.row_part import Part
from dsv4.generator.emit import emit
from dsv4.generator.spec import Refused, plan
from dsv4.generator.verify import cases, judge
from dsv4.generator.verify.emulator import EmulatedKernel
from dsv4.generator.verify.operators.sample import PARAMETERS, acceptable
from dsv4.generator.verify.run import bind
from dsv4.runtime.cache import Artifact
from tests.ops.builds import build_all, findings, folder, ptx, takes_what_was_predicted

ARCHS = ("sm_90a", "sm_100a")
CASES = 21  # that are not empty
ONE_PART = {"many_rows": 1, "threads": 64}
# V, bf16, pdl, configuration; none is a default kernel
SHAPES = {
    "one CTA": (320, False, False, {"ctas": 1, "many_ctas": 1, **ONE_PART}),
    "a cluster": (1000, False, True, {"ctas": 4, "many_ctas": 4, **ONE_PART}),
    "bf16": (1048, True, True, {"ctas": 2, "many_ctas": 2, **ONE_PART}),
    "few and many rows": (2312, False, False, {"ctas": 4, "many_ctas": 1, "many_rows": 32, "threads": 64}),
}
HELD = ("one CTA", "a cluster", "bf16")


@pytest.fixture(scope="module", params=ARCHS)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, BuildResult]:
    plans = [
        plan("sample", request.param, dims={"V": size}, variant={"bf16_logits": bf16, "pdl": pdl}, config=config)
        for size, bf16, pdl, config in SHAPES.values()
    ]
    return dict(zip(SHAPES, build_all(plans, tmp_path_factory.mktemp("sample")), strict=True))


@pytest.mark.parametrize("shape", HELD)
def test_the_logits_are_read_once_16_bytes_at_a_time(built: dict[str, BuildResult], shape: str) -> None:
    takes_what_was_predicted(built[shape])
    size, bf16, pdl, config = SHAPES[shape]
    text = ptx(built[shape])
    vectors = -(-(-(-size // (8 if bf16 else 4)) // config["ctas"]) // config["threads"])
    assert len(re.findall(r"ld\.global\.(?:v4\.b32|v2\.b64)", text)) == vectors
    assert ("griddepcontrol" in text) == pdl
    assert ("barrier.cluster" in text) == ("mapa" in text) == (config["ctas"] > 1)


@pytest.mark.parametrize("shape", HELD)
def test_tokens_of_a_kernel_that_is_no_default(built: dict[str, BuildResult], shape: str) -> None:
    assert findings(built[shape], range(CASES)) == []


def test_many_rows_are_drawn_as_few_are(built: dict[str, BuildResult]) -> None:
    """Held in the registers of a cluster or read again by one CTA: the same tokens, bit by bit."""
    artifact = Artifact.read(folder(built["few and many rows"]))
    made = artifact.manifest
    *apart, together = cases("sample", made.dims, made.variant, config=made.config)
    kernel = EmulatedKernel(artifact)
    got = []
    for case in (together, *apart):
        outputs = {"token": torch.full_like(case.expected["token"], -1)}
        kernel(*bind(made.contract, {**case.inputs, **outputs}))
        assert kernel.report is not None and list(kernel.report.findings) == [], case.name
        assert judge("sample", outputs, case).ok, case.name
        got.append(outputs["token"])
    assert len(got[0]) >= 32 > max(map(len, got[1:]))
    assert torch.equal(got[0], torch.cat(got[1:]))


def test_scores_too_close_to_be_told_apart_before_the_largest_logit_is_known(built: dict[str, BuildResult]) -> None:
    """Logits of 1000 at a temperature of 1e-4: relative to 0 the noise is lost, relative to the largest it is not."""
    artifact = Artifact.read(folder(built["few and many rows"]))
    made = artifact.manifest
    rows = 32
    generator = torch.Generator().manual_seed(1)
    logits = torch.where(torch.rand(rows, made.dims["V"], generator=generator) < 0.5, 1000.0, 999.0)
    values = (
        torch.full((rows,), 1e-4),
        torch.zeros(rows, dtype=torch.int64),
        torch.ones(rows),
        torch.arange(rows),
        torch.arange(rows) * 5,
    )
    _, accepted = acceptable(logits, *values)
    token = torch.full((rows,), -1)
    kernel = EmulatedKernel(artifact)
    kernel(*bind(made.contract, {"logits": logits, **dict(zip(PARAMETERS, values, strict=True)), "token": token}))
    assert kernel.report is not None and list(kernel.report.findings) == []
    assert bool(accepted.gather(1, token[:, None]).all())


@pytest.mark.parametrize("schedule", ["late", "early", "newest-first", "starve:0:0", "mixed:1"])
def test_a_list_digits_ties_and_shares_under_other_schedules(built: dict[str, BuildResult], schedule: str) -> None:
    assert findings(built["a cluster"], (1, 3, 8, 11, 13, 19, 20), schedule) == []


def test_two_ctas_share_an_sm() -> None:
    """Top-k and top-p take no more registers than a row that wants neither."""
    assert plan("sample", "sm_90a").budget.blocks_per_sm == 2
    assert plan("sample", "sm_90a", config={"ctas": 8, "threads": 512}).budget.blocks_per_sm == 1
    assert "min_blocks_per_mp=2" in emit(plan("sample", "sm_90a")).text


def test_an_emitted_file_has_nothing_of_a_cluster_where_one_cta_has_the_row() -> None:
    text = emit(plan("sample", "sm_90a", dims={"V": 1024})).text
    assert "cluster_arrive" not in text and "cluster=" not in text and "BFloat16" not in text


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"ctas": 8, "threads": 1024}, "more ctas or fewer threads"),
        ({"ctas": 4, "many_ctas": 8}, "many_ctas up to ctas"),
        ({"ctas": 4, "many_ctas": 4, "many_rows": 64}, "many_rows 1 where"),
    ],
)
def test_what_is_refused(config: dict[str, int], reason: str) -> None:
    with pytest.raises(Refused) as refusal:
        plan("sample", "sm_90a", config=config)
    assert any(reason in text for text in refusal.value.reasons)


def test_a_row_is_divided_without_a_gap() -> None:
    for vocabulary, vector, ctas, threads in (
        (129280, 4, 1, 512),
        (129280, 8, 2, 512),
        (3080, 4, 4, 64),
        (8, 8, 1, 64),
    ):
        part = Part(vocabulary, vector, ctas, threads, listed=min(threads, 256))
        seen = []
        for rank in range(ctas):
            for chunk in range(part.chunks):
                for v in range(part.chunk_vectors):
                    own = [(v * part.chunks + chunk) * threads + thread for thread in range(threads)]
                    there = [
                        one
                        for one in own
                        if one < part.cta_vectors and rank * part.cta_vectors + one < vocabulary // vector
                    ]
                    assert part.may_miss(v) or there == own
                    seen += [rank * part.cta_vectors + one for one in there]
        assert sorted(seen) == list(range(vocabulary // vector))
        assert part.chunk == part.chunk_vectors * vector <= 32 and part.groups <= 256


def test_the_filter_keeps_whatever_can_win() -> None:
    """In float32, an exponential and upper bits that are off by what they may be: a token within 1e-4 of b stays."""
    generator = torch.Generator().manual_seed(0)
    count = 1 << 18
    inverted = torch.randint(2**62, (count,), generator=generator) >> torch.randint(60, (count,), generator=generator)
    m = (~inverted >> 12) & (2**52 - 1)  # small ones of 1 - u, where the noise is large, as often as others
    noise = -(-((m.double() + 0.5) * 2.0**-52).log()).log()
    size = 10 ** (torch.rand(count, generator=generator, dtype=torch.float64) * 8 - 2)
    b = (torch.rand(count, generator=generator, dtype=torch.float64) * 2 - 1) * size
    x = (b - 1e-4 - 2.0**-19 * b.abs() - noise).float()
    b = b.float()
    base = torch.tensor(32.0 + MARGIN) + b.abs() * torch.tensor(BOUND_ERROR) - b * torch.tensor(LOG2_E)
    low, high = (x * torch.tensor(LOG2_E * (1 + sign * SCALED_ERROR)) + base for sign in (-1, 1))
    bound = (torch.exp2(torch.maximum(low, high)) * (1 - 2.0**-21)).clamp(max=MOST_BITS).long() + 1
    upper = ((~inverted >> 32) & 0xFFFFFFFF) & ~1  # the last bit may be off
    rejected = upper < 0xFFFFFFFF - bound
    assert not rejected.any()
    behind = upper < 0xFFFFFFFF - (torch.exp2(torch.maximum(low, high) - 0.01).clamp(max=MOST_BITS).long() + 1)
    assert behind.double().mean() > 0.1  # a bound that is smaller by a hundredth would not do


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
