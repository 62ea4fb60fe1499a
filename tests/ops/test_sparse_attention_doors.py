"""sparse_attention and sparse_attention_decode through their doors to a compiled kernel on the emulator."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dsv4.runtime.errors import ContractError
from dsv4.runtime.ops.hca_attention_decode import hca_attention_decode
from dsv4.runtime.ops.sparse_attention import sparse_attention
from dsv4.runtime.ops.sparse_attention_decode import sparse_attention_decode
from dsv4.runtime.pool import Pool, PoolFormat
from dsv4.runtime.reference import hca_attention_decode as hca_reference
from dsv4.runtime.reference import pages
from dsv4.runtime.reference import sparse_attention as plain_reference
from dsv4.runtime.reference import sparse_attention_decode as reference

HEADS = 8


def pool(rows: int, page: int) -> Pool:
    made = Pool.allocate(rows, format=PoolFormat.KV_FP8, page=page)
    pages.write_rows(made, torch.arange(rows), torch.randn(rows, 512) / 10)
    return made


def arguments(requests: int, queries: int) -> dict[str, Any]:
    torch.manual_seed(1)
    return {
        "q": torch.randn(requests, queries, HEADS, 512).clamp(-1, 1).bfloat16(),
        "pool": pool(90, 16),
        "rows": torch.randint(-1, 90, (requests, queries, 70)),
        "length": torch.tensor([70, 0, 33][:requests]),
        "extra": pool(200, 2),
        "extra_rows": torch.randint(-5, 230, (requests, queries, 65), dtype=torch.int32),
        "extra_length": torch.tensor([64, 0, 1000][:requests], dtype=torch.int32),
        "sink": torch.randn(HEADS),
    }


def test_decoding_with_lengths(served: list[str]) -> None:
    given = arguments(3, 2)
    out, lse = sparse_attention_decode(**given)
    assert served == ["sparse_attention_decode"] and out.shape == (3, 2, HEADS, 512) and lse.shape == (3, HEADS, 2)
    expected, expected_lse = reference.sparse_attention_decode(**given, dtype=torch.float64)
    torch.testing.assert_close(out.double(), expected.double(), rtol=2.01 / 128, atol=1e-3)
    torch.testing.assert_close(lse.double(), expected_lse, rtol=8.01 / 65536, atol=1e-6)
    assert (out[1] == 0).all() and lse[1].isneginf().all()


@pytest.mark.parametrize("with_compressed", [False, True])
def test_the_models_call(served: list[str], with_compressed: bool) -> None:
    given = arguments(3, 1)
    compressed = (given["extra"], given["extra_rows"][:, 0].clamp(-1, 199)) if with_compressed else (None, None)
    call = (given["q"][:, 0], given["pool"], given["rows"][:, 0], *compressed, given["sink"])
    options = {"softmax_scale": 512**-0.5, "probability_dtype": torch.bfloat16, "out_dtype": torch.bfloat16}
    out, lse = sparse_attention(*call, **options)
    assert served == ["sparse_attention_decode"] and out.shape == (3, HEADS, 512) and lse.shape == (3, HEADS)
    expected, expected_lse = plain_reference.sparse_attention(*call, **{**options, "dtype": torch.float64})
    torch.testing.assert_close(out.double(), expected.double(), rtol=2.01 / 128, atol=1e-3)
    torch.testing.assert_close(lse.double(), expected_lse, rtol=8.01 / 65536, atol=1e-6)


def test_decoding_over_bf16_rows(served: list[str]) -> None:
    given = arguments(3, 2)
    for name, rows in (("pool", 90), ("extra", 200)):
        given[name] = Pool((torch.randn(-(-rows // 4), 4, 512) / 10).bfloat16(), PoolFormat.PLAIN, 4)
    out, lse = sparse_attention_decode(**given)
    assert served == ["sparse_attention_decode"]
    expected, expected_lse = reference.sparse_attention_decode(**given, dtype=torch.float64)
    torch.testing.assert_close(out.double(), expected.double(), rtol=2.01 / 128, atol=1e-3)
    torch.testing.assert_close(lse.double(), expected_lse, rtol=8.01 / 65536, atol=1e-6)


def test_all_entries_of_a_request(served: list[str]) -> None:
    torch.manual_seed(4)
    window, compressed = pool(300, 16), pool(40, 2)
    given = {
        "q": torch.randn(2, 3, HEADS, 512).clamp(-1, 1).bfloat16(),
        "window": window,
        "window_rows": torch.randint(-1, 300, (128, 3, 2)).transpose(0, 2),
        "compressed": compressed,
        "pages": torch.randperm(20)[:14].view(2, 7),
        "visible": torch.tensor([[11, 12, 13], [0, 0, 1]]),
        "sink": torch.randn(HEADS),
    }
    out, lse = hca_attention_decode(**given)
    assert served == ["sparse_attention_decode"] and out.shape == (2, 3, HEADS, 512) and lse.shape == (2, HEADS, 3)
    keys = [pages.read_rows(window, given["window_rows"][1, 2], dtype=torch.float64)]
    keys.append(pages.read_rows(compressed, given["pages"][1, :1] * 2, dtype=torch.float64))
    logits = given["q"][1, 2].double() @ torch.cat(keys).T * 512**-0.5
    logits[:, :128].masked_fill_(given["window_rows"][1, 2] < 0, -torch.inf)
    torch.testing.assert_close(lse[1, :, 2].double(), logits.logsumexp(-1), rtol=8.01 / 65536, atol=1e-6)
    expected, _ = hca_reference.hca_attention_decode(**given, dtype=torch.float64)
    torch.testing.assert_close(out.double(), expected.double(), rtol=2.01 / 128, atol=1e-3)


@pytest.mark.parametrize(
    "changed",
    [
        {"dtype": torch.float64},
        {"probability_dtype": torch.float16},
        {"out_dtype": torch.float32},
        {"softmax_scale": 0.0},
    ],
)
def test_what_no_kernel_is_made_for_goes_to_the_reference(served: list[str], changed: dict[str, Any]) -> None:
    given = arguments(1, 1)
    out, _ = sparse_attention_decode(**given, **changed)
    assert served == [] and torch.equal(out, reference.sparse_attention_decode(**given, **changed)[0])


def test_bad_arguments_are_named() -> None:
    given = arguments(2, 1)
    with pytest.raises(ContractError, match=r"sparse_attention_decode: rows: found shape \[1, 1, 70\]"):
        sparse_attention_decode(**{**given, "rows": given["rows"][:1]})
    with pytest.raises(ContractError, match=r"sparse_attention_decode: sink: found shape \[9\]"):
        sparse_attention_decode(**{**given, "sink": torch.zeros(9)})
    with pytest.raises(ContractError, match=r"sparse_attention_decode: length: found torch\.float32"):
        sparse_attention_decode(**{**given, "length": torch.zeros(2)})
