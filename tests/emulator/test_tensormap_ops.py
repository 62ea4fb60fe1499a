"""Tensor maps that the kernel changes: every field, the copy to global memory, and the tensormap proxy's fences."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dsv4.emulator.policy import Policy
from dsv4.emulator.tma_descriptor import TensorMap, decode
from tests.emulator.copy_kernel import POLICIES, Kernel, aligned, barrier_init, copy_words, dump, expect, wait

MAP, TILE = 512, 1024  # byte offsets in shared memory
ACQUIRE = "fence.proxy.tensormap::generic.acquire.gpu [%a_map], 128;\n"
RELEASE = "fence.proxy.tensormap::generic.release.gpu;\n"
PUBLISH = (
    "bar.warp.sync -1; tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release.gpu.sync.aligned "
    f"[%a_map], [%smem+{MAP}], 128;\n"
)
LOAD = "@%lead cp.async.bulk.tensor.2d.shared::cta.global.tile.mbarrier::complete_tx::bytes "
TEMPLATE = TensorMap(0x1000, "u16", (8, 8), (64,), (64, 4), spans_fetch=False)


def to_shared() -> str:
    """The template, from the parameters into shared memory, with ordinary accesses."""
    return copy_words(
        32,
        load="add.u64 from, %m_t, wide; ld.b32 x, [from];",
        store=f"add.u32 %at, %at, %smem; st.shared.b32 [%at+{MAP}], x;",
    )


def to_global() -> str:
    """The same into global memory."""
    return copy_words(
        32,
        load="add.u64 from, %m_t, wide; ld.b32 x, [from];",
        store="add.u64 to, %a_map, wide; st.global.b32 [to], x;",
    )


def replaced(where: str, rows: int, columns: int, stride_bytes: int) -> str:
    """Address, dimensions and stride of the array `memory`."""
    space = "global" if where == "%a_map" else "shared::cta"
    head = f"@%lead tensormap.replace.tile.{{}}.{space}.b1024.b{{}} [{where}], "
    lines = [
        (("global_address", 64), "%a_memory"),
        (("global_dim", 32), f"0, {columns}"),
        (("global_dim", 32), f"1, {rows}"),
        (("global_stride", 64), f"0, {stride_bytes}"),
    ]
    return "".join(head.format(*form) + value + ";\n" for form, value in lines)


def load_and_dump() -> str:
    return (
        expect(512) + LOAD + f"[%smem+{TILE}], [%a_map, {{0, 5}}], [%smem];\n" + wait("%smem") + dump("out", 128, TILE)
    )


def arrays() -> dict[str, np.ndarray]:
    memory = aligned(np.arange(64 * 16, dtype=np.uint16).reshape(16, 64))
    return {"memory": memory, "map": aligned(np.zeros(128, np.uint8)), "out": aligned(np.zeros(512, np.uint8))}


def kernel(body: str, **fields: Any) -> Kernel:
    return Kernel(barrier_init() + body, {"t": TEMPLATE}, arrays(), **fields)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_map_replaced_in_shared_memory_and_published_is_the_one_that_a_load_uses(policy: Policy) -> None:
    body = to_shared() + "bar.warp.sync -1;\n" + replaced(f"%smem+{MAP}", 16, 64, 128) + PUBLISH + ACQUIRE
    ran = kernel(body + load_and_dump())
    assert ran.findings(policy) == []
    assert np.array_equal(ran.arrays["out"].view(np.uint16).reshape(4, 64), ran.arrays["memory"][5:9])
    want = replace(TEMPLATE, address=ran.arrays["memory"].ctypes.data, dims=(64, 16), strides_bytes=(128,))
    got = decode(ran.arrays["map"].tobytes())
    assert replace(got, element_strides=()) == replace(want, element_strides=())


@pytest.mark.parametrize("policy", POLICIES)
def test_a_map_replaced_in_global_memory_needs_release_and_acquire(policy: Policy) -> None:
    body = to_global() + "fence.acq_rel.cta; bar.warp.sync -1;\n" + replaced("%a_map", 16, 64, 128)
    right = kernel(body + "bar.warp.sync -1;\n" + RELEASE + ACQUIRE + load_and_dump())
    assert right.findings(policy) == []
    assert np.array_equal(right.arrays["out"].view(np.uint16).reshape(4, 64), right.arrays["memory"][5:9])
    for without, said in (
        (RELEASE, "was changed and CTA 0 has not executed fence.proxy.tensormap::generic.acquire since"),
        ("", "was changed and not released"),
        (ACQUIRE, "was changed and not released"),
        (ACQUIRE + RELEASE, "has not executed fence.proxy.tensormap::generic.acquire since"),
    ):
        found = kernel(body + "bar.warp.sync -1;\n" + without + load_and_dump()).findings(policy)
        assert [kind for kind, _ in found] == ["missing_tensormap_fence"] and said in found[0][1], (without, found)


def test_a_published_map_needs_an_acquire_in_the_cta_that_uses_it() -> None:
    body = to_shared() + "bar.warp.sync -1;\n" + replaced(f"%smem+{MAP}", 16, 64, 128) + PUBLISH
    ((kind, message),) = kernel(body + load_and_dump()).findings()
    assert kind == "missing_tensormap_fence" and "CTA 0 has not executed" in message


def test_a_map_may_be_changed_only_when_copies_that_use_it_have_read_it() -> None:
    body = to_shared() + "bar.warp.sync -1;\n" + replaced(f"%smem+{MAP}", 16, 64, 128) + PUBLISH + ACQUIRE
    body += expect(512) + LOAD + f"[%smem+{TILE}], [%a_map, {{0, 5}}], [%smem];\n"
    reading_done = "@%lead cp.async.bulk.commit_group; @%lead cp.async.bulk.wait_group.read 0;\n"
    ((kind, message),) = kernel(body + PUBLISH + ACQUIRE + wait("%smem")).findings()
    assert kind == "race" and "is changed while a copy that uses it is in flight" in message
    for policy in POLICIES:
        assert kernel(body + reading_done + PUBLISH + ACQUIRE + wait("%smem")).findings(policy) == []
        assert kernel(body + wait("%smem") + PUBLISH + ACQUIRE).findings(policy) == []


def test_another_warp_uses_the_map_only_after_it_has_been_told() -> None:
    """Warp 0 makes the map, warp 1 issues the copy."""
    make = to_shared() + "bar.sync 0;\nsetp.ge.u32 %p0, %thread, 32;\n@%p0 bra MADE;\n"
    make += replaced(f"%smem+{MAP}", 16, 64, 128) + PUBLISH + "MADE:\n"
    use = "setp.eq.u32 %p1, %thread, 32;\n" + ACQUIRE + "@%p1 mbarrier.arrive.expect_tx.shared.b64 _, [%smem], 512;\n"
    use += LOAD.replace("%lead", "%p1") + f"[%smem+{TILE}], [%a_map, {{0, 5}}], [%smem];\n" + wait("%smem")
    for policy in POLICIES:
        assert kernel(make + "bar.sync 0;\n" + use, block=64).findings(policy) == []
    found = [f for policy in POLICIES for f in kernel(make + use, block=64).findings(policy)]
    assert {"race", "tensor_map", "missing_tensormap_fence"} & {kind for kind, _ in found}


@pytest.mark.parametrize(
    ("field", "bits", "operands", "change"),
    [
        ("rank", 32, "1", {}),
        ("box_dim", 32, "1, 7", {"box": (64, 7)}),
        ("global_dim", 32, "0, 1000000", {"dims": (1000000, 8)}),
        ("global_stride", 64, "0, 0x7654321050", {"strides_bytes": (0x7654321050,)}),
        ("element_stride", 32, "1, 3", {"element_strides": (1, 3)}),
        ("elemtype", 32, "10", {"element_type": "bf16"}),
        ("elemtype", 32, "11", {"element_type": "f32", "round_to_tf32": True}),
        ("elemtype", 32, "13", {"element_type": "b4x16"}),
        ("swizzle_mode", 32, "3", {"swizzle_bytes": 128}),
        ("fill_mode", 32, "1", {"fill_nan": True}),
        ("interleave_layout", 32, "0", {}),
        ("swizzle_atomicity", 32, "3", {"atom_bytes": 64}),
    ],
)
def test_every_field_is_replaced_where_the_decoder_reads_it(
    field: str, bits: int, operands: str, change: dict[str, Any]
) -> None:
    body = to_shared() + "bar.warp.sync -1;\n"
    body += f"@%lead tensormap.replace.tile.{field}.shared::cta.b1024.b{bits} [%smem+{MAP}], {operands};\n" + PUBLISH
    ran = kernel(body)
    assert ran.findings() == []
    expected = replace(TEMPLATE, **{"element_strides": (1, 1), **change})
    assert decode(ran.arrays["map"].tobytes()) == expected


@pytest.mark.parametrize("operands", ["box_dim|0, 257", "element_stride|0, 9", "swizzle_mode|7", "rank|5"])
def test_values_that_a_field_does_not_take_are_found(operands: str) -> None:
    field, values = operands.split("|")
    body = to_shared() + "bar.warp.sync -1;\n"
    body += f"@%lead tensormap.replace.tile.{field}.shared::cta.b1024.b32 [%smem+{MAP}], {values};\n"
    ((kind, message),) = kernel(body).findings()
    assert kind == "tensor_map" and "does not take the value" in message


def test_a_map_that_is_built_from_nothing_is_defined_where_fields_were_set() -> None:
    """Address and dimensions fill whole bytes; the flag words stay unset, and a copy says so."""
    body = replaced(f"%smem+{MAP}", 16, 64, 128) + PUBLISH + ACQUIRE + load_and_dump()
    ran = kernel(body)
    result, shadows = ran.run()
    assert [found.kind for found in result.findings] == ["undefined_value"]
    assert "byte 8 of the tensor map" in result.findings[0].message
    assert not shadows["map"][:8].any() and not shadows["map"][32:40].any() and shadows["map"][8:12].all()
