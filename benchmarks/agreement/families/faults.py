"""What the chip refuses, or is thought to: the emulator must have a finding where a kernel does not end there."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from benchmarks.agreement.maps import DONE, FENCE, LOAD, STORE, TILE, issue, paint
from benchmarks.agreement.probe import OUT, TARGET, Probe
from dsv4.emulator.text_kernel import Kernel, aligned, barrier_init, expect, wait
from dsv4.emulator.tma_descriptor import TensorMap

BULK = "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"


def _tensor(name: str, load: bool, place: tuple[int, ...], at: int = TILE) -> Probe:
    memory = aligned(np.arange(64 * 16, dtype=np.uint16).reshape(16, 64))
    tensor_map = TensorMap(memory.ctypes.data, "bf16", (64, 16), (128,), (32, 4), spans_fetch=False)
    body = barrier_init() + paint(256) + FENCE
    if load:
        body += expect(256) + issue(LOAD, place, load=True, at=at) + wait("%smem")
    else:
        body += issue(STORE, place, load=False, at=at) + DONE
    return _probe(name, Kernel(body, {"t": tensor_map}, {"memory": memory}))


def _probe(name: str, kernel: Kernel) -> Probe:
    kernel.arrays[OUT] = aligned(np.zeros(64, np.uint32))
    kernel.body += f"mov.u32 %r9, 1; @%lead st.global.b32 [%a_{OUT}], %r9;\n"
    kernel.target = TARGET
    return Probe("faults", name, kernel, may_fail=True)


def _body(name: str, body: str, smem_bytes: int = 32768) -> Probe:
    return _probe(name, Kernel(body, {}, {"memory": aligned(np.zeros(256, np.uint32))}, smem_bytes=smem_bytes))


def probes() -> Iterator[Probe]:
    yield _tensor("load_coordinate_8_bytes", True, (4, 0))
    yield _tensor("store_coordinate_2_bytes", False, (1, 0))
    yield _tensor("load_to_64_byte_address", True, (0, 0), TILE + 64)
    yield _tensor("store_from_16_byte_address", False, (0, 0), TILE + 16)
    yield _tensor("load_of_another_rank", True, (0, 0, 0))
    bulk = barrier_init() + FENCE
    copy = f"mov.u32 %r5, 24; @%lead {BULK} [%smem+256], [%a_memory], %r5, [%smem];\n"
    yield _body("bulk_of_24_bytes", bulk + expect(24) + copy + wait("%smem"))
    yield _body(
        "bulk_from_8_byte_address",
        bulk + expect(32) + f"@%lead {BULK} [%smem+256], [%a_memory+8], 32, [%smem];\n" + wait("%smem"),
    )
    yield _body(
        "bulk_to_8_byte_address",
        bulk + expect(32) + f"@%lead {BULK} [%smem+264], [%a_memory], 32, [%smem];\n" + wait("%smem"),
    )
    store = "st.global.b32 [%a_out+4], %r1;\n"
    folded = "xor.b32 %r1, %r1, %r2; xor.b32 %r3, %r3, %r4; xor.b32 %r1, %r1, %r3;"  # or the load becomes narrower
    yield _body("ld_v4_misaligned", f"ld.global.v4.b32 {{%r1, %r2, %r3, %r4}}, [%a_memory+4]; {folded} {store}")
    yield _body("ld_shared_misaligned", f"ld.shared.b32 %r1, [%smem+2]; {store}")
    yield _body("ld_shared_outside", f"ld.shared.b32 %r1, [%smem+234496]; {store}")
    yield _body("ldmatrix_misaligned", f"ldmatrix.sync.aligned.m8n8.x1.shared.b16 {{%r1}}, [%smem+8]; {store}")
    yield _body("ld_global_null", f"mov.u64 %d1, 64; ld.global.b32 %r1, [%d1]; {store}")
    yield _body("red_misaligned", "red.global.add.u32 [%a_memory+2], %thread;\n")
    yield _body("mbarrier_misaligned", "@%lead mbarrier.init.shared.b64 [%smem+4], 1;\n")
    copy = "cp.async.cg.shared.global [%smem+4], [%a_memory], 16; cp.async.wait_all;"
    yield _body("cp_async_misaligned", f"{copy} ld.shared.b32 %r1, [%smem+4]; {store}")
    yield _tensor("load_outside_of_shared", True, (0, 0), 234496)
    yield _body("trap", "trap;\n")
