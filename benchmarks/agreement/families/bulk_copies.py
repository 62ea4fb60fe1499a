"""Bulk copies of plain bytes and their reductions, to and from global memory and between CTAs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from benchmarks.agreement.families.floats import doubles
from benchmarks.agreement.families.tensor_writes import _values
from benchmarks.agreement.maps import DONE, FENCE, dump_at, paint
from benchmarks.agreement.probe import OUT, TARGET, Probe
from dsv4.emulator.text_kernel import Kernel, aligned, barrier_init, expect, fill, wait

LOAD = "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
ACROSS = "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes"
STORE = "cp.async.bulk.global.shared::cta.bulk_group"
REDUCE = "cp.reduce.async.bulk.global.shared::cta.bulk_group"
SHARED_REDUCE = "cp.reduce.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes"
AT, SOURCE = 256, 2048
BYTES = 1024
SYNC = "barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;\n"
GLOBAL_REDUCTIONS = {
    "u32": ("add.u32", "min.u32", "max.u32", "inc.u32", "dec.u32"),
    "s32": ("add.s32", "min.s32", "max.s32"),
    "u64": ("add.u64", "min.u64", "max.u64"),
    "s64": ("min.s64", "max.s64"),
    "b32": ("and.b32", "or.b32", "xor.b32"),
    "b64": ("and.b64", "or.b64", "xor.b64"),
    "f16": ("add.noftz.f16", "min.f16", "max.f16"),
    "bf16": ("add.noftz.bf16", "min.bf16", "max.bf16"),
    "f32": ("add.f32",),
    "f64": ("add.f64",),
}
SHARED_REDUCTIONS = {
    "u32": ("add.u32", "min.u32", "max.u32", "inc.u32", "dec.u32"),
    "s32": ("add.s32", "min.s32", "max.s32"),
    "u64": ("add.u64",),
    "b32": ("and.b32", "or.b32", "xor.b32"),
}


def _operands(seed: int, element_type: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    if element_type == "f64":
        return aligned(doubles(rng, BYTES // 8)), aligned(doubles(rng, BYTES // 8))
    size = int(element_type.lstrip("bsuf")) // 8
    before, added = (aligned(_values(rng, element_type, 2 * BYTES // size)[: BYTES // size]) for _ in range(2))
    return before, added


def _copies() -> Iterator[Probe]:
    source = aligned(np.random.default_rng(3000).integers(0, 256, 2048, dtype=np.uint8))
    body = barrier_init() + paint(256, AT) + FENCE + expect(752)
    body += f"@%lead {LOAD} [%smem+{AT + 16}], [%a_source+48], 752, [%smem];\n" + wait("%smem") + dump_at(256, 0, AT)
    kernel = Kernel(body, {}, {"source": source, OUT: aligned(np.zeros(256, np.uint32))}, target=TARGET)
    yield Probe("bulk_copies", "load", kernel)
    body = fill("source", 256, AT) + FENCE + f"@%lead {STORE} [%a_{OUT}+64], [%smem+{AT + 32}], 720;\n" + DONE
    kernel = Kernel(body, {}, {"source": source, OUT: aligned(np.zeros(256, np.uint32))}, target=TARGET)
    yield Probe("bulk_copies", "store", kernel)
    body = barrier_init() + paint(64, AT) + FENCE + SYNC
    body += "mov.b16 %h0, 10; and.b32 %r1, %rank, 1; setp.eq.u32 %p0, %r1, 1;\n"
    body += "setp.eq.u32 %p1, %rank, 0; and.pred %p2, %p1, %lead; and.pred %p3, %p0, %lead;\n"
    body += "@%p3 mbarrier.arrive.expect_tx.shared.b64 _, [%smem], 256;\n"
    body += f"@%p2 {LOAD}.multicast::cluster [%smem+{AT}], [%a_source+128], 256, [%smem], %h0;\n"
    body += "@!%p0 bra JOIN;\n" + wait("%smem") + "JOIN:\n" + SYNC
    body += f"mul.wide.u32 %d0, %rank, 256; add.u64 %a_{OUT}, %a_{OUT}, %d0;\n" + dump_at(64, 0, AT)
    arrays = {"source": source, OUT: aligned(np.zeros((4, 64), np.uint32))}
    yield Probe("bulk_copies", "multicast", Kernel(body, {}, arrays, cluster=4, target=TARGET))


def _across(form: str, name: str, before: np.ndarray, added: np.ndarray, kind: str = "bits") -> Probe:
    """CTA 0 sends bytes to CTA 1, which dumps what it then has."""
    body = barrier_init() + fill("source", BYTES // 4, SOURCE) + fill("before", BYTES // 4, AT) + FENCE + SYNC
    body += "mapa.shared::cluster.u32 %r1, %smem, 1; setp.eq.u32 %p0, %rank, 0; and.pred %p1, %p0, %lead;\n"
    body += f"@%p1 {form} [%r1+{AT}], [%smem+{SOURCE}], {BYTES}, [%r1];\n@%p0 bra JOIN;\n"
    body += expect(BYTES) + wait("%smem") + dump_at(BYTES // 4, 0, AT) + "JOIN:\n" + SYNC
    out = aligned(np.zeros(before.shape, before.dtype))
    kernel = Kernel(body, {}, {"source": added, "before": before, OUT: out}, cluster=2, target=TARGET)
    return Probe("bulk_copies", name, kernel, kind=kind)


def probes() -> Iterator[Probe]:
    yield from _copies()
    before, added = _operands(3100, "u32")
    yield _across(ACROSS, "across", before, added)
    for number, (element_type, forms) in enumerate(GLOBAL_REDUCTIONS.items()):
        for form in forms:
            before, added = _operands(3200 + number, element_type)
            if form.startswith(("inc", "dec")):
                before &= 0x1FF
                added &= 0xFF
            body = (
                fill("source", BYTES // 4, AT) + FENCE + f"@%lead {REDUCE}.{form} [%a_{OUT}], [%smem+{AT}], {BYTES};\n"
            )
            kernel = Kernel(body + DONE, {}, {"source": added, OUT: before}, target=TARGET)
            kind = element_type if element_type in ("f16", "bf16", "f32", "f64") else "bits"
            yield Probe("bulk_copies", f"global.{form}", kernel, kind=kind)
    for number, (element_type, forms) in enumerate(SHARED_REDUCTIONS.items()):
        for form in forms:
            before, added = _operands(3300 + number, element_type)
            if form.startswith(("inc", "dec")):
                before &= 0x1FF
                added &= 0xFF
            yield _across(f"{SHARED_REDUCE}.{form}", f"across.{form}", before, added)
