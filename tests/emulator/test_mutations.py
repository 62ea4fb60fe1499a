"""Generated mutations: which statements are changed, how, under which names, and that the rest of the text stays."""

from __future__ import annotations

import re

import pytest

from dsv4.emulator.mutations import FAMILIES, Mutation, mutations
from dsv4.emulator.ptx import PtxError, parse

HEAD = """.version 8.8
.target sm_100a
.extern .shared .align 1024 .b8 dynamic[];
.visible .entry kernel(.param .b64 pointer)
{
.reg .pred %p<8>; .reg .b32 %r<32>; .reg .b64 %d<8>;
"""
TAIL = "ret;\n}\n"


def made(body: str, **options: str) -> list[Mutation]:
    return mutations(HEAD + body + TAIL, **options)


def changes(body: str, family: str) -> list[str]:
    return [each.after for each in made(body) if each.family == family]


DROPPED = {
    "drop-fence": [
        "fence.proxy.async.shared::cta", "fence.mbarrier_init.release.cluster", "fence.acq_rel.gpu", "membar.gl",
        "wgmma.fence.sync.aligned", "tcgen05.fence::before_thread_sync", "tcgen05.wait::ld.sync.aligned",
        "tcgen05.wait::st.sync.aligned", "griddepcontrol.wait",
    ],
    "drop-arrive": [
        "mbarrier.arrive.shared.b64 %d1, [%r1], %r2", "mbarrier.arrive.expect_tx.shared.b64 _, [%r1+8], 64",
        "mbarrier.expect_tx.relaxed.cta.shared.b64 [%r1], 64", "bar.arrive 3, 64", "barrier.cluster.arrive.aligned",
        "tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster.b64 [%r1]",
        "cp.async.mbarrier.arrive.noinc.shared.b64 [%r1]",
    ],
    "drop-barrier": ["bar.sync 0", "barrier.sync.aligned 1, 64", "bar.warp.sync -1", "barrier.cluster.wait.aligned"],
    "drop-group": [
        "wgmma.commit_group.sync.aligned", "wgmma.wait_group.sync.aligned 0", "cp.async.commit_group",
        "cp.async.wait_group 1", "cp.async.wait_all", "cp.async.bulk.commit_group", "cp.async.bulk.wait_group.read 0",
    ],
}  # fmt: skip


@pytest.mark.parametrize(("family", "statement"), [(f, each) for f, all_ in DROPPED.items() for each in all_])
def test_a_statement_is_left_out_with_its_guard(family: str, statement: str) -> None:
    (dropped,) = [each for each in made(f"@%p1 {statement};\n") if each.family == family]
    assert dropped.before == f"@%p1 {statement}" and dropped.after == ""
    text = dropped.apply(HEAD + f"@%p1 {statement};\n" + TAIL)
    assert statement not in text and len(parse(text).entries["kernel"].instructions) == 1


@pytest.mark.parametrize(
    "statement",
    [
        "mov.b32 %r1, 3",
        "griddepcontrol.launch_dependents",
        "cp.async.cg.shared.global [%r1], [%d1], 16",
        "elect.sync _|%p1, -1",
    ],
)
def test_other_statements_stay(statement: str) -> None:
    assert made(f"{statement};\n") == []


WAIT = """{ .reg .pred P; W: mbarrier.try_wait.parity.shared.b64 P, [%r1+16], %r2, 10000000;
@P bra.uni D; bra.uni W; D: }
"""


def test_a_wait_passes_asks_for_the_other_phase_or_for_another_barrier() -> None:
    assert changes(WAIT, "drop-wait") == ["setp.eq.u32 P, 0, 0"]
    (parity,) = changes(WAIT, "parity")
    assert "xor.b32 %dsv4_changed, %r2, 1;" in parity and "[%r1+16], %dsv4_changed, 10000000;" in parity
    assert changes(WAIT.replace("%r2", "1"), "parity") == [
        "mbarrier.try_wait.parity.shared.b64 P, [%r1+16], 0, 10000000"
    ]
    addresses = changes(WAIT, "barrier-address")
    assert ["[%r1+16+8]" in addresses[0], "[%r1+16-8]" in addresses[1]] == [True, True]
    for each in made(WAIT):
        parse(each.apply(HEAD + WAIT + TAIL))


@pytest.mark.parametrize(
    ("statement", "family", "expected"),
    [
        ("mbarrier.init.shared.b64 [%r1], 4", "arrivals", ["[%r1], 5", "[%r1], 3"]),
        ("mbarrier.arrive.expect_tx.shared.b64 _, [%r1], 512", "bytes", ["528", "496", "640", "384"]),
        ("mbarrier.expect_tx.relaxed.cta.shared.b64 [%r1], 16", "bytes", ["32", "0", "144"]),
        ("bar.sync 2, 64", "threads", ["2, 96", "2, 32"]),
        ("bar.sync 15, 64", "barrier-id", []),
        ("bar.arrive 0, 64", "barrier-id", ["1, 64"]),
        ("wgmma.wait_group.sync.aligned 1", "kept-groups", ["2"]),
        ("cp.async.bulk.wait_group.read 0", "kept-groups", ["1"]),
        ("setmaxnreg.dec.sync.aligned.u32 40", "registers", ["48", "32"]),
        ("shfl.sync.bfly.b32 %r1, %r2, 16, 31, -1", "shuffle", ["8, 31, -1"]),
        ("shfl.sync.idx.b32 %r1, %r2, 16, 31, -1", "shuffle", []),
    ],
)
def test_numbers_change_by_a_step(statement: str, family: str, expected: list[str]) -> None:
    found = changes(f"{statement};\n", family)
    assert len(found) == len(expected)
    assert all(after.endswith(end) for after, end in zip(found, expected, strict=True)), found


def test_a_number_in_a_register_is_changed_before_the_statement() -> None:
    body = "mbarrier.init.shared.b64 [%r1], %r2;\n"
    more, fewer = changes(body, "arrivals")
    assert "add.s32 %dsv4_changed, %r2, 1; mbarrier.init" in more and "%r2, -1; mbarrier.init" in fewer
    (mutation,) = [each for each in made(body) if each.after == more]
    opcodes = [each.opcode for each in parse(mutation.apply(HEAD + body + TAIL)).entries["kernel"].instructions]
    assert opcodes == ["add.s32", "mbarrier.init.shared.b64", "ret"]


STAGES = """shl.b32 %r3, %r2, 3; add.s32 %r4, %r1, %r3; add.s32 %r5, %r4, 256;
shl.b32 %r6, %r2, 15; shl.b32 %r7, %r8, 15; mul.lo.s32 %r9, %r2, 4096;
mbarrier.arrive.shared.b64 _, [%r5];
cp.async.bulk.tensor.2d.shared::cta.global.tile.mbarrier::complete_tx::bytes [%r6], [%d1, {%r10, %r11}], [%r4+512];
"""


def test_a_stage_index_is_what_makes_a_barriers_address() -> None:
    found = [each for each in made(STAGES) if each.family == "stage"]
    assert [each.before.split(",")[-1].strip() for each in found] == ["3", "15", "4096"], "not that of %r8"
    assert all("xor.b32 %dsv4_changed, %r2, 1" in each.after for each in found)
    addresses = changes(STAGES, "barrier-address")
    assert ["[%r5+8]" in addresses[0], "[%r4+512+8]" in addresses[2], "[%d1, {%r10, %r11}]" in addresses[2]] == [
        True
    ] * 3


def test_names_survive_other_lines_and_are_unique() -> None:
    body = ".loc 1 7 3\nbar.sync 0;\nfence.proxy.async;\n.loc 1 9 3\nbar.sync 0;\n"
    file = '.file 1 "/somewhere/ring.py"\n'
    one = mutations(HEAD + body + TAIL + file)
    other = mutations(HEAD + "mov.b32 %r1, 0;\n\n" + body + TAIL + file)
    names = [each.id for each in one]
    assert names == [each.id for each in other] and len(set(names)) == len(names)
    assert "drop-barrier/ring.7#0" in names and "drop-barrier/ring.9#0" in names
    assert {each.source for each in one} == {"/somewhere/ring.py:7", "/somewhere/ring.py:9"}
    assert [other[n].ptx_line - one[n].ptx_line for n in range(len(one))] == [2] * len(one)


def test_only_the_statement_changes_and_no_line_moves() -> None:
    body = "bar.sync 0; bar.sync 0;\ncp.async.bulk.commit_group\n  ;\nbar.sync\n 0;\n" + WAIT + STAGES
    text = HEAD + body + TAIL
    for mutation in made(body):
        changed = mutation.apply(text)
        assert changed[: mutation.start] == text[: mutation.start] and changed.endswith(text[mutation.end :])
        assert changed.count("\n") == text.count("\n"), mutation
        assert mutation.family in FAMILIES and mutation.description and "\n" not in mutation.description
        parse(changed)
    places = [each.start for each in made(body) if each.family == "drop-barrier"]
    assert len(places) == len(set(places)) == 3


def test_what_is_refused() -> None:
    (mutation, *_) = made("bar.sync 0;\n")
    with pytest.raises(ValueError, match="not the one that the mutation was made for"):
        mutation.apply(HEAD + "mov.b32 %r1, 0;\n" + TAIL)
    with pytest.raises(PtxError):
        mutations("nothing")
    two = HEAD + TAIL + HEAD[HEAD.index(".visible") :].replace("kernel", "other") + "bar.sync 0;\n" + TAIL
    with pytest.raises(ValueError, match="kernel: found 2 in the PTX; valid: one of kernel, other"):
        mutations(two)
    assert [each.family for each in mutations(two, kernel="other")] == ["drop-barrier", "barrier-id"]
    assert re.fullmatch(r"drop-barrier/ptx:\d+#0", mutations(two, kernel="other")[0].id)
