"""Public functions through their doors to compiled kernels on the emulator: the right arguments in the right places.

That a kernel computes the right thing is held elsewhere, case by case; here a call of the public function is compared
with its reference, loosely for what is rounded at the end and exactly for codes of equal values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from dsv4.runtime import dispatch
from dsv4.runtime.errors import ContractError
from dsv4.runtime.ops import plain
from dsv4.runtime.ops.compressor import compressor
from dsv4.runtime.ops.dequantize import dequantize
from dsv4.runtime.ops.dequantize_blocks import dequantize_blocks
from dsv4.runtime.ops.embed import embed
from dsv4.runtime.ops.indexer_q import indexer_q
from dsv4.runtime.ops.inverse_rope_quant import inverse_rope_quant
from dsv4.runtime.ops.inverse_rope_quant_blocks import inverse_rope_quant_blocks
from dsv4.runtime.ops.mhc_head import mhc_head
from dsv4.runtime.ops.mhc_post import mhc_post
from dsv4.runtime.ops.mhc_post_pre import mhc_post_pre
from dsv4.runtime.ops.mhc_pre import mhc_pre
from dsv4.runtime.ops.moe_combine import moe_combine
from dsv4.runtime.ops.moe_combine_rows import moe_combine_rows
from dsv4.runtime.ops.q_norm_rope_kv_insert import q_norm_rope_kv_insert
from dsv4.runtime.ops.quantize import quantize
from dsv4.runtime.ops.quantize_blocks import quantize_blocks
from dsv4.runtime.ops.rms_norm_quant import rms_norm_quant
from dsv4.runtime.ops.rms_norm_quant_blocks import rms_norm_quant_blocks
from dsv4.runtime.ops.swiglu_quant import swiglu_quant, swiglu_quant_joined
from dsv4.runtime.ops.swiglu_quant_blocks import swiglu_quant_blocks
from dsv4.runtime.pool import Pool, PoolFormat
from dsv4.runtime.reference import quantize_blocks as blocks_reference
from dsv4.runtime.reference.compressor import Compression
from dsv4.runtime.reference.quantize import fp8_weight, quantize_fp8, quantize_mxfp4
from tests.ops.door_values import close, values

BF16 = torch.bfloat16


def normal(*shape: int, dtype: torch.dtype = BF16) -> torch.Tensor:
    return torch.randn(shape).to(dtype)


def table(rows: int) -> torch.Tensor:
    angle = torch.rand(rows, 32) * 6
    return torch.cat((angle.cos(), angle.sin()), dim=1)


def packed_pool() -> Pool:
    return Pool.allocate(12, format=PoolFormat.KV_FP8, page=4)


def compress_call(format: PoolFormat, width: int) -> tuple[Any, ...]:
    """Five tokens of a sequence from position 2 on: entry 0 of two stored and two fresh rows, entry 1 not complete."""
    torch.manual_seed(3)
    c = 2 * width
    state = torch.zeros(9, 2 * c)
    state[:8] = torch.randn(8, 2 * c)
    fresh = torch.tensor([[-1] * 6 + [0, 1], [-1] * 8])
    stored = torch.tensor([[-1] * 4 + [4, 5, -1, -1], [-1] * 8])
    rows, kept = torch.tensor([6, -1]), torch.tensor([6, 7, 0, 1, 2])
    plan = Compression(torch.tensor([2, 3, 0, 1, 2]), fresh, stored, rows, kept)
    pool = Pool.allocate(12, format=format, page=4, width=width)
    products = normal(5, c, dtype=torch.float32), normal(5, c, dtype=torch.float32)
    return (*products, torch.randn(4, c), 1 + 0.1 * normal(width), table(2), state, pool, plan)


CALLS: dict[str, tuple[Callable[..., Any], Callable[[], tuple[Any, ...]], dict[str, Any]]] = {
    "mhc_post": (mhc_post, lambda: (normal(3, 512), normal(3, 4, 512), torch.rand(3, 4), torch.rand(3, 4, 4)), {}),
    "mhc_pre": (
        mhc_pre,
        lambda: (normal(3, 4, 512), torch.randn(24, 2048) / 64, torch.randn(24), torch.rand(3), 1 + 0.1 * normal(512)),
        {},
    ),
    "mhc_post_pre": (
        mhc_post_pre,
        lambda: (
            normal(3, 512),
            normal(3, 4, 512),
            torch.rand(3, 4),
            torch.rand(3, 4, 4),
            torch.randn(24, 2048) / 64,
            torch.randn(24),
            torch.rand(3),
            1 + 0.1 * normal(512),
        ),
        {},
    ),
    "mhc_head": (
        mhc_head,
        lambda: (normal(3, 4, 512), torch.randn(4, 2048) / 64, torch.randn(4), torch.rand(1), 1 + 0.1 * normal(512)),
        {},
    ),
    "embed": (embed, lambda: (torch.tensor([3, 0, 4]), normal(5, 512)), {}),
    "embed plain": (embed, lambda: (torch.tensor([3, 0, 4], dtype=torch.int32), normal(5, 512)), {"streams": 0}),
    "q_norm_rope_kv_insert": (
        q_norm_rope_kv_insert,
        lambda: (normal(3, 2, 512), normal(3, 512), normal(512), table(3), packed_pool(), torch.tensor([5, -1, 2])),
        {},
    ),
    "q_norm_rope_kv_insert plain": (
        q_norm_rope_kv_insert,
        lambda: (
            normal(2, 2, 512),
            normal(2, 512),
            normal(512),
            table(2),
            Pool.allocate(6, page=2),
            torch.tensor([3, 0]),
        ),
        {},
    ),
    "compressor": (compressor, lambda: compress_call(PoolFormat.KV_FP8, 512), {}),
    "compressor keys": (compressor, lambda: compress_call(PoolFormat.INDEX_FP4, 128), {"rotate_hadamard": True}),
    "indexer_q fp8": (indexer_q, lambda: (normal(3, 8, 128), table(3)), {"code": "fp8", "rotate_hadamard": True}),
    "indexer_q fp4": (indexer_q, lambda: (normal(3, 8, 128), table(3)), {"code": "fp4", "rotate_hadamard": True}),
    "inverse_rope_quant": (inverse_rope_quant, lambda: (normal(3, 4, 512), table(3)), {"groups": 2}),
    "inverse_rope_quant fp8": (
        inverse_rope_quant,
        lambda: (normal(3, 4, 512), table(3)),
        {"groups": 2, "quantize": True},
    ),
    "quantize": (quantize, lambda: (normal(2, 3, 256), fp8_weight(torch.randn(5, 256))), {"rule": "fp8_128"}),
    "quantize by 32": (quantize, lambda: (normal(3, 256), fp8_weight(torch.randn(5, 256))), {"rule": "fp8_32"}),
    "rms_norm_quant": (rms_norm_quant, lambda: (normal(3, 512), normal(512)), {"rule": "fp8_128"}),
    "rms_norm_quant nvfp4": (
        rms_norm_quant,
        lambda: (normal(3, 512), normal(512), torch.tensor(0.002)),
        {"rule": "nvfp4"},
    ),
    "dequantize": (dequantize, lambda: (quantize_fp8(normal(2, 3, 256)),), {}),
    "dequantize mxfp4": (dequantize, lambda: (quantize_mxfp4(normal(3, 256)),), {}),
    "swiglu_quant": (
        swiglu_quant_joined,
        lambda: (normal(3, 512), torch.rand(3)),
        {"limit": 10.0, "block": 128, "interleaved": True},
    ),
    "swiglu_quant bf16": (swiglu_quant_joined, lambda: (normal(3, 512),), {"limit": 1.0}),
    "swiglu_quant of two tensors": (
        swiglu_quant,
        lambda: (normal(3, 512)[:, :256], normal(3, 256), torch.rand(3)),
        {"limit": 10.0, "block": 128},
    ),
    "swiglu_quant of two tensors bf16": (swiglu_quant, lambda: (normal(3, 256), normal(3, 256)), {"limit": 1.0}),
    "moe_combine": (moe_combine, lambda: (normal(3, 6, 512), normal(3, 512)), {}),
    "moe_combine gathered": (
        moe_combine_rows,
        lambda: (normal(9, 512), torch.tensor([[8, 0, -1], [3, 3, 2]], dtype=torch.int32), normal(2, 512)),
        {},
    ),
    "quantize mxfp4": (quantize_blocks, lambda: (normal(3, 256),), {"format": "mxfp4"}),
    "quantize nvfp4 in tiles": (
        quantize_blocks,
        lambda: (normal(130, 256), torch.tensor(0.002)),
        {"format": "nvfp4", "scale_layout": "swizzled_128x4"},
    ),
    "quantize transposed": (
        quantize_blocks,
        lambda: (normal(5, 256),),
        {"format": "fp8_128", "scale_layout": "m_major"},
    ),
    "rms_norm_quant in tiles": (
        rms_norm_quant_blocks,
        lambda: (normal(3, 512), 1 + 0.1 * normal(512)),
        {"format": "fp8_32", "scale_layout": "swizzled_128x4", "with_y": True},
    ),
    "rms_norm_quant alone": (rms_norm_quant_blocks, lambda: (normal(3, 512), normal(512)), {"format": "fp8_128"}),
    "dequantize in tiles": (
        dequantize_blocks,
        lambda: (*in_tiles(normal(3, 256)), torch.tensor(0.002)),
        {"format": "nvfp4", "scale_layout": "swizzled_128x4"},
    ),
    "dequantize transposed": (
        dequantize_blocks,
        lambda: blocks_reference.quantize_blocks(normal(3, 256), format="fp8_128", scale_layout="m_major"),
        {"format": "fp8_128", "scale_layout": "m_major"},
    ),
    "swiglu_quant nvfp4 in tiles": (
        swiglu_quant_blocks,
        lambda: (normal(3, 512), torch.rand(3), torch.tensor(0.002)),
        {"limit": 10.0, "format": "nvfp4", "scale_layout": "swizzled_128x4"},
    ),
    "swiglu_quant mxfp4": (
        swiglu_quant_blocks,
        lambda: (normal(3, 512),),
        {"limit": 10.0, "format": "mxfp4", "interleaved": True},
    ),
    "inverse_rope_quant transposed": (
        inverse_rope_quant_blocks,
        lambda: (normal(5, 4, 512), table(5)),
        {"groups": 2, "scale_layout": "m_major_f32"},
    ),
    "inverse_rope_quant packed": (
        inverse_rope_quant_blocks,
        lambda: (normal(5, 4, 512), table(5)),
        {"groups": 2, "scale_layout": "m_major_packed"},
    ),
}


def in_tiles(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return blocks_reference.quantize_blocks(x, torch.tensor(0.002), format="nvfp4", scale_layout="swizzled_128x4")


@pytest.mark.parametrize("name", CALLS)
def test_a_public_function_reaches_its_kernel(served: list[str], name: str) -> None:
    function, make, options = CALLS[name]
    torch.manual_seed(0)
    arguments = make()
    got = values(function(*arguments, **options), arguments)
    assert served == [name.partition(" ")[0]]

    torch.manual_seed(0)
    again = make()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plain, "KERNEL_DEVICES", ())
        dispatch.reset()
        expected = values(function(*again, **options), again)
    close(got, expected)


def test_a_second_call_of_the_shape_compiles_nothing(served: list[str]) -> None:
    for _ in range(2):
        moe_combine(normal(2, 3, 64), normal(2, 64))
    assert served == ["moe_combine"]


def test_no_rows_ask_for_no_kernel(served: list[str]) -> None:
    codes = dequantize(quantize_fp8(normal(2, 0, 256)))
    assert codes.shape == (2, 0, 256) and served == []


def test_what_the_kernel_refuses_names_the_argument(served: list[str]) -> None:
    update, streams = normal(512, 3).transpose(0, 1), normal(3, 4, 512)
    with pytest.raises(ContractError, match="mhc_post: update: found stride"):
        mhc_post(update, streams, torch.rand(3, 4), torch.rand(3, 4, 4))


def test_a_call_that_is_refused_writes_nothing(served: list[str]) -> None:
    """Strides and alignment are the host function's to check, in front of the launch."""
    make, odd = CALLS["q_norm_rope_kv_insert"][1], normal(3 * 512 + 1)[1:].view(3, 512)
    given = make()
    before = given[4].data.clone()
    for place, value, message in (
        (0, normal(3, 512, 2).transpose(1, 2), "q: found stride 1 in dimension 2; valid: a multiple of 8"),
        (1, odd, "kv: found data 2 bytes past a boundary; valid: data aligned to 16 bytes"),
        (3, table(3).t().contiguous().t(), "cos_sin: found stride 1 in dimension T"),
        (5, torch.arange(6)[::2], "rows: found stride 2"),
    ):
        wrong = (*given[:place], value, *given[place + 1 :])
        with pytest.raises(ContractError, match=f"q_norm_rope_kv_insert: {message}"):
            q_norm_rope_kv_insert(*wrong)
    assert torch.equal(given[4].data, before) and served == ["q_norm_rope_kv_insert"]


def test_a_compressor_that_is_refused_writes_nothing(served: list[str]) -> None:
    *products, ape, norm, cos_sin, state, pool, plan = compress_call(PoolFormat.INDEX_FP4, 128)
    before = state.clone(), pool.data.clone()
    apart = torch.zeros(9, 1024)[:, :512]
    for wrong, message in (
        ((products[0].t().contiguous().t(), *products[1:], ape, norm, cos_sin, state, pool, plan), "kv: found stride"),
        ((*products, ape, norm, cos_sin, apart, pool, plan), "state: found stride 1024"),
        ((*products, ape, norm, cos_sin, state, pool, plan._replace(phase=plan.phase.int())), "phase: found torch"),
    ):
        with pytest.raises(ContractError, match=f"compressor: {message}"):
            compressor(*wrong, rotate_hadamard=True)
    assert torch.equal(state, before[0]) and torch.equal(pool.data, before[1])


def test_a_pool_of_another_page_size_is_refused() -> None:
    packed = packed_pool().data
    with pytest.raises(
        ValueError, match=r"pool kv_fp8: data: found torch.uint8 \[4, 2880\]; valid: uint8 \[pages, 4672"
    ):
        Pool(packed, PoolFormat.KV_FP8, 8)
    with pytest.raises(ValueError, match=r"pool plain: data: .*; valid: contiguous \[pages, 8, width\]"):
        Pool(torch.zeros(4, 4, 512), PoolFormat.PLAIN, 8)


def test_calls_that_no_kernel_is_made_for_go_to_the_reference(served: list[str]) -> None:
    streams = torch.randn(3, 4, 512, dtype=torch.float64)
    post, comb = torch.rand(3, 4).double(), torch.rand(3, 4, 4).double()
    mhc_post(streams[:, 0], streams, post, comb, dtype=torch.float64)
    indexer_q(normal(3, 8, 128), table(3))
    assert served == []
