"""The router's kernels: what the code contains, their choices in the emulator, and what their judges notice."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from dsv4.generator.build import BuildResult
from dsv4.generator.emit import emit
from dsv4.generator.spec import Refused, default_plans, plan
from dsv4.generator.verify import cases, judge
from dsv4.generator.verify.case import Case
from dsv4.generator.verify.routing import tensor_core_error
from tests.ops.builds import build_all, findings, ptx, takes_what_was_predicted, widths

ARCHS = ("sm_90a", "sm_100a")
# op, dims, variant, configuration; none is a default kernel
KERNELS = {
    "gate": ("router", {"d": 512, "E": 40}, {"pdl": True}, {"k_splits": 2, "warps": 4}),
    "hash": ("router_hash", {"d": 512, "E": 16}, {}, {"route_warps": 2}),
    "logits": ("router_logits", {"d": 512, "E": 64}, {"pdl": True}, {"tile_n": 64, "stages": 3}),
    "narrow logits": ("router_logits", {"d": 256, "E": 8}, {}, {"tile_n": 8, "stages": 4}),
    "choose": ("router_choose", {"E": 128}, {}, {"warps": 2}),
    "choose by table": ("router_choose", {"E": 16}, {"hash": True, "pdl": True}, {"warps": 1}),
}


@pytest.fixture(scope="module", params=ARCHS)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, BuildResult]:
    plans = [
        plan(op, request.param, dims=dims, variant=flags, config=config) for op, dims, flags, config in KERNELS.values()
    ]
    return dict(zip(KERNELS, build_all(plans, tmp_path_factory.mktemp("router")), strict=True))


@pytest.mark.parametrize("name", KERNELS)
def test_it_takes_what_was_predicted_and_waits_only_where_it_has_to(built: dict[str, BuildResult], name: str) -> None:
    takes_what_was_predicted(built[name])
    assert ("griddepcontrol" in ptx(built[name])) == KERNELS[name][2].get("pdl", False)


def test_what_is_read_much_is_read_16_bytes_at_a_time(built: dict[str, BuildResult]) -> None:
    assert ptx(built["gate"]).count("ld.global.v4.b32") == 2 * (1 + 2)  # steps; gate, and 16 tokens
    assert ptx(built["hash"]).count("ld.global.v4.b32") == 2
    assert "v4" in "".join(widths(ptx(built["choose"]), "ld.global"))
    copies = ptx(built["logits"])
    assert copies.count("cp.async.cg.shared.global") == 3 * (64 + 64) * 8 // 256  # two stages filled, one in the loop
    assert "ld.shared.v4" in copies and "ldmatrix" not in copies


def test_the_gate_is_read_before_the_launch_before_has_ended(built: dict[str, BuildResult]) -> None:
    before, after = ptx(built["gate"]).split("griddepcontrol.wait")
    assert before.count("ld.global.v4.b32") == 2 and after.count("ld.global.v4.b32") == 4
    before, _ = ptx(built["logits"]).split("griddepcontrol.wait")
    assert before.count("cp.async.cg.shared.global") == 2 * 64 * 8 // 256


@pytest.mark.parametrize("name", KERNELS)
def test_choices_of_a_kernel_that_is_no_default(built: dict[str, BuildResult], name: str) -> None:
    assert findings(built[name], range(6)) == []


def test_an_emitted_file_has_nothing_of_the_other_kinds() -> None:
    by_gate = emit(plan("router", "sm_90a")).text
    by_table = emit(plan("router_choose", "sm_90a", variant={"hash": True})).text
    by_score = emit(plan("router_choose", "sm_90a")).text
    assert "choose_largest" not in by_table and "tid2eid[" not in by_score and "tid2eid[" in by_table
    assert "{%" not in by_gate + by_table + by_score


@pytest.mark.parametrize("op", ["router", "router_hash", "router_logits"])
@pytest.mark.parametrize("arch", ARCHS)
def test_both_models_have_default_kernels(arch: str, op: str) -> None:
    made = {(each.dims["d"], each.dims["E"], each.variant["pdl"]) for each in default_plans(op, arch)}
    assert made == {(d, e, p) for d, e in ((4096, 256), (7168, 384)) for p in (False, True)}


@pytest.mark.parametrize(
    ("op", "dims", "variant", "config", "named"),
    [
        ("router", {"d": 4096}, {}, {"k_splits": 3}, "divides d"),
        ("router", {"d": 7168, "E": 384}, {}, {"k_splits": 1, "warps": 8}, "more k_splits or warps"),
        ("router_hash", {"d": 768}, {}, {"route_warps": 4}, "divides d"),
        ("router_hash", {"d": 4096, "k": 12}, {}, {"route_warps": 4}, "up to 32"),
        ("router_logits", {"d": 4096, "E": 384}, {}, {"tile_n": 256}, "divides E"),
    ],
)
def test_what_cannot_work_is_refused(op: str, dims: dict, variant: dict, config: dict, named: str) -> None:
    with pytest.raises(Refused) as refusal:
        plan(op, "sm_90a", dims=dims, variant=variant, config=config)
    assert any(named in reason for reason in refusal.value.reasons)


def test_a_sum_of_small_numbers_may_be_off_little() -> None:
    assert tensor_core_error(torch.tensor(1.0), 8, 12).item() == pytest.approx(
        8 * 0.656 * 2**-20 + 12 * 2**-24, rel=1e-2
    )


def ties() -> Case:
    return cases("router_choose", {"E": 16, "k": 6}, {"hash": False})[1]


def right(case: Case) -> dict[str, torch.Tensor]:
    return {"experts": case.expected["experts"].to(torch.int32), "weights": case.expected["weights"].float()}


def tie_to_the_higher_index(got: dict[str, torch.Tensor], case: Case) -> None:
    scores = case.expected["scores"]
    for token in range(scores.shape[0]):
        last = int(got["experts"][token, -1])
        equal = (scores[token] == scores[token, last]).nonzero().flatten()
        if int(equal[-1]) > last:
            got["experts"][token, -1] = equal[-1]
            return
    raise AssertionError("no tie in this case")


def expert_twice(got: dict[str, torch.Tensor], case: Case) -> None:
    got["experts"][2, 1] = got["experts"][2, 0]


def no_expert(got: dict[str, torch.Tensor], case: Case) -> None:
    got["experts"][3, 2] = 16


def weight_a_little_off(got: dict[str, torch.Tensor], case: Case) -> None:
    got["weights"][1, 1] *= 1 + 4e-5


def rows_exchanged(got: dict[str, torch.Tensor], case: Case) -> None:
    got["experts"][[0, 1]], got["weights"][[0, 1]] = got["experts"][[1, 0]], got["weights"][[1, 0]]


def not_normalised(got: dict[str, torch.Tensor], case: Case) -> None:
    got["weights"] /= 2.5


MISTAKES = (tie_to_the_higher_index, expert_twice, no_expert, weight_a_little_off, rows_exchanged, not_normalised)


def test_the_judge_passes_what_float64_chooses() -> None:
    assert judge("router_choose", right(ties()), ties()).ok


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_judge_finds(mistake: Callable[[dict[str, torch.Tensor], Case], None]) -> None:
    case = ties()
    got = right(case)
    mistake(got, case)
    assert not judge("router_choose", got, case).ok


def test_a_counter_that_is_left_is_found() -> None:
    case = cases("router", {"d": 512, "E": 16, "k": 6}, {})[2]
    got = {**right(case), "counters": torch.tensor([0, 3])}
    assert any("counters" in finding for finding in judge("router", got, case).findings)


def test_a_logit_that_lacks_a_term_is_found() -> None:
    case = cases("router_logits", {"d": 512, "E": 16}, {})[4]
    got = {"logits": case.expected["logits"].float()}
    assert judge("router_logits", got, case).ok
    y, gate = case.inputs["y"], case.inputs["gate"]
    assert isinstance(y, torch.Tensor) and isinstance(gate, torch.Tensor)
    got["logits"][0, 3, 5] -= float(y[3, 100]) * float(gate[5, 100])
    assert not judge("router_logits", got, case).ok
