"""Public functions on a GPU, served by the default kernels of the cache: eagerly, in a CUDA graph, under torch.compile.

Needs a cache with the default kernels of the GPU's arch (``dsv4-gen build``, here or on another machine).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import dsv4
from dsv4.runtime import dispatch
from dsv4.runtime.cache import KernelCache
from dsv4.runtime.ops.compressor import compressor
from dsv4.runtime.ops.dequantize import dequantize
from dsv4.runtime.ops.embed import embed
from dsv4.runtime.ops.indexer_q import indexer_q
from dsv4.runtime.ops.inverse_rope_quant import inverse_rope_quant
from dsv4.runtime.ops.mhc_head import mhc_head
from dsv4.runtime.ops.mhc_post import mhc_post
from dsv4.runtime.ops.mhc_post_pre import mhc_post_pre
from dsv4.runtime.ops.mhc_pre import mhc_pre
from dsv4.runtime.ops.moe_combine import moe_combine
from dsv4.runtime.ops.q_norm_rope_kv_insert import q_norm_rope_kv_insert
from dsv4.runtime.ops.quantize import quantize
from dsv4.runtime.ops.swiglu_quant import swiglu_quant_joined
from dsv4.runtime.pool import Pool, PoolFormat
from dsv4.runtime.reference.compressor import Compression
from dsv4.runtime.reference.quantize import fp8_weight, quantize_fp8
from tests.ops.door_values import close, values

pytestmark = pytest.mark.gpu
TOKENS, COLUMNS, HEADS = 5, 4096, 64


@pytest.fixture(autouse=True)
def kernels_only() -> Iterator[None]:
    """Kernels must serve; a cache without them is no place for these tests."""
    if not KernelCache().kinds():
        pytest.skip("the kernel cache is empty; valid: one with the default kernels of this GPU's arch")
    dispatch.reset()
    dsv4.configure(missing="raise")
    yield
    dispatch.reset()


def normal(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(*shape, device="cuda").to(dtype)


def f32(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, device="cuda")


def table(rows: int) -> torch.Tensor:
    angle = f32(rows, 32) * 6
    return torch.cat((angle.cos(), angle.sin()), dim=1)


def ints(values: Any) -> torch.Tensor:
    return torch.tensor(values, device="cuda")


def mix() -> tuple[torch.Tensor, ...]:
    return normal(24, 4 * COLUMNS, dtype=torch.float32) / 128, f32(24), f32(3), 1 + 0.1 * normal(COLUMNS)


def residual() -> tuple[torch.Tensor, ...]:
    return normal(TOKENS, COLUMNS), normal(TOKENS, 4, COLUMNS), f32(TOKENS, 4), f32(TOKENS, 4, 4)


def compression() -> tuple[Any, ...]:
    fresh, stored = ints([[-1] * 6 + [0, 1], [-1] * 8]), ints([[-1] * 4 + [4, 5, -1, -1], [-1] * 8])
    plan = Compression(ints([2, 3, 0, 1, 2]), fresh, stored, ints([6, -1]), ints([6, 7, 0, 1, 2]))
    pool = Pool.allocate(12, format=PoolFormat.KV_FP8, page=4, device="cuda")
    products = normal(5, 1024, dtype=torch.float32), normal(5, 1024, dtype=torch.float32)
    state = normal(9, 2048, dtype=torch.float32)
    return (*products, f32(4, 1024), 1 + 0.1 * normal(512), table(2), state, pool, plan)


def insertion() -> tuple[Any, ...]:
    pool = Pool.allocate(12, format=PoolFormat.KV_FP8, page=4, device="cuda")
    return normal(5, HEADS, 512), normal(5, 512), normal(512), table(5), pool, ints([5, -1, 2, 0, 7])


Call = tuple[Callable[..., Any], Callable[[], tuple[Any, ...]], dict[str, Any]]
CALLS: dict[str, Call] = {
    "embed": (embed, lambda: (ints([3, 0, 4]), normal(5, COLUMNS)), {}),
    "mhc_pre": (mhc_pre, lambda: (normal(TOKENS, 4, COLUMNS), *mix()), {}),
    "mhc_post": (mhc_post, residual, {}),
    "mhc_post_pre": (mhc_post_pre, lambda: (*residual(), *mix()), {}),
    "mhc_head": (
        mhc_head,
        lambda: (normal(TOKENS, 4, COLUMNS), mix()[0][:4].contiguous(), f32(4), f32(1), normal(COLUMNS)),
        {},
    ),
    "q_norm_rope_kv_insert": (q_norm_rope_kv_insert, insertion, {}),
    "compressor": (compressor, compression, {}),
    "indexer_q": (
        indexer_q,
        lambda: (normal(TOKENS, 64, 128), table(TOKENS)),
        {"code": "fp4", "rotate_hadamard": True},
    ),
    "inverse_rope_quant": (
        inverse_rope_quant,
        lambda: (normal(TOKENS, HEADS, 512), table(TOKENS)),
        {"groups": 8, "quantize": True},
    ),
    "quantize": (
        quantize,
        lambda: (normal(TOKENS, COLUMNS), fp8_weight(torch.randn(4, COLUMNS, device="cuda"))),
        {"rule": "fp8_128"},
    ),
    "dequantize": (dequantize, lambda: (quantize_fp8(normal(TOKENS, COLUMNS)),), {}),
    "swiglu_quant": (
        swiglu_quant_joined,
        lambda: (normal(TOKENS, 4096), f32(TOKENS)),
        {"limit": 10.0, "block": 128},
    ),
    "moe_combine": (moe_combine, lambda: (normal(TOKENS, 6, COLUMNS), normal(TOKENS, COLUMNS)), {}),
}


def made(name: str) -> tuple[Any, ...]:
    torch.manual_seed(1)
    return CALLS[name][1]()


def reference(name: str) -> list[torch.Tensor]:
    from dsv4.runtime.ops import plain

    function, _, options = CALLS[name]
    arguments = made(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plain, "KERNEL_DEVICES", ())
        dispatch.reset()
        dsv4.configure(missing="reference")
        found = values(function(*arguments, **options), arguments)
    dispatch.reset()
    dsv4.configure(missing="raise")
    return found


@pytest.mark.parametrize("name", CALLS)
def test_the_default_kernel_serves(name: str) -> None:
    function, _, options = CALLS[name]
    expected, arguments = reference(name), made(name)
    with dsv4.trace_dispatch() as calls:
        result = function(*arguments, **options)
    assert [call.implementation for call in calls if call.op == name] != ["reference"] and calls
    close(values(result, arguments), expected)


@pytest.mark.parametrize("name", CALLS)
def test_it_is_captured_and_replayed(name: str) -> None:
    function, _, options = CALLS[name]
    expected, arguments = reference(name), made(name)
    function(*made(name), **options)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = function(*arguments, **options)
    graph.replay()
    torch.cuda.synchronize()
    close(values(result, arguments), expected)


@pytest.mark.parametrize("name", ["mhc_pre", "quantize", "q_norm_rope_kv_insert", "compressor", "indexer_q"])
def test_torch_compile_calls_the_kernel(name: str) -> None:
    function, _, options = CALLS[name]
    expected, arguments = reference(name), made(name)
    torch._dynamo.reset()
    compiled = torch.compile(lambda *given: function(*given, **options), fullgraph=True, backend="aot_eager")
    with dsv4.trace_dispatch() as calls:
        result = compiled(*arguments)
    assert any(call.op == name and call.implementation != "reference" for call in calls)
    close(values(result, arguments), expected)
