"""Places in the source that are remembered while a kernel is traced: the compiler's answers, each to its own code."""

from __future__ import annotations

import sys
from types import FrameType

import pytest

from dsv4.generator.build import tracing

SAME = "import sys\n\n\ndef frame():\n    return sys._getframe()\n"


def frames_of(text: str, name: str) -> list[FrameType]:
    """Two frames of one function, at the same instruction, and one at another."""
    space = {"__name__": name}
    exec(compile(text, f"/nowhere/{name}.py", "exec"), space)
    return [space["frame"](), space["frame"]()]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    op = pytest.importorskip("cutlass._mlir_helpers.op")
    made: list[str] = []
    for name in ("_is_framework_stack_frame", "_fast_frameinfo"):
        original = getattr(op, name)  # a release without them makes this a test of nothing: then see where they went
        monkeypatch.setattr(op, name, lambda frame, name=name, ask=original: made.append(name) or ask(frame))
    tracing.remember_places()
    tracing.forget_places()
    return made


def test_the_compilers_answer_is_asked_for_once(calls: list[str]) -> None:
    from cutlass._mlir_helpers import op

    first, second = frames_of(SAME, "one")
    assert op._fast_frameinfo(first) is op._fast_frameinfo(second)
    assert op._fast_frameinfo(first).lineno == 5 and op._fast_frameinfo(first).filename == "/nowhere/one.py"
    assert op._is_framework_stack_frame(first) is False and op._is_framework_stack_frame(second) is False
    assert calls == ["_fast_frameinfo", "_is_framework_stack_frame"]
    tracing.forget_places()
    assert op._fast_frameinfo(first).lineno == 5 and len(calls) == 3


def test_equal_code_of_two_files_and_two_instructions_are_told_apart(calls: list[str]) -> None:
    from cutlass._mlir_helpers import op

    (one, _), (other, _) = frames_of(SAME, "one"), frames_of(SAME, "other")
    assert one.f_code == other.f_code  # to Python: the files' names are not compared
    assert [op._fast_frameinfo(frame).filename for frame in (one, other)] == ["/nowhere/one.py", "/nowhere/other.py"]
    here = sys._getframe()
    lines = {op._fast_frameinfo(here).lineno}
    lines.add(op._fast_frameinfo(here).lineno)
    assert len(lines) == 2
    framework = frames_of(SAME, "cutlass.somewhere")[0]
    assert op._is_framework_stack_frame(framework) is True and op._is_framework_stack_frame(one) is False
