"""Named barriers, mbarriers, the cluster barrier: right use gives no finding, each wrong use its own."""

from __future__ import annotations

import numpy as np
import pytest

from dsv4.emulator.policy import schedules
from tests.emulator.copy_kernel import Kernel, aligned, barrier_init, expect, wait

WORDS = 256
ALL = schedules(14, seed=1, warps=4)


def _kinds(kernel: Kernel) -> set[str]:
    return {kind for policy in ALL for kind, _ in kernel.findings(policy)}


def _messages(kernel: Kernel) -> str:
    return "\n".join(f"{kind}: {message}" for kind, message in kernel.findings())


def _out(words: int = WORDS) -> dict[str, np.ndarray]:
    return {"out": aligned(np.zeros(words, np.uint32))}


STORE_OWN = "shl.b32 %r0, %thread, 2; add.u32 %r1, %smem, %r0; st.shared.b32 [%r1+1024], %thread;"
READ_OTHER = """xor.b32 %r2, %thread, 32; shl.b32 %r3, %r2, 2; add.u32 %r3, %r3, %smem; ld.shared.b32 %r4, [%r3+1024];
    cvt.u64.u32 %d0, %r0; add.u64 %d0, %d0, %a_out; st.global.b32 [%d0], %r4;"""


@pytest.mark.parametrize(
    "barrier", ["bar.sync 0;", "bar.sync 3, 128;", "mov.u32 %r9, 5; barrier.sync.aligned %r9, 128;"]
)
def test_a_barrier_between_write_and_read_makes_it_right(barrier: str) -> None:
    kernel = Kernel(f"{STORE_OWN} {barrier} {READ_OTHER}", arrays=_out(), block=128)
    for policy in ALL:
        kernel.arrays["out"][:] = 0
        result, _ = kernel.run(policy)
        assert not result.findings, (policy.name, result.findings)
        assert np.array_equal(kernel.arrays["out"][:128], np.arange(128) ^ 32)


def test_without_the_barrier_it_is_a_race() -> None:
    assert "race" in _kinds(Kernel(f"{STORE_OWN} {READ_OTHER}", arrays=_out(), block=128))


def test_a_warp_barrier_orders_no_other_warp() -> None:
    assert "race" in _kinds(Kernel(f"{STORE_OWN} bar.warp.sync -1; {READ_OTHER}", arrays=_out(), block=128))


def test_participants_that_disagree_about_the_count() -> None:
    body = """setp.lt.u32 %p0, %thread, 32; @%p0 bra A; bar.sync 1, 128; bra E; A: bar.sync 1, 64; E:"""
    found = _messages(Kernel(body, block=128))
    assert "barrier: the participants of named barrier 1 disagree" in found


def test_a_barrier_that_not_all_reach_is_a_hang_with_its_counts() -> None:
    kernel = Kernel("setp.ge.u32 %p0, %thread, 96; @%p0 bra E; bar.sync 2, 128; E:", block=128)
    result, _ = kernel.run()
    hangs = [found for found in result.findings if found.kind == "hang"]
    assert [found.warp for found in hangs] == [0, 1, 2]
    assert "named barrier 2: 96 of 128 threads have arrived" in hangs[0].message
    assert hangs[0].wait[:2] == (128, 96)


def test_arrive_without_sync_orders_the_one_that_syncs() -> None:
    body = f"""setp.lt.u32 %p0, %thread, 32; @%p0 bra CONSUMER;
        {STORE_OWN} bar.arrive 4, 64; bra E;
        CONSUMER: bar.sync 4, 64; shl.b32 %r0, %thread, 2; {READ_OTHER} E:"""
    assert not _kinds(Kernel(body, arrays=_out(), block=64))
    wrong = body.replace(
        "bar.arrive 4, 64; bra E", "bra E2; E2: bar.arrive 4, 64; st.shared.b32 [%r1+1024], %thread; bra E"
    )
    assert "race" in _kinds(Kernel(wrong, arrays=_out(), block=64))


def test_divergent_lanes_meet_again_at_a_convergent_instruction() -> None:
    body = """and.b32 %r0, %thread, 1; setp.eq.u32 %p0, %r0, 0; @%p0 bra EVEN; mov.u32 %r1, 7; mov.u32 %r1, 8; bra J;
        EVEN: mov.u32 %r1, 3; J: elect.sync _|%p1, -1; selp.b32 %r2, 100, 0, %p1; add.u32 %r1, %r1, %r2;
        shl.b32 %r3, %thread, 2; cvt.u64.u32 %d0, %r3; add.u64 %d0, %d0, %a_out; st.global.b32 [%d0], %r1;"""
    kernel = Kernel(body, arrays=_out(32))
    for policy in ALL:
        result, _ = kernel.run(policy)
        assert not result.findings
        out = kernel.arrays["out"]
        assert np.array_equal(out % 100, np.where(np.arange(32) % 2, 8, 3)) and (out >= 100).sum() == 1


def test_lanes_that_never_come_are_named() -> None:
    body = "setp.lt.u32 %p0, %thread, 5; @%p0 bra A; bar.sync 0; bra E; A: elect.sync _|%p1, -1; E:"
    found = _messages(Kernel(body))
    assert "hang: lanes 0x0000001f wait for lanes 0xffffffe0 of the warp, which never come here" in found


def test_loops_with_different_trip_counts_reconverge() -> None:
    body = """and.b32 %r0, %thread, 7; mov.u32 %r1, 0; L: add.u32 %r1, %r1, 1; setp.le.u32 %p0, %r1, %r0; @%p0 bra L;
        vote.sync.ballot.b32 %r2, 1, -1; shl.b32 %r3, %thread, 2; cvt.u64.u32 %d0, %r3; add.u64 %d0, %d0, %a_out;
        st.global.b32 [%d0], %r1;"""
    kernel = Kernel(body, arrays=_out(32))
    assert not kernel.run()[0].findings
    assert np.array_equal(kernel.arrays["out"], np.arange(32) % 8 + 1)


# ------------------------------------------------------------------------------------------------------------ mbarriers

INIT = """@%lead mbarrier.init.shared.b64 [%smem], {full}; @%lead mbarrier.init.shared.b64 [%smem+8], {empty};
    bar.sync 0;"""


def pipeline(
    tiles: int, *, full: int = 32, empty: int = 32, drop_full: bool = False, drop_empty: bool = False, flip: int = 0
) -> str:
    """Warp 0 writes a value a tile, warp 1 reads and stores it: one stage, two mbarriers, phases by hand."""
    return f"""{INIT.format(full=full, empty=empty)}
        shl.b32 %r0, %thread, 2; mov.u32 %r5, 0; mov.u32 %r6, {1 ^ flip};
        setp.ge.u32 %p0, %thread, 32; @%p0 bra CONSUMER;
        P: {"" if drop_empty else wait("%smem+8", "%r6")} xor.b32 %r6, %r6, 1;
        add.u32 %r1, %smem, %r0; add.u32 %r2, %r5, 100; st.shared.b32 [%r1+1024], %r2;
        mbarrier.arrive.shared.b64 _, [%smem];
        add.u32 %r5, %r5, 1; setp.lt.u32 %p1, %r5, {tiles}; @%p1 bra P; bra E;
        CONSUMER: mov.u32 %r6, 0; mov.u64 %d2, %a_out; sub.u32 %r0, %r0, 128;
        C: {"" if drop_full else wait("%smem", "%r6")} xor.b32 %r6, %r6, 1;
        add.u32 %r1, %smem, %r0; ld.shared.b32 %r2, [%r1+1024];
        cvt.u64.u32 %d0, %r0; add.u64 %d0, %d0, %d2; st.global.b32 [%d0], %r2; add.u64 %d2, %d2, 128;
        mbarrier.arrive.shared.b64 _, [%smem+8];
        add.u32 %r5, %r5, 1; setp.lt.u32 %p1, %r5, {tiles}; @%p1 bra C; E:"""


@pytest.mark.parametrize("tiles", [1, 2, 3, 5])
def test_a_pipeline_of_one_stage(tiles: int) -> None:
    kernel = Kernel(pipeline(tiles), arrays=_out(32 * tiles), block=64)
    for policy in ALL:
        result, _ = kernel.run(policy)
        assert not result.findings, (policy.name, result.findings)
        assert np.array_equal(kernel.arrays["out"], np.repeat(np.arange(tiles) + 100, 32))


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"drop_full": True}, "race"),
        ({"drop_empty": True}, "race"),
        ({"flip": 1}, "hang"),
        ({"full": 33}, "hang"),
        ({"empty": 33}, "hang"),
        ({"full": 31}, "barrier"),
    ],
)
def test_a_pipeline_with_a_mistake(change: dict, kind: str) -> None:
    assert kind in _kinds(Kernel(pipeline(3, **change), arrays=_out(96), block=64))


def test_a_hang_says_which_barrier_phase_and_arrivals() -> None:
    result, _ = Kernel(pipeline(3, full=33), arrays=_out(96), block=64).run()
    consumer = next(found for found in result.findings if found.kind == "hang" and found.warp == 1)
    assert consumer.wait[2:6] == (0, 33, 1, 0)
    assert "phase 0 is open, 1 of 33 arrivals and 0 bytes are missing" in consumer.message


def test_arrivals_outstanding_at_exit() -> None:
    body = "@%lead mbarrier.init.shared.b64 [%smem], 3; bar.sync 0; @%lead mbarrier.arrive.shared.b64 _, [%smem];"
    assert "left in the middle of phase 0: 2 of 3 arrivals" in _messages(Kernel(body))


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("mbarrier.arrive.shared.b64 _, [%smem];", "there is no mbarrier at shared address 0x400"),
        ("@%lead mbarrier.init.shared.b64 [%smem+4], 1;", "misaligned"),
        ("@%lead mbarrier.init.shared.b64 [%smem], 0;", "an mbarrier for 0 arrivals"),
        (
            "@%lead mbarrier.init.shared.b64 [%smem], 1; bar.sync 0; @%lead st.shared.b32 [%smem+4], 1;",
            "a store overwrites a live mbarrier",
        ),
        (
            "@%lead mbarrier.init.shared.b64 [%smem], 32; mbarrier.arrive.shared.b64 _, [%smem]; ",
            None,  # one warp: its own lanes are ordered
        ),
        ("mov.u32 %r0, 17; bar.sync %r0;", "named barrier 17"),
        ("bar.sync 0, 48;", "for 48 threads"),
        ("setmaxnreg.dec.sync.aligned.u32 20;", "setmaxnreg 20"),
        ("trap;", "stops itself"),
        ("barrier.cluster.wait.aligned;", "without a barrier.cluster.arrive"),
        ("L: bra L;", "has not ended"),
    ],
)
def test_wrong_uses(body: str, text: str | None) -> None:
    found = _messages(Kernel(body))
    assert found == "" if text is None else text in found


def test_a_barrier_used_by_a_warp_that_is_not_ordered_after_its_initialisation() -> None:
    body = """@%lead mbarrier.init.shared.b64 [%smem], 64; setp.lt.u32 %p0, %thread, 32; @%p0 bra A; bar.warp.sync -1;
        A: mbarrier.arrive.shared.b64 _, [%smem];"""
    kernel = Kernel(body, block=64)
    assert any("ordered after its initialisation" in m for p in ALL for _, m in kernel.findings(p))


# -------------------------------------------------------------------------------------------------------------- cluster

REMOTE = """mapa.shared::cluster.u32 %r1, %smem, {peer}; shl.b32 %r0, %thread, 2; add.u32 %r1, %r1, %r0;
    add.u32 %r2, %rank, 40; st.shared::cluster.b32 [%r1+512], %r2; {sync}
    add.u32 %r3, %smem, %r0; ld.shared.b32 %r4, [%r3+512];
    shl.b32 %r5, %rank, 7; add.u32 %r5, %r5, %r0; cvt.u64.u32 %d0, %r5; add.u64 %d0, %d0, %a_out;
    st.global.b32 [%d0], %r4;"""
BOTH = "barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;"


def test_remote_shared_memory_behind_a_cluster_barrier() -> None:
    body = "xor.b32 %r9, %rank, 1;" + REMOTE.format(peer="%r9", sync=BOTH)
    kernel = Kernel(body, arrays=_out(64), cluster=2)
    for policy in ALL:
        result, _ = kernel.run(policy)
        assert not result.findings, (policy.name, result.findings)
        assert np.array_equal(kernel.arrays["out"], np.repeat([41, 40], 32))


def test_remote_shared_memory_without_the_barrier_is_a_race_or_unset() -> None:
    body = "xor.b32 %r9, %rank, 1;" + REMOTE.format(peer="%r9", sync="bar.sync 0;")
    kernel = Kernel(body, arrays=_out(64), cluster=2)
    assert _kinds(kernel) & {"race", "undefined_value"}


def test_a_relaxed_arrival_publishes_only_what_a_fence_did() -> None:
    relaxed = "{} barrier.cluster.arrive.relaxed.aligned; barrier.cluster.wait.aligned;"
    body = "xor.b32 %r9, %rank, 1;" + REMOTE
    fenced = Kernel(body.format(peer="%r9", sync=relaxed.format("fence.acq_rel.cluster;")), arrays=_out(64), cluster=2)
    bare = Kernel(body.format(peer="%r9", sync=relaxed.format("")), arrays=_out(64), cluster=2)
    assert not _kinds(fenced)
    assert "race" in _kinds(bare)


def test_a_cta_that_has_ended_cannot_be_written() -> None:
    body = """setp.eq.u32 %p0, %rank, 0; @%p0 bra E; mov.u32 %r8, 0; L: add.u32 %r8, %r8, 1; setp.lt.u32 %p1, %r8, 2000;
        @%p1 bra L; mapa.shared::cluster.u32 %r1, %smem, 0; st.shared::cluster.b32 [%r1], %rank; E:"""
    assert "exited_cta" in _kinds(Kernel(body, cluster=2))


@pytest.mark.parametrize("everywhere", [True, False])
def test_there_is_never_more_work_to_take_over(everywhere: bool) -> None:
    suffix = ".multicast::cluster::all" if everywhere else ""
    body = f"""{barrier_init()} {expect(16)}
        setp.eq.u32 %p0, %rank, 0; and.pred %p0, %p0, %lead; {"" if everywhere else "mov.pred %p0, %lead;"}
        @%p0 clusterlaunchcontrol.try_cancel.async.shared::cta.mbarrier::complete_tx::bytes{suffix}.b128
        [%smem+512], [%smem];
        {wait("%smem")}
        ld.shared.v2.b64 {{%d5, %d6}}, [%smem+512]; {{ .reg .b128 q; mov.b128 q, {{%d5, %d6}};
        clusterlaunchcontrol.query_cancel.is_canceled.pred.b128 %p1, q; }}
        selp.b32 %r4, 1, 2, %p1; mad.lo.u32 %r0, %rank, 32, %thread; mul.wide.u32 %d0, %r0, 4; add.u64 %d0, %d0, %a_out;
        st.global.b32 [%d0], %r4; {BOTH}"""
    kernel = Kernel(body, arrays=_out(64), cluster=2)
    for policy in ALL:
        kernel.arrays["out"][:] = 0
        result, _ = kernel.run(policy)
        assert not result.findings, (policy.name, result.findings)
        assert (kernel.arrays["out"] == 2).all()
