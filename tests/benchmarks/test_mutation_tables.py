"""The table of reasons and the arithmetic of the mutation file, and what the seeds file counts."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import mutations as table
from benchmarks.emulator_seeds import default_kernels
from benchmarks.mutations import KINDS, Reason, dumped, explain, read_reasons, stale, summary, total
from dsv4.emulator.mutations import FAMILIES, Mutation
from dsv4.generator.verify.mutation_run import Trial

MANIFEST = SimpleNamespace(
    op="fmha", arch="sm_90a", variant={"causal": False}, name="kernel", dims={}, config={}, ptx_sha256="0",
    predicted=SimpleNamespace(tmem_columns=0),
)  # fmt: skip
TEXT = ".visible .entry k()\n{\nbar.sync 0;\nret;\n}\n"


def trial(id_: str, category: str = "", place: str = "", schedule: str = "late") -> Trial:
    start = TEXT.index("bar.sync 0")
    made = Mutation(id_, id_.partition("/")[0], "d", "bar.sync", 3, "/x/ring.py:7", start, start + 10, "bar.sync 0", "")
    return Trial(made, category, place, "case", schedule if category else "", "said" if category else "", 2, 0.5)


WHOLE: Any = SimpleNamespace(manifest=MANIFEST, text=TEXT, runs=((SimpleNamespace(name="case"), "late"),))
REASONS = [
    Reason(("fmha/*/barrier-id/*",), "equivalent", "names"),
    Reason(("fmha/*/parity/*",), "missed", "no rule", {"causal": False}),
    Reason(("fmha/*/parity/*",), "not_reached", "elsewhere", {"causal": True}),
]


def test_the_committed_table_can_be_read() -> None:
    reasons = read_reasons()
    assert len(reasons) > 5 and {reason.kind for reason in reasons} <= set(KINDS)
    for reason in reasons:
        assert len(reason.reason) > 30 and "\n" not in reason.reason
        for pattern in reason.match:
            op, arch, family, place = pattern.split("/")
            assert op in ("fmha", "rms_norm") and arch in ("*", "sm_90a", "sm_100a"), pattern
            assert family == "*" or family.rstrip("0123456789+-") in FAMILIES, pattern
            assert "#" in place or place.endswith("*"), f"{pattern}: as narrow as it can be"


def test_a_bad_table_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "reasons.yaml"
    path.write_text("- {match: [x], kind: fine, reason: because}\n")
    with pytest.raises(ValueError, match="kind: found fine; valid: equivalent, not_reached, not_judged, missed"):
        read_reasons(path)


def test_the_first_reason_that_fits_the_variant_counts() -> None:
    assert explain(WHOLE, trial("parity/ring.acquire#0"), REASONS).kind == "missed"
    assert explain(WHOLE, trial("bytes/ring.acquire#0"), REASONS).kind == ""
    causal = SimpleNamespace(
        **{**vars(WHOLE), "manifest": SimpleNamespace(**{**vars(MANIFEST), "variant": {"causal": True}})}
    )
    assert explain(causal, trial("parity/ring.acquire#0"), REASONS).kind == "not_reached"  # type: ignore[arg-type]


def test_static_rules_come_before_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "check_ptx", lambda text, columns: [SimpleNamespace(check="store_waits")])
    survivor = explain(WHOLE, trial("parity/ring.acquire#0"), REASONS)
    assert (survivor.kind, survivor.static) == ("static", ("store_waits",))


def test_shares_leave_out_what_is_right_and_nothing_else() -> None:
    trials = [
        trial("drop-wait/a#0", "race", "line"), trial("drop-wait/a#1", "hang", "elsewhere", "early"),
        trial("drop-wait/a#2", "wrong values"), trial("barrier-id/a#0"), trial("parity/a#0"), trial("bytes/a#0"),
        trial("bytes/a#1", "error"),
    ]  # fmt: skip
    found = summary(WHOLE, trials, REASONS)
    assert (found["mutations"], found["found"], found["errors"]) == (7, 3, 1)
    assert found["survived"] == {"equivalent": 1, "missed": 1, "unexplained": 1}
    assert found["share"] == {"of_all": 0.4286, "of_wrong": 0.5, "of_wrong_with_static": 0.5}
    assert found["found_by"] == {"race": 1, "hang": 1, "wrong values": 1} and found["in_first_schedule"] == 2
    assert found["points_at"] == {"line": 1, "elsewhere": 1, "no line": 1}
    assert found["families"] == {"drop-wait": [3, 3], "parity": [0, 1], "barrier-id": [0, 1], "bytes": [0, 2]}
    assert [row["kind"] for row in found["survivors"]] == ["equivalent", "missed", ""]
    assert found["rows"][1] == ["drop-wait/a#1", "hang", "elsewhere", "early", 2]
    sums = total([found, found])
    assert (sums["mutations"], sums["found"], sums["share_of_wrong"]) == (14, 6, 0.5)
    assert stale(REASONS, [found]) == []
    assert stale([*REASONS, Reason(("fmha/sm_90a/stage/*",), "missed", "x")], [found]) == ["fmha/sm_90a/stage/*"]


def test_rows_stand_on_one_line_each() -> None:
    text = dumped({"rows": [["a", 1], ["b, c", 2]], "more": {"x": []}})
    assert '["a", 1]' in text and '["b, c", 2]' in text and json.loads(text)["rows"][1] == ["b, c", 2]


def test_all_default_kernels_of_both_chips_are_seeded() -> None:
    made = default_kernels()
    assert len(made) >= 52 and {each.arch for each in made} == {"sm_90a", "sm_100a"}
    assert {"fmha", "rms_norm"} <= {each.op for each in made}
