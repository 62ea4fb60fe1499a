"""What proxy fences cover: cp.async and st.async write through the generic proxy, so that copies and MMAs need a fence
behind their completion; and a fence does not cover what comes behind it."""

from __future__ import annotations

import numpy as np
import pytest

from dsv4.emulator.policy import Policy
from tests.emulator.copy_kernel import POLICIES, SHARED_BASE, Kernel, aligned, barrier_init, expect, wait
from tests.emulator.wgmma_kernel import tile_of

AT, COUNT = 1024, 2048  # a tile of 64 rows of 16 bf16 elements: 16 bytes from each thread of a warpgroup
DESCRIPTOR = tile_of(64, "bf16", mn_major=False, swizzle_bytes=0).descriptor(SHARED_BASE + AT)
FENCE = "fence.proxy.async.shared::cta;\n"
PLACE = "shl.b32 %r1, %thread, 4; cvt.u64.u32 %d0, %r1; add.u64 %d0, %a_source, %d0; add.u32 %r1, %r1, %smem;\n"
COPY = PLACE + f"cp.async.cg.shared.global [%r1+{AT}], [%d0], 16;\n"
COMMIT, DONE, SYNC = "cp.async.commit_group;\n", "cp.async.wait_group 0;\n", "bar.sync 0;\n"
ARRIVE = "cp.async.mbarrier.arrive.noinc.shared.b64 [%smem];\n"
CLUSTER_SYNC = "barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;\n"
SUMS = "{%r20, %r21, %r22, %r23}"
BULK_DONE = "@%lead cp.async.bulk.commit_group; @%lead cp.async.bulk.wait_group 0;\n"
USES = {
    "wgmma": f"""mov.b64 %d1, {DESCRIPTOR}; mov.b32 %r20, 0; setp.ne.u32 %p7, %r20, 0;
        wgmma.fence.sync.aligned;
        wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {SUMS}, %d1, %d1, %p7, 1, 1, 0, 0;
        wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;
    """,
    "bulk store": f"@%lead cp.async.bulk.global.shared::cta.bulk_group [%a_out], [%smem+{AT}], {COUNT};\n" + BULK_DONE,
}


def kinds(body: str, policy: Policy, cluster: int = 1) -> set[str]:
    arrays = {"source": aligned(np.zeros(COUNT, np.uint8)), "out": aligned(np.zeros(COUNT, np.uint8))}
    kernel = Kernel(body, {}, arrays, block=128, cluster=cluster, target="sm_90a")
    return {kind for kind, _ in kernel.findings(policy)}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
def test_after_a_wait_for_the_group(policy: Policy, use: str) -> None:
    assert kinds(COPY + COMMIT + DONE + SYNC + USES[use], policy) == {"missing_copy_fence"}
    # the copy is not done where the fence stands
    assert kinds(COPY + COMMIT + FENCE + DONE + SYNC + USES[use], policy) == {"missing_copy_fence"}
    assert kinds(COPY + COMMIT + DONE + FENCE + SYNC + USES[use], policy) == set()
    assert kinds(COPY + COMMIT + DONE + SYNC + FENCE + USES[use], policy) == set()


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
def test_after_an_arrival_that_follows_the_copies(policy: Policy, use: str) -> None:
    start = barrier_init(128) + COPY
    assert kinds(start + ARRIVE + wait("%smem") + USES[use], policy) == {"missing_copy_fence"}
    assert kinds(start + FENCE + ARRIVE + wait("%smem") + USES[use], policy) == {"missing_copy_fence"}
    assert kinds(start + ARRIVE + wait("%smem") + FENCE + USES[use], policy) == set()


def from_cta_0(use: str, *, behind_stores: str = "", behind_wait: str = "") -> str:
    """CTA 0 stores the tile into CTA 1, whose threads wait for it and use it."""
    values = "{%r3, %r3, %r3, %r3}"
    stores = PLACE + "sub.u32 %r1, %r1, %smem; add.u32 %r1, %r1, %r2; mov.b32 %r3, 0;\n"
    stores += f"st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%r1+{AT}], {values}, [%r2];\n"
    body = barrier_init() + "mapa.shared::cluster.u32 %r2, %smem, 1; setp.eq.u32 %p0, %rank, 0; @!%p0 bra RECEIVE;\n"
    body += stores + behind_stores + "bra JOIN;\nRECEIVE:\n" + expect(COUNT) + wait("%smem") + behind_wait + USES[use]
    return body + "JOIN:\n" + CLUSTER_SYNC


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
def test_after_stores_of_another_cta(policy: Policy, use: str) -> None:
    assert kinds(from_cta_0(use), policy, 2) == {"missing_copy_fence"}
    # whoever issues st.async does not know when it is done: only the receiver can fence
    assert kinds(from_cta_0(use, behind_stores=FENCE), policy, 2) == {"missing_copy_fence"}
    assert kinds(from_cta_0(use, behind_wait=FENCE), policy, 2) == set()


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
def test_a_fence_of_the_turn_before_does_not_count(policy: Policy) -> None:
    first = barrier_init(128) + COPY + ARRIVE + wait("%smem") + FENCE + USES["wgmma"] + SYNC
    second = COPY + ARRIVE + wait("%smem", 1) + USES["wgmma"]
    assert kinds(first + second, policy) == {"missing_copy_fence"}
    assert kinds(first + second.replace("wgmma.fence", FENCE + "wgmma.fence"), policy) == set()


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
def test_a_bulk_load_over_copied_bytes_needs_it_too(policy: Policy) -> None:
    load = "@%lead cp.async.bulk.shared::cta.global.mbarrier::complete_tx::bytes "
    load += f"[%smem+{AT}], [%a_source], {COUNT}, [%smem];\n"
    start, end = barrier_init() + COPY + COMMIT + DONE, SYNC + expect(COUNT) + load + wait("%smem")
    assert kinds(start + end, policy) == {"missing_copy_fence"}
    assert kinds(start + FENCE + end, policy) == set()


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
def test_a_fence_does_not_cover_the_stores_behind_it(policy: Policy) -> None:
    place = f"{PLACE} mov.b64 %d1, 0;\n"
    first, second = (f"st.shared.v2.b64 [%r1+{AT + part}], {{%d1, %d1}};\n" for part in (0, COUNT))
    use = USES["bulk store"]
    assert kinds(place + first + second + FENCE + SYNC + use, policy) == set()
    assert kinds(place + second + FENCE + first + SYNC + use, policy) == {"missing_proxy_fence"}
