"""atom and red on global and shared memory: what they return and what they leave."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from benchmarks.agreement.families.floats import SPECIAL_32, SPECIAL_64, crossed, doubles, halves, paired
from benchmarks.agreement.probe import OUT, TARGET, Probe
from benchmarks.agreement.tables import mixed_f32, mixed_u32, mixed_u64, table
from dsv4.emulator.text_kernel import Kernel, aligned

COUNT = 1024
WORD = (
    "add.u32", "add.s32", "min.s32", "max.s32", "min.u32", "max.u32", "and.b32", "or.b32", "xor.b32", "exch.b32",
    "inc.u32", "dec.u32",
)  # fmt: skip
LONG = ("add.u64", "min.s64", "max.s64", "min.u64", "max.u64", "and.b64", "or.b64", "xor.b64", "exch.b64")


def _rows(forms: tuple[str, ...], bits: int) -> list[tuple[str, str]]:
    """For each form and space what atom returns, and what red (exch: atom) leaves; the memory begins as a."""
    rows = []
    for space, where in (("global", "to"), ("shared", "t0")):
        setup = f"mad.lo.u32 t0, %thread, 8, %smem; st.{space}.b{bits} [{where}], a;"
        for form in forms:
            rows.append((f"atom.{space}.{form}", f"{setup} atom.{space}.{form} d, [{where}], b;"))
            if "exch" not in form:
                rows.append(
                    (
                        f"red.{space}.{form}",
                        f"{setup} red.{space}.{form} [{where}], b; ld.{space}.b{bits} d, [{where}];",
                    )
                )
        form = f"atom.{space}.cas.b{bits}"
        rows.append((form, f"{setup} {form} d, [{where}], b, 77; ld.{space}.b{bits} d, [{where}];"))
    return rows


def _table(name: str, forms: tuple[str, ...], a: np.ndarray, b: np.ndarray, kind: str = "bits") -> Probe:
    bits = 8 * a.itemsize
    probe = table("atomics", name, _rows(forms, bits), {"a": a, "b": b}, out_bytes=a.itemsize, kind=kind)
    probe.kernel.smem_bytes = 1024
    return probe


def _contended() -> Probe:
    """Many threads at the same words: results that do not depend on the order."""
    body = f"""and.b32 %r0, %thread, 3; mul.wide.u32 %d0, %r0, 4; add.u64 %d0, %d0, %a_{OUT};
    mov.u32 %r1, %ctaid.x; mad.lo.u32 %r1, %r1, 2654435761, %thread; mul.lo.u32 %r1, %r1, 40503;
    red.global.add.u32 [%d0], %r1; red.global.xor.b32 [%d0+16], %r1; red.global.max.s32 [%d0+32], %r1;
    red.global.min.u32 [%d0+48], %r1; red.global.inc.u32 [%d0+64], 1000; and.b32 %r2, %r1, 1023;
    cvt.rn.f32.u32 %r3, %r2; red.global.add.f32 [%d0+80], %r3;
    """
    arrays = {OUT: aligned(np.zeros((6, 4), np.uint32))}
    labels = ("add", "xor", "max", "min", "inc", "add.f32 of integers")
    return Probe("atomics", "contended", Kernel(body, {}, arrays, block=128, grid=17, target=TARGET), labels)


def _vectors() -> Iterator[Probe]:
    """Vector forms on global memory: a lane owns 16 bytes."""
    rng = np.random.default_rng(72)
    before, added = (mixed_f32(rng, 1024).reshape(64, 16) for _ in range(2))
    f16 = halves(rng, 4096, 5)
    before[1], added[1] = paired(f16[:32]), paired(f16[32:64])
    own = f"shl.b32 %r0, %thread, 4; cvt.u64.u32 %d0, %r0; add.u64 %d1, %d0, %a_{OUT}; add.u64 %d0, %d0, %a_add;\n"
    own += "ld.global.v4.b32 {%r1, %r2, %r3, %r4}, [%d0]; mov.b32 {%h0, %h1}, %r1; mov.b32 {%h2, %h3}, %r2;\n"
    forms = {
        "v4.f32": "red.global.add.v4.f32 [%d1], {%r1, %r2, %r3, %r4};",
        "v2.f32": "red.global.add.v2.f32 [%d1], {%r1, %r2};",
        "v4.f16x2": "red.global.add.noftz.v4.f16x2 [%d1], {%r1, %r2, %r3, %r4};",
        "v2.bf16x2": "red.global.add.noftz.v2.bf16x2 [%d1], {%r1, %r2};",
        "v4.f16": "red.global.max.noftz.v4.f16 [%d1], {%h0, %h1, %h2, %h3};",
    }
    for name, statement in forms.items():
        arrays = {"add": aligned(added), OUT: aligned(before)}
        yield Probe("atomics", f"vector_{name}", Kernel(own + statement, {}, arrays, block=128, target=TARGET))


def _with_special(values: tuple[np.ndarray, np.ndarray], special: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same two operands with all pairs of special values in front."""
    pairs = crossed(special, 2, (2 * len(special)) ** 2).reshape(2, -1)
    a, b = (np.concatenate([pair, value])[: len(value)] for pair, value in zip(pairs, values, strict=True))
    return a, b


def probes() -> Iterator[Probe]:
    rng = np.random.default_rng(71)
    a, b = mixed_u32(rng, COUNT), mixed_u32(rng, COUNT)
    yield _table("words", WORD, a, np.where(rng.integers(0, 3, COUNT) == 0, a, b).astype(np.uint32))
    yield _table("longs", LONG, mixed_u64(rng, COUNT), mixed_u64(rng, COUNT))
    single = _with_special((mixed_f32(rng, COUNT), mixed_f32(rng, COUNT)), SPECIAL_32)
    yield _table("f32", ("add.f32",), *single, "f32")
    double = _with_special((doubles(rng, COUNT), doubles(rng, COUNT)), SPECIAL_64)
    yield _table("f64", ("add.f64",), *double, "f64")
    for name, exponent_bits in (("f16", 5), ("bf16", 8)):
        codes = paired(halves(rng, 4 * COUNT, exponent_bits))
        yield _table(f"{name}x2", (f"add.noftz.{name}x2",), codes[:COUNT], codes[COUNT:], "bits")
        scalars = halves(rng, 2 * COUNT, exponent_bits)
        rows = [
            (f"atom.global.{form}", f"st.global.b16 [to], a; atom.global.{form} d, [to], b; ld.global.b16 d, [to];")
            for form in (f"add.noftz.{name}",)
        ]
        yield table("atomics", name, rows, {"a": scalars[:COUNT], "b": scalars[COUNT:]}, out_bytes=2, kind=name)
    yield _contended()
    yield from _vectors()
