"""Which kernel of sparse_attention_decode a pool's page stride selects, and what such a kernel asks of the stride."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dsv4.generator.spec import Refused, default_plans, plan
from dsv4.runtime import contract, dispatch
from dsv4.runtime.errors import ContractError
from dsv4.runtime.ops import plain
from dsv4.runtime.ops import sparse_attention_decode as decode
from dsv4.runtime.ops.hca_attention_decode import hca_attention_decode
from dsv4.runtime.pool import Pool, PoolFormat

OP = "sparse_attention_decode"
PAGES = (2, 53, 61, 64, 69, 256, 576)


def pool(page: int, more_bytes: int = 0, pages: int = 3) -> Pool:
    """Packed pages of zeros with so many bytes after each."""
    size = -(-page * 584 // 576) * 576
    data = torch.zeros(pages, size + more_bytes, dtype=torch.uint8)[:, :size]
    return Pool(data, PoolFormat.KV_FP8, page)


def bf16_pool() -> Pool:
    return Pool(torch.zeros(8, 4, 512, dtype=torch.bfloat16), PoolFormat.PLAIN, 4)


@pytest.mark.parametrize("page", PAGES)
def test_the_stride_selects(page: int) -> None:
    for more_bytes, aligned in ((0, True), (576, True), (5 * 576, True), (16, False), (288, False), (592, False)):
        given = pool(page, more_bytes)
        found = decode.page_format("kv_fp8", "sm_100a", given)
        assert found == ("kv_fp8_aligned" if aligned else "kv_fp8")
        assert decode.page_format("kv_fp8", "sm_100a", pool(64), given) == found
        for arch in ("sm_90a", None):
            assert decode.page_format("kv_fp8", arch, given) == "kv_fp8"
    assert decode.page_format("kv_fp8", "sm_100a", pool(page, 16, pages=1)) == "kv_fp8_aligned"


def test_rows_of_bf16_have_no_stride_that_selects() -> None:
    assert decode.page_format("plain", "sm_100a", bf16_pool()) == "plain"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> list[Any]:
    """What the doors ask for as if on an sm_100a; the reference serves."""
    monkeypatch.setenv("DSV4_CACHE", str(tmp_path))
    requests: list[Any] = []
    dispatch.reset()
    monkeypatch.setattr(plain, "KERNEL_DEVICES", ("cpu",))
    monkeypatch.setattr(dispatch, "arch_of", lambda device: "sm_100a")
    monkeypatch.setattr(dispatch, "serve", lambda request: requests.append(request.variant["cache"]))
    yield requests
    dispatch.reset()


def call(first: Pool, second: Pool | None = None) -> None:
    rows = torch.zeros(1, 1, 3, dtype=torch.int32)
    more = () if second is None else (None, second, rows)
    decode.sparse_attention_decode(torch.zeros(1, 1, 64, 512, dtype=torch.bfloat16), first, rows, *more)


def test_pools_of_one_shape_and_two_strides_get_two_kernels(asked: list[str]) -> None:
    for more_bytes in (0, 16, 0, 576, 16):
        call(pool(64, more_bytes))
    assert asked == ["kv_fp8_aligned", "kv_fp8", "kv_fp8_aligned"]  # calls of a stride that was seen ask no more


def test_one_pool_of_two_is_enough_for_the_copy_of_each_row(asked: list[str]) -> None:
    call(pool(64), pool(2))
    call(pool(64), pool(2, 16))
    call(pool(64, 16), pool(2))
    call(bf16_pool(), bf16_pool())
    assert asked == ["kv_fp8_aligned", "kv_fp8", "kv_fp8", "plain"]


def test_a_table_of_pages_selects_alike(asked: list[str]) -> None:
    q, rows = torch.zeros(1, 1, 64, 512, dtype=torch.bfloat16), torch.zeros(1, 1, 3, dtype=torch.int32)
    table, visible = torch.zeros(1, 2, dtype=torch.int32), torch.ones(1, 1, dtype=torch.int32)
    for more_bytes in (0, 16):
        hca_attention_decode(q, pool(64), rows, pool(2, more_bytes), table, visible)
    assert asked == ["kv_fp8_aligned", "kv_fp8"]


def test_the_kernel_says_which_strides_it_takes() -> None:
    for cache, multiple in (("kv_fp8_aligned", 576), ("kv_fp8", 16)):
        made = plan(OP, "sm_100a", variant={"cache": cache, "extra": "rows"})
        strides = {each.name: each.stride_multiple for each in made.contract.arguments if each.name.startswith("pool")}
        assert strides == {"pool0": multiple, "pool1": multiple}
    made = plan(OP, "sm_100a", variant={"cache": "kv_fp8_aligned"})
    values: dict[str, Any] = dict.fromkeys(each.name for each in made.contract.arguments)
    values |= {"q": torch.zeros(1, 1, 64, 512, dtype=torch.bfloat16), "pool0": pool(64, 16).data}
    with pytest.raises(ContractError, match=r"pool0: found stride 37456 in dimension N0; valid: a multiple of 576"):
        contract.check(OP, made.contract, values)


def test_gather4_is_the_default_where_it_can_be_and_nowhere_else() -> None:
    loads = {(each.variant["cache"], each.config["load"]) for each in default_plans(OP, "sm_100a")}
    assert loads == {("kv_fp8", "bulk_row"), ("kv_fp8_aligned", "gather4"), ("plain", "bulk_row")}
    assert "load" not in plan(OP, "sm_90a").config
    with pytest.raises(Refused, match="Hopper has no gather4"):
        plan(OP, "sm_90a", variant={"cache": "kv_fp8_aligned"})
    box = plan(OP, "sm_100a", variant={"cache": "kv_fp8_aligned"}).budget.tma["rows0"]
    assert box.transaction_bytes == 576 and plan(OP, "sm_100a").budget.tma == {}
