"""The judge of rms_norm passes a float32 kernel and finds small mistakes; rounding to bf16 is exact."""

from __future__ import annotations

import math

import pytest
import torch

from dsv4.generator.verify import cases, judge, operators, run_case, workload
from dsv4.generator.verify.metrics import bf16_ulps_apart, cosine, rel_l2, round_to_bf16
from dsv4.runtime.artifact import Argument, Contract

CONTRACT = Contract(
    dims={"T": None, "d": 520},
    arguments=(
        Argument(name="x", kind="tensor", dtype="bf16"),
        Argument(name="w", kind="tensor", dtype="bf16"),
        Argument(name="y", kind="tensor", dtype="bf16", role="output"),
        Argument(name="eps", kind="scalar", dtype="f32"),
    ),
)


def float32_kernel(mistake: str = ""):
    def kernel(x, w, y, eps):
        x32 = x.float()
        if mistake == "last column left out of the sum":
            mean = x32[:, :-1].square().sum(-1, keepdim=True) / x.shape[1]
        elif mistake == "reads the gap between rows" and x.stride(0) > x.shape[1]:
            wide = x.as_strided((x.shape[0], x.stride(0)), (x.stride(0), 1), x.storage_offset())
            mean = wide.float().square().mean(-1, keepdim=True)
        else:
            mean = x32.square().mean(-1, keepdim=True)
        inverse = torch.rsqrt(mean + (0.0 if mistake == "no eps" else eps))
        if mistake == "product with w after the cast":
            y.copy_((x32 * inverse).bfloat16() * w)
            return
        result = w.float() * (x32 * inverse)
        if mistake == "NaN turned into 0":
            result = result.nan_to_num(nan=0.0)
        if mistake == "truncates":
            result = (result.view(torch.int32) & -65536).view(torch.float32)
        y.copy_(result)
        if mistake == "last row unwritten" and y.shape[0]:
            y[-1] = torch.tensor(0x7FA5, dtype=torch.int16).view(torch.bfloat16)
        if mistake == "writes the gap" and y.stride(0) > y.shape[1] and y.shape[0] > 1:
            y.as_strided((1,), (1,), y.storage_offset() + y.shape[1]).zero_()

    return kernel


@pytest.mark.parametrize("columns", [8, 520, 1536])
def test_a_float32_kernel_passes_every_case(columns):
    for case in cases("rms_norm", {"d": columns}, {}, seed=1, empty=True):
        verdict = run_case(float32_kernel(), CONTRACT, case)
        assert verdict.ok, (case.name, verdict.findings)


@pytest.mark.parametrize(
    "mistake",
    [
        "last column left out of the sum",
        "reads the gap between rows",
        "no eps",
        "product with w after the cast",
        "NaN turned into 0",
        "truncates",
        "last row unwritten",
        "writes the gap",
    ],
)
def test_a_planted_mistake_is_found(mistake):
    verdicts = [run_case(float32_kernel(mistake), CONTRACT, c) for c in cases("rms_norm", {"d": 520}, {}, seed=1)]
    assert any(not v.ok and v.findings for v in verdicts)


def test_rounding_to_bf16_rounds_once():
    # 1 + 2^-8 is a tie between 1 and 1 + 2^-7; a hair more in float64 must round up, though float32 loses the hair.
    values = torch.tensor([1 + 2.0**-8, 1 + 2.0**-8 + 2.0**-40, 1 + 2.0**-8 - 2.0**-40], dtype=torch.float64)
    rounded = round_to_bf16(torch.cat([values, -values])).double().tolist()
    assert rounded == [1.0, 1 + 2.0**-7, 1.0, -1.0, -(1 + 2.0**-7), -1.0]
    assert values[1].to(torch.bfloat16).item() == 1.0  # what torch's two roundings give


def test_rounding_agrees_with_the_nearest_of_the_neighbours():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(4096, generator=generator, dtype=torch.float64) * torch.logspace(-30, 30, 4096).double()
    got = round_to_bf16(values)
    bits = got.view(torch.int16)
    error = (got.double() - values).abs()
    for step in (-1, 1):
        neighbour = (bits + step).view(torch.bfloat16).double()
        assert (error <= (neighbour - values).abs()).all()


def test_rounding_keeps_nan_and_infinity():
    got = round_to_bf16(torch.tensor([math.nan, math.inf, -math.inf, 0.0, 1e300], dtype=torch.float64))
    assert got.isnan().tolist() == [True, False, False, False, False]
    assert got[1:].tolist() == [math.inf, -math.inf, 0.0, math.inf]


def test_ulps_across_zero_and_nan():
    a = torch.tensor([1.0, -0.0, 1.0, math.nan, math.nan], dtype=torch.bfloat16)
    b = torch.tensor([1 + 2.0**-7, 0.0, -1.0, math.nan, 1.0], dtype=torch.bfloat16)
    assert bf16_ulps_apart(a, b).tolist() == [1, 0, 2 * 0x3F80, 0, 0xFFFF]


def test_metrics_of_nothing_and_of_zero():
    empty, zero, one = torch.zeros(0, 4).double(), torch.zeros(4).double(), torch.ones(4).double()
    assert cosine(empty, empty) == 1.0 and rel_l2(empty, empty) == 0.0
    assert cosine(zero, zero) == 1.0 and cosine(one, zero) == 0.0
    assert rel_l2(one, zero) == math.inf


def test_an_unknown_operator_or_size_is_one_clear_line():
    with pytest.raises(ValueError, match=r"those that have: .*fmha.*, rms_norm"):
        cases("moe_l1", {}, {})
    with pytest.raises(ValueError, match="rms_norm has no dimension 'Q'; it has T"):
        workload("rms_norm", {"d": 8}, {}, {"Q": 1}, device="cpu")
    assert {"fmha", "rms_norm"} <= set(operators())


def test_cases_and_judge_are_repeatable():
    first, second = (cases("rms_norm", {"d": 64}, {}, seed=5) for _ in range(2))
    assert all(
        torch.equal(a.inputs["x"].view(torch.int16), b.inputs["x"].view(torch.int16))
        for a, b in zip(first, second, strict=True)
    )
    case = first[1]
    assert judge("rms_norm", {"y": round_to_bf16(case.expected["y"])}, case).ok


def test_cases_without_elements_come_only_when_asked_for():
    """The runtime launches nothing for them, so that a bare kernel cannot be held to them."""
    for op, dims in (("rms_norm", {"d": 64}), ("fmha", {"D": 64})):
        bare, every = cases(op, dims, {}), cases(op, dims, {}, empty=True)
        assert [case.name for case in bare] == [case.name for case in every if not case.is_empty]
        assert 0 < len(bare) < len(every)
