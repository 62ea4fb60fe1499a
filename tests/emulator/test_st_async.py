"""st.async: stores to shared memory of the cluster that complete on an mbarrier there."""

from __future__ import annotations

import numpy as np
import pytest

from dsv4.emulator.policy import Policy
from tests.emulator.copy_kernel import POLICIES, Kernel, aligned, barrier_init, dump, expect, wait

AT = 256
CLUSTER_SYNC = "barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;\n"
STORE = "st.async.shared::cluster.mbarrier::complete_tx::bytes"


def to_cta_1(stores: str, received_bytes: int) -> str:
    """CTA 0 executes `stores` (%r1: shared address of byte 0 of CTA 1), which CTA 1 waits for and dumps."""
    body = barrier_init() + "mapa.shared::cluster.u32 %r1, %smem, 1; setp.eq.u32 %p0, %rank, 0;\n"
    body += f"@!%p0 bra RECEIVE;\n{stores}bra JOIN;\nRECEIVE:\n"
    return (
        body + expect(received_bytes) + wait("%smem") + dump("out", received_bytes // 4, AT) + "JOIN:\n" + CLUSTER_SYNC
    )


def kinds(body: str, out: np.ndarray, policy: Policy) -> list[str]:
    kernel = Kernel(body, {}, {"out": out}, cluster=2, target="sm_90a")
    return [kind for kind, _ in kernel.findings(policy)]


@pytest.mark.parametrize("policy", POLICIES)
def test_every_lane_stores_and_counts_its_bytes(policy: Policy) -> None:
    out = aligned(np.zeros(64, np.uint32))
    stores = (
        "shl.b32 %r2, %thread, 3; add.u32 %r2, %r2, %r1; mul.lo.u32 %r3, %thread, 7; mov.b64 %d0, {%r3, %thread};\n"
    )
    stores += f"{STORE}.b64 [%r2+{AT}], %d0, [%r1];\n"
    assert kinds(to_cta_1(stores, 256), out, policy) == []
    assert np.array_equal(out[0::2], np.arange(32, dtype=np.uint32) * 7)
    assert np.array_equal(out[1::2], np.arange(32, dtype=np.uint32))


@pytest.mark.parametrize("vector", ["{%r3, %r4, %r5, %r6}", "abcd"])
@pytest.mark.parametrize("policy", POLICIES)
def test_vectors_in_braces_and_in_one_name(policy: Policy, vector: str) -> None:
    out = aligned(np.zeros(4, np.uint32))
    stores = "{ .reg .v4 .b32 abcd;\n"
    stores += "".join(
        f"mov.b32 %r{n + 3}, {n + 40}; mov.b32 abcd.{axis}, %r{n + 3};\n" for n, axis in enumerate("xyzw")
    )
    stores += f"@%lead {STORE}.v4.b32 [%r1+{AT}], {vector}, [%r1]; }}\n"
    assert kinds(to_cta_1(stores, 16), out, policy) == []
    assert out.tolist() == [40, 41, 42, 43]


def test_too_few_bytes_are_a_hang() -> None:
    stores = f"@%lead {STORE}.b32 [%r1+{AT}], %thread, [%r1];\n"
    assert set(kinds(to_cta_1(stores, 8), aligned(np.zeros(64, np.uint32)), POLICIES[0])) == {"hang"}


def test_the_receiver_must_wait_before_it_reads() -> None:
    stores = "shl.b32 %r2, %thread, 2; add.u32 %r2, %r2, %r1;\n" + f"{STORE}.b32 [%r2+{AT}], %thread, [%r1];\n"
    body = to_cta_1(stores, 128).replace(wait("%smem"), "")
    assert "race" in kinds(body, aligned(np.zeros(64, np.uint32)), POLICIES[1])


def test_the_mbarrier_lies_in_the_destinations_cta() -> None:
    stores = f"@%lead {STORE}.b32 [%r1+{AT}], %thread, [%smem];\n"
    assert kinds(to_cta_1(stores, 4), aligned(np.zeros(64, np.uint32)), POLICIES[0]) == ["barrier"]
