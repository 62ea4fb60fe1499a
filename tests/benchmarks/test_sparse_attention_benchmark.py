"""benchmarks/sparse_attention_decode.py: its inputs, its check and its counts, on the CPU with small pools."""

from __future__ import annotations

import pytest

from benchmarks import sparse_attention_decode as module
from benchmarks.harness.operator import Unavailable
from dsv4 import flash_mla
from tests.benchmarks.on_cpu import on_cpu


@pytest.mark.parametrize("name", ["CSA", "HCA"])
def test_a_right_result_passes_and_a_wrong_one_does_not(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    on_cpu(monkeypatch)
    monkeypatch.setattr(module, "DRAWN_ROWS", 300)
    monkeypatch.setattr(module, "POOL_ROWS_MAX", 1000)
    case = module.make_case(name, 4, 3, 2, 64, 2 if name == "HCA" else 64)
    inputs = module.BENCHMARK.make_inputs(case, seed=0)
    out, lse = module.with_interface(flash_mla)(inputs)
    errors = module.BENCHMARK.check(case, inputs, (out, lse))
    assert 0 < errors["out_max_abs"] < 1e-3 and errors["lse_max_abs"] < 1e-4
    with pytest.raises(ValueError, match="lse: 24 elements are off by up to"):
        module.BENCHMARK.check(case, inputs, (out, lse + 1e-2))
    out[1, 0, 2] *= 1.05
    with pytest.raises(ValueError, match="out: "):
        module.BENCHMARK.check(case, inputs, (out, lse))


def test_the_work_counts_what_is_read() -> None:
    csa, hca = (module.make_case(name, 64, 128, 1, 512, 64) for name in ("CSA", "HCA"))
    bytes_of_outputs_and_q = 128 * 64 * (4 * 512 + 4)
    assert module.BENCHMARK.work(csa).bytes == 128 * 640 * 588 + bytes_of_outputs_and_q
    assert module.BENCHMARK.work(hca).bytes == (128 * 128 + 4 * 128 * 129 // 2) * 588 + bytes_of_outputs_and_q
    assert module.BENCHMARK.work(csa).flops == 4 * 128 * 64 * 640 * 512


def test_what_is_not_installed_or_not_offered_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    case = module.make_case("CSA", 8, 64, 1, 512, 64)
    with pytest.raises(Unavailable, match="flash_mla is not installed"):
        module.flash_mla(case)
    monkeypatch.setitem(__import__("sys").modules, "flash_mla", flash_mla)
    with pytest.raises(Unavailable, match="64 and 128 heads"):
        module.flash_mla(case)
