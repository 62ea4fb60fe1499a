"""quack's kernels that work on rows: norms, softmax, cross-entropy, top-k, rotary embedding, Hadamard transform.

Each case compiles one kernel (N is compiled in) and runs it on batches of several sizes. No shape is square.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from benchmarks.third_party.check import Check, close, same

Case = Callable[[], list[Check]]
SINGLE = 2.0**-18
"""What sums of thousands of numbers in float32, and approximate exp2, reciprocal and rsqrt, may lose."""
BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
CASES: dict[str, Case] = {}


def quack(name: str) -> Any:
    """A module of quack by name; several have the name of a function of the package."""
    return importlib.import_module(f"quack.{name}")


def numbers(*shape: int, dtype: torch.dtype = F32, seed: int = 0) -> torch.Tensor:
    """Normally distributed numbers, each rounded to ``dtype``."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def add(name: str, function: Callable[..., list[Check]], *arguments: Any) -> None:
    """A case of this name."""
    CASES[name] = lambda: function(*arguments)


def softmax(rows: tuple[int, ...], columns: int, dtype: torch.dtype) -> list[Check]:
    checks = []
    for m in rows:
        x, dy = numbers(m, columns, dtype=dtype), numbers(m, columns, dtype=dtype, seed=1)
        y = quack("softmax").softmax_fwd(x)
        exact = torch.softmax(x.double(), -1)
        checks.append(close("y", y, exact, relative=SINGLE))
        dx, yd = quack("softmax").softmax_bwd(dy, y), y.double()
        dot = (yd * dy.double()).sum(-1, keepdim=True)
        lost = SINGLE * float((yd * (dy.double() - dot).abs()).max())
        checks.append(close("dx", dx, yd * (dy.double() - dot), relative=SINGLE, absolute=lost))
    return checks


def rms_norm(rows: tuple[int, ...], columns: int, dtype: torch.dtype) -> list[Check]:
    module, checks, eps = quack("rmsnorm"), [], 1e-6
    for m in rows:
        x, residual, dy = (numbers(m, columns, dtype=dtype, seed=seed) for seed in range(3))
        weight, bias = numbers(columns, seed=3), numbers(columns, seed=4)
        y, total, rstd = module.rmsnorm_fwd(x, weight, bias, residual, eps=eps, store_rstd=True)
        z = x.double() + residual.double()
        scale = torch.rsqrt((z * z).mean(-1, keepdim=True) + eps)
        checks.append(close("residual", total, z, relative=2.0**-23))
        checks.append(close("rstd", rstd, scale[:, 0], relative=SINGLE))
        checks.append(close("y", y, z * scale * weight.double() + bias.double(), relative=SINGLE, absolute=2e-5))
        dx, dw, *_ = module.rmsnorm_bwd(total, weight, dy, rstd)
        unit, slope = total.double() * rstd.double()[:, None], weight.double() * dy.double()
        want = rstd.double()[:, None] * (slope - unit * (unit * slope).mean(-1, keepdim=True))
        checks.append(close("dx", dx, want, relative=SINGLE, absolute=2e-5))
        checks.append(close("dw", dw, (unit * dy.double()).sum(0), relative=SINGLE, absolute=2e-5))
    return checks


def layer_norm(rows: tuple[int, ...], columns: int, dtype: torch.dtype) -> list[Check]:
    module, checks, eps = quack("rmsnorm"), [], 1e-6
    for m in rows:
        x, weight, bias = numbers(m, columns, dtype=dtype), numbers(columns, seed=1), numbers(columns, seed=2)
        y, rstd, mean = module.layernorm_fwd(x, weight, bias, eps=eps, return_rstd=True, return_mean=True)
        want = functional.layer_norm(x.double(), (columns,), weight.double(), bias.double(), eps)
        deviation = torch.rsqrt(x.double().var(-1, correction=0) + eps)
        checks.append(close("y", y, want, relative=SINGLE, absolute=2e-5))
        checks.append(close("mean", mean, x.double().mean(-1), relative=SINGLE, absolute=1e-6))
        checks.append(close("rstd", rstd, deviation, relative=SINGLE))
    return checks


def cross_entropy(rows: tuple[int, ...], columns: int, dtype: torch.dtype) -> list[Check]:
    module, checks = quack("cross_entropy"), []
    for m in rows:
        x, dloss = numbers(m, columns, dtype=dtype), numbers(m, seed=1)
        target = torch.randint(columns, (m,), generator=torch.Generator().manual_seed(2))
        target[m // 2] = -100  # ignored
        exact = x.double().requires_grad_()
        want = functional.cross_entropy(exact, target, reduction="none")
        want.backward(dloss.double())
        assert exact.grad is not None
        loss, lse = module.cross_entropy_fwd(x, target, return_lse=True)
        dx = module.cross_entropy_bwd(x, target, dloss, lse)
        checks.append(close("loss", loss, want, relative=SINGLE, absolute=1e-5))
        checks.append(close("lse", lse, torch.logsumexp(x.double(), -1), relative=SINGLE))
        checks.append(close("dx", dx, exact.grad, relative=2.0**-16, absolute=1e-9))
    return checks


def top_k(rows: tuple[int, ...], columns: int, k: int, dtype: torch.dtype) -> list[Check]:
    """quack sorts values that carry their column in the lowest bits: in float32 they come back a little rounded."""
    module, checks = quack("topk"), []
    lost = columns * 2.0**-23 if dtype == F32 else 0.0
    for m in rows:
        x, dv = numbers(m, columns, dtype=dtype), numbers(m, k, dtype=dtype, seed=1)
        best = torch.topk(x, k).values
        values, indices = module.topk_fwd(x, k)
        checks.append(close("values", values, best, relative=lost))
        checks.append(close("values at indices", x.gather(1, indices.long()), best, relative=lost))
        checks.append(same("columns are distinct", indices.sort(-1).values.diff(dim=-1) > 0, torch.ones(m, k - 1) > 0))
        shares, indices = module.topk_fwd(x, k, softmax=True)
        checks.append(close("softmax", shares, torch.softmax(best.double(), -1), relative=SINGLE + 8 * lost))
        s = shares.double()
        gradient = s * (dv.double() - (s * dv.double()).sum(-1, keepdim=True))
        want = torch.zeros(m, columns, dtype=torch.float64).scatter_(1, indices.long(), gradient)
        checks.append(
            close(
                "dx", module.topk_bwd(dv, shares, indices, columns, softmax=True), want, relative=SINGLE, absolute=1e-6
            )
        )
    return checks


def rotary(interleaved: bool) -> list[Check]:
    batch, length, heads, width, turned = 2, 37, 3, 80, 64
    x = numbers(batch, length, heads, width, dtype=BF16)
    cosine, sine = (numbers(length, turned // 2, dtype=BF16, seed=seed) for seed in (1, 2))
    y = quack("rotary").apply_rotary(x, cosine, sine, interleaved=interleaved)
    want, c, s = x.double(), cosine.double()[None, :, None], sine.double()[None, :, None]
    halves = (slice(0, turned, 2), slice(1, turned, 2)) if interleaved else (slice(0, 32), slice(32, 64))
    a, b = (want[..., half].clone() for half in halves)
    want[..., halves[0]], want[..., halves[1]] = a * c - b * s, a * s + b * c
    return [close("y", y, want, relative=SINGLE, absolute=1e-6)]


def hadamard(rows: tuple[int, ...], columns: int, dtype: torch.dtype) -> list[Check]:
    checks = []
    for m in rows:
        x = numbers(m, columns, dtype=dtype)
        want = x.double()
        step = 1
        while step < columns:  # the fast transform, in float64
            pairs = want.reshape(m, -1, 2, step)
            want = torch.stack((pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]), 2).reshape(
                m, columns
            )
            step *= 2
        y = quack("transform.hadamard").hadamard_transform_fwd(x, 0.5)
        checks.append(close("y", y, want * 0.5, relative=SINGLE, absolute=SINGLE * columns**0.5))
    return checks


add("softmax bf16 N=520", softmax, (37, 2), 520, BF16)
add("softmax f16 N=20000, clusters of 2", softmax, (3,), 20000, F16)
add("rms_norm bf16 N=520", rms_norm, (37, 3), 520, BF16)
add("rms_norm f32 N=4104", rms_norm, (5,), 4104, F32)
add("layer_norm bf16 N=1544", layer_norm, (9, 2), 1544, BF16)
add("cross_entropy f32 N=4104", cross_entropy, (5,), 4104, F32)
add("cross_entropy f16 N=50264, clusters of 4", cross_entropy, (3,), 50264, F16)
add("top_k bf16 N=512 k=8", top_k, (37, 2), 512, 8, BF16)
add("top_k f32 N=1024 k=32", top_k, (6,), 1024, 32, F32)
add("rotary bf16", rotary, False)
add("rotary bf16 interleaved", rotary, True)
add("hadamard bf16 N=512", hadamard, (37, 2), 512, BF16)
add("hadamard f32 N=4096", hadamard, (3,), 4096, F32)
