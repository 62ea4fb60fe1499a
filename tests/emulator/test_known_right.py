"""Patterns of published kernels that are right on the chips: none of them may be accused. Beside each a mistake is."""

from __future__ import annotations

import numpy as np
import pytest

from dsv4.emulator.policy import FIXED, OPTIONAL, Policy, mixed
from tests.emulator.copy_kernel import POLICIES, Kernel, aligned, barrier_init, dump, wait
from tests.emulator.matrix_machine import EARLY, LATE
from tests.emulator.test_wgmma_rules import COMMIT, FENCE, WAIT, ones, run

AT = 256
FIRST_OF_WARP = "mov.u32 %r9, %laneid; setp.eq.u32 %p1, %r9, 0;\n"


def kinds(body: str, policy: Policy = POLICIES[0], **arrays: np.ndarray) -> set[str]:
    made = {"out": aligned(np.zeros(64, np.uint32)), **arrays}
    return {kind for kind, _ in Kernel(body, {}, made, block=64, target="sm_90a").findings(policy)}


@pytest.mark.parametrize(("stored", "found"), [("7", set()), ("%thread", {"race"})])
@pytest.mark.parametrize("place", ["global.b32 [%a_out+8]", "shared.b32 [%smem+64]"])
def test_warps_may_store_the_same_value_in_the_same_place(place: str, stored: str, found: set[str]) -> None:
    """A row's log-sum-exp, for instance, that two warps hold."""
    assert kinds(FIRST_OF_WARP + f"mov.u32 %r1, {stored}; @%p1 st.{place}, %r1;\n") == found


def test_a_store_that_changes_nothing_still_races_with_a_read() -> None:
    body = FIRST_OF_WARP + "@%p1 st.shared.b32 [%smem+64], 7; ld.shared.b32 %r2, [%smem+64];\n"
    assert kinds(body) == {"race"}


@pytest.mark.parametrize(("source", "found"), [("%a_source", set()), ("%d1", {"race"})])
@pytest.mark.parametrize("policy", POLICIES)
def test_lanes_may_copy_the_same_bytes_to_the_same_place(policy: Policy, source: str, found: set[str]) -> None:
    """The one scale factor of a block, for instance, that every lane fetches."""
    body = "setp.ge.u32 %p0, %thread, 32; @%p0 bra JOIN;\n"
    body += "and.b32 %r1, %thread, 4; cvt.u64.u32 %d0, %r1; add.u64 %d1, %a_source, %d0;\n"
    body += f"cp.async.ca.shared.global [%smem+{AT}], [{source}], 4;\n"
    body += "cp.async.commit_group; cp.async.wait_group 0; JOIN: bar.sync 0;\n" + dump("out", 1, AT)
    assert kinds(body, policy, source=aligned(np.arange(5, 9, dtype=np.uint32))) == found


@pytest.mark.parametrize("policy", POLICIES)
def test_the_arrival_behind_copies_covers_the_stores_between_them(policy: Policy) -> None:
    """Copies for the rows inside a tensor, stores of zero for those outside, one arrival for both."""
    out, source = aligned(np.zeros(64, np.uint32)), aligned(np.arange(1, 65, dtype=np.uint32))
    body = "mov.u32 %r1, %tid.x;\n" + barrier_init(32) + "setp.ge.u32 %p0, %thread, 32; @%p0 bra READ;\n"
    body += "shl.b32 %r2, %thread, 2; cvt.u64.u32 %d0, %r2; add.u64 %d1, %a_source, %d0; add.u32 %r3, %smem, %r2;\n"
    body += f"cp.async.ca.shared.global [%r3+{AT}], [%d1], 4; st.shared.b32 [%r3+{AT + 128}], 9;\n"
    body += "cp.async.mbarrier.arrive.noinc.shared.b64 [%smem];\nREAD:\n" + wait("%smem") + dump("out", 64, AT)
    kernel = Kernel(body, {}, {"out": out, "source": source}, block=64, target="sm_90a")
    assert kernel.findings(policy) == []
    assert np.array_equal(out[:32], source[:32]) and (out[32:] == 9).all()


@pytest.mark.parametrize(("waits", "found"), [(True, set()), (False, {"race"})])
@pytest.mark.parametrize("policy", [LATE, EARLY])
def test_a_wgmma_group_is_the_warpgroups(policy: Policy, waits: bool, found: set[str]) -> None:
    """Who has waited for a group may overwrite the rows of A that the other warps' parts of it have read."""
    product = ones()
    _, a_at, _ = product.memory()
    store = "setp.eq.u32 %pr0, %tid, 127; @%pr0 " + f"st.shared.b32 [%smem+{a_at}], 0;"
    body = f"{FENCE} {{mma}} {COMMIT} " + (f"{WAIT} {store}" if waits else f"{store} {WAIT}")
    outcome = run(product, body, policy)
    assert set(outcome.kinds()) == found
    if waits:
        assert (outcome.registers.view(np.float32) == 16).all()


@pytest.mark.parametrize("policy", [*FIXED, *map(mixed, range(4))])
def test_the_elected_lane_is_the_first(policy: Policy) -> None:
    """Known-right kernels guard an arrival with both elect.sync and lane 0."""
    assert _elected_and_first(policy) == set()


def test_a_schedule_that_must_be_asked_for_elects_another_lane() -> None:
    assert _elected_and_first(OPTIONAL[0]) == {"hang"}


def _elected_and_first(policy: Policy) -> set[str]:
    body = barrier_init() + "elect.sync _|%p0, -1; setp.eq.u32 %p1, %thread, 0; and.pred %p2, %p0, %p1;\n"
    return kinds(body + "@%p2 mbarrier.arrive.shared.b64 _, [%smem];\n" + wait("%smem"), policy)
