"""Kernels of warps with registers in and out and with shared memory filled: one CTA a set of data."""

from __future__ import annotations

import numpy as np

from benchmarks.agreement.probe import OUT, TARGET
from dsv4.emulator.text_kernel import Kernel, aligned

FENCE = "fence.proxy.async; bar.sync 0;\n"


def _copied(words: int, threads: int, load: str, store: str) -> str:
    return f"""{{ .reg .pred P; .reg .b32 at, word, near; .reg .b64 wide, far;
    shl.b32 at, %thread, 2;
    L: setp.ge.u32 P, at, {4 * words}; @P bra E;
    cvt.u64.u32 wide, at; add.u32 near, at, %smem;
    {load} {store}
    add.u32 at, at, {4 * threads}; bra L;
    E: }}
    """


def warp_kernel(
    body: str,
    *,
    outputs: int = 0,
    inputs: np.ndarray | None = None,
    shared: np.ndarray | None = None,
    threads: int = 32,
    dump_shared: bool = False,
    max_instructions: int = 2_000_000,
) -> Kernel:
    """Each CTA runs ``body`` on its own data.

    ``inputs`` uint32 [sets, n, threads] become registers i0, i1, …; ``shared`` uint8 [sets, bytes] (a multiple of 4) is
    copied to shared memory, with a fence to the async proxy behind it. The registers o0, o1, … become
    ``out`` uint32 [sets, outputs, threads]; with ``dump_shared`` ``out`` is shared memory afterwards, [sets, words].
    """
    sets = len(inputs) if inputs is not None else len(shared) if shared is not None else 1
    n_inputs = inputs.shape[1] if inputs is not None else 0
    words = shared.shape[1] // 4 if shared is not None else 0
    arrays: dict[str, np.ndarray] = {}
    text = ".reg .b32 set, word4; .reg .b64 own, from_set;\nmov.u32 set, %ctaid.x; mul.wide.u32 own, %thread, 4;\n"
    text += f".reg .b32 i<{max(n_inputs, 1)}>, o<{max(outputs, 1)}>;\n"
    if inputs is not None:
        arrays["in"] = aligned(np.ascontiguousarray(inputs, np.uint32))
        text += f"mad.wide.u32 from_set, set, {4 * n_inputs * threads}, %a_in; add.u64 from_set, from_set, own;\n"
        text += "".join(f"ld.global.b32 i{n}, [from_set+{4 * n * threads}];\n" for n in range(n_inputs))
    if shared is not None:
        arrays["shared"] = aligned(np.ascontiguousarray(shared))
        text += f"mad.wide.u32 from_set, set, {4 * words}, %a_shared;\n"
        load = "add.u64 far, from_set, wide; ld.global.b32 word, [far];"
        text += _copied(words, threads, load, "st.shared.b32 [near], word;") + FENCE
    text += body
    if dump_shared:
        arrays[OUT] = aligned(np.zeros((sets, words), np.uint32))
        text += f"bar.sync 0; mad.wide.u32 from_set, set, {4 * words}, %a_{OUT};\n"
        store = "add.u64 far, from_set, wide; st.global.b32 [far], word;"
        text += _copied(words, threads, "ld.shared.b32 word, [near];", store)
    else:
        arrays[OUT] = aligned(np.zeros((sets, outputs, threads), np.uint32))
        text += f"mad.wide.u32 from_set, set, {4 * outputs * threads}, %a_{OUT}; add.u64 from_set, from_set, own;\n"
        text += "".join(f"st.global.b32 [from_set+{4 * n * threads}], o{n};\n" for n in range(outputs))
    return Kernel(
        text, {}, arrays, block=threads, grid=sets, smem_bytes=max(4 * words, 16), target=TARGET,
        read_only=tuple(name for name in arrays if name != OUT), max_instructions=max_instructions,
    )  # fmt: skip
