"""Peers: that one which is not there says so, and what is asked of those whose results are not ours bit for bit."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import pytest
import torch

from benchmarks import all_operators
from benchmarks import expert_offsets as expert_offsets_benchmark
from benchmarks import sample as sample_benchmark
from benchmarks.harness.operator import Case, Unavailable
from benchmarks.peers import flashinfer, tile_kernels
from benchmarks.peers.prepared import once
from benchmarks.wanted_kernels import plans, wanted
from dsv4.runtime.reference.expert_offsets import expert_offsets

OTHERS = {"flashinfer": "flashinfer", "tile-kernels": "tile_kernels"}


@pytest.mark.parametrize("name", all_operators.ORDER)
def test_a_package_that_is_not_installed_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every benchmark's every case: the peers of packages that are missing say which; nothing else is raised."""
    monkeypatch.setattr(importlib, "import_module", missing)
    flashinfer.function.cache_clear()
    tile_kernels.module.cache_clear()
    bench = importlib.util.find_spec(f"benchmarks.{name}")
    assert bench is not None and bench.loader is not None
    held = importlib.util.module_from_spec(bench)
    bench.loader.exec_module(held)
    for peer in held.BENCHMARK.peers():
        if peer.name not in OTHERS:
            continue
        for case in held.BENCHMARK.cases():
            with pytest.raises(Unavailable, match=rf"{OTHERS[peer.name]} is not installed|only|flashinfer has no"):
                peer.prepare(case)
        assert isinstance(peer.versions(), dict) and peer.about


def missing(name: str, package: str | None = None) -> Any:
    raise ModuleNotFoundError(f"No module named {name!r}")


def test_a_first_call_that_fails_is_a_peer_that_cannot() -> None:
    def fails(s: Any) -> Any:
        raise RuntimeError("no kernel image\nfor this device")

    with pytest.raises(Unavailable, match=r"flashinfer cannot \(RuntimeError: no kernel image for this device\)"):
        flashinfer.proven(fails)({})
    proven = flashinfer.proven(lambda s: 1 / s["x"])
    assert proven({"x": 2}) == 0.5
    with pytest.raises(ZeroDivisionError):  # later failures are what they are
        proven({"x": 0})


def test_prepared_tensors_are_made_once() -> None:
    made: list[int] = []
    doubled = once(lambda tensor: (made.append(1), 2 * tensor)[1])
    one, other = torch.ones(3), torch.zeros(3)
    assert torch.equal(doubled(one), 2 * one) and doubled(one) is doubled(one)
    assert torch.equal(doubled(other), other) and len(made) == 2


ROUTES = torch.tensor([[0, 2, 3, 4, 5, 6], [3, 2, 6, 0, 1, 4], [5, 3, 0, 2, 6, 1]], dtype=torch.int32)
COUNT = 8


def mapping(**changes: Any) -> tile_kernels.Mapping:
    """A right mapping, an expert's rows in reverse; ``changes`` replaces parts."""
    right = expert_offsets(ROUTES, count=COUNT, align=expert_offsets_benchmark.ALIGN)
    route_row, row_token = right.route_row.clone(), right.row_token.clone()
    of_first = (ROUTES == 3).nonzero(as_tuple=True)
    rows = route_row[of_first].flip(0)
    route_row[of_first] = rows
    row_token[rows.long()] = of_first[0].int()
    return tile_kernels.Mapping(right.offsets, route_row, row_token)._replace(**changes)


def test_a_mapping_may_have_the_rows_of_an_expert_in_any_order() -> None:
    assert not torch.equal(mapping().route_row, expert_offsets(ROUTES, count=COUNT, align=128).route_row)
    assert expert_offsets_benchmark.check_mapping(ROUTES, mapping(), COUNT) == {"wrong": 0.0}


def test_mistakes_in_a_mapping_are_found() -> None:
    right = mapping()
    twice, elsewhere, other = right.route_row.clone(), right.route_row.clone(), right.row_token.clone()
    twice[ROUTES == 3] = twice[ROUTES == 3][0]
    elsewhere[0, 0] = right.offsets[4]
    other[right.route_row[1, 1].long()] = 2
    for changed, named in (
        ({"route_row": twice}, "row_token|rows twice"),
        ({"route_row": elsewhere}, "route_row: 1 are wrong"),
        ({"row_token": other}, "row_token: 1 are wrong"),
        ({"offsets": right.offsets + 1}, "offsets"),
    ):
        with pytest.raises(ValueError, match=named):
            expert_offsets_benchmark.check_mapping(ROUTES, mapping(**changed), COUNT)


def drawn(way: tuple[int, float], tokens: list[int], *, joint: bool = False) -> dict[str, float]:
    """Two rows whose logits fall by 0.2 from token to token, twenty of them."""
    logits = torch.full((2, sample_benchmark.VOCABULARY), -50.0)
    logits[:, :20] = 0.0 - 0.2 * torch.arange(20)
    k, p = way
    inputs = {"logits": logits, "top_k": torch.full((2,), k), "top_p": torch.full((2,), p)}
    return sample_benchmark.check_drawn(inputs, flashinfer.Drawn(torch.tensor(tokens, dtype=torch.int32), joint))


@pytest.mark.parametrize(
    ("way", "good", "bad"),
    [
        ((0, 1.0), [0, 19], [0, sample_benchmark.VOCABULARY]),
        ((5, 1.0), [0, 4], [0, 5]),
        ((0, 0.5), [0, 3], [0, 4]),
        ((5, 0.5), [0, 1], [0, 2]),  # of the five that are left, two have half of the probability
    ],
    ids=["all", "top-k", "top-p", "both"],
)
def test_a_drawn_token_is_among_those_that_are_left(way: tuple[int, float], good: list[int], bad: list[int]) -> None:
    assert drawn(way, good) == {"outside": 0.0}
    with pytest.raises(ValueError, match="tokens"):
        drawn(way, bad)


def test_top_p_counts_among_all_tokens_where_both_are_taken_at_once() -> None:
    """Four of the twenty have 0.46 of the probability before them, the next 0.56."""
    assert drawn((5, 0.5), [0, 3], joint=True) == {"outside": 0.0}
    for beyond in (4, 5):
        with pytest.raises(ValueError, match="tokens"):
            drawn((5, 0.5), [0, beyond], joint=True)


def test_cases_have_all_token_counts_and_both_models() -> None:
    """T from a token to 32768 in every benchmark, and where the models differ in a size, both of theirs."""
    # attention is measured by batches, and its parts of 8192 tokens would fill the memory
    attention = {"sparse_attention_decode", "sparse_attention_prefill", "fmha_varlen", "attention_combine"}
    for name in sorted(set(all_operators.ORDER) - attention):
        cases: list[Case] = importlib.import_module(f"benchmarks.{name}").BENCHMARK.cases()
        counts = {case.sizes.get("T", case.sizes.get("R")) for case in cases}
        assert {1, 4, 16, 64, 256, 2048, 8192, 32768} <= counts, name
        others = [{k: v for k, v in case.sizes.items() if k not in ("T", "R")} for case in cases]
        assert name in ("sample", "indexer_q", "compressor") or len({str(each) for each in others}) > 1, name


def test_what_the_benchmarks_want_can_be_planned_for_both_chips() -> None:
    kernels = wanted(all_operators.ORDER)
    assert len(kernels) == len(set(kernels)) and {"router", "router_logits", "router_choose"} <= {w.op for w in kernels}
    assert {dict(each.variant)["pdl"] for each in kernels if each.op == "quantize"} == {False, True}
    for arch in ("sm_90a", "sm_100a"):
        made = plans([each for each in kernels if each.op != "sample"], arch)
        assert all(each.is_default for each in made) and len({each.name for each in made}) == len(made)
