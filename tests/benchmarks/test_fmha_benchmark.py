"""What benchmarks/fmha.py counts and refuses; no GPU is needed for that."""

from __future__ import annotations

import pytest
import torch

from benchmarks.fmha import BENCHMARK, make_case, torch_sdpa, visible
from benchmarks.harness.operator import Unavailable
from dsv4.runtime.reference.fmha import fmha


def test_labels_are_unique_and_the_reference_shapes_are_there():
    cases = BENCHMARK.cases()
    assert len({case.label for case in cases}) == len(cases)
    shapes = {(c.sizes["B"], c.sizes["Hq"], c.sizes["Sq"], c.sizes["D"], c.sizes["causal"]) for c in cases}
    assert {(4, 32, 4096, width, causal) for width in (64, 128) for causal in (False, True)} <= shapes
    assert any(case.sizes["Hq"] != case.sizes["Hkv"] for case in cases)
    assert any(case.sizes["Sq"] != case.sizes["Sk"] and case.sizes["causal"] for case in cases)


@pytest.mark.parametrize(("queries", "keys"), [(5, 5), (3, 9), (9, 3), (1, 7), (7, 1)])
@pytest.mark.parametrize("causal", [False, True])
def test_visible_pairs_by_counting(queries, keys, causal):
    counted = sum(not causal or j <= i + keys - queries for i in range(queries) for j in range(keys))
    assert visible(make_case(1, queries, keys, 1, 1, 64, causal)) == counted


def test_work_counts_each_tensor_once_and_the_causal_half():
    full, half = (BENCHMARK.work(make_case(4, 4096, 4096, 32, 32, 128, causal)) for causal in (False, True))
    assert full.flops == 4 * 4 * 32 * 4096 * 4096 * 128
    assert half.flops / full.flops == pytest.approx(0.5, abs=1e-3)
    assert full.bytes == half.bytes == 4 * (4 * 4096 * 32 * 128 * 2) + 4 * 4 * 32 * 4096


def inputs(case, seed: int = 1):
    s = case.sizes
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(s["B"], s["Sq"], s["Hq"], s["D"], generator=generator).bfloat16()
    k, v = (torch.randn(s["B"], s["Sk"], s["Hkv"], s["D"], generator=generator).bfloat16() for _ in "kv")
    return {"q": q, "k": k, "v": v, "seed": seed}


def test_the_check_passes_a_bf16_result_and_finds_one_wrong_row():
    case = make_case(2, 40, 70, 6, 2, 64, True)
    given = inputs(case)
    out, _ = fmha(given["q"], given["k"], given["v"], causal=True)
    errors = BENCHMARK.check(case, given, out)
    assert errors["cosine"] > 0.99999 and errors["worst_row_rel_l2"] < 1e-2
    out[1, 39, 5] *= 1.1
    with pytest.raises(ValueError, match="worst row"):
        BENCHMARK.check(case, given, out)
    out[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="cosine nan"):
        BENCHMARK.check(case, given, out)


def test_the_check_uses_the_inputs_that_it_is_given():
    case = make_case(1, 8, 24, 2, 1, 64, False)
    for seed in (1, 2):
        given = inputs(case, seed)
        BENCHMARK.check(case, given, fmha(given["q"], given["k"], given["v"])[0])


@pytest.mark.parametrize("backend", ["CUDNN_ATTENTION", "FLASH_ATTENTION"])
def test_grouped_causal_heads_of_torch_agree_with_the_reference_or_are_unavailable(backend):
    """The CPU has a flash backend, no cuDNN."""
    case = make_case(1, 48, 48, 4, 2, 64, True)
    given = inputs(case)
    try:
        out = torch_sdpa(case, backend)(given)
    except Unavailable as reason:
        assert backend == "CUDNN_ATTENTION" and "no kernel of this backend" in str(reason)
        return
    BENCHMARK.check(case, given, out)


def test_a_mask_aligned_elsewhere_is_no_peer():
    with pytest.raises(Unavailable, match="top left"):
        torch_sdpa(make_case(1, 48, 96, 4, 2, 64, True), "CUDNN_ATTENTION")
