"""The table of reasons and the arithmetic of the mutation file, and what the seeds file counts."""

from __future__ import annotations

import fnmatch
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import emulator_seeds as seeds
from benchmarks import mutations as table
from benchmarks.attention_kinds import attention_kernels
from benchmarks.emulator_seeds import default_kernels, one_each
from benchmarks.mutated_kernels import operator_kernels
from benchmarks.mutations import (
    KINDS,
    Reason,
    dumped,
    explain,
    explained_anew,
    read_reasons,
    stale,
    summary,
    total,
)
from dsv4.emulator.mutations import FAMILIES, Mutation
from dsv4.emulator.sources import Sources
from dsv4.generator.spec import default_plans, list_ops, load_op
from dsv4.generator.verify.early import EARLY
from dsv4.generator.verify.mutation_run import Subject, Trial, wide_cases
from dsv4.generator.verify.registry import operators

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
            assert fnmatch.filter(operators(), op) and arch in ("*", "sm_90a", "sm_100a"), pattern
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
    def check_ptx(text: str, columns: int) -> list[Any]:
        """One rule that the unmutated kernel breaks as well, which says nothing of the mutation."""
        found = [SimpleNamespace(check="single_issue", line=2)]
        return found if "bar.sync" in text else [*found, SimpleNamespace(check="store_waits", line=3)]

    monkeypatch.setattr(table, "check_ptx", check_ptx)
    survivor = explain(WHOLE, trial("parity/ring.acquire#0"), REASONS)
    assert (survivor.kind, survivor.static) == ("static", ("store_waits",))
    monkeypatch.setattr(table, "check_ptx", lambda text, columns: [SimpleNamespace(check="single_issue", line=2)])
    assert explain(WHOLE, trial("bytes/ring.acquire#0"), REASONS).kind == ""


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
    assert stale([*REASONS, Reason(("router*/sm_90a/stage/*",), "missed", "x")], [found]) == []  # of another file


def test_a_file_can_be_held_against_another_table() -> None:
    row = summary(WHOLE, [trial("parity/a#0"), trial("bytes/a#0"), trial("stage/a#0", "race")], [])
    assert row["survived"] == {"unexplained": 2} and row["share"]["of_wrong"] == 0.3333
    table = [Reason(("fmha/*/parity/*",), "equivalent", "names", {"causal": False})]
    anew = explained_anew(row, table)
    assert anew == summary(WHOLE, [trial("parity/a#0"), trial("bytes/a#0"), trial("stage/a#0", "race")], table)
    assert anew["survived"] == {"equivalent": 1, "unexplained": 1} and anew["share"]["of_wrong"] == 0.5


def test_rows_stand_on_one_line_each() -> None:
    text = dumped({"rows": [["a", 1], ["b, c", 2]], "more": {"x": []}})
    assert '["a", 1]' in text and '["b, c", 2]' in text and json.loads(text)["rows"][1] == ["b, c", 2]


READY = {op for op in list_ops() if load_op(op).status == "ready"}


def test_all_default_kernels_of_both_chips_are_seeded() -> None:
    made = default_kernels()
    assert len(made) >= 300 and {each.arch for each in made} == {"sm_90a", "sm_100a"}
    assert {each.op for each in made} == READY
    assert {each.op for each in default_kernels(["router*", "!router_*"])} == {"router"}
    assert {each.op for each in default_kernels(["!fmha"])} == READY - {"fmha"}


def test_one_of_each_is_the_smallest_with_dependent_launch_where_there_is() -> None:
    made = one_each(default_kernels(["embed", "swiglu_quant"]))
    of_embed = [(each.dims["d"], each.variant["copies"], each.variant["pdl"]) for each in made if each.op == "embed"]
    assert sorted(of_embed) == sorted([(512, 4, True), (512, 1, False)] * 2)
    assert {each.dims["I"] for each in made if each.op == "swiglu_quant"} == {2048}


def test_a_kernel_draws_two_schedules_at_least_and_none_after_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The case is run under the seven fixed schedules and those that are drawn; what is found is kept."""
    case, seen = SimpleNamespace(name="case"), []

    class Kernel:
        schedule, report = "", None

        def __init__(self, *_: Any, **options: Any) -> None:
            assert options["prior"] == {"x", "y"}

    def run_case(kernel: Any, *_: Any) -> Any:
        seen.append(kernel.schedule)
        finding = [SimpleNamespace(line=lambda: "race")] if kernel.schedule == "early" else []
        kernel.report = SimpleNamespace(stats={"instructions": 3}, findings=finding)
        return SimpleNamespace(findings=(), cosine=0.5)

    for name, fake in (("EmulatedObject", Kernel), ("run_case", run_case), ("from_artifact", lambda artifact: None)):
        monkeypatch.setattr(seeds, name, fake)
    monkeypatch.setattr(seeds, "small_cases", lambda manifest: [case])
    monkeypatch.setattr(seeds, "wide_cases", lambda manifest: [])
    arguments = [SimpleNamespace(name=name, kind="tensor") for name in ("x", "w", "y")]
    manifest = SimpleNamespace(
        **{**vars(MANIFEST), "op": "rms_norm", "variant": {"pdl": True}}, contract=SimpleNamespace(arguments=arguments)
    )
    artifact: Any = SimpleNamespace(manifest=manifest)
    row = seeds.run_kernel(artifact, 20, SimpleNamespace(), seconds=0.0)  # type: ignore[arg-type]
    assert (row["seeds"], row["runs"], row["warp_instructions"]) == (2, 9, 27) and row["worst_cosine"] == 0.5
    assert row["findings"] == ["case, early: race"] and seen[-2:] == ["mixed:0", "mixed:1"]
    assert seeds.run_kernel(artifact, 4, SimpleNamespace())["seeds"] == 4  # type: ignore[arg-type]


def test_one_kernel_of_each_other_operator_is_mutated_at_small_sizes() -> None:
    made = operator_kernels()
    assert {(each.op, each.arch) for each in made} == {
        (op, arch)
        for op in READY - {"fmha", "rms_norm", "sparse_attention_decode", "sparse_attention_prefill"}
        for arch in load_op(op).archs
    }
    assert all(each.variant["pdl"] for each in made)
    sizes = {each.op: each.dims for each in made}
    assert sizes["mhc_pre"] == {"d": 512} and sizes["router"]["E"] == 16
    assert {each.config["clusters"] for each in made if each.op == "mhc_pre"} == {1}
    assert sizes["compressor"] == {"m": 4, "D": 512}  # these pages have no other width


def test_every_kind_of_attention_over_gathered_rows_is_mutated() -> None:
    """All values of the tunables by which other code runs, and of the flags that say how rows come."""
    made = [each for each in attention_kernels() if each.op == "sparse_attention_decode"]
    spec = load_op("sparse_attention_decode")
    for arch, names in (
        ("sm_90a", ("operand_order", "pair")),
        ("sm_100a", ("cta_group", "load")),
    ):
        of_chip = [each for each in made if each.arch == arch]
        for name in names:
            values = {each.config[name] for each in of_chip}
            assert values == set(spec.tunables[name].on(arch)), name
    assert {each.variant["cache"] for each in made if each.arch == "sm_100a"} == {"kv_fp8", "kv_fp8_aligned", "plain"}
    assert {each.op for each in attention_kernels()} == {"sparse_attention_decode", "sparse_attention_prefill"}
    assert all(each.variant["pdl"] for each in attention_kernels())


def test_ctas_that_take_one_query_after_another_do_so_under_drawn_schedules() -> None:
    ops = set()
    for each in attention_kernels():
        for case in wide_cases(each):  # type: ignore[arg-type]
            queries = case.inputs["q"]
            assert isinstance(queries, torch.Tensor)
            assert len(queries) > int(each.config.get("persistent_ctas") or each.config["split_ctas"])
            ops.add(each.op)
    assert ops == {"sparse_attention_decode", "sparse_attention_prefill"}


def test_what_a_kernel_may_read_early_are_tensors_of_its_operator() -> None:
    for op, names in EARLY.items():
        tensors = {
            a.name for each in default_plans(op, "sm_90a") for a in each.contract.arguments if a.kind == "tensor"
        }
        assert names <= tensors, op


def test_ids_of_a_text_with_several_kernels_tell_them_apart() -> None:
    text = ".version 8.7\n.target sm_90a\n.address_size 64\n"
    text += "".join(f".visible .entry {name}()\n{{\nbar.sync 0;\nret;\n}}\n" for name in ("one", "two"))
    whole = Subject(MANIFEST, None, text, (), Sources([]), 1)  # type: ignore[arg-type]
    ids = [each.id for each in whole.mutations()]
    assert (
        len(ids) == len(set(ids)) == 4 and ids[0].startswith("drop-barrier/0:") and ids[2].startswith("drop-barrier/1:")
    )
