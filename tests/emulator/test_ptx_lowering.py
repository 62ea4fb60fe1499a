"""Lowering: every known opcode form has a rule, unknown ones stop with a line, operands become slots and immediates."""

from __future__ import annotations

import re
from collections import defaultdict

import pytest

from dsv4.emulator.lower import find_rule, lower
from dsv4.emulator.program import FLAG_BRANCH, FLAG_CONVERGED, FLAG_EXIT, SPECIAL, Program
from dsv4.emulator.ptx import PtxError, parse

HEAD = ".version 8.8\n.target sm_100a\n.extern .shared .align 1024 .b8 smem[];\n"
HEAD += ".visible .entry k(.param .b64 k_0, .param .align 64 .b8 map[128])\n"
REGISTERS = "{\n.reg .pred %p<9>;\n.reg .b16 %h<9>;\n.reg .b32 %r<99>;\n.reg .b64 %rd<9>;\n.reg .b128 %q<3>;\n"


class _Names(dict):  # type: ignore[type-arg]
    """Numbers handlers as they come up."""

    def __missing__(self, name: str) -> int:
        self[name] = len(self)
        return self[name]


def _lower(body: str) -> tuple[Program, list[str], dict[str, int]]:
    names, slots = _Names(), {}
    module = parse(HEAD + REGISTERS + body + "\n}\n")
    program = lower(module, module.entries["k"], names, slots=slots)
    order = {number: name for name, number in names.items()}
    return program, [order.get(int(n), "") for n in program.instructions["handler"]], slots


def _slots(program: Program, index: int) -> list[int]:
    row = program.instructions[index]
    return program.slots[row["slot_first"] : row["slot_first"] + row["n_slots"]].tolist()


# forms of NVIDIA's examples and of this project's kernels that belong to the core, the tensor and the copy handlers
FORMS = (
    "atom.shared.cta.min.u32",
    "atom.global.max.s32",
    "atom.min.u32",
    "bar.sync",
    "bar.warp.sync",
    "bar.arrive",
    "barrier.cluster.arrive.relaxed",
    "barrier.cluster.wait",
    "cp.async.bulk.tensor.4d.shared::cta.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint",
    "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint.cta_group::2",
    "cp.async.bulk.tensor.2d.shared::cta.global.tile::gather4.mbarrier::complete_tx::bytes.L2::cache_hint",
    "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster.L2::cache_hint.cta_group::2",
    "cp.async.bulk.wait_group.read",
    "cp.async.bulk.commit_group",
    "cp.reduce.async.bulk.tensor.5d.global.shared::cta.add.tile.bulk_group.L2::cache_hint",
    "cp.async.ca.shared.global",
    "cp.async.mbarrier.arrive.noinc.shared.b64",
    "cp.async.commit_group",
    "cp.async.wait_group",
    "cp.async.wait_all",
    "cvta.param.u64",
    "cvta.to.global.u64",
    "cvta.shared.u64",
    "cvta.to.shared::cluster.u64",
    "elect.sync",
    "fence.proxy.async.shared::cta",
    "fence.mbarrier_init.release.cluster",
    "fence.acq_rel.cta",
    "fence.proxy.tensormap::generic.acquire.gpu",
    "griddepcontrol.wait",
    "ld.param.v2.b8",
    "ld.shared.v2.b64",
    "ld.global.v4.b32",
    "ld.global.nc.L1::no_allocate.L2::128B.v4.b32",
    "st.global.L1::no_allocate.v4.b64",
    "st.global.v8.b32",
    "st.b32",
    "ld.acquire.gpu.global.b32",
    "st.release.gpu.global.b32",
    "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16",
    "ldmatrix.sync.aligned.m16n16.x2.trans.shared.b8",
    "stmatrix.sync.aligned.m8n8.x4.shared.b16",
    "mapa.shared::cluster.u32",
    "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64",
    "mbarrier.arrive.expect_tx.shared.b64",
    "mbarrier.arrive.shared::cluster.b64",
    "mbarrier.expect_tx.relaxed.cta.shared.b64",
    "prefetch.tensormap",
    "setmaxnreg.dec.sync.aligned.u32",
    "tcgen05.mma.cta_group::2.kind::f16.collector::a::discard",
    "tcgen05.mma.cta_group::1.kind::mxf4nvf4.block_scale.block16.collector::a::discard",
    "tcgen05.commit.cta_group::2.mbarrier::arrive::one.shared::cluster.multicast::cluster.b64",
    "tcgen05.ld.sync.aligned.16x256b.x4.b32",
    "tcgen05.st.sync.aligned.16x128b.x16.b32",
    "tcgen05.cp.cta_group::2.32x128b.warpx4",
    "tcgen05.relinquish_alloc_permit.cta_group::1.sync.aligned",
    "tensormap.replace.tile.global_stride.global.b1024.b64",
    "tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release.gpu.sync.aligned",
    "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16",
    "wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3",
    "wgmma.wait_group.sync.aligned",
    "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32",
    "clusterlaunchcontrol.query_cancel.is_canceled.pred.b128",
    "red.global.add.f32",
)


@pytest.mark.parametrize("opcode", FORMS)
def test_every_form_has_a_rule(opcode: str) -> None:
    assert find_rule(opcode) is not None


@pytest.mark.parametrize(
    "opcode",
    [
        "mbarrier.arrive.noComplete.shared.b64",
        "add.s33",
        "cvt.rn.f32.f16x2.foo",
        "tcgen05.mma.cta_group::3.kind::f16",
        "wgmma.mma_async.sp",
        "ld.global.v3.b32",
        "cp.async.bulk.tensor.2d.shared::cta.global.im2col.mbarrier::complete_tx::bytes",
        "bar.syncs",
        "mma.sync",
    ],
)
def test_unknown_suffixes_are_refused_with_their_line(opcode: str) -> None:
    assert find_rule(opcode) is None
    with pytest.raises(PtxError, match=re.escape(opcode)) as caught:
        _lower(f"\n{opcode} %r1, %r2;")
    assert caught.value.line == 12


def test_a_missing_handler_is_an_error_and_no_silent_skip() -> None:
    module = parse(HEAD + REGISTERS + "add.s32 %r1, %r1, 1;\n}\n")
    with pytest.raises(PtxError, match="no handler named add_32"):
        lower(module, module.entries["k"], {})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("add.s64 %rd1, %r1, %rd2;", "b32"),
        ("mov.b32 %r1, %p1;", "predicate"),
        ("add.s32 %r1, %r2;", "2 operands"),
        ("cvt.f16.f32 %h1, %r1;", "rounding"),
        ("cvt.rn.e4m3x2.f32 %h1, %r1, %r2;", "satfinite"),
        ("setp.lo.f32 %p1, %r1, %r2;", "integers"),
        ("ld.global.b32 %r1, [%r2];", "64-bit address"),
        ("ld.global.b64 %r1, [%rd2];", "narrower"),
        ("mov.u32 %r1, nowhere;", "nowhere"),
        ("wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%r1, %r2}, %rd1, %rd2, %p1, 1, 1, 0, 0;", "accumulator"),
    ],
)
def test_wrong_operands_are_named(text: str, words: str) -> None:
    with pytest.raises(PtxError, match=words):
        _lower(text)


def test_registers_and_constants() -> None:
    program, names, slots = _lower(
        "add.s64 %rd1, %rd2, -1;\nadd.s32 %r1, %r2, -1;\nmov.u32 %r3, %tid.x;\nmov.u64 %rd3, %clock64;"
    )
    assert names[:4] == ["add_64", "add_32", "mov_32", "clock"]
    assert abs(slots["%rd1"] - slots["%rd2"]) >= 2
    constants = defaultdict(list)
    for slot, special, value in program.constants.tolist():
        constants[slot] = [special, value]
    wide = _slots(program, 0)[2]
    assert constants[wide] == constants[wide + 1] == [-1, 0xFFFFFFFF]
    assert constants[_slots(program, 1)[2]] == [-1, 0xFFFFFFFF]
    assert constants[_slots(program, 2)[1]][0] == SPECIAL["tid.x"]
    assert program.instructions["imm"][3][0] == 64


def test_symbols_and_parameters() -> None:
    program, names, _ = _lower(
        "ld.param.b32 %r1, [map+8];\nmov.b32 %r2, smem;\nmov.b64 %rd1, map;\ncvta.param.u64 %rd2, %rd1;"
    )
    assert names[:4] == ["ld_param", "add_32", "add_64", "mov_64"]
    assert program.instructions["imm"][0].tolist()[:5] == [64 + 8, 4, 1, 0, 4]
    specials = {slot: special for slot, special, _ in program.constants.tolist()}
    assert specials[_slots(program, 0)[1]] == SPECIAL["param_lo"]
    assert specials[_slots(program, 1)[1]] == SPECIAL["smem_base"]


def test_branches_guards_and_lines() -> None:
    program, _, slots = _lower("TOP: setp.eq.b32 %p1, %r1, 0;\n@!%p1 bra TOP;\n@%p1 bra END;\nbar.sync 1, 64;\nEND:\n")
    flags = program.instructions["flags"].tolist()
    assert flags == [0, FLAG_BRANCH, FLAG_BRANCH, FLAG_CONVERGED, FLAG_EXIT]
    assert program.instructions["target"].tolist()[1:3] == [0, 4]
    assert program.instructions["guard"].tolist()[1:3] == [slots["%p1"]] * 2
    assert program.instructions["guard_negate"].tolist()[1:3] == [1, 0]
    assert program.lines[int(program.instructions["line"][3])].opcode == "bar.sync"


def test_operands_of_asynchronous_instructions() -> None:
    text = "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster"
    text += ".L2::cache_hint [%r1+64], [%rd1, {%r2, %r3}], [%r4+8], %h1, %rd2;\n"
    text += "mbarrier.arrive.expect_tx.shared.b64 _, [%r4+16], 4096;\n"
    text += "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%r1, %r2, %r3, %r4},"
    text += " {%r5, %r6, %r7, %r8}, %rd2, %p1, 1, -1, 1;\n"
    text += (
        "tcgen05.mma.cta_group::1.kind::f16.collector::a::discard [%r1], [%r2], %rd1, %r3, {%r4, %r4, %r4, %r4}, %p1;\n"
    )
    text += "tcgen05.mma.cta_group::2.kind::mxf4nvf4.block_scale.block16 [%r1], %rd1, %rd2, %r3, [%r5], [%r6], %p1;"
    program, names, slots = _lower(text)
    assert names[:5] == ["tma_load", "mbarrier_arrive_expect_tx", "wgmma", "tcgen05_mma", "tcgen05_mma"]
    imm = program.instructions["imm"].tolist()
    assert _slots(program, 0) == [slots[n] for n in ("%r1", "%rd1", "%r2", "%r3", "%r4", "%h1")]
    assert imm[0][:5] == [2, 1, 64, 0, 8]
    assert _slots(program, 1)[:2] == [-1, slots["%r4"]] and imm[1][0] == 16
    assert len(_slots(program, 2)) == 4 + 4 + 1 + 1 and imm[2][:7] == [8, 16, 7, 1, 1, 1 | 4 | 16, 4]
    assert imm[3] == [0, 1, 1, 0, 4, 0, 0, 0] and _slots(program, 3)[4:6] == [-1, -1]
    assert imm[4] == [6, 2, 0, 16, 0, 0, 0, 0] and _slots(program, 4)[4:6] == [slots["%r5"], slots["%r6"]]
