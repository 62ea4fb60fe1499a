"""Every scalar opcode form against the oracle, on special and random values, under full and partial masks."""

from __future__ import annotations

import re

import numpy as np
import pytest

from dsv4.emulator.oracle import evaluate
from tests.emulator.scalar_machine import FULL, ScalarMachine

SPECIAL_TEXT = {
    16: "0 1 2 7FFF 8000 8001 FFFF 3C00 7C00 FC00 7E00 0001 03FF 7BFF 3F80 7F80",
    32: "0 1 1F 20 21 7FFFFFFF 80000000 80000001 FFFFFFFF 3F800000 BF800000 7F800000 FF800000 7FC00001 "
    "FFC00000 007FFFFF 80400000 7F7FFFFF 00800000 3F000000 40200000 477FE000 477FF000 33800000 C3E00000 "
    "43E80000 5F000000 4F000000 7FFF 42FE0000",
    64: "0 1 3F 40 8000000000000000 7FFFFFFFFFFFFFFF FFFFFFFFFFFFFFFF 8000000000000001 3FF0000000000000 "
    "7FF0000000000000 7FF8000000000001 10000000000000 FFF0000000000000 8000000080000000 "
    "7F800000FF800000 1FFFFFFFFFFFFFFF",
}
SPECIAL = {bits: [int(word, 16) for word in text.split()] for bits, text in SPECIAL_TEXT.items()}


def _values(rng: np.random.Generator, bits: int, round_number: int, position: int) -> np.ndarray:
    """32 values: all pairs of special ones come up over the rounds; then random bits, small and near numbers."""
    width = max(bits, 16)
    special = np.array(SPECIAL[width], dtype=np.uint64)
    if round_number < 2:
        picks = (np.arange(32) * (1 if position == 0 else 7 + 4 * position + round_number) + round_number * 13) % len(
            special
        )
        values = special[picks]
    else:
        values = rng.integers(0, 1 << 64, 32, dtype=np.uint64)
        if round_number == 3 and width == 32:
            values = rng.normal(0, 4, 32).astype(np.float32).view(np.uint32).astype(np.uint64)
        elif round_number == 3 and width == 16:
            values = rng.normal(0, 4, 32).astype(np.float16).view(np.uint16).astype(np.uint64)
        elif round_number == 3:
            values = rng.normal(0, 1e5, 32).view(np.uint64)
    return values & np.uint64((1 << bits) - 1)


def _expand(text: str) -> list[str]:
    """'add.{s32,u32}' to its forms."""
    match = re.search(r"\{([^{}]*)\}", text)
    if match is None:
        return [text]
    return [
        form for piece in match[1].split(",") for form in _expand(text[: match.start()] + piece + text[match.end() :])
    ]


COMPARISONS = "{eq,ne,lt,le,gt,ge,equ,neu,ltu,leu,gtu,geu,num,nan}"
# operand widths: destination first; p is a predicate, i<number> a literal chosen by the test
FORMS = {
    "{add,sub,div,rem,min,max}.{s,u}{16,32,64}": "n n n",
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
    "lop3.b32": "32 32 32 32 i0xE8",
    "{shl.b,shr.u,shr.s}{16,32,64}": "n n 32",
    "shf.{l,r}.{wrap,clamp}.b32": "32 32 32 32",
    "prmt.b32{,.f4e,.b4e,.rc8,.ecl,.ecr,.rc16}": "32 32 32 32",
    "brev.b{32,64}": "n n",
    "bfe.{s,u}{32,64}": "n n 32 32",
    "bfi.b{32,64}": "n n n 32 32",
    "bmsk.{wrap,clamp}.b32": "32 32 32",
    "szext.{wrap,clamp}.{s,u}32": "32 32 32",
    "{popc,clz}.b{32,64}": "32 n",
    "bfind{,.shiftamt}.{s,u}{32,64}": "32 n",
    "mov.{b,u,s}{16,32,64}": "n n",
    "mov.f{32,64}": "n n",
    "{add,sub,mul}{,.rn,.rz,.rm,.rp}{,.ftz}{,.sat}.f32": "32 32 32",
    "fma.{rn,rz,rm,rp}{,.ftz}{,.sat}.f32": "32 32 32 32",
    "{add,sub,mul}{.rn,.rz}{,.ftz}.f32x2": "64 64 64",
    "fma.{rn,rp}{,.ftz}.f32x2": "64 64 64 64",
    "div.{rn,rz,rm,rp}{,.ftz}.f32": "32 32 32",
    "{add,sub,mul}{,.rn,.rz,.rm,.rp}.f64": "64 64 64",
    "fma.{rn,rz}.f64": "64 64 64 64",
    "div.{rn,rm}.f64": "64 64 64",
    "{min,max}{,.ftz}{,.NaN}{,.xorsign.abs}.f32": "32 32 32",
    "{min,max}.f64": "64 64 64",
    "{abs,neg}{,.ftz}.f32": "32 32",
    "{abs,neg}.f64": "64 64",
    "copysign.f32": "32 32 32",
    "testp.{finite,infinite,number,notanumber,normal,subnormal}.f32": "p 32",
    "{add,sub,mul}{,.rn}{,.ftz}{,.sat}.f16": "16 16 16",
    "{add,sub,mul}{,.ftz}{,.sat}.f16x2": "32 32 32",
    "{add,sub,mul}.bf16": "16 16 16",
    "{add,sub,mul}.bf16x2": "32 32 32",
    "fma.rn{,.ftz}{,.sat}.f16": "16 16 16 16",
    "fma.rn{,.relu}.f16x2": "32 32 32 32",
    "fma.rn{,.relu}.bf16": "16 16 16 16",
    "fma.rn{,.relu}.bf16x2": "32 32 32 32",
    "{min,max}{,.NaN}{,.xorsign.abs}.{f16,bf16}": "16 16 16",
    "{min,max}{,.NaN}.{f16x2,bf16x2}": "32 32 32",
    "{abs,neg}.{f16,bf16}": "16 16",
    "{abs,neg}.{f16x2,bf16x2}": "32 32",
    "{add,sub}{,.rn}{,.sat}.f32.{f16,bf16}": "32 16 32",
    "fma.rn{,.sat}.f32.{f16,bf16}": "32 16 16 32",
    "setp.{eq,ne}.b{16,32,64}": "p n n",
    "setp.{eq,ne,lt,le,gt,ge}.{s,u}{16,32,64}": "p n n",
    "setp.{lo,ls,hi,hs}.u32": "p n n",
    f"setp.{COMPARISONS}{{,.ftz}}.f32": "p 32 32",
    f"setp.{COMPARISONS}.f64": "p 64 64",
    f"setp.{COMPARISONS}.{{f16,bf16}}": "p 16 16",
    "setp.lt.{and,or,xor}.s32": "p 32 32 p",
    "set.{lt,ne}{,.and}.{u32,f32}.s32": "32 32 32",
    "selp.{b16,b32,b64,f32,f64,s32}": "n n n p",
    "{and,or,xor}.pred": "p p p",
    "{not,mov}.pred": "p p",
    "cvt{,.sat}.{s,u}{8,16}.{s,u}{16,32}": "16 m",
    "cvt{,.sat}.{s,u}{8,16}.{s,u}64": "16 64",
    "cvt{,.sat}.{s,u}32.{s,u}{8,16,32,64}": "32 m",
    "cvt{,.sat}.{s,u}64.{s,u}{8,16,32,64}": "64 m",
    "cvt.{rn,rz,rm,rp}.f32.{s,u}{8,16,32,64}": "32 m",
    "cvt.{rn,rz,rm,rp}.f64.{s,u}{32,64}": "64 m",
    "cvt.{rn,rz}.{f16,bf16}.{s,u}{16,32,64}": "16 m",
    "cvt.{rni,rzi,rmi,rpi}{,.ftz}.{s,u}32.f32": "32 32",
    "cvt.{rni,rzi}.{s,u}64.{f32,f64}": "64 m",
    "cvt.{rni,rzi,rmi,rpi}.{s,u}16.{f16,f32}": "16 m",
    "cvt.rzi.{s,u}8.f32": "16 32",
    "cvt.{rni,rzi}.s32.f64": "32 64",
    "cvt.f32.{f16,bf16}": "32 16",
    "cvt.f64.f32": "64 32",
    "cvt.{rn,rz,rm,rp}{,.ftz}.f32.f64": "32 64",
    "cvt.{rn,rz}{,.relu}.{f16,bf16}.f32": "16 32",
    "cvt.{rn,rz,rm,rp}.f16.f32": "16 32",
    "cvt.rn.satfinite.{f16,bf16}.f32": "16 32",
    "cvt.{rni,rzi,rmi,rpi}.f32.f32": "32 32",
    "cvt.sat.f32.f32": "32 32",
    "cvt.{rna,rn}.tf32.f32": "32 32",
    "cvt.rn.satfinite.tf32.f32": "32 32",
    "cvt.{rn,rz}{,.relu}.{f16x2,bf16x2}.f32": "32 32 32",
    "cvt.rn.satfinite.{f16x2,bf16x2}.f32": "32 32 32",
    "cvt.rn.satfinite{,.relu}.{e4m3x2,e5m2x2,e2m3x2,e3m2x2}.f32": "16 32 32",
    "cvt.rn.satfinite.{e4m3x2,e5m2x2}.{f16x2,bf16x2}": "16 32",
    "cvt.rn.satfinite{,.relu}.e2m1x2.f32": "8 32 32",
    "cvt.{rz,rp}{,.satfinite}.ue8m0x2.f32": "16 32 32",
    "cvt.{rz,rp}.satfinite.ue8m0x2.bf16x2": "16 32",
    "cvt.rn{,.relu}.f16x2.{e4m3x2,e5m2x2,e2m3x2,e3m2x2}": "32 16",
    "cvt.rn.f16x2.e2m1x2": "32 8",
    "cvt.rn.bf16x2.ue8m0x2": "32 16",
    "cvt.pack.sat.{s8,u8,s16,u16}.s32": "32 32 32",
    "cvt.pack.sat.{s8,u8}.s32.b32": "32 32 32 32",
}
CASES = [(form, widths) for family, widths in FORMS.items() for form in _expand(family)]


def _width(token: str, opcode: str) -> int:
    types = re.findall(r"(?:bf|[bsuf])(8|16|32|64)(?![x\w])", opcode)
    return int(types[0]) if token == "n" else int(types[-1]) if token == "m" else int(token)


@pytest.mark.parametrize(("opcode", "widths"), CASES, ids=[case[0] for case in CASES])
def test_opcode_against_oracle(scalar_machine: ScalarMachine, opcode: str, widths: str) -> None:
    rng = np.random.default_rng(len(opcode) * 7919 + sum(map(ord, opcode)))
    first, *rest = widths.split()
    if opcode.startswith("set.") and ".and" in opcode:
        rest.append("p")
    for round_number, mask in enumerate((FULL, 0x0F0FF00F, FULL, 0xAAAA5555)):
        inputs: dict[str, tuple[str, np.ndarray]] = {}
        arguments: list[str] = []
        sources: list[np.ndarray] = []
        for position, token in enumerate(rest):
            if token.startswith("i"):
                arguments.append(token[1:])
                sources.append(np.full(32, int(token[1:], 0), np.uint64))
                continue
            name = f"%s{chr(97 + position)}"
            if token == "p":
                inputs[name] = ("pred", rng.integers(0, 2, 32, dtype=np.uint64))
            else:
                bits = _width(token, opcode)
                inputs[name] = (
                    f"b{max(bits, 16) if bits != 8 or 'e2m1' not in opcode else 8}",
                    _values(rng, bits, round_number, position),
                )
            arguments.append(name)
            sources.append(inputs[name][1])
        kind = "pred" if first == "p" else f"b{_width(first, opcode)}"
        before = 0x5A5A5A5A5A5A5A5A & ((1 << (32 if kind == "pred" else max(8, int(kind[1:])))) - 1)
        outcome = scalar_machine.run(
            f"{opcode} %d, {', '.join(arguments)};", inputs, {"%d": kind}, mask=mask, before=before
        )
        expected = evaluate(opcode, sources)
        for lane in range(32):
            want = int(expected.values[lane]) if mask >> lane & 1 else before >> lane & 1 if kind == "pred" else before
            found = int(outcome.values["%d"][lane])
            described = ", ".join(f"{int(source[lane]):#x}" for source in sources)
            assert found == want, f"{opcode} lane {lane}: ({described}) gives {found:#x}, the oracle says {want:#x}"
        assert outcome.bad["%d"] == 0
