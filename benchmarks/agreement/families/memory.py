"""Loads and stores of every width, generic and remote shared addresses, cp.async."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from benchmarks.agreement.probe import OUT, TARGET, Probe
from benchmarks.agreement.tables import table
from benchmarks.agreement.warps import warp_kernel
from dsv4.emulator.text_kernel import Kernel, aligned

CLUSTER = 4


def _random_words(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**32, count, dtype=np.uint64).astype(np.uint32)


def _widths() -> list[tuple[str, str]]:
    """Loads that widen, from bytes at (index · 8) of the array a and from shared memory."""
    rows = []
    far = "and.b32 t0, lane, 31; mad.wide.u32 w0, t0, 8, %a_a;"
    near = "mov.u32 t1, %smem; mad.lo.u32 t1, %thread, 8, t1; cvt.u64.u32 w1, t1; st.shared.b64 [t1], a;"
    for kind in ("s8", "u8", "b8"):
        rows.append(
            (f"ld.global.{kind}", f"{far} ld.global.{kind} h0, [w0+3]; mov.b32 t1, {{h0, 0}}; cvt.u64.u32 d, t1;")
        )
        rows.append((f"ld.shared.{kind}", f"{near} ld.shared.{kind} t2, [t1+5]; cvt.u64.u32 d, t2;"))
    for kind in ("s16", "u16", "b16"):
        rows.append((f"ld.global.{kind}", f"{far} ld.global.{kind} t1, [w0+2]; cvt.u64.u32 d, t1;"))
        rows.append((f"ld.shared.{kind} wide", f"{near} ld.shared.{kind} d, [t1+6];"))
    for kind in ("s32", "u32"):
        rows.append((f"ld.global.{kind} wide", f"{far} ld.global.{kind} d, [w0+4];"))
    rows += [
        ("st.shared.b8", f"{near} cvt.u32.u64 t2, a; st.shared.b8 [t1+2], t2; ld.shared.b64 d, [t1];"),
        ("st.shared.b16", f"{near} cvt.u32.u64 t2, a; st.shared.b16 [t1+6], t2; ld.shared.b64 d, [t1];"),
        ("ld generic shared", f"{near} cvta.shared.u64 w1, w1; ld.b64 d, [w1];"),
        ("ld.global.v2.b16", f"{far} ld.global.v2.b16 {{h0, h1}}, [w0+4]; mov.b32 t1, {{h1, h0}}; cvt.u64.u32 d, t1;"),
        ("ld.global.v4.b8", f"{far} ld.global.v4.b8 {{h0, h1, h2, h3}}, [w0]; mov.b64 d, {{h3, h1, h0, h2}};"),
        ("ld.global.nc.v2.b32", f"{far} ld.global.nc.v2.b32 {{t1, t2}}, [w0]; mov.b64 d, {{t2, t1}};"),
        ("ld.shared.v4.b16", f"{near} ld.shared.v4.b16 {{h0, h1, h2, h3}}, [t1]; mov.b64 d, {{h2, h1, h3, h0}};"),
    ]  # fmt: skip
    return rows


def _async_copies() -> Iterator[Probe]:
    """cp.async of 4, 8, 16 bytes with source sizes and the ignore predicate; untouched bytes keep a pattern."""
    data = _random_words(1024, 61)
    body = "shl.b32 %r0, %thread, 4; cvt.u64.u32 %d0, %r0; add.u64 %d0, %d0, %a_data; add.u32 %r1, %r0, %smem;\n"
    for part, (form, size, more) in enumerate(
        (
            ("ca", 4, ""),
            ("ca", 8, ""),
            ("cg", 16, ""),
            ("ca", 4, ", %r2"),
            ("ca", 8, ", %r3"),
            ("cg", 16, ", %r4"),
            ("cg", 16, ", %p0"),
        )
    ):
        copy = f"cp.async.{form}.shared.global [%r1+{part * 512}], [%d0+{part * 512}], {size}{more};\n"
        body += f"st.shared.v4.b32 [%r1+{part * 512}], {{%thread, %thread, %thread, %thread}};\n{copy}"
    body = (
        "and.b32 %r2, %thread, 3; and.b32 %r3, %thread, 7; and.b32 %r4, %thread, 15; and.b32 %r5, %thread, 1;\n"
        "setp.eq.u32 %p0, %r5, 1;\n" + body
    )
    body += "cp.async.commit_group; cp.async.wait_group 0; bar.sync 0;\n"
    for part in range(7):
        body += f"ld.shared.v4.b32 {{%r10, %r11, %r12, %r13}}, [%r1+{part * 512}]; cvt.u64.u32 %d1, %r0;\n"
        body += f"add.u64 %d1, %d1, %a_{OUT}; st.global.v4.b32 [%d1+{part * 512}], {{%r10, %r11, %r12, %r13}};\n"
    arrays = {"data": aligned(data), OUT: aligned(np.zeros((7, 128), np.uint32))}
    kernel = Kernel(body, {}, arrays, block=32, smem_bytes=4096, target=TARGET)
    yield Probe("memory", "cp_async", kernel, ("4", "8", "16", "4 size", "8 size", "16 size", "16 ignore"))


def _remote() -> Iterator[Probe]:
    """Each CTA of a cluster writes to and reads from the next one's shared memory."""
    sync = "barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;\n"
    body = f"""shl.b32 %r0, %thread, 2; add.u32 %r1, %smem, %r0;
    mad.lo.u32 %r2, %rank, 1000, %thread; st.shared.b32 [%r1], %r2; {sync}
    add.u32 %r3, %rank, 1; and.b32 %r3, %r3, {CLUSTER - 1};
    mapa.shared::cluster.u32 %r4, %r1, %r3; ld.shared::cluster.b32 %r5, [%r4];
    st.shared::cluster.b32 [%r4+512], %r2;
    cvt.u64.u32 %d1, %r1; cvta.shared.u64 %d1, %d1; mapa.u64 %d2, %d1, %r3; ld.b32 %r6, [%d2];
    red.shared::cluster.add.u32 [%r4+1024], %r2; atom.shared::cluster.add.u32 %r7, [%r4+1536], 5; {sync}
    ld.shared.b32 %r8, [%r1+512]; ld.shared.b32 %r9, [%r1+1024]; ld.shared.b32 %r11, [%r1+1536];
    mad.lo.u32 %r10, %rank, 128, %thread; mul.wide.u32 %d0, %r10, 4; add.u64 %d0, %d0, %a_{OUT};
    """
    start = "shl.b32 %r0, %thread, 2; add.u32 %r1, %smem, %r0; mov.u32 %r5, 7;\n"
    start += "st.shared.b32 [%r1+1024], %r5; st.shared.b32 [%r1+1536], %r5;\n"
    body = start + body
    for n, register in enumerate((5, 6, 7, 8, 9, 11, 4)):
        body += f"st.global.b32 [%d0+{n * 4 * 128 * CLUSTER}], %r{register};\n"
    labels = (
        "ld.shared::cluster",
        "mapa generic",
        "atom remote",
        "st.shared::cluster",
        "red remote",
        "atom's sum",
        "mapa address",
    )
    arrays = {OUT: aligned(np.zeros((7, CLUSTER * 128), np.uint32))}
    yield Probe("memory", "remote_shared", Kernel(body, {}, arrays, block=128, cluster=CLUSTER, target=TARGET), labels)


def probes() -> Iterator[Probe]:
    words = _random_words(2048, 62)
    words[::7] |= 0x80808080
    probe = table("memory", "widths", _widths(), {"a": words.view(np.uint64)}, out_bytes=8)
    probe.kernel.smem_bytes = 1024
    yield probe
    inputs = _random_words(2 * 4 * 128, 63).reshape(2, 4, 128)
    body = """mad.lo.u32 word4, %thread, 16, %smem; st.shared.v4.b32 [word4], {i0, i1, i2, i3};
    bar.sync 0; xor.b32 word4, word4, 16; ld.shared.v2.b64 {own, from_set}, [word4];
    mov.b64 {o1, o0}, own; mov.b64 {o3, o2}, from_set; mul.wide.u32 own, %thread, 4;\n"""
    kernel = warp_kernel(body, outputs=4, inputs=inputs, threads=128)
    kernel.smem_bytes = 2048
    yield Probe("memory", "vectors", kernel)
    yield from _async_copies()
    yield from _remote()
