"""A CTA may not end before its cp.async copies: what lands later lands in shared memory that may be another CTA's."""

from __future__ import annotations

import numpy as np
import pytest

from dsv4.emulator.policy import Policy
from tests.emulator.copy_kernel import POLICIES, Kernel, aligned, barrier_init, wait

AT, COUNT, THREADS = 1024, 2048, 64
PLACE = "shl.b32 %r1, %thread, 4; cvt.u64.u32 %d0, %r1; add.u64 %d0, %a_source, %d0; add.u32 %r1, %r1, %smem;\n"
COPY = PLACE + f"cp.async.cg.shared.global [%r1+{AT}], [%d0], 16;\n"
ZEROS = PLACE + f"cp.async.cg.shared.global [%r1+{AT}], [%d0], 16, 0;\n"
COMMIT, WAIT = "cp.async.commit_group;\n", "cp.async.wait_group {};\n"
ARRIVE = "cp.async.mbarrier.arrive.noinc.shared.b64 [%smem];\n"
FIRST_WARP_ENDS = "setp.lt.u32 %p0, %thread, 32; @%p0 bra JOIN;\n"


def kinds(body: str, policy: Policy) -> list[str]:
    kernel = Kernel(body + "JOIN:\n", {}, {"source": aligned(np.zeros(COUNT, np.uint8))}, block=THREADS)
    return [kind for kind, _ in kernel.findings(policy)]


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
@pytest.mark.parametrize("copy", [COPY, ZEROS], ids=["bytes", "zeros"])
@pytest.mark.parametrize(
    ("end", "is_right"),
    [
        ("", False),
        (COMMIT, False),
        (COMMIT + WAIT.format(1), False),
        (WAIT.format(0), False),  # of a group that was not closed nothing is waited for
        (COMMIT + WAIT.format(0), True),
        ("cp.async.wait_all;\n", True),
    ],
)
def test_the_group_of_the_last_copy_is_waited_for(policy: Policy, copy: str, end: str, is_right: bool) -> None:
    assert set(kinds(copy + end, policy)) == (set() if is_right else {"in_flight_at_exit"})


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
def test_another_warp_may_wait_for_it(policy: Policy) -> None:
    start = barrier_init(THREADS) + COPY + ARRIVE + FIRST_WARP_ENDS
    assert kinds(start + wait("%smem"), policy) == []
    one_more = COPY.replace(f"+{AT}]", f"+{AT + COUNT // 2}]")
    assert set(kinds(start.replace(FIRST_WARP_ENDS, one_more + FIRST_WARP_ENDS) + wait("%smem"), policy)) == {
        "in_flight_at_exit"
    }
