"""Integer arithmetic, logic, shifts, bit fields, comparison, conversions among integers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from benchmarks.agreement.forms import form_probes
from benchmarks.agreement.probe import Probe
from benchmarks.agreement.tables import mixed_u32, mixed_u64, table

COUNT = 1024
FORMS = {
    "{add,sub,min,max}.{s,u}{16,32,64}": "n n n",
    "{add,sub}.sat.s32": "32 32 32",
    "{add,min,max}.{s,u}16x2": "32 32 32",
    "{min,max}.relu.{s32,s16x2}": "32 32 32",
    "mul.{lo,hi}.{s,u}{16,32,64}": "n n n",
    "mad.lo.{s,u}{16,32,64}": "n n n n",
    "mad.hi.{s,u}{32,64}": "n n n n",
    "mul.wide.{s,u}16": "32 16 16",
    "mul.wide.{s,u}32": "64 32 32",
    "mad.wide.{s,u}16": "32 16 16 32",
    "mad.wide.{s,u}32": "64 32 32 64",
    "{abs,neg}.s{16,32,64}": "n n",
    "sad.{s,u}32": "32 32 32 32",
    "dp4a.{s,u}32.{s,u}32": "32 32 32 32",
    "dp2a.{lo,hi}.{s,u}32.{s,u}32": "32 32 32 32",
    "{and,or,xor}.b{16,32,64}": "n n n",
    "{not,cnot}.b{16,32,64}": "n n",
    "lop3.b32": "32 32 32 32",
    "{shl.b,shr.u,shr.s}{16,32,64}": "n n 32",
    "shf.{l,r}.{wrap,clamp}.b32": "32 32 32 32",
    "prmt.b32{,.f4e,.b4e,.rc8,.ecl,.ecr,.rc16}": "32 32 32 32",
    "brev.b{32,64}": "n n",
    "bfe.{s,u}32": "n n 32 32",
    "bfi.b32": "n n n 32 32",
    "bmsk.{wrap,clamp}.b32": "32 32 32",
    "szext.{wrap,clamp}.{s,u}32": "32 32 32",
    "{popc,clz}.b{32,64}": "32 n",
    "bfind{,.shiftamt}.{s,u}{32,64}": "32 n",
    "setp.{eq,ne}.b{16,32,64}": "p n n",
    "setp.{lt,le,gt,ge}.{s,u}{16,32,64}": "p n n",
    "setp.{lo,ls,hi,hs}.u32": "p n n",
    "set.{lt,ne}.{u32,f32}.s32": "32 32 32",
    "cvt{,.sat}.{s,u}8.{s,u}{16,32,64}": "16 m",
    "cvt{,.sat}.{s,u}16.{s,u}{32,64}": "16 m",
    "cvt.{s,u}16.{s,u}16": "16 16",
    "cvt{,.sat}.{s,u}32.{s,u}64": "32 64",
    "cvt.{s,u}{32,64}.{s,u}{16,32}": "n m",
    "cvt.sat.{u16.s16,s16.u16}": "16 16",
    "cvt.sat.{u32.s32,s32.u32,u32.s16}": "32 m",
    "cvt.sat.{u64.s64,s64.u64,u64.s32}": "64 m",
    "cvt.pack.sat.{s16,u16}.s32": "32 32 32",
    "cvt.pack.sat.{s8,u8}.s32.b32": "32 32 32 32",
}
DIVISIONS = {"{div,rem}.{s,u}{16,32,64}": "n n n"}
LUTS = (0x00, 0x01, 0x17, 0x3C, 0x69, 0x80, 0x96, 0xCA, 0xE8, 0xF8, 0xFE, 0xFF)
COMBINED = [
    ("setp.lt.and.s32", "setp.lt.u32 q, c32, 7; setp.lt.and.s32 p, a32, b32, q; selp.b32 d, 1, 0, p;"),
    ("setp.lt.or.s32 not", "setp.lt.u32 q, c32, 7; setp.lt.or.s32 p, a32, b32, !q; selp.b32 d, 1, 0, p;"),
    ("setp.ge.xor.u32", "setp.lt.u32 q, c32, 7; setp.ge.xor.u32 p, a32, b32, q; selp.b32 d, 1, 0, p;"),
    ("setp.lt.and.s32 p|q", "setp.lt.u32 q, c32, 7; setp.lt.and.s32 p|q, a32, b32, q; selp.b32 d, 3, 9, q;"),
    ("set.lt.and.u32.s32", "setp.lt.u32 q, c32, 7; set.lt.and.u32.s32 d, a32, b32, q;"),
    ("selp.b32", "setp.lt.s32 p, c32, 0; selp.b32 d, a32, b32, p;"),
    ("and.pred", "setp.lt.s32 p, a32, 0; setp.lt.s32 q, b32, 0; and.pred p, p, q; selp.b32 d, 1, 0, p;"),
    ("xor.pred", "setp.lt.s32 p, a32, 0; setp.lt.s32 q, b32, 0; xor.pred p, p, q; selp.b32 d, 1, 0, p;"),
    ("mov pack and unpack", "mov.b32 {h0, h1}, a32; mov.b32 {h2, h3}, b32; mov.b32 d, {h1, h2};"),
    ("mov b64 pair", "mov.b64 w0, {a32, b32}; shr.u64 w0, w0, 12; mov.b64 {d, t0}, w0;"),
    ("guarded mov", "mov.b32 d, b32; setp.lt.s32 p, a32, 0; @p mov.b32 d, c32; @!p add.s32 d, d, 1;"),
]


def operands(seed: int, count: int) -> dict[int, np.ndarray]:
    rng = np.random.default_rng(seed)
    words, longs = mixed_u32(rng, 4 * count), mixed_u64(rng, 4 * count)
    halves = (words & 0xFFFF).astype(np.uint16)
    rng.shuffle(halves)
    words[2 * count :: 3] &= 63  # amounts of shifts, lengths, selectors
    return {16: halves, 32: words, 64: longs}


def probes() -> Iterator[Probe]:
    values = operands(11, COUNT)
    yield from form_probes("integers", FORMS, values, count=COUNT)
    nonzero = {bits: array | array.dtype.type(1) for bits, array in values.items()}
    yield from form_probes("integers", DIVISIONS, nonzero, count=COUNT, suffix="_division")
    three = {f"{name}32": values[32][n * COUNT : (n + 1) * COUNT] for n, name in enumerate("abc")}
    rows = [(f"lop3 {table_:#x}", f"lop3.b32 d, a32, b32, c32, {table_};") for table_ in LUTS]
    yield table("integers", "predicates_and_packing", rows + COMBINED, three)
    fields = {"a": values[64][:COUNT], "b": values[64][COUNT : 2 * COUNT]}
    fields |= {"c": values[32][:COUNT] & 0xFF, "e": values[32][COUNT : 2 * COUNT] & 0x7F}  # the ISA allows 0 to 255
    rows = [(f"bfe.{sign}64", f"bfe.{sign}64 d, a, c, e;") for sign in "su"] + [("bfi.b64", "bfi.b64 d, a, b, c, e;")]
    yield table("integers", "long_fields", rows, fields, out_bytes=8)
