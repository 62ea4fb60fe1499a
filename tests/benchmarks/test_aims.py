"""What falls short of its aim is found, said with its reason, and every committed result has been held against it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness.aims import TIE, Reason, judge, read_reasons, with_verdicts
from benchmarks.harness.result import RESULTS
from benchmarks.judge import judged, unexplained
from benchmarks.readme_tables import shortfalls

WHY = {"mhc_post": [Reason(cases="T=1 ", aim="peer", reason="its grid is small", profiled="2026-11-26")]}


def timed(cold_us: float, warm_us: float, of_copy: float = 1.0) -> dict[str, Any]:
    spread = {"p10_us": 0.99, "p90_us": 1.01}
    modes = {"cold": cold_us, "warm": warm_us}
    summaries = {
        mode: {"median_us": us, **{key: us * factor for key, factor in spread.items()}} for mode, us in modes.items()
    }
    return {**summaries, "achieved": {"cold": {"of_copy": of_copy}}}


def a_result(peers: dict[str, Any], *, op: str = "mhc_post", bytes_: int = 1, **sizes: int) -> dict[str, Any]:
    case = {"label": "T=1 d=4096", "sizes": sizes or {"T": 1, "d": 4096}, "work": {"bytes": bytes_}, "peers": peers}
    shown = [name for name in peers if name != "read weights"]
    return {"op": op, "ours": "dsv4 kernel", "shown": shown, "ceilings": {"empty_node_us": 1.0}, "cases": [case]}


def misses(result: dict[str, Any]) -> list[tuple[str, str]]:
    return [(each["aim"], each["mode"]) for each in judge(result, {}).get("T=1 d=4096", [])]


def test_a_row_that_meets_every_aim_has_an_empty_list() -> None:
    result = a_result({"dsv4 kernel": timed(2.0, 1.5), "torch.compile": timed(3.0, 2.5)})
    assert with_verdicts(result, WHY)["cases"][0]["short"] == []
    assert shortfalls(with_verdicts(result, WHY)) == ["", "Every row meets its aims."]


def test_a_faster_peer_is_found_in_each_mode_with_the_reason_and_what_pdl_does() -> None:
    peers = {"dsv4 kernel": timed(2.0, 1.5), "dsv4 kernel pdl": timed(1.2, 1.1), "torch.compile": timed(1.6, 1.0)}
    cold, warm = judge(a_result(peers), WHY)["T=1 d=4096"]
    assert (cold["mode"], cold["found"], cold["wanted"], cold["met_with_pdl"]) == ("cold", 2.0, 1.6, True)
    assert (warm["mode"], warm["with_pdl"], warm["met_with_pdl"], warm["reason"]) == (
        "warm", 1.1, False, "its grid is small",
    )  # fmt: skip


def test_peers_within_the_spread_are_a_tie_and_slower_ones_of_ours_are_no_peers() -> None:
    peers = {"dsv4 kernel": timed(2.0, 1.5), "torch.compile": timed(1.99, 1.6), "dsv4 other": timed(0.5, 0.5)}
    (cold,) = judge(a_result(peers), WHY)["T=1 d=4096"]
    assert cold["reason"] == TIE


@pytest.mark.parametrize(("of_copy", "bytes_", "missed"), [(0.89, 64_000_000, True), (0.9, 64_000_000, False),
                                                           (0.5, 63_000_000, False)])  # fmt: skip
def test_bandwidth_is_asked_of_large_rows(of_copy: float, bytes_: int, missed: bool) -> None:
    result = a_result({"dsv4 kernel": timed(20.0, 20.0, of_copy)}, bytes_=bytes_, T=8192, d=4096)
    assert misses(result) == ([("bandwidth", "cold")] if missed else [])


@pytest.mark.parametrize(("columns", "tokens", "warm_us", "missed"), [
    (4096, 64, 2.3, True), (4096, 64, 2.2, False), (7168, 64, 2.5, False), (7168, 1, 2.7, True),
    (4096, 65, 9.0, False),
])  # fmt: skip
def test_latency_is_held_against_an_empty_node(columns: int, tokens: int, warm_us: float, missed: bool) -> None:
    result = a_result({"dsv4 kernel": timed(3.0, warm_us)}, T=tokens, d=columns)
    assert misses(result) == ([("latency", "warm")] if missed else [])


@pytest.mark.parametrize(("warm_us", "missed"), [(2.9, True), (2.8, False)])
def test_readers_of_weights_are_held_against_a_kernel_that_only_reads(warm_us: float, missed: bool) -> None:
    result = a_result({"dsv4 kernel": timed(9.0, warm_us), "read weights": timed(2.5, 2.0)}, op="router")
    assert misses(result) == ([("weights", "warm")] if missed else [])


def test_operators_of_no_aim_are_left_alone() -> None:
    result = a_result({"dsv4 kernel": timed(9.0, 9.0), "torch": timed(1.0, 1.0)}, op="fmha")
    assert with_verdicts(result, {}) == result


@pytest.mark.parametrize("text", ["mhc_post: [{cases: x}]", "nothing: []", "mhc_post: [", "- 1"])
def test_a_file_of_reasons_that_is_none_is_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "reasons.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"^reasons\.yaml: ") as caught:
        read_reasons(path)
    assert "\n" not in str(caught.value)


def test_every_committed_row_that_falls_short_says_why() -> None:
    stale = [path.name for path, found, wanted in judged(RESULTS) if found != wanted]
    assert not stale, "python -m benchmarks.judge --write"
    assert [line for _, _, wanted in judged(RESULTS) for line in unexplained(wanted)] == []
