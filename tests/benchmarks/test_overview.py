"""The overview of all operators: each row beside its fastest peer, as a table and as a picture."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks import overview
from benchmarks.harness.aims import BANDWIDTH_BYTES, JUDGED
from tests.benchmarks.test_results import make_result

SVG = "{http://www.w3.org/2000/svg}"


def result(op: str = "router", **peers: Any) -> dict[str, Any]:
    made = {**make_result(), "op": op}
    made["cases"][1]["work"]["bytes"] = BANDWIDTH_BYTES
    for case in made["cases"]:
        case["peers"].update(peers)
    return made


def test_each_row_is_held_to_its_fastest_peer_and_never_to_our_own_forms() -> None:
    found = overview.standing("file.json", result())
    assert found is not None and found.peers == ("theirs",)
    assert found.ratios == {"small": pytest.approx((1.5, 1.5)), "large": pytest.approx((1.5, 1.5))}
    assert found.mean(0) == pytest.approx(1.5) and found.worst()[1] == pytest.approx(1.5)
    assert found.of_copy == (pytest.approx(0.83, abs=0.01),)  # of the row that moves enough


def test_without_a_peer_in_any_row_there_is_nothing_to_show() -> None:
    assert overview.standing("file.json", result(theirs={"skipped": "not installed"})) is None


def test_the_table_has_a_line_an_operator_in_the_order_of_the_groups() -> None:
    made = [overview.standing(f"{op}.json", result(op)) for op in ("sample", "embed", "fmha")]
    lines = overview.table([each for each in made if each]).splitlines()
    assert [line.split("]")[0] for line in lines[2:5]] == ["| [fmha", "| [embed", "| [sample"]
    assert "| 2 | theirs | 1.50× / 1.50× | small: 1.50× | 83 to 83 % |" in lines[2]


def test_the_picture_has_a_dot_for_each_row_and_a_larger_one_for_the_mean() -> None:
    made = overview.standing("router.json", result("router"))
    assert made is not None
    tree = ElementTree.fromstring(overview.picture([made]))
    assert tree.tag == f"{SVG}svg"
    kinds = [dot.get("class") for dot in tree.iter(f"{SVG}circle")]
    assert kinds == ["row", "row", "mean"]
    assert "router, small: 1.50× cold, 1.50× warm" in "".join(tree.itertext())


def test_every_judged_operator_has_a_place() -> None:
    assert {op for ops in overview.GROUPS.values() for op in ops} >= JUDGED
