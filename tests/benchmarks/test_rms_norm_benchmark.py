"""What the rms_norm benchmark counts as work and as error, and how it treats peers that are not there."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from benchmarks.harness.operator import Case, Unavailable
from benchmarks.peers import quack
from benchmarks.rms_norm import BENCHMARK, LARGE_ELEMENTS, bf16_position

CASE = Case("T=5 d=24", {"T": 5, "d": 24})


def inputs(**changes: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(5, 24, generator=generator).bfloat16()
    w = torch.randn(24, generator=generator).bfloat16()
    return {"x": x, "w": w, "eps": 1e-6, **changes}


def exact(given: dict[str, Any]) -> torch.Tensor:
    x = given["x"].double()
    return (given["w"].double() * x / (x.square().mean(-1, keepdim=True) + given["eps"]).sqrt()).bfloat16()


def test_the_correctly_rounded_result_has_no_errors() -> None:
    given = inputs()
    errors = BENCHMARK.check(CASE, given, exact(given))
    assert errors["not_correctly_rounded"] == 0 and errors["max_bf16_steps"] == 0
    assert errors["rel_l2"] < 3e-3


def test_neighbouring_values_are_counted_in_steps() -> None:
    given = inputs()
    output = exact(given)
    output.view(torch.int16)[1, 3] += 2
    errors = BENCHMARK.check(CASE, given, output)
    assert errors["max_bf16_steps"] == 2
    assert errors["not_correctly_rounded"] == pytest.approx(1 / (5 * 24))


@pytest.mark.parametrize("spoilt", ["one row missing", "nan"])
def test_a_wrong_result_is_refused(spoilt: str) -> None:
    given = inputs()
    output = exact(given)
    output[4] = 0.0 if spoilt == "one row missing" else float("nan")
    with pytest.raises(ValueError, match="relative L2"):
        BENCHMARK.check(CASE, given, output)


def test_bf16_positions_are_monotonic_across_zero() -> None:
    values = torch.tensor([-2.0, -1.0, -1e-40, -0.0, 0.0, 1e-40, 1.0, 2.0], dtype=torch.bfloat16)
    positions = bf16_position(values)
    assert positions[3] == positions[4] == 0
    assert bool((positions.diff() >= 0).all())


def test_work_counts_each_byte_once() -> None:
    work = BENCHMARK.work(CASE)
    assert work.bytes == 2 * (5 * 24) * 2 + 24 * 2
    assert work.flops == 4 * 5 * 24


def test_cases_have_distinct_labels_and_reach_the_large_size() -> None:
    cases = BENCHMARK.cases()
    assert len({case.label for case in cases}) == len(cases)
    for columns in {case.sizes["d"] for case in cases}:
        assert max(case.sizes["T"] for case in cases if case.sizes["d"] == columns) * columns >= LARGE_ELEMENTS


def test_our_own_peer_is_among_the_peers() -> None:
    assert BENCHMARK.ours in [peer.name for peer in BENCHMARK.peers()]


def test_a_peer_that_is_not_installed_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(quack.VARIABLE, raising=False)
    monkeypatch.setitem(sys.modules, "quack", None)
    with pytest.raises(Unavailable, match="quack is not installed"):
        quack.rms_norm(CASE)
