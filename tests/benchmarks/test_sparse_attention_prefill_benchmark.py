"""benchmarks/sparse_attention_prefill.py: its inputs, its check and its counts, on the CPU with few rows."""

from __future__ import annotations

import pytest

from benchmarks import sparse_attention_prefill as module
from benchmarks.harness.operator import Unavailable
from dsv4 import flash_mla
from tests.benchmarks.on_cpu import on_cpu


def test_a_right_result_passes_and_a_wrong_one_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    on_cpu(monkeypatch)
    case = module.make_case(4, 40, queries=3, rows=90)
    inputs = module.BENCHMARK.make_inputs(case, seed=0)
    assert all(len(set(rows.tolist())) == 40 for rows in inputs["rows"])
    out, max_logits, lse = module.with_interface(flash_mla)(inputs)
    errors = module.BENCHMARK.check(case, inputs, (out, max_logits, lse))
    assert 0 < errors["out_max_abs"] < 1e-3 and errors["lse_max_abs"] < 1e-4
    with pytest.raises(ValueError, match="max_logits: 12 elements are off by up to"):
        module.BENCHMARK.check(case, inputs, (out, max_logits + 1e-2, lse))
    out[1, 2] *= 1.05
    with pytest.raises(ValueError, match="out: "):
        module.BENCHMARK.check(case, inputs, (out, max_logits, lse))


def test_the_work_counts_what_is_read() -> None:
    case = module.make_case(64, 640)
    assert module.BENCHMARK.work(case).bytes == 4096 * (640 * 1028 + 64 * (4 * 512 + 8))
    assert module.BENCHMARK.work(case).flops == 4 * 4096 * 64 * 640 * 512


def test_what_is_not_installed_or_not_offered_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    case = module.make_case(8, 64)
    with pytest.raises(Unavailable, match="flash_mla is not installed"):
        module.flash_mla(case)
    monkeypatch.setitem(__import__("sys").modules, "flash_mla", flash_mla)
    with pytest.raises(Unavailable, match="64 and 128 heads"):
        module.flash_mla(case)
