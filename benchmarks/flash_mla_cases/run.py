"""A case through ``dsv4.flash_mla``: run twice into memory full of NaN, and held to float64."""

from __future__ import annotations

import math

import torch

from benchmarks.flash_mla_cases.expected import BLOCK_BYTES, expected
from benchmarks.flash_mla_cases.inputs import Inputs, Maker
from benchmarks.flash_mla_cases.judged import DECODE, PREFILL, Judge, Verdict
from benchmarks.flash_mla_cases.product import Case, Decode
from dsv4 import flash_mla

Results = dict[str, torch.Tensor]


def check(case: Case, maker: Maker, block_bytes: int = BLOCK_BYTES) -> Verdict:
    """The verdict on ``case``; that two runs give the same bits is part of it."""
    inputs = maker.make(case)
    results, again = (_called(case, inputs) for _ in range(2))
    tolerances = DECODE if isinstance(case, Decode) else PREFILL
    judges = {name: Judge(name, allowed) for name, allowed in tolerances.items()}
    for some, wanted in expected(inputs, block_bytes):
        for name, each in judges.items():
            each.show(results[name][some], getattr(wanted, name))
    verdicts = [each.verdict() for each in judges.values()]
    findings = [line for each in verdicts for line in each.findings]
    if not all(_same_bits(results[name], again[name]) for name in results):
        findings.append("another run of it gives other bits")
    return Verdict({name: error for each in verdicts for name, error in each.errors.items()}, findings)


def _called(case: Case, inputs: Inputs) -> Results:
    """out [N, heads, 512], lse [N, heads] and, of a prefill, max_logits [N, heads]."""
    _leave_nan(inputs.q)
    if isinstance(case, Decode):
        out, lse = flash_mla.flash_mla_with_kvcache(
            block_table=None,
            cache_seqlens=None,
            head_dim_v=512,
            tile_scheduler_metadata=flash_mla.get_mla_metadata()[0],
            is_fp8_kvcache=True,
            **inputs.arguments,  # type: ignore[arg-type]
        )
        return {"out": out.flatten(0, 1), "lse": lse.transpose(1, 2).flatten(0, 1)}
    out, max_logits, lse = flash_mla.flash_mla_sparse_fwd(**inputs.arguments)  # type: ignore[arg-type]
    return {"out": out, "max_logits": max_logits, "lse": lse}


def _leave_nan(q: torch.Tensor) -> None:
    """NaN in the memory that the allocator will most likely give to the results: what is not written shows."""
    torch.full_like(q, math.nan, memory_format=torch.contiguous_format)
    for _ in range(2):
        torch.full(q.shape[:2], math.nan, device=q.device)


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    bits = torch.int16 if one.dtype == torch.bfloat16 else torch.int32
    return torch.equal(one.contiguous().view(bits), other.contiguous().view(bits))
