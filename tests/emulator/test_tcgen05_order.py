"""tcgen05: what is ordered and what races, unset operands, bad descriptors, commits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from dsv4.emulator.oracle import tcgen05 as oracle
from dsv4.emulator.policy import Policy
from tests.emulator.tcgen05_case import Case
from tests.emulator.tcgen05_kernel import CLUSTER_SYNC, EARLY, LANES, LATE, POLICIES, Kernel, commit, wait

FENCE = "fence.proxy.async.shared::cta;"


def small(**options: object) -> Case:
    """A short MMA of f16."""
    return Case("f16", "f16", "f16", n=16, **options)  # type: ignore[arg-type]


def kernel_of(case: Case, body: str) -> Kernel:
    """The case's memories around other statements."""
    kernel = case.kernel()
    kernel.body = body
    kernel.dump = False
    return kernel


def everywhere(kernel: Kernel) -> set[str]:
    """Kinds of findings under all schedules; each schedule must find the same."""
    found = [set(kernel.run(policy).kinds) for policy in POLICIES]
    assert all(kinds == found[0] for kinds in found)
    return found[0]


LOAD = "tcgen05.ld.sync.aligned.32x32b.x1.b32 {%r8}, [%own];\n"
USE = "add.u32 %r9, %r8, 1;\n"
UNWAITED = commit().split("{ .reg")[0]  # the commit alone
STORE = "tcgen05.st.sync.aligned.32x32b.x1.b32 [%own], {%thread};\n"


# --------------------------------------------------------------------------------------------------------- races


def test_a_load_after_an_mma_needs_the_commit() -> None:
    """Without the wait it races with the MMA's write of D, under every schedule."""
    case = small()
    assert everywhere(kernel_of(case, case.statement() + commit() + LOAD + USE)) == set()
    assert everywhere(kernel_of(case, case.statement() + UNWAITED + LOAD + USE + wait())) == {"race"}


def test_an_mma_after_a_store_needs_wait_st() -> None:
    """wait::st and a barrier order it; the barrier alone does not."""
    case = small()
    tail = case.statement() + commit()
    waited = STORE + "tcgen05.wait::st.sync.aligned; bar.sync 0;\n"
    assert everywhere(kernel_of(case, waited + tail)) == set()
    assert everywhere(kernel_of(case, STORE + "bar.sync 0;\n" + tail)) == {"race"}
    assert everywhere(kernel_of(case, "bar.sync 0;\n" + STORE + "tcgen05.wait::st.sync.aligned;\n" + tail)) == {"race"}


def test_a_load_after_a_store_of_the_same_warp_needs_wait_st() -> None:
    """st and ld are not ordered among each other."""
    case = small()
    assert everywhere(kernel_of(case, STORE + LOAD + USE)) == {"race"}
    assert everywhere(kernel_of(case, STORE + "tcgen05.wait::st.sync.aligned;\n" + LOAD + USE)) == set()


def test_registers_and_columns_may_be_exchanged() -> None:
    """A store over what the same warp has just loaded comes after it, without a wait; the old words are loaded."""
    swap = LOAD + STORE + "tcgen05.wait::st.sync.aligned;\n"
    swap += "mul.wide.u32 %d2, %thread, 4; add.u64 %d2, %d2, %a_out; st.global.b32 [%d2], %r8;\n"
    before = np.random.default_rng(0).integers(0, 1 << 32, (1, LANES, 32), dtype=np.uint32)
    for policy in POLICIES:
        outcome = Kernel(swap, before=before, arrays={"out": np.zeros(LANES, np.uint32)}).run(policy)
        assert outcome.kinds == []
        np.testing.assert_array_equal(outcome.arrays["out"], before[0, :, 0])
        np.testing.assert_array_equal(outcome.tmem[0, :, 0], np.arange(LANES))


@pytest.mark.parametrize(
    ("between", "expected"),
    [("", {"race"}), (USE, set()), ("tcgen05.wait::ld.sync.aligned;\n", set())],
    ids=["neither", "used", "waited"],
)
def test_a_load_before_the_columns_are_written_again(between: str, expected: set[str]) -> None:
    """It must be used or waited for before its warp lets the MMA go."""
    case = small()
    body = LOAD + between + "bar.sync 0;\n" + case.statement() + commit()
    assert everywhere(kernel_of(case, body)) == expected


def test_known_right_kernels_have_no_fences() -> None:
    """tcgen05.fence does nothing, and nothing is said where it is missing."""
    case = small()
    fenced = case.statement() + commit() + "tcgen05.fence::after_thread_sync;\n" + LOAD + USE
    fenced += "tcgen05.fence::before_thread_sync; bar.sync 0;\n"
    assert everywhere(kernel_of(case, fenced)) == set()


def test_operands_need_the_proxy_fence() -> None:
    """Ordinary stores to shared memory are not visible to the MMA without fence.proxy.async."""
    case = small()
    store = "@%lead st.shared.b32 [%smem+1024], 0; {fence} bar.sync 0;\n"
    assert everywhere(kernel_of(case, store.format(fence=FENCE) + case.statement() + commit())) == set()
    without = everywhere(kernel_of(case, store.format(fence="") + case.statement() + commit()))
    assert without == {"missing_proxy_fence"}


def test_a_commit_publishes_no_ordinary_store() -> None:
    """Whoever waits for it is not ordered behind what the issuing warp stored, a proxy fence in between or not."""
    case = small()
    store, load = "@%lead st.shared.b32 [%smem+1024], 0; " + FENCE, "ld.shared.b32 %r8, [%smem+1024];\n"
    assert everywhere(kernel_of(case, store + case.statement() + commit() + load)) == {"race"}
    assert everywhere(kernel_of(case, store + "bar.sync 0;\n" + case.statement() + commit() + load)) == set()


def test_operands_are_in_use_until_the_commit() -> None:
    """A store to shared memory while the MMA may still read it."""
    case = small()
    store = "@%lead st.shared.b32 [%smem+1024], 0;\n"
    assert everywhere(kernel_of(case, case.statement() + commit() + store)) == set()
    assert everywhere(kernel_of(case, case.statement() + UNWAITED + store + wait())) == {"race"}


def test_mmas_of_a_warp_are_in_order() -> None:
    """Two onto the same D, and the second from an A that a copy brings: no wait between them."""
    case = small()
    twice = Kernel(
        case.statement() + case.statement() + commit(),
        columns=case.layout["end"],
        image=case.image(),
        before=case.before(),
    )
    a, b = oracle.numbers(case.codes["a"], "f16"), oracle.numbers(case.codes["b"], "f16")
    once = case.result().view(np.float32)
    expected = (np.einsum("mk,nk->mn", a, b) + once.astype(np.float64)).astype(np.float32)
    for policy in POLICIES:
        outcome = twice.run(policy)
        assert outcome.kinds == []
        np.testing.assert_array_equal(outcome.tmem[0, :, :16].view(np.float32), expected)


def test_late_results_are_seen_late() -> None:
    """Without the wait for the commit, the old D is read under a late schedule, the new one under an early one."""
    case = small()
    store = "mul.wide.u32 %d2, %thread, 4; add.u64 %d2, %d2, %a_out; st.global.b32 [%d2], %r8;\n"
    kernel = kernel_of(case, case.statement() + UNWAITED + LOAD + store + wait())
    kernel.arrays = {"out": np.zeros(LANES, np.uint32)}
    late, early = kernel.run(LATE).arrays["out"], kernel.run(EARLY).arrays["out"]
    np.testing.assert_array_equal(early, case.expected()[0, :, 0])
    np.testing.assert_array_equal(late, case.before()[0, :, 0])


# ------------------------------------------------------------------------------------------------ unset operands


def find(kernel: Kernel, policy: Policy = LATE) -> list[tuple[str, str]]:
    """Kinds and messages."""
    return [(found.kind, found.message) for found in kernel.run(policy).findings]


def test_accumulation_onto_unset_columns() -> None:
    """The first MMA of a sum must not accumulate; said once for an instruction."""
    case = small()
    kernel = kernel_of(case, case.statement() + commit())
    kernel.before = None
    (found,) = kernel.run().findings
    assert found.kind == "undefined_value"
    assert "accumulates onto tensor memory that was never written: lane 0, column 0" in found.message
    assert find(kernel_of(small(accumulate=False), small(accumulate=False).statement() + commit())) == []


def test_only_part_of_d_is_unset() -> None:
    """The lane and column are named; columns that are set are not."""
    case = small()
    kernel = kernel_of(case, case.statement() + commit())
    before = case.before()
    kernel.before = before[:, :, :8]
    (found,) = kernel.run().findings
    assert "lane 0, column 8" in found.message


@pytest.mark.parametrize(
    ("operand", "row", "words"), [("a", 77, "A: row 77, k 2"), ("b", 9, "B: column 9, k 2"), ("a", 0, "A: row 0, k 2")]
)
def test_unset_shared_operands(operand: str, row: int, words: str) -> None:
    """One word of a tile that was never written; not of rows whose result is not stored."""
    case = small()
    a, b, size = case.tiles()
    byte, _ = (a if operand == "a" else b).addresses(128 if operand == "a" else 16, 16, 16)
    unset = np.zeros(size, np.uint8)
    unset[byte[row, 2] - 2048] = 1
    kernel = kernel_of(case, case.statement() + commit())
    kernel.unset = {"image": unset}
    ((kind, message),) = [found for found in find(kernel) if "tcgen05.mma" in found[1]]
    assert kind == "undefined_value"
    assert message.startswith(words)
    disabled = [0] * 4
    disabled[row // 32] = 1 << row % 32
    if operand == "a":
        case = small(disabled=tuple(disabled))
        kernel = kernel_of(case, case.statement() + commit())
        kernel.unset = {"image": unset}
        assert not [found for found in find(kernel) if "tcgen05.mma" in found[1]]


def test_unset_a_in_tensor_memory() -> None:
    """Columns of A that nobody has stored."""
    case = small(a_in_tmem=True)
    kernel = kernel_of(case, case.statement() + commit())
    before = case.before()
    kernel.before = before[:, :, :16]
    (found,) = kernel.run().findings
    assert found.kind == "undefined_value"
    assert "A: row 0 of tcgen05.mma, lane 0 and column 16" in found.message


def test_padding_bytes_do_not_count() -> None:
    """The 8 bytes behind sixteen 4-bit elements may be unset."""
    case = Case("f8f6f4", "e2m1", "e2m1", n=16)
    a, b, size = case.tiles()
    unset = np.ones(size, np.uint8)
    for tile, rows in ((a, 128), (b, 16)):
        byte, _ = tile.addresses(rows, 32, 4)
        unset[byte - 2048] = 0
    kernel = kernel_of(case, case.statement() + commit())
    kernel.unset = {"image": unset}
    assert not [found for found in find(kernel) if "tcgen05.mma" in found[1]]


# ---------------------------------------------------------------------------------------------------- descriptors


def descriptor_kernel(change: Callable[[int], int], which: str, case: Case | None = None) -> Kernel:
    """The small MMA with another descriptor: of the instruction, of A or of B."""
    case = case or small()
    a, b, _ = case.tiles()
    register, old = {
        "instruction": ("u32 %r2", oracle.instruction_descriptor(case.kind, case.a, case.b, case.d, case.m, case.n)),
        "a": ("u64 %d0", a.descriptor()),
        "b": ("u64 %d1", b.descriptor()),
    }[which]
    text = case.statement()
    assert text.count(f"mov.{register}, {old};") == 1
    return kernel_of(case, text.replace(f"mov.{register}, {old};", f"mov.{register}, {change(old)};") + commit())


@pytest.mark.parametrize(
    ("which", "change", "words"),
    [
        ("a", lambda d: d & ~(1 << 46), "not a descriptor of tcgen05"),
        ("b", lambda d: d | 1 << 52, "absolute leading dimension"),
        ("b", lambda d: d | 1 << 61, "no swizzling mode"),
        ("instruction", lambda d: d | 4, "sparse"),
        ("instruction", lambda d: d | 3 << 7, "element type"),
        ("instruction", lambda d: d | 2 << 4, "type of D"),
        ("instruction", lambda d: (d & ~(31 << 24)) | 6 << 24, "M does not go"),
        ("instruction", lambda d: d & ~(63 << 17), "N does not go"),
        ("instruction", lambda d: d | 33 << 17, "N does not go"),
    ],
)
def test_bad_descriptors(which: str, change: Callable[[int], int], words: str) -> None:
    """Each field that has no meaning."""
    ((kind, message),) = find(descriptor_kernel(change, which))
    assert kind == "matrix_descriptor"
    assert words in message


@pytest.mark.parametrize(
    ("case", "change", "words"),
    [
        (Case("tf32", "tf32", "tf32", n=16), lambda d: d | 1 << 16, "32-byte atoms"),
        (Case("f8f6f4", "e4m3", "e4m3", n=24), lambda d: d | 1 << 16, "N does not go"),
        (Case("i8", "s8", "s8", "s32", n=16), lambda d: d | 1 << 13, "negated"),
        (Case("i8", "s8", "s8", "s32", n=40), lambda d: d, "N does not go"),
    ],
)
def test_combinations_that_a_kind_does_not_have(case: Case, change: Callable[[int], int], words: str) -> None:
    """MN-major tf32 and 8-bit shapes, integers."""
    ((kind, message),) = find(descriptor_kernel(change, "instruction", case))
    assert kind == "matrix_descriptor"
    assert words in message


def test_a_tile_outside_of_shared_memory() -> None:
    """The operand ends behind the last byte."""
    kernel = descriptor_kernel(lambda d: (d & ~0x3FFF) | 0x3F00, "b")
    assert find(kernel)[0][0] == "out_of_bounds"


@pytest.mark.parametrize("lane", [16, 32])
def test_d_begins_in_lane_0(lane: int) -> None:
    """128 rows fill all lanes."""
    case = small()
    text = case.statement().replace("add.u32 %r0, %tmem, 0;", f"add.u32 %r0, %tmem, {lane << 16};")
    ((kind, message),) = find(kernel_of(case, text + commit()))
    assert kind == "tmem_access"
    assert "D must begin in lane 0" in message


def test_d_in_columns_that_nobody_has() -> None:
    """The MMA is wider than the allocation."""
    case = Case("f16", "f16", "f16", n=32)
    kernel = kernel_of(case, case.statement(d_column=16) + commit())
    (kind, message), *rest = find(kernel)
    assert kind == "tmem_access"
    assert "column 32 is not allocated" in message
    assert {kind for kind, _ in rest} == {"undefined_value"}  # it goes on, and accumulates onto nothing


# -------------------------------------------------------------------------------------------------------- commits


def test_every_lane_issues_for_itself() -> None:
    """32 lanes: 32 MMAs, which is hardly meant."""
    case = small()
    text = case.statement().replace("@%leader tcgen05.mma", "@%warp0 tcgen05.mma")
    kernel = Kernel(text + commit(), columns=case.layout["end"], image=case.image(), before=case.before())
    outcome = kernel.run()
    assert outcome.kinds == ["not_elected"]
    a, b = oracle.numbers(case.codes["a"], "f16"), oracle.numbers(case.codes["b"], "f16")
    total = case.codes["d"].view(np.float32)
    for _ in range(32):
        total = (np.einsum("mk,nk->mn", a, b) + total.astype(np.float64)).astype(np.float32)
    np.testing.assert_array_equal(outcome.tmem[0, :, :16].view(np.float32), total)


def test_a_commit_names_ctas_of_the_cluster() -> None:
    """A mask with a bit too many."""
    case = small(group=2, m=256)
    kernel = kernel_of(case, case.statement() + commit(2, 7))
    assert find(kernel)[0] == ("out_of_bounds", "the CTA mask 0x7 of tcgen05.commit names CTA 2 of a cluster of 2")


def test_a_commit_without_work_arrives_at_once() -> None:
    """Nothing to wait for."""
    for policy in POLICIES:
        assert Kernel(commit(), dump=False).run(policy).kinds == []


def test_the_peer_sees_the_results_after_the_multicast_commit() -> None:
    """Its barrier is arrived on too; waiting on nothing is a race there."""
    case = Case("f16", "f16", "f16", m=256, n=32, group=2)
    assert everywhere(kernel_of(case, case.statement() + commit(2, 3) + LOAD + USE)) == set()
    alone = commit(2, 1).split("{ .reg")[0]
    tail = "setp.eq.u32 %p3, %rank, 0; { @!%p3 bra S; " + wait() + " S: }\n" + CLUSTER_SYNC
    assert everywhere(kernel_of(case, case.statement() + alone + LOAD + USE + tail)) == {"race"}
