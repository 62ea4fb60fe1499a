"""One kernel of a PTX text by itself."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from dsv4.emulator.ptx import parse
from dsv4.emulator.sources import Sources
from dsv4.generator.verify.kernel_texts import alone, entry_spans, kernel_at
from dsv4.generator.verify.mutation_run import Subject

HEAD = ".version 8.7\n.target sm_90a\n.address_size 64\n\n"
ONE = ".visible .entry one(\n.param .u64 p\n)\n.reqntid 32\n{\n// a brace: }\n{\nbar.sync 0;\n}\nret;\n}\n"
TWO = "\n.visible .entry two()\n{\nbar.sync 1;\nret;\n}\n"
TAIL = '.file 1 "source.py"\n'
TEXT = HEAD + ONE + TWO + TAIL


def test_a_kernel_ends_where_its_brace_closes() -> None:
    spans = entry_spans(TEXT)
    assert list(spans) == ["one", "two"]
    assert TEXT[slice(*spans["one"])] == ONE.rstrip("\n")
    assert kernel_at(TEXT, TEXT.index("bar.sync 0")) == "one" and kernel_at(TEXT, TEXT.index("bar.sync 1")) == "two"
    with pytest.raises(ValueError, match="no kernel"):
        kernel_at(TEXT, TEXT.index(".file"))


@pytest.mark.parametrize(("name", "barrier"), [("one", "bar.sync 0"), ("two", "bar.sync 1")])
def test_the_others_are_gone_and_lines_keep_their_numbers(name: str, barrier: str) -> None:
    only = alone(TEXT, name)
    assert list(parse(only).entries) == [name] and only.count("\n") == TEXT.count("\n") and TAIL in only
    at = [number for number, line in enumerate(TEXT.splitlines()) if barrier in line]
    assert at == [number for number, line in enumerate(only.splitlines()) if "bar.sync" in line]


def test_kernels_that_no_run_launches_are_not_mutated_and_others_in_their_runs_alone() -> None:
    case: Any = [SimpleNamespace(name=name) for name in ("few", "many")]
    runs = ((case[0], "late"), (case[1], "late"), (case[1], "early"))
    launched = {"few": frozenset({"one"}), "many": frozenset({"one", "two"})}
    whole = Subject(None, None, TEXT, runs, Sources([]), 1, launched)  # type: ignore[arg-type]
    assert [case.name for case, _ in whole.runs_of("two")] == ["many", "many"] and len(whole.runs_of("one")) == 3
    first, second = (next(each for each in whole.mutations() if f"/{n}:" in each.id) for n in (0, 1))
    name, texts = whole.texts(second)
    assert name == "two" and texts[1].ptx == TEXT
    assert list(parse(texts[0].ptx).entries) == ["two"] and "bar.sync" not in texts[0].ptx
    assert whole.texts(first)[0] == "one"
    never = Subject(None, None, TEXT, runs[:1], Sources([]), 1, launched)  # type: ignore[arg-type]
    assert {each.id.partition("/")[2][0] for each in never.mutations()} == {"0"}
