"""The PyTorch reference of rms_norm against the formula written out with numpy in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dsv4.runtime.reference.rms_norm import rms_norm


def formula(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    rows = x.double().numpy().reshape(-1, x.shape[-1])
    out = np.empty_like(rows)
    for i, row in enumerate(rows):
        mean = sum(float(value) ** 2 for value in row) / len(row)
        out[i] = weight.double().numpy() * row / math.sqrt(mean + eps)
    return torch.from_numpy(out).view(x.shape)


@pytest.mark.parametrize("shape", [(7, 24), (1, 512), (3, 5, 40), (16,), (0, 8), (2, 0, 8)])
@pytest.mark.parametrize("eps", [1e-6, 1e-2])
def test_values(shape: tuple[int, ...], eps: float) -> None:
    torch.manual_seed(1)
    x = torch.randn(shape).mul(3).bfloat16()
    weight = torch.randn(shape[-1]).bfloat16()
    expected = formula(x, weight, eps)
    exact = rms_norm(x, weight, eps, dtype=torch.float64, out_dtype=torch.float64)
    torch.testing.assert_close(exact, expected, rtol=1e-13, atol=0)
    served = rms_norm(x, weight, eps)
    assert served.dtype == torch.bfloat16 and served.shape == x.shape and served.is_contiguous()
    torch.testing.assert_close(served.double(), expected, rtol=2**-8, atol=1e-30)
    assert (served == expected.bfloat16()).double().mean() >= 0.99 or x.numel() == 0


def test_weight_is_applied_before_the_rounding() -> None:
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]]).bfloat16()
    weight = torch.full((8,), 1.0078125).bfloat16()  # 1 + 2⁻⁷
    twice = (rms_norm(x, torch.ones(8)).float() * weight.float()).bfloat16()
    assert (rms_norm(x, weight) != twice).any()


def test_eps_decides_for_tiny_rows() -> None:
    x = torch.full((2, 8), 1e-4, dtype=torch.float64)
    got = rms_norm(x, torch.ones(8, dtype=torch.float64), 1e-2, dtype=torch.float64)
    torch.testing.assert_close(got, torch.full_like(got, 1e-4 / math.sqrt(1e-8 + 1e-2)))


def test_nan_and_infinity_stay_in_their_rows() -> None:
    x = torch.randn(6, 16).bfloat16()
    clean = rms_norm(x, torch.ones(16))
    x[2, 3], x[4, 0] = math.nan, math.inf
    got = rms_norm(x, torch.ones(16))
    assert got[2].isnan().all()
    assert got[4, 0].isnan() and (got[4, 1:] == 0).all()
    assert torch.equal(got[[0, 1, 3, 5]], clean[[0, 1, 3, 5]])


def test_rows_with_gaps() -> None:
    wide = torch.randn(5, 40).bfloat16()
    weight = torch.randn(24).bfloat16()
    assert torch.equal(rms_norm(wide[:, :24], weight), rms_norm(wide[:, :24].contiguous(), weight))
