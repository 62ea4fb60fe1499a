"""Reading PTX: names local to braces, source lines, declarations, blocks, and errors that say where."""

from __future__ import annotations

import pytest

from dsv4.emulator.ptx import (
    Address,
    Immediate,
    Location,
    Pair,
    PtxError,
    Register,
    Sink,
    Symbol,
    Vector,
    basic_blocks,
    parse,
)

HEAD = ".version 8.8\n.target sm_100a\n.address_size 64\n.extern .shared .align 1024 .b8 smem[];\n"


def _kernel(body: str, parameters: str = "") -> str:
    registers = ".reg .pred %p<3>;\n.reg .b32 %r<9>;\n.reg .b64 %rd<4>;"
    return f"{HEAD}.visible .entry k({parameters})\n.reqntid 128, 2\n{{\n{registers}\n{body}\n}}\n"


def _entry(body: str, parameters: str = ""):  # type: ignore[no-untyped-def]
    return parse(_kernel(body, parameters)).entries["k"]


WAIT = """{{
.reg .pred P1;
LAB_WAIT: mbarrier.try_wait.parity.shared.b64 P1, [%r1+{offset}], %r2, 10000000;
@P1 bra.uni DONE;
bra.uni LAB_WAIT;
DONE:
}}
"""


def test_names_in_braces_are_local() -> None:
    entry = _entry(WAIT.format(offset=8) + WAIT.format(offset=16) + "ret;")
    assert [i.target for i in entry.instructions] == [-1, 3, 0, -1, 6, 3, -1]
    first, second = entry.instructions[0].operands[0], entry.instructions[3].operands[0]
    assert isinstance(first, Register) and isinstance(second, Register) and first.name != second.name
    assert entry.instructions[1].guard == first
    assert entry.registers[first.name] == "pred"


def test_inner_names_hide_outer_ones() -> None:
    entry = _entry("mov.b32 %r1, 1;\n{ .reg .b64 %r1; mov.b64 %r1, 2; }\nmov.b32 %r1, 3;")
    types = [i.operands[0].type for i in entry.instructions]
    assert types == ["b32", "b64", "b32"]


def test_vector_registers_have_a_name_and_four_elements() -> None:
    entry = _entry("{ .reg .v4 .b32 abcd; mov.b32 abcd.y, 1; mov.b32 abcd.a, 2; st.v4.b32 [%r1], abcd; }")
    y, last, whole = (i.operands[-1] if n == 2 else i.operands[0] for n, i in enumerate(entry.instructions))
    assert isinstance(whole, Vector) and [e.type for e in whole.elements] == ["b32"] * 4
    assert (whole.elements[1], whole.elements[3]) == (y, last)  # .r .g .b .a are other names of .x .y .z .w


def test_operands() -> None:
    text = (
        "elect.sync %r1|%p1, -1;\nst.shared.v2.b32 [%r2+-8], {%r3, _};\nmov.b32 %r1, 0f3F800000;\nmov.b32 %r4, smem;\n"
    )
    text += "cp.tensor [%r1], [%rd1, {%r2, %r3}], [%r4+16];\n@!%p2 mov.f64 %rd1, 0d3FF0000000000000;\nbar.sync 0x1F;"
    i = _entry(text).instructions
    assert i[0].operands == (Pair(Register("%r1", "b32"), Register("%p1", "pred")), Immediate("int", -1))
    assert i[1].operands[0] == Address(Register("%r2", "b32"), -8)
    assert i[1].operands[1] == Vector((Register("%r3", "b32"), Sink()))
    assert i[2].operands[1] == Immediate("f32", 0x3F800000)
    assert i[3].operands[1] == Symbol("smem")
    assert i[4].operands[1].coordinates == Vector((Register("%r2", "b32"), Register("%r3", "b32")))
    assert (i[5].guard.name, i[5].guard_negated) == ("%p2", True)
    assert i[6].operands == (Immediate("int", 31),)


def test_lines_inside_inline_assembly_are_frozen() -> None:
    body = """.loc 1 39 4
// begin inline asm
{
.reg .pred P1;
.loc 1 42 4
mbarrier.try_wait.parity.shared.b64 P1, [%r1], %r2, 1;
}
// end inline asm
.loc 2 7 3
mov.b32 %r1, 1;
.loc 2 0 3
mov.b32 %r2, 1;"""
    module = parse(_kernel(body) + '.file 1 "a.py"\n.file 2 "b.py"\n')
    assert [i.location for i in module.entries["k"].instructions] == [Location("a.py", 39)] + [Location("b.py", 7)] * 2


def test_column_zero_takes_the_line_of_a_neighbour() -> None:
    body = """.loc 1 10 7
setp.ne.b32 %p1, %r1, 0;
.loc 1 99 0
@%p1 bra SKIP;
elect.sync %r1|%p2, -1;
.loc 1 12 5
add.s32 %r1, %r1, 1;
SKIP:
.loc 1 99 0
ret;"""
    lines = [i.location.line for i in _entry(body).instructions]
    assert lines == [10, 10, 12, 12, 99]


def test_declarations() -> None:
    parameters = ".param .align 64 .b8 k_0[128],\n.param .f32 k_1,\n.param .align 8 .b8 k_2[24],\n.param .u8 k_3"
    module = parse(_kernel(".shared .align 16 .b8 stage[40];\n.local .align 8 .b8 depot[24];\nret;", parameters))
    entry = module.entries["k"]
    assert [(p.offset_bytes, p.size_bytes) for p in entry.parameters] == [(0, 128), (128, 4), (136, 24), (160, 1)]
    assert entry.parameter_bytes == 161
    assert entry.block_size == (128, 2, 1)
    assert entry.local_bytes == 24
    assert module.static_shared_bytes == 40
    assert module.shared["smem"].size_bytes == 0
    assert module.target == "sm_100a"


def test_blocks() -> None:
    entry = _entry(
        "setp.eq.b32 %p1, %r1, 0;\n@%p1 bra A;\nmov.b32 %r1, 1;\nA: mov.b32 %r2, 2;\nbra B;\nmov.b32 %r3, 3;\nB: ret;"
    )
    blocks = basic_blocks(entry)
    assert [(b.start, b.end) for b in blocks] == [(0, 2), (2, 3), (3, 5), (5, 6), (6, 7)]
    assert [b.successors for b in blocks] == [(2, 1), (2,), (4,), (4,), ()]


@pytest.mark.parametrize(
    ("body", "line", "words"),
    [
        ("add.s32 %r1, %r1, %r77;", 11, "%r77"),
        ("\nbra NOWHERE;", 12, "NOWHERE"),
        ("@%r1 ret;", 11, "predicate"),
        ("A: ret;\nA: ret;", 12, "twice"),
        (".global .b32 counter;", 11, ".global"),
        ("add.s32 %r1 %r2, 1;", 11, "expected"),
        ("ADD %r1;", 11, "neither"),
        ("add.s32 %r1, %r2, 12abc;", 11, "12abc"),
    ],
)
def test_errors_name_line_and_what_was_found(body: str, line: int, words: str) -> None:
    with pytest.raises(PtxError) as caught:
        parse(_kernel(body))
    assert caught.value.line == line
    assert words in str(caught.value) and f"PTX line {line}" in str(caught.value)


@pytest.mark.parametrize("text", ["", "hello", HEAD + ".visible .entry k()\n{\nret;\n", "}", HEAD + "ret;"])
def test_what_is_no_module_is_refused(text: str) -> None:
    with pytest.raises(PtxError):
        parse(text)
