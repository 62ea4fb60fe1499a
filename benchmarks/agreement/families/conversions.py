"""cvt: every f16, bf16 and fp8 code; f32, f64 and integers on samples that hold ties and limits."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from benchmarks.agreement.families.floats import doubles, paired
from benchmarks.agreement.forms import form_probes
from benchmarks.agreement.probe import Probe
from benchmarks.agreement.tables import mixed_f32, mixed_u32, mixed_u64

COUNT = 8192
FEW = 2048
ALL_CODES = 1 << 16
FROM_F16 = {
    "cvt{,.sat,.ftz}.f32.f16": "32 16",
    "cvt.f64.f16": "64 16",
    "cvt.{rni,rzi,rmi,rpi}.{s,u}16.f16": "16 16",
    "cvt.{rni,rzi}.{s,u}32.f16": "32 16",
    "cvt.{rni,rzi,rmi,rpi}.f16.f16": "16 16",
}
FROM_BF16 = {"cvt.f32.bf16": "32 16", "cvt.{rni,rzi}.s32.bf16": "32 16"}
FROM_PAIRS = {"cvt.rn.satfinite{,.relu}.{e4m3x2,e5m2x2}.f16x2": "16 32"}
FROM_FP8 = {"cvt.rn{,.relu}.f16x2.{e4m3x2,e5m2x2}": "32 16"}
FROM_F32 = {
    "cvt.{rn,rz}{,.relu}.{f16,bf16}.f32": "16 32",
    "cvt.{rm,rp}.{f16,bf16}.f32": "16 32",
    "cvt.{rna,rn,rz}.tf32.f32": "32 32",
    "cvt.{rni,rzi,rmi,rpi}{,.ftz}.f32.f32": "32 32",
    "cvt.{sat,ftz}.f32.f32": "32 32",
    "cvt.{rni,rzi,rmi,rpi}{,.ftz}.{s,u}32.f32": "32 32",
    "cvt.{rni,rzi}.{s,u}16.f32": "16 32",
    "cvt.rzi.{s,u}8.f32": "16 32",
    "cvt.{rn,rz}{,.relu}.{f16x2,bf16x2}.f32": "32 32 32",
    "cvt.rn.satfinite{,.relu}.{e4m3x2,e5m2x2}.f32": "16 32 32",
}
FROM_F32_LONG = {"cvt.{rni,rzi}.{s,u}64.f32": "64 32", "cvt.f64.f32": "64 32"}
FROM_F64 = {
    "cvt.{rn,rz,rm,rp}{,.ftz}.f32.f64": "32 64",
    "cvt.{rni,rzi,rmi,rpi}.{s,u}64.f64": "64 64",
    "cvt.{rni,rzi}.{s,u}32.f64": "32 64",
    "cvt.rn.{f16,bf16}.f64": "16 64",
}
FROM_INTEGERS = {
    "cvt.{rn,rz,rm,rp}.f32.{s,u}{16,32,64}": "32 m",
    "cvt.{rn,rz,rm,rp}.f64.{s,u}64": "64 64",
    "cvt.rn.f64.{s,u}32": "64 32",
    "cvt.{rn,rz,rm,rp}.f16.{s,u}{16,32,64}": "16 m",
    "cvt.rn.bf16.{s,u}{16,32,64}": "16 m",
}


def probes() -> Iterator[Probe]:
    rng = np.random.default_rng(31)
    codes = np.arange(ALL_CODES, dtype=np.uint16)
    yield from form_probes("conversions", FROM_F16, {16: codes}, count=ALL_CODES, suffix="_f16")
    yield from form_probes("conversions", FROM_BF16, {16: codes}, count=ALL_CODES, suffix="_bf16")
    yield from form_probes("conversions", FROM_PAIRS, {32: paired(codes)}, count=ALL_CODES // 2, suffix="_f16x2")
    yield from form_probes("conversions", FROM_FP8, {16: codes}, count=ALL_CODES, suffix="_fp8")
    single = np.concatenate([mixed_f32(rng, COUNT) for _ in range(2)])
    yield from form_probes("conversions", FROM_F32, {32: single}, count=COUNT, suffix="_f32")
    yield from form_probes("conversions", FROM_F32_LONG, {32: single}, count=FEW, suffix="_f32")
    double = doubles(rng, FEW)
    narrow = mixed_f32(rng, FEW // 2).view(np.float32)
    narrow = np.where(np.isfinite(narrow), narrow, np.float32(1.5)).astype(np.float64)
    near_ties = narrow * (1 + rng.integers(-1, 2, FEW // 2) * 2.0**-24)
    double[: FEW // 2] = near_ties.view(np.uint64)
    yield from form_probes("conversions", FROM_F64, {64: double}, count=FEW, suffix="_f64")
    integers = {16: mixed_u32(rng, FEW).astype(np.uint16), 32: mixed_u32(rng, FEW), 64: mixed_u64(rng, FEW)}
    yield from form_probes("conversions", FROM_INTEGERS, integers, count=FEW, suffix="_integers")
