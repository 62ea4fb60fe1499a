"""indexer_q_folded: the same scores as with the queries' scales in their place, its kernel, its door, torch."""

from __future__ import annotations

import pytest
import torch

from dsv4.runtime.errors import ContractError
from dsv4.runtime.ops.indexer_q import indexer_q, indexer_q_folded
from dsv4.runtime.ops.indexer_scores import indexer_scores
from dsv4.runtime.pool import Pool, PoolFormat
from dsv4.runtime.reference.indexer_q import IndexCode
from dsv4.runtime.reference.pages import write_rows
from dsv4.runtime.reference.rope import rope_frequencies, rope_table
from dsv4.runtime.weight import Quantized

CODES: tuple[IndexCode, ...] = ("none", "fp8", "fp4")
SCALE = 0.011048543  # 128^-½ · 64^-½
TOKENS, HEADS, ENTRIES = 5, 6, 9


def arguments(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    q = torch.randn(TOKENS, HEADS, 128, generator=generator, dtype=dtype)
    q = q * torch.logspace(-3, 3, HEADS)[:, None]  # other scales for other heads
    weights = torch.randn(TOKENS, HEADS, generator=generator, dtype=dtype)
    wide = dtype if dtype == torch.float64 else torch.float32
    table = rope_table(100 * torch.arange(TOKENS), rope_frequencies(1e4, 64), dtype=wide)
    return q.to(dtype), table, weights


def scores(queries: torch.Tensor | Quantized, weights: torch.Tensor, dtype: torch.dtype, **how: object) -> torch.Tensor:
    generator = torch.Generator().manual_seed(8)
    pool = Pool.allocate(ENTRIES, format=PoolFormat.INDEX_FP8, page=4)
    write_rows(pool, torch.arange(ENTRIES), torch.randn(ENTRIES, 128, generator=generator))
    rows, visible = torch.arange(ENTRIES)[None], torch.full((TOKENS,), ENTRIES)
    return indexer_scores(queries, weights, pool, rows, visible, (TOKENS,), dtype=dtype, **how)  # type: ignore[arg-type]


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_scores_are_the_same_to_the_last_bit(code: IndexCode, dtype: torch.dtype) -> None:
    """A query's scale is a power of two: where it is multiplied changes no rounding."""
    q, cos_sin, weights = arguments(dtype)
    options = {"code": code, "rotate_hadamard": True, "dtype": dtype}
    apart = indexer_q(q, cos_sin, **options)  # type: ignore[arg-type]
    made, folded = indexer_q_folded(q, cos_sin, weights, scale=SCALE, **options)  # type: ignore[arg-type]
    assert folded.dtype == dtype and folded.shape == weights.shape
    expected = scores(apart, weights, dtype, scale=SCALE)
    assert torch.equal(scores(made, folded, dtype, folded=True), expected)
    if code == "fp8":  # the scales must not count twice
        assert not torch.allclose(scores(made, folded, dtype), expected)


def test_folded_weights_in_float64() -> None:
    q, cos_sin, weights = arguments(torch.float64)
    options = {"rotate_hadamard": True, "dtype": torch.float64}
    for code in CODES:
        made, folded = indexer_q_folded(q, cos_sin, weights, scale=SCALE, code=code, **options)  # type: ignore[arg-type]
        expected = weights * SCALE
        if code == "fp8":
            assert isinstance(made, Quantized)
            expected = expected * made.scale.to(torch.float64)[..., 0]
        torch.testing.assert_close(folded, expected, rtol=1e-15, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("code", ["fp8", "fp4"])
def test_the_kernel_gives_queries_and_weights(served: list[str], code: IndexCode, dtype: torch.dtype) -> None:
    q, cos_sin, weights = arguments(torch.bfloat16)
    given = weights.to(dtype)
    made, folded = indexer_q_folded(q, cos_sin, given, scale=SCALE, code=code, rotate_hadamard=True)
    assert served == ["indexer_q"] and isinstance(made, Quantized)
    expected = given.double() * float(torch.tensor(SCALE))
    if code == "fp8":
        expected = expected * made.scale.double()[..., 0]
    torch.testing.assert_close(folded.double(), expected, rtol=2**-23, atol=0)
    apart = indexer_q(q, cos_sin, code=code, rotate_hadamard=True)
    assert isinstance(apart, Quantized)
    for one, other in ((made.codes, apart.codes), (made.scale, apart.scale)):
        assert torch.equal(one.view(torch.uint8), other.view(torch.uint8))  # folding changes nothing about the queries


def test_weights_in_float64_go_to_the_reference(served: list[str]) -> None:
    q, cos_sin, weights = arguments(torch.bfloat16)
    indexer_q_folded(q, cos_sin, weights.double(), scale=SCALE, code="fp8", rotate_hadamard=True)
    assert served == []


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (2, torch.zeros(TOKENS, HEADS + 1), r"weights: found shape \[5, 7\]; valid: \[5, 6\], that is \[T, h\]"),
        (2, torch.zeros(TOKENS, HEADS, dtype=torch.int32), "weights: found torch.int32; valid: torch.bfloat16"),
        (2, None, "weights: found NoneType; valid: torch.Tensor"),
        (1, torch.zeros(TOKENS + 1, 64), r"cos_sin: found shape \[6, 64\]; valid: \[5, r\]"),
    ],
)
def test_bad_arguments_are_named(place: int, value: torch.Tensor | None, message: str) -> None:
    given: list[torch.Tensor | None] = [*arguments(torch.bfloat16)]
    given[place] = value
    with pytest.raises(ContractError, match=f"indexer_q_folded: {message}"):
        indexer_q_folded(*given, scale=SCALE, code="fp8", rotate_hadamard=True)  # type: ignore[arg-type]


def test_weights_whose_heads_lie_apart_are_refused_by_the_kernel(served: list[str]) -> None:
    q, cos_sin, weights = arguments(torch.bfloat16)
    apart = weights.float().T.contiguous().T
    with pytest.raises(ContractError, match="indexer_q: weights: found stride 5"):
        indexer_q_folded(q, cos_sin, apart, scale=SCALE, code="fp8", rotate_hadamard=True)


@pytest.mark.parametrize("code", CODES)
def test_torch_has_it_as_one_operator(code: IndexCode) -> None:
    q, cos_sin, weights = arguments(torch.bfloat16)
    operator = torch.ops.dsv4.indexer_q_folded.default
    assert "Tensor weights, float scale, str code" in str(operator._schema)
    given = (q, cos_sin, weights, SCALE, code, True, torch.float32, None)
    tensors = operator(*given)
    assert [tensor.shape for tensor in tensors][-1] == weights.shape and len(tensors) == (2 if code == "none" else 3)
    torch.library.opcheck(operator, given)
