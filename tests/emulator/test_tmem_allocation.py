"""Allocation of tensor memory: who has which columns, pairs of CTAs, and every misuse."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.emulator.tcgen05_kernel import ADDRESS, CLUSTER_SYNC, EARLY, LANES, LATE, POLICIES, Kernel, dealloc

ALLOC = "tcgen05.alloc.cta_group::{group}.sync.aligned.shared::cta.b32 [%smem+{at}], {columns};\n"
DEALLOC = "tcgen05.dealloc.cta_group::{group}.sync.aligned.b32 {address}, {columns};\n"


def warp0(text: str) -> str:
    """Statements of warp 0 only."""
    return "{ @!%warp0 bra SKIP; " + text + " SKIP: }\n"


def alloc(columns: int, at: int = ADDRESS, group: int = 1) -> str:
    """One allocation by the warps that come here."""
    return ALLOC.format(group=group, at=at, columns=columns)


def free(columns: int, address: str = "%r0", group: int = 1) -> str:
    """One deallocation."""
    return DEALLOC.format(group=group, address=address, columns=columns)


def read(register: str, at: int = ADDRESS) -> str:
    """The address that an allocation has written."""
    return f"ld.shared.b32 {register}, [%smem+{at}];\n"


def bare(text: str, ctas: int = 1) -> Kernel:
    """A kernel that does its own allocations."""
    return Kernel(text, columns=0, ctas=ctas)


def one(kernel: Kernel, kind: str = "tmem_allocation") -> str:
    """The message of the only finding."""
    (found,) = kernel.run().findings
    assert found.kind == kind
    return found.message


@pytest.mark.parametrize("columns", [32, 64, 128, 256, 512])
@pytest.mark.parametrize("seed", [0, 1])
def test_addresses(columns: int, seed: int) -> None:
    """Column 0 of lane 0, or with an odd seed the last place: a kernel must take the address that it is given."""
    body = warp0(alloc(columns) + read("%r0") + f"@%lead st.global.b32 [%a_out], %r0; {free(columns)}")
    kernel = Kernel(body, columns=0, arrays={"out": np.full(1, 77, np.uint32)})
    outcome = kernel.run(replace(LATE, seed=seed))
    assert outcome.kinds == []
    assert outcome.arrays["out"][0] == (512 - columns if seed else 0)


def test_two_allocations() -> None:
    """They do not overlap, and each is freed for itself, in any order."""
    body = warp0(
        alloc(64) + alloc(32, 16) + read("%r0") + read("%r1", 16) + "sub.u32 %r2, %r1, %r0; "
        "@%lead st.global.b32 [%a_out], %r2;" + free(64, "%r0") + free(32, "%r1")
    )
    outcome = Kernel(body, columns=0, arrays={"out": np.zeros(1, np.uint32)}).run()
    assert outcome.kinds == []
    assert outcome.arrays["out"][0] == 64


@pytest.mark.parametrize("columns", [0, 16, 48, 96, 1024])
def test_numbers_of_columns_that_there_are_not(columns: int) -> None:
    """Powers of two from 32 to 512."""
    assert "power of two" in one(bare(warp0(alloc(columns))))


def test_a_growing_allocation() -> None:
    """Sizes must not grow."""
    body = warp0(alloc(32) + alloc(64, 16) + read("%r0") + read("%r1", 16) + free(32, "%r0") + free(64, "%r1"))
    assert "must not grow" in one(bare(body))


def test_allocation_after_relinquishing() -> None:
    """relinquish_alloc_permit is a promise."""
    give_up = "tcgen05.relinquish_alloc_permit.cta_group::1.sync.aligned;\n"
    body = warp0(alloc(64) + give_up + alloc(32, 16) + read("%r0") + read("%r1", 16) + free(64) + free(32, "%r1"))
    assert "relinquish_alloc_permit" in one(bare(body))
    assert bare(warp0(alloc(64) + give_up + read("%r0") + free(64))).run().kinds == []


def test_columns_that_are_never_deallocated() -> None:
    """The finding names the allocation."""
    message = one(bare(warp0(alloc(64))))
    assert "columns 0 to 63" in message
    assert "never deallocated" in message


@pytest.mark.parametrize(
    ("frees", "words"),
    [
        (free(64) + free(64), "column 0 is deallocated, but it is not allocated"),
        (free(32) + free(64), "the allocation there is columns 0 to 63"),
        ("add.u32 %r1, %r0, 32;" + free(32, "%r1") + free(64), "the allocation there is columns 0 to 63"),
        ("add.u32 %r1, %r0, 256;" + free(64, "%r1") + free(64), "column 256 is deallocated, but it is not allocated"),
        ("add.u32 %r1, %r0, 1048576;" + free(64, "%r1"), "lane 16"),
    ],
)
def test_wrong_deallocations(frees: str, words: str) -> None:
    """Twice, in part, from the middle, of what nobody has, by another lane."""
    assert words in one(bare(warp0(alloc(64) + read("%r0") + frees)))


def test_an_allocation_waits_for_columns() -> None:
    """Warp 1 gets columns as soon as warp 0 has freed them, and finds them unset."""
    body = """{ .reg .pred P, Q; .reg .b32 v;
        setp.lt.u32 P, %thread, 32; setp.lt.u32 Q, %thread, 64;
        @!Q bra SKIP;
        @!P bra SECOND;
    """
    body += alloc(512) + read("%r0") + "bar.sync 1, 64;" + free(512) + "bra SKIP;"
    body += " SECOND: bar.sync 1, 64;" + alloc(512, 16) + read("%r0", 16)
    body += """shl.b32 v, 1, 21; add.u32 %r1, %r0, v;
        tcgen05.ld.sync.aligned.32x32b.x1.b32 {v}, [%r1]; st.global.b32 [%a_out], v;
    """
    body += free(512) + "SKIP: }"
    for policy in POLICIES:
        outcome = Kernel(body, columns=0, arrays={"out": np.zeros(1, np.uint32)}).run(policy)
        assert set(outcome.kinds) <= {"undefined_value"}
        assert outcome.shadows["out"].all()


def test_an_allocation_that_never_fits() -> None:
    """The hang says what it waits for."""
    body = warp0(alloc(512) + alloc(32, 16))
    kinds = [(found.kind, found.message) for found in bare(body).run().findings]
    assert ("hang", "waits for tensor memory columns that nobody frees") in kinds


# ------------------------------------------------------------------------------------------------ pairs of CTAs


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
def test_pairs_allocate_together(policy: object) -> None:
    """Both CTAs get the same columns."""
    body = warp0(alloc(128, group=2) + read("%r0") + free(128, group=2))
    body += "mul.wide.u32 %d0, %rank, 4; add.u64 %d0, %d0, %a_out; @%lead st.global.b32 [%d0], %r0;"
    kernel = Kernel(body, columns=0, ctas=2, arrays={"out": np.full(2, 9, np.uint32)})
    outcome = kernel.run(replace(policy, seed=1))
    assert outcome.kinds == []
    np.testing.assert_array_equal(outcome.arrays["out"], [384, 384])


def test_a_pair_with_different_sizes() -> None:
    """Named with both numbers."""
    body = "setp.eq.u32 %p0, %rank, 0; selp.b32 %r1, 64, 128, %p0;"
    body += warp0("tcgen05.alloc.cta_group::2.sync.aligned.shared::cta.b32 [%smem+8], %r1;")
    message = one(bare(body, ctas=2))
    assert "64" in message
    assert "128" in message


def test_a_pair_of_which_one_does_not_allocate() -> None:
    """It waits for ever."""
    body = "setp.eq.and.u32 %p0, %rank, 0, %warp0; { @!%p0 bra SKIP;" + alloc(64, group=2) + f"SKIP: }} {CLUSTER_SYNC}"
    assert "hang" in bare(body, ctas=2).run().kinds


def test_deallocation_may_wait_for_the_peer() -> None:
    """The ISA's example of a hang: one CTA frees before a cluster barrier, the other one after it."""
    body = alloc(64, group=2) + read("%r0")
    ends = f"""setp.eq.u32 %p0, %rank, 0; {{ @%p0 bra OTHER;
        {free(64, group=2)} {CLUSTER_SYNC} bra END;
        OTHER: {CLUSTER_SYNC} {free(64, group=2)} END: }}
    """
    kernel = Kernel("{ @%warp0 bra WORK; " + CLUSTER_SYNC + "bra DONE; WORK:" + body + ends + "DONE: }", 0, 2)
    assert "hang" in kernel.run().kinds
    right = Kernel(warp0(body) + CLUSTER_SYNC + warp0(free(64, group=2)), 0, 2)
    assert right.run().kinds == []


def test_a_single_cta_has_no_peer() -> None:
    """cta_group::2 without a cluster."""
    assert "no peer" in one(bare(warp0(alloc(64, group=2))), "cta_group")


def test_one_kernel_has_one_cta_group() -> None:
    """Allocation for a pair, deallocation alone."""
    body = warp0(alloc(64, group=2) + read("%r0") + free(64, group=1))
    kinds = {(found.kind, "cta_group::1 here" in found.message) for found in bare(body, ctas=2).run().findings}
    assert kinds == {("cta_group", True)}


# -------------------------------------------------------------------------------------------------------- access


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("add.u32 %r0, %own, 31; tcgen05.ld.sync.aligned.32x32b.x2.b32 {%r1, %r2}, [%r0];", "column 32"),
        ("add.u32 %r0, %own, 32; tcgen05.st.sync.aligned.32x32b.x1.b32 [%r0], {%thread};", "column 32"),
        ("add.u32 %r0, %own, 510; tcgen05.ld.sync.aligned.16x128b.x1.b32 {%r1, %r2}, [%r0];", "tensor memory has 512"),
        ("add.u32 %r0, %own, 2097152; tcgen05.ld.sync.aligned.32x32b.x1.b32 {%r1}, [%r0];", "reaches lanes"),
        ("tcgen05.ld.sync.aligned.32x32b.x1.b32 {%r1}, [%tmem];", "reaches lanes"),
        ("add.u32 %r0, %own, 1048576; tcgen05.ld.sync.aligned.32x32b.x1.b32 {%r1}, [%r0];", "from a multiple of 32"),
        ("add.u32 %r0, %own, 524288; tcgen05.ld.sync.aligned.16x64b.x1.b32 {%r1}, [%r0];", "from a multiple of 16"),
        ("add.u32 %r0, %own, %thread; tcgen05.ld.sync.aligned.32x32b.x1.b32 {%r1}, [%r0];", "different tensor memory"),
    ],
)
def test_places_that_a_warp_cannot_reach(text: str, words: str) -> None:
    """Unallocated columns, other warps' lanes, shapes that begin elsewhere."""
    found = Kernel(text, dump=False).run().findings[0]
    assert found.kind == "tmem_access"
    assert words in found.message


def test_columns_after_deallocation() -> None:
    """Nobody has them any more."""
    text = dealloc(32) + "bar.sync 0; tcgen05.ld.sync.aligned.32x32b.x1.b32 {%r1}, [%own];"
    found = Kernel(text, dump=False).run().findings[0]  # the second one is the kernel's own deallocation
    assert found.kind == "tmem_access"
    assert "column 0 is not allocated" in found.message


def test_deallocation_races_with_a_load() -> None:
    """A load that is neither used nor waited for is still reading; one whose register is used is not."""
    load = "tcgen05.ld.sync.aligned.32x32b.x1.b32 {%r1}, [%own];\n"
    before = np.zeros((1, LANES, 32), np.uint32)
    for policy in (LATE, EARLY):
        assert "race" in Kernel(load, before=before, dump=False).run(policy).kinds
        assert Kernel(load + "add.u32 %r2, %r1, 1;\n", before=before, dump=False).run(policy).kinds == []
        waited = load + "tcgen05.wait::ld.sync.aligned;\n"
        assert Kernel(waited, before=before, dump=False).run(policy).kinds == []
