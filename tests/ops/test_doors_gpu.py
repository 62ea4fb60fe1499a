"""Public functions on a GPU, served by the default kernels of the cache: edges, CUDA graphs, torch.compile, memory.

Needs a cache with the default kernels of the GPU's arch (``dsv4-gen build``, here or on another machine).
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import dsv4
from dsv4.runtime import dispatch
from dsv4.runtime.errors import ContractError
from dsv4.runtime.ops import plain
from dsv4.runtime.ops.embed import embed
from dsv4.runtime.ops.expert_offsets import expert_offsets
from dsv4.runtime.ops.q_norm_rope_kv_insert import q_norm_rope_kv_insert
from dsv4.runtime.ops.sample import sample
from dsv4.runtime.weight import Quantized
from tests.ops.door_values import close, values
from tests.ops.gpu_calls import CALLS, COLUMNS, HEADS, insertion, ints, normal

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("kernels_only")]
FEW = 5
EDGES = (0, 1, 7, 300, 8193)
"""Tokens: none, one, a few, and more than the first kernel of those operators takes that have several."""


def made(name: str, tokens: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    torch.manual_seed(1)
    return CALLS[name].make(tokens), CALLS[name].options(tokens)


def reference(name: str, tokens: int) -> list[torch.Tensor]:
    arguments, options = made(name, tokens)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plain, "KERNEL_DEVICES", ())
        patch.setattr(dispatch, "serve", lambda request: None)
        dispatch.reset()
        dsv4.configure(missing="reference")
        found = values(CALLS[name].function(*arguments, **options), arguments)
    dispatch.reset()
    dsv4.configure(missing="raise")
    return found


@pytest.mark.parametrize("tokens", EDGES)
@pytest.mark.parametrize("name", CALLS)
def test_the_default_kernel_serves(name: str, tokens: int) -> None:
    expected, (arguments, options) = reference(name, tokens), made(name, tokens)
    with dsv4.trace_dispatch() as calls:
        result = CALLS[name].function(*arguments, **options)
    assert calls and all((call.implementation == "empty") == (tokens == 0) for call in calls)
    assert not any(call.implementation == "reference" for call in calls)
    close(values(result, arguments), expected)


@pytest.mark.parametrize("pdl", [False, True], ids=["", "pdl"])
@pytest.mark.parametrize("tokens", [FEW, 1000])
@pytest.mark.parametrize("name", CALLS)
def test_it_is_captured_and_replayed(name: str, tokens: int, pdl: bool) -> None:
    expected, (arguments, options) = reference(name, tokens), made(name, tokens)
    function = CALLS[name].function
    dsv4.configure(pdl=pdl)
    given, again = made(name, tokens)
    function(*given, **again)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = function(*arguments, **options)
    for _ in range(2):
        graph.replay()
    torch.cuda.synchronize()
    close(values(result, arguments), expected)


@pytest.mark.parametrize("name", CALLS)
def test_torch_compile_calls_the_kernel(name: str) -> None:
    expected, (arguments, options) = reference(name, FEW), made(name, FEW)
    function = CALLS[name].function
    torch._dynamo.reset()
    compiled = torch.compile(lambda *given: function(*given, **options), fullgraph=True, backend="aot_eager")
    with dsv4.trace_dispatch() as calls:
        result = compiled(*arguments)
    assert calls and not any(call.implementation == "reference" for call in calls)
    close(values(result, arguments), expected)


def tensors(result: Any) -> list[torch.Tensor]:
    if isinstance(result, torch.Tensor):
        return [result]
    if isinstance(result, Quantized):
        return [result.codes, result.scale]
    return [tensor for part in result or () for tensor in tensors(part)]


@pytest.mark.parametrize("tokens", [FEW, 1000])
@pytest.mark.parametrize("name", CALLS)
def test_a_call_allocates_its_outputs_and_its_workspace(name: str, tokens: int) -> None:
    """Bytes that the caching allocator is asked for, by whomever."""
    call = CALLS[name]
    (arguments, options), (again, others) = made(name, tokens), made(name, tokens)
    call.function(*again, **others)
    before = torch.cuda.memory_stats()["requested_bytes.all.allocated"]
    result = call.function(*arguments, **options)
    taken = torch.cuda.memory_stats()["requested_bytes.all.allocated"] - before
    assert taken == sum(tensor.untyped_storage().nbytes() for tensor in tensors(result)) + sum(call.workspace(tokens))


def drawing(rows: int, **given: Any) -> tuple[torch.Tensor, ...]:
    parameters = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, **given}
    columns = [
        torch.full((rows,), parameters[name], device="cuda", dtype=dtype)
        for name, dtype in (("temperature", torch.float32), ("top_k", torch.int64), ("top_p", torch.float32))
    ]
    return (*columns, torch.arange(rows, device="cuda"), torch.arange(rows, device="cuda") % 7)


@pytest.mark.parametrize("rows", EDGES)
def test_sample_takes_the_largest(rows: int) -> None:
    logits = normal(rows, 129280)
    with dsv4.trace_dispatch() as calls:
        token = sample(logits, *drawing(rows, temperature=0.0))
    assert [call.implementation.partition("_")[0] for call in calls] == [("sample" if rows else "empty")]
    largest = (logits == logits.amax(-1, keepdim=True)).int().argmax(-1) if rows else token
    assert torch.equal(token, largest)


@pytest.mark.parametrize("given", [{}, {"top_k": 50, "top_p": 0.9}, {"top_p": 0.9}], ids=str)
def test_a_row_is_drawn_alike_in_any_batch(given: dict[str, Any]) -> None:
    """Many rows go to other clusters than few, in a pass of another kind."""
    rows = 8193
    logits, parameters = 3 * normal(rows, 129280), drawing(rows, **given)
    token = sample(logits, *parameters)
    for first in (0, 2048, 8186):
        for count in (1, 7, 31):
            some = slice(first, min(first + count, rows))
            assert torch.equal(sample(logits[some], *(each[some] for each in parameters)), token[some])


def test_sample_is_captured_and_replayed() -> None:
    logits, parameters = normal(33, 129280), drawing(33, top_p=0.9)
    expected = sample(logits, *parameters)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        token = sample(logits, *parameters)
    graph.replay()
    assert torch.equal(token, expected)


def test_values_are_checked_on_the_device_in_debug_mode() -> None:
    dsv4.configure(debug=True)
    *arguments, pool, rows = insertion(FEW)
    before, wrong = pool.data.clone(), rows.clone()
    wrong[2] = pool.rows
    with pytest.raises(ContractError, match=f"rows: found values from -1 to {pool.rows}; valid: -1 to"):
        q_norm_rope_kv_insert(*arguments, pool, wrong)
    assert torch.equal(pool.data, before)
    q_norm_rope_kv_insert(*arguments, pool, rows)
    assert not torch.equal(pool.data, before)
    with pytest.raises(ContractError, match="tokens: found values from 5 to 5; valid: 0 to 4"):
        embed(torch.full((2,), 5, device="cuda"), normal(5, COLUMNS))
    with pytest.raises(ContractError, match="experts: found values from -1 to 256; valid: -1 to 255"):
        expert_offsets(torch.tensor([[-1] * 5 + [256]], device="cuda").int(), count=256, align=128)


def test_what_is_refused_is_not_launched() -> None:
    """Strides and alignment are the host function's to check, in front of the launch."""
    q, kv, norm, cos_sin, pool, rows = insertion(FEW)
    before = pool.data.clone()
    odd = torch.empty(kv.numel() + 1, device="cuda", dtype=kv.dtype)[1:].view(kv.shape)
    for place, value, message in (
        (0, q.transpose(1, 2).contiguous().transpose(1, 2), "q: found stride 1 in dimension"),
        (1, odd, "kv: found data 2 bytes past a boundary; valid: data aligned to 16 bytes"),
        (3, cos_sin.t().contiguous().t(), "cos_sin: found stride"),
        (5, ints(2 * FEW, high=9)[::2], "rows: found stride 2"),
    ):
        given: list[Any] = [q, kv, norm, cos_sin, pool, rows]
        given[place] = value
        with pytest.raises(ContractError, match=f"q_norm_rope_kv_insert: {message}"):
            q_norm_rope_kv_insert(*given)
    torch.cuda.synchronize()
    assert torch.equal(pool.data, before)
    assert q.shape[1] == HEADS
