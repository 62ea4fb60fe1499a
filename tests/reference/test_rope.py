"""Frequencies against the table of dsv4-reference §3.3, rotation against complex numbers."""

from __future__ import annotations

import cmath
import math

import pytest
import torch

from dsv4.runtime.reference.hadamard import hadamard
from dsv4.runtime.reference.rope import rope_frequencies, rope_table, rotate

YARN = {"factor": 16.0, "beta_fast": 32.0, "beta_slow": 1.0, "original_positions": 65536}


@pytest.mark.parametrize(
    ("pair", "plain", "yarn"),
    [
        (0, 1.0, 1.0),
        (1, 0.7498942, 0.68765604),
        (8, 0.1, 0.05),
        (15, 0.013335215, 0.0036355385),
        (16, 0.01, 0.002265625),
        (20, 0.0031622779, 0.00029697779),
        (24, 0.001, 1.9531253e-05),
        (25, 7.498942e-04, 5.3723124e-06),
        (31, 1.3335215e-04, 5.6805294e-07),
    ],
)
def test_frequencies(pair: int, plain: float, yarn: float) -> None:
    assert rope_frequencies(1e4, 64)[pair].item() == pytest.approx(plain, rel=2e-7)
    assert rope_frequencies(1.6e5, 64, **YARN)[pair].item() == pytest.approx(yarn, rel=3e-7)  # type: ignore[arg-type]


def test_yarn_bounds() -> None:
    """low = 15 and high = 25: pairs up to 15 are kept, from 25 on slowed by 16, and those between are mixed."""
    plain, yarn = rope_frequencies(1.6e5, 64), rope_frequencies(1.6e5, 64, **YARN)  # type: ignore[arg-type]
    ratio = (plain / yarn).tolist()
    assert ratio[:16] == [1.0] * 16 and ratio[25:] == pytest.approx([16.0] * 7, rel=1e-6)
    for pair in range(16, 25):
        share = (pair - 15) / 10
        assert 1 / ratio[pair] == pytest.approx(share / 16 + 1 - share, rel=1e-6)
    corrections = [64 * math.log(65536 / (turns * 2 * math.pi)) / (2 * math.log(1.6e5)) for turns in (32, 1)]
    assert corrections == pytest.approx([15.4533, 24.7084], abs=1e-4)


def test_angles_are_float32_products() -> None:
    frequencies = rope_frequencies(1e4, 64)
    positions = torch.tensor([0, 1, 127, 65536, 1048575])
    table = rope_table(positions, frequencies, dtype=torch.float64)
    assert table.shape == (5, 64) and table.dtype == torch.float64
    for row, position in enumerate(positions.tolist()):
        for pair in (0, 5, 31):
            angle = (torch.tensor(float(position)) * frequencies[pair]).item()
            assert table[row, pair].item() == pytest.approx(math.cos(angle), abs=1e-12)
            assert table[row, 32 + pair].item() == pytest.approx(math.sin(angle), abs=1e-12)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("shape", [(5, 3, 512), (5, 512), (5, 2, 128), (0, 3, 512)])
def test_rotation(shape: tuple[int, ...], inverse: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64)
    positions = torch.tensor([0, 3, 77, 1000, 99999])[: shape[0]]
    frequencies = rope_frequencies(1.6e5, 64, **YARN)  # type: ignore[arg-type]
    table = rope_table(positions, frequencies, dtype=torch.float64)
    got = rotate(x, table, inverse=inverse, dtype=torch.float64)
    expected = x.clone()
    flat, rows = expected.view(-1, shape[-1]), x.view(-1, shape[-1]).tolist()
    heads = len(rows) // max(1, shape[0])
    for number, row in enumerate(rows):
        position = positions[number // heads].item()
        for pair in range(32):
            angle = (torch.tensor(float(position)) * frequencies[pair]).item() * (-1 if inverse else 1)
            place = shape[-1] - 64 + 2 * pair  # neighbours form a pair, not halves
            turned = complex(row[place], row[place + 1]) * cmath.exp(1j * angle)
            flat[number, place], flat[number, place + 1] = turned.real, turned.imag
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_inverse_undoes_and_output_dtypes() -> None:
    x = torch.randn(4, 2, 512)
    table = rope_table(torch.arange(4) * 100, rope_frequencies(1e4, 64))
    torch.testing.assert_close(rotate(rotate(x, table), table, inverse=True), x, rtol=0, atol=1e-6)
    assert rotate(x.bfloat16(), table).dtype == torch.bfloat16
    assert rotate(x.bfloat16(), table, out_dtype=torch.float32).dtype == torch.float32
    assert torch.equal(rotate(x, table)[..., :448], x[..., :448])


def test_products_depend_on_the_distance_alone() -> None:
    q, k = torch.randn(1, 512, dtype=torch.float64), torch.randn(1, 512, dtype=torch.float64)
    frequencies = rope_frequencies(1e4, 64)

    def product(at_q: int, at_k: int) -> float:
        tables = (rope_table(torch.tensor([p]), frequencies, dtype=torch.float64) for p in (at_q, at_k))
        turned = (rotate(x, table, dtype=torch.float64) for x, table in zip((q, k), tables, strict=True))
        return float((next(turned) * next(turned)).sum())

    assert product(100, 90) == pytest.approx(product(10, 0), rel=1e-5)
    assert product(100, 90) != pytest.approx(product(100, 80), rel=1e-3)


def test_hadamard() -> None:
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while matrix.shape[0] < 128:  # Sylvester: [[H, H], [H, -H]]
        matrix = torch.cat((torch.cat((matrix, matrix), 1), torch.cat((matrix, -matrix), 1)), 0)
    x, y = torch.randn(3, 5, 128, dtype=torch.float64), torch.randn(3, 5, 128, dtype=torch.float64)
    torch.testing.assert_close(hadamard(x), x @ matrix.T / math.sqrt(128))
    torch.testing.assert_close(hadamard(hadamard(x)), x)
    torch.testing.assert_close((hadamard(x) * hadamard(y)).sum(-1), (x * y).sum(-1))
    assert torch.equal(hadamard(x[:0]), x[:0])
