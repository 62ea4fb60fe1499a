"""Bulk copies of plain bytes and their reductions, through the whole machine."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from dsv4.emulator.policy import Policy
from dsv4.emulator.ptx import PtxError
from tests.emulator.copy_kernel import POLICIES, Kernel, aligned, barrier_init, dump, expect, fill, wait

LOAD = "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
OWN_LOAD = "cp.async.bulk.shared::cta.global.mbarrier::complete_tx::bytes"
ACROSS = "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes"
STORE = "cp.async.bulk.global.shared::cta.bulk_group"
REDUCE = "cp.reduce.async.bulk.global.shared::cta.bulk_group"
AT = 256  # byte offset in shared memory, behind the mbarrier
FENCE = "fence.proxy.async.shared::cta; bar.sync 0;\n"
DONE = "@%lead cp.async.bulk.commit_group; @%lead cp.async.bulk.wait_group 0;\n"
CLUSTER_SYNC = "barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;\n"


def random_bytes(count: int, seed: int = 0) -> np.ndarray:
    return aligned(np.random.default_rng(seed).integers(0, 256, count, dtype=np.uint8))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("form", [LOAD, OWN_LOAD])
def test_a_load_and_a_store_move_their_bytes(policy: Policy, form: str) -> None:
    source, out = random_bytes(1024), aligned(np.zeros(1024, np.uint8))
    body = barrier_init() + expect(752) + f"@%lead {form} [%smem+{AT}], [%a_source+16], 752, [%smem];\n" + wait("%smem")
    body += f"@%lead {STORE} [%a_out+64], [%smem+{AT + 32}], 720;\n" + DONE
    assert Kernel(body, {}, {"source": source, "out": out}).findings(policy) == []
    assert np.array_equal(out[64:784], source[48:768])
    assert not out[:64].any() and not out[784:].any()


@pytest.mark.parametrize("policy", POLICIES)
def test_multicast_gives_every_masked_cta_the_bytes_and_the_count(policy: Policy) -> None:
    source, out = random_bytes(512), aligned(np.zeros((4, 256), np.uint8))
    body = barrier_init() + "mov.b16 %h0, 10; and.b32 %r1, %rank, 1; setp.eq.u32 %p0, %r1, 1;\n"
    body += "setp.eq.u32 %p1, %rank, 0; and.pred %p2, %p1, %lead; and.pred %p3, %p0, %lead;\n"
    body += "@%p3 mbarrier.arrive.expect_tx.shared.b64 _, [%smem], 256;\n"
    body += f"@%p2 {LOAD}.multicast::cluster [%smem+{AT}], [%a_source+128], 256, [%smem], %h0;\n"
    body += "@!%p0 bra JOIN;\n" + wait("%smem")
    body += "mul.wide.u32 %d0, %rank, 256; add.u64 %a_out, %a_out, %d0;\n" + dump("out", 64, AT) + "JOIN:\n"
    assert Kernel(body + CLUSTER_SYNC, {}, {"source": source, "out": out}, cluster=4).findings(policy) == []
    for rank in range(4):
        assert np.array_equal(out[rank], source[128:384] if rank in (1, 3) else np.zeros(256, np.uint8))


def across(form: str, extra: str = "") -> str:
    """CTA 0 sends 256 bytes to CTA 1, which waits for them and dumps them."""
    body = barrier_init() + fill("source", 64, 1024) + fill("before", 64, AT) + FENCE + CLUSTER_SYNC
    body += "mapa.shared::cluster.u32 %r1, %smem, 1; setp.eq.u32 %p0, %rank, 0; and.pred %p1, %p0, %lead;\n"
    body += f"@%p1 {form} [%r1+{AT}], [%smem+1024], 256, [%r1]{extra};\n@%p0 bra JOIN;\n"
    return body + expect(256) + wait("%smem") + dump("out", 64, AT) + "JOIN:\n" + CLUSTER_SYNC


@pytest.mark.parametrize("policy", POLICIES)
def test_a_copy_to_another_cta_signals_the_barrier_there(policy: Policy) -> None:
    arrays = {"source": random_bytes(256, 1), "before": random_bytes(256, 2), "out": aligned(np.zeros(256, np.uint8))}
    assert Kernel(across(ACROSS), {}, arrays, cluster=2).findings(policy) == []
    assert np.array_equal(arrays["out"], arrays["source"])


def test_a_reduction_into_another_ctas_shared_memory() -> None:
    arrays = {"source": random_bytes(256, 1), "before": random_bytes(256, 2), "out": aligned(np.zeros(256, np.uint8))}
    form = ACROSS.replace("cp.async", "cp.reduce.async") + ".add.u32"
    assert Kernel(across(form), {}, arrays, cluster=2).findings() == []
    a, b, out = (arrays[name].view(np.uint32) for name in ("source", "before", "out"))
    assert np.array_equal(out, a + b)


def test_a_copy_within_shared_memory_must_reach_another_cta() -> None:
    body = barrier_init() + fill("source", 64, 1024) + FENCE + expect(256)
    body += f"@%lead {ACROSS} [%smem+{AT}], [%smem+1024], 256, [%smem];\n" + wait("%smem")
    ((kind, message),) = Kernel(body, {}, {"source": random_bytes(256)}).findings()
    assert kind == "bulk_copy" and "must end in another CTA" in message


@pytest.mark.parametrize(
    ("op", "dtype", "expected"),
    [
        ("add.f32", np.float32, lambda a, b: a + 2 * b),
        ("add.f64", np.float64, lambda a, b: a + 2 * b),
        ("add.noftz.f16", np.float16, lambda a, b: a + 2 * b),
        ("add.u64", np.uint64, lambda a, b: a + 2 * b),
        ("min.s64", np.int64, np.minimum),
        ("max.u32", np.uint32, np.maximum),
        ("and.b64", np.uint64, np.bitwise_and),
        ("or.b32", np.uint32, np.bitwise_or),
    ],
)
def test_reductions_by_two_ctas(op: str, dtype: type, expected: Callable[..., np.ndarray]) -> None:
    rng = np.random.default_rng(3)
    a, b = (aligned(rng.integers(0, 100, 64).astype(dtype)) for _ in range(2))
    want = expected(a, b)
    body = (
        fill("source", b.nbytes // 4, AT) + FENCE + f"@%lead {REDUCE}.{op} [%a_to], [%smem+{AT}], {b.nbytes};\n" + DONE
    )
    assert Kernel(body, {}, {"to": a, "source": b}, grid=2).findings() == []
    assert np.array_equal(a, want)


def test_a_type_that_has_no_reduction_stops_the_reading() -> None:
    body = f"@%lead {REDUCE}.add.u16 [%a_to], [%smem], 16;\n"
    assert Kernel(body, {}, {"to": random_bytes(64)}).findings() == [
        ("bulk_copy", "this reduction does not exist for this element type")
    ]
    with pytest.raises(PtxError, match=r"reductions of \.q7 elements do not exist"):
        Kernel(body.replace("u16", "q7"), {}, {"to": random_bytes(64)}).program()


@pytest.mark.parametrize(
    ("statement", "kind", "said"),
    [
        (f"{LOAD} [%smem+{AT}], [%a_g], 24, [%smem]", "misaligned", "24 bytes, is no multiple of 16"),
        (f"{LOAD} [%smem+{AT}], [%a_g+8], 32, [%smem]", "misaligned", ""),
        (f"{LOAD} [%smem+{AT + 4}], [%a_g], 32, [%smem]", "misaligned", ""),
        (f"{STORE} [%a_g+4], [%smem+{AT}], 32", "misaligned", ""),
        (f"{STORE} [%a_g], [%smem+{AT}], 40", "misaligned", "40 bytes, is no multiple of 16"),
        (f"{LOAD} [%smem+{AT}], [%a_g+512], 1024, [%smem]", "out_of_bounds", ""),
        (f"{LOAD} [%smem+32704], [%a_g], 256, [%smem]", "out_of_bounds", ""),
        (f"{LOAD} [%smem+{AT}], [%a_g], %r9, [%smem]", "undefined_value", "operand 3"),
        (f"{LOAD} [%smem+{AT}], [%a_g], 64, [%smem+8]", "barrier", ""),
        (f"{LOAD} [%smem], [%a_g], 64, [%smem]", "barrier", "overwrites a live mbarrier"),
        ("cp.async.bulk.prefetch.L2.global [%a_g], 20", "misaligned", "both are multiples of 16"),
    ],
)
def test_what_is_found(statement: str, kind: str, said: str) -> None:
    found = Kernel(barrier_init() + f"@%lead {statement};\n", {}, {"g": random_bytes(1024)}).findings()
    assert any(k == kind and said in message for k, message in found), found


def test_a_store_needs_the_proxy_fence_and_its_source_the_wait() -> None:
    arrays = {"source": random_bytes(256), "out": aligned(np.zeros(256, np.uint8))}
    right = fill("source", 64, AT) + FENCE + f"@%lead {STORE} [%a_out], [%smem+{AT}], 256;\n" + DONE
    right += f"mov.u32 %r1, 0; @%lead st.shared.b32 [%smem+{AT}], %r1;\n"
    for policy in POLICIES:
        assert Kernel(right, {}, arrays).findings(policy) == []
        found = Kernel(right.replace(FENCE, "bar.sync 0;\n"), {}, arrays).findings(policy)
        assert [kind for kind, _ in found] == ["missing_proxy_fence"]
        found = Kernel(right.replace(DONE, "@%lead cp.async.bulk.commit_group;\n"), {}, arrays).findings(policy)
        assert "race" in [kind for kind, _ in found]


def test_groups_are_waited_for_in_order_of_commit() -> None:
    """Two stores; after wait_group.read 1 the first one's source may be written, the second one's may not."""
    arrays = {"source": random_bytes(512), "out": aligned(np.zeros(512, np.uint8))}
    body = fill("source", 128, AT) + FENCE
    for part in (0, 256):
        body += f"@%lead {STORE} [%a_out+{part}], [%smem+{AT + part}], 256;\n@%lead cp.async.bulk.commit_group;\n"
    body += "@%lead cp.async.bulk.wait_group.read 1;\nmov.u32 %r1, 0;\n"
    for policy in POLICIES:
        first = body + f"@%lead st.shared.b32 [%smem+{AT}], %r1;\n@%lead cp.async.bulk.wait_group.read 0;\n"
        assert Kernel(first, {}, arrays).findings(policy) == []
        assert np.array_equal(arrays["out"], arrays["source"])
        second = body + f"@%lead st.shared.b32 [%smem+{AT + 256}], %r1;\n"
        assert "race" in [kind for kind, _ in Kernel(second, {}, arrays).findings(policy)]


def test_a_warp_that_ends_while_its_copies_may_still_read_is_found() -> None:
    arrays = {"source": random_bytes(512), "out": aligned(np.zeros(512, np.uint8))}
    body = fill("source", 128, AT) + FENCE + f"@%lead {STORE} [%a_out], [%smem+{AT}], 256;\n"
    for end, found in (
        ("", True),
        ("cp.async.bulk.commit_group;", True),
        ("cp.async.bulk.commit_group; @%lead cp.async.bulk.wait_group.read 1;", True),
        ("cp.async.bulk.commit_group; @%lead cp.async.bulk.wait_group.read 0;", False),
        ("cp.async.bulk.commit_group; @%lead cp.async.bulk.wait_group 0;", False),
    ):
        for policy in POLICIES:
            kinds = [kind for kind, _ in Kernel(f"{body}@%lead {end}\n" if end else body, {}, arrays).findings(policy)]
            assert kinds == (["in_flight_at_exit"] if found else [])
