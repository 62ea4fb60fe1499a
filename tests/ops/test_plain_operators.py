"""Operators without a kernel: their doors, what the trace says, debug mode, and how torch sees them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode

import dsv4
from dsv4.runtime import dispatch
from dsv4.runtime.errors import ContractError, KernelMissing
from dsv4.runtime.ops import door
from dsv4.runtime.ops.attention_combine import attention_combine
from dsv4.runtime.ops.compressor import compressor
from dsv4.runtime.ops.dequantize import dequantize
from dsv4.runtime.ops.dequantize_blocks import dequantize_blocks
from dsv4.runtime.ops.embed import embed
from dsv4.runtime.ops.expert_offsets import expert_offsets
from dsv4.runtime.ops.experts import experts
from dsv4.runtime.ops.grouped_output import grouped_output
from dsv4.runtime.ops.indexer_q import indexer_q, indexer_q_folded
from dsv4.runtime.ops.indexer_scores import indexer_scores
from dsv4.runtime.ops.inverse_rope_quant import inverse_rope_quant
from dsv4.runtime.ops.inverse_rope_quant_blocks import inverse_rope_quant_blocks
from dsv4.runtime.ops.linear import linear
from dsv4.runtime.ops.lm_head import lm_head
from dsv4.runtime.ops.mhc_head import mhc_head
from dsv4.runtime.ops.mhc_post import mhc_post
from dsv4.runtime.ops.mhc_post_pre import mhc_post_pre
from dsv4.runtime.ops.mhc_pre import mhc_pre
from dsv4.runtime.ops.moe_combine import moe_combine
from dsv4.runtime.ops.moe_combine_rows import moe_combine_rows
from dsv4.runtime.ops.plain import Operator
from dsv4.runtime.ops.q_norm_rope_kv_insert import q_norm_rope_kv_insert
from dsv4.runtime.ops.quantize import quantize
from dsv4.runtime.ops.quantize_blocks import quantize_blocks
from dsv4.runtime.ops.rms_norm_quant import rms_norm_quant
from dsv4.runtime.ops.rms_norm_quant_blocks import rms_norm_quant_blocks
from dsv4.runtime.ops.rms_norm_wide import rms_norm
from dsv4.runtime.ops.rope_table import rope_table
from dsv4.runtime.ops.router import router
from dsv4.runtime.ops.sample import sample
from dsv4.runtime.ops.sparse_attention import sparse_attention
from dsv4.runtime.ops.swiglu_quant import swiglu_quant, swiglu_quant_joined
from dsv4.runtime.ops.swiglu_quant_blocks import swiglu_quant_blocks
from dsv4.runtime.ops.topk import topk
from dsv4.runtime.pool import Pool
from dsv4.runtime.reference.compressor import Compression
from dsv4.runtime.reference.quantize import fp8_weight, mxfp4_weight, quantize_fp8
from dsv4.runtime.weight import Quantized, Weight


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Iterator[None]:
    for variable in ("DSV4_MISSING", "DSV4_DEBUG", "DSV4_PDL"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("DSV4_CACHE", str(tmp_path))
    dispatch.reset()
    yield
    dispatch.reset()


def ints(*shape: int, high: int = 1) -> torch.Tensor:
    return torch.randint(high, shape)


def pool(rows: int = 8, width: int = 128) -> Pool:
    return Pool.allocate(rows, page=4, width=width, dtype=torch.float32)


def table(rows: int) -> torch.Tensor:
    return torch.randn(rows, 64)


def compression(tokens: int, entries: int, members: int) -> Compression:
    none = torch.full((entries, members), -1)
    fresh = none.clone()
    return Compression(ints(tokens, high=4), fresh, none, torch.full((entries,), -1), ints(tokens))


def compress_call() -> tuple[Any, ...]:
    return (
        torch.randn(1, 256),
        torch.randn(1, 256),
        torch.randn(4, 256),
        torch.randn(128),
        table(1),
        torch.zeros(9, 512),
        pool(),
        compression(1, 1, 8),
    )


Case = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


def cases() -> dict[str, Case]:
    """One good call of every operator, by its stem."""
    plain = Weight.plain(torch.randn(5, 32))
    stack = [Weight.plain(torch.randn(4, *shape)) for shape in ((16, 32), (16, 32), (32, 16))]
    streams = torch.randn(3, 4, 32)
    post, comb = torch.randn(3, 4), torch.randn(3, 4, 4)
    rows = ints(3, 6, high=8)
    return {
        "embed": (embed, (ints(3, high=9), torch.randn(9, 32)), {}),
        "mhc_pre": (mhc_pre, (streams, torch.randn(24, 128), torch.randn(24), torch.randn(3)), {}),
        "mhc_post": (mhc_post, (torch.randn(3, 32), streams, post, comb), {}),
        "mhc_post_pre": (
            mhc_post_pre,
            (torch.randn(3, 32), streams, post, comb, torch.randn(24, 128), torch.randn(24), torch.randn(3)),
            {},
        ),
        "mhc_head": (mhc_head, (streams, torch.randn(4, 128), torch.randn(4), torch.randn(1)), {}),
        "rms_norm": (rms_norm, (torch.randn(3, 32), torch.randn(32)), {}),
        "rope_table": (rope_table, (ints(3, high=99), torch.rand(32)), {}),
        "q_norm_rope_kv_insert": (
            q_norm_rope_kv_insert,
            (torch.randn(3, 2, 128), torch.randn(3, 128), torch.randn(128), table(3), pool(), torch.arange(3)),
            {},
        ),
        "compressor": (compressor, compress_call(), {}),
        "indexer_q": (indexer_q, (torch.randn(3, 2, 128), table(3)), {}),
        "indexer_q_folded": (
            indexer_q_folded,
            (torch.randn(3, 2, 128), table(3), torch.randn(3, 2)),
            {"scale": 0.1, "code": "fp8", "rotate_hadamard": True},
        ),
        "indexer_scores": (
            indexer_scores,
            (torch.randn(3, 2, 128), torch.randn(3, 2), pool(), ints(2, 5, high=8), ints(3, high=6), (1, 2)),
            {"scale": 1.0},
        ),
        "topk": (topk, (torch.randn(3, 6), ints(3, high=7)), {"k": 4}),
        "sparse_attention": (
            sparse_attention,
            (torch.randn(3, 2, 128), pool(), rows, pool(), rows, torch.randn(2)),
            {},
        ),
        "attention_combine": (attention_combine, (torch.randn(2, 3, 2, 8), torch.randn(2, 3, 2)), {}),
        "inverse_rope_quant": (inverse_rope_quant, (torch.randn(3, 4, 128), table(3)), {"groups": 2}),
        "grouped_output": (grouped_output, (torch.randn(3, 2, 32), Weight.plain(torch.randn(6, 32))), {}),
        "rms_norm_quant": (rms_norm_quant, (torch.randn(3, 128), torch.randn(128)), {"rule": "fp8_128"}),
        "dequantize": (dequantize, (quantize_fp8(torch.randn(3, 128)),), {}),
        "quantize": (quantize, (torch.randn(3, 32), plain), {"rule": "fp8_128"}),
        "linear": (linear, (torch.randn(3, 32), plain), {}),
        "router": (router, (torch.randn(3, 32), torch.randn(4, 32)), {"k": 2, "factor": 1.5, "bias": torch.randn(4)}),
        "swiglu_quant": (swiglu_quant, (torch.randn(3, 16), torch.randn(3, 16), torch.rand(3)), {"limit": 10.0}),
        "swiglu_quant_joined": (
            swiglu_quant_joined,
            (torch.randn(3, 256), torch.rand(3)),
            {"limit": 10.0, "block": 128, "interleaved": True},
        ),
        "expert_offsets": (expert_offsets, (ints(3, 2, high=4).int(),), {"count": 4, "align": 8}),
        "experts": (
            experts,
            (torch.randn(3, 32), ints(3, 2, high=4), torch.rand(3, 2), *stack),
            {"limit": 10.0},
        ),
        "moe_combine": (moe_combine, (torch.randn(3, 2, 32), torch.randn(3, 32)), {}),
        "moe_combine_rows": (moe_combine_rows, (torch.randn(7, 32), ints(3, 2, high=7).int(), torch.randn(3, 32)), {}),
        "quantize_blocks": (quantize_blocks, (torch.randn(3, 128),), {"format": "mxfp4"}),
        "dequantize_blocks": (
            dequantize_blocks,
            quantize_blocks(torch.randn(3, 128), format="fp8_32"),
            {"format": "fp8_32"},
        ),
        "rms_norm_quant_blocks": (
            rms_norm_quant_blocks,
            (torch.randn(3, 128), torch.randn(128), torch.tensor(0.01)),
            {"format": "nvfp4", "scale_layout": "swizzled_128x4"},
        ),
        "swiglu_quant_blocks": (
            swiglu_quant_blocks,
            (torch.randn(3, 256), torch.rand(3)),
            {"limit": 10.0, "format": "fp8_128", "scale_layout": "m_major"},
        ),
        "inverse_rope_quant_blocks": (
            inverse_rope_quant_blocks,
            (torch.randn(3, 4, 128), table(3)),
            {"groups": 2, "scale_layout": "m_major_f32"},
        ),
        "lm_head": (lm_head, (torch.randn(3, 32), torch.randn(9, 32)), {}),
        "sample": (
            sample,
            (torch.randn(3, 9), torch.rand(3), ints(3), torch.rand(3), ints(3), ints(3)),
            {},
        ),
    }


STEMS = tuple(cases())


@pytest.mark.parametrize("stem", STEMS)
def test_every_call_is_recorded(stem: str) -> None:
    function, arguments, options = cases()[stem]
    function(*arguments, **options)
    with dsv4.trace_dispatch() as calls:
        function(*arguments, **options)
        function(*arguments, **options)
    assert [(call.op, call.implementation, call.device) for call in calls] == [(stem, "reference", "cpu")] * 2
    assert calls[0].sizes
    function(*arguments, **options)
    assert len(calls) == 2


def test_trace_says_sizes_formats_and_options() -> None:
    with dsv4.trace_dispatch() as calls:
        linear(quantize_fp8(torch.randn(3, 128)), fp8_weight(torch.randn(5, 128)))
    (call,) = calls
    assert call.sizes == {"i": 128, "o": 5, "rows": 3}
    assert call.variant == {"x": "float8_e4m3fn_by_128", "weight": "fp8_block", "dtype": "float32"}


@pytest.mark.parametrize("stem", STEMS)
def test_first_argument_of_another_kind(stem: str) -> None:
    function, arguments, options = cases()[stem]
    with pytest.raises(ContractError, match=f"^{stem}: .*found str; valid: (torch.Tensor|Quantized)"):
        function("no tensor", *arguments[1:], **options)


@pytest.mark.parametrize(
    ("stem", "place", "value", "message"),
    [
        ("embed", 0, torch.zeros(3), "embed: tokens: found torch.float32; valid: torch.int32 or torch.int64"),
        (
            "mhc_pre",
            1,
            torch.randn(24, 64),
            r"mhc_pre: fn: found shape \[24, 64\]; valid: \[m, 128\], that is \[m, n\*d\]",
        ),
        ("mhc_pre", 3, torch.randn(4), r"scale: found shape \[4\]; valid: \[3\]"),
        ("mhc_post", 3, torch.randn(3, 4), r"comb: found shape \[3, 4\]; valid: \[T, n, n\]"),
        ("rms_norm", 1, torch.randn(31), r"rms_norm: weight: found shape \[31\]; valid: \[32\]"),
        ("q_norm_rope_kv_insert", 4, torch.zeros(8, 128), "pool: found Tensor; valid: Pool"),
        ("q_norm_rope_kv_insert", 5, torch.arange(3).int(), "rows: found torch.int32; valid: torch.int64"),
        ("sample", 2, torch.zeros(3).int(), "top_k: found torch.int32; valid: torch.int64"),
        ("q_norm_rope_kv_insert", 4, pool(width=64), r"pool: found shape \[64\]; valid: \[128\]"),
        ("compressor", 5, torch.zeros(9, 256), r"state: found shape \[9, 256\]; valid: \[R, 512\]"),
        ("compressor", 7, compression(2, 1, 8), r"compression: found shape \[2, 1, 8\]; valid: \[1, 1, s\]"),
        ("indexer_scores", 5, (1, 1), r"lengths: found shape \[2, 2\]; valid: \[2, 3\], that is \[S, T\]"),
        ("indexer_scores", 5, [1, 2], "lengths: found list; valid: tuple"),
        ("linear", 1, torch.randn(5, 32), "weight: found Tensor; valid: Weight"),
        ("linear", 0, torch.randn(3, 31), r"weight: found shape \[5, 32\]; valid: \[o, 31\]"),
        ("linear", 0, torch.zeros(3, 32).half(), "x: found torch.float16; valid: torch.bfloat16 or"),
        ("experts", 5, Weight.plain(torch.randn(4, 32, 17)), r"w2: found shape \[4, 32, 17\]; valid: \[4, 32, 16\]"),
        ("sparse_attention", 2, ints(4, 6), r"window_rows: found shape \[4, 6\]; valid: \[3, K0\]"),
        ("topk", 1, torch.zeros(3), "visible: found torch.float32"),
        ("lm_head", 1, torch.randn(9, 32, device="meta"), "weight: found device meta; valid: cpu, the device of h"),
    ],
)
def test_wrong_arguments(stem: str, place: int, value: Any, message: str) -> None:
    function, arguments, options = cases()[stem]
    function(*arguments, **options)  # a good call before it does not help
    wrong = [*arguments[:place], value, *arguments[place + 1 :]]
    with pytest.raises(ContractError, match=message):
        function(*wrong, **options)


@pytest.mark.parametrize(
    ("stem", "place", "value", "message"),
    [
        ("embed", 0, torch.tensor([0, 9, 1]), "embed: tokens: found values from 0 to 9; valid: 0 to 8"),
        ("q_norm_rope_kv_insert", 5, torch.tensor([0, 12, 1]), "rows: found values from 0 to 12; valid: -1 to 10"),
        ("sparse_attention", 2, torch.full((3, 6), -2), "window_rows: found values from -2 to -2; valid: -1 to 10"),
        ("experts", 1, torch.full((3, 2), 4), "ids: found values from 4 to 4; valid: 0 to 3"),
        ("moe_combine_rows", 1, torch.full((3, 2), 7).int(), "index: found values from 7 to 7; valid: -1 to 6"),
        ("indexer_scores", 4, torch.tensor([1, 6, 2]), "visible: found values from 1 to 6; valid: 0 to 5"),
    ],
)
def test_values_are_checked_in_debug_mode(stem: str, place: int, value: torch.Tensor, message: str) -> None:
    function, arguments, options = cases()[stem]
    dsv4.configure(debug=True)
    function(*arguments, **options)
    wrong = [*arguments[:place], value, *arguments[place + 1 :]]
    with pytest.raises(ContractError, match=message):
        function(*wrong, **options)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("phase", torch.tensor([4]), "values from 4 to 4; valid: 0 to 3"),
        ("fresh", torch.tensor([[-1, 1, -1, 0, -1, -1, -1, -1]]), "values from -1 to 1; valid: -1 to 0"),
        ("stored", torch.tensor([[8, -1, -1, -1, -1, -1, -1, -1]]), "values from -1 to 8; valid: -1 to 7"),
        ("entry_rows", torch.tensor([11]), "values from 11 to 11; valid: -1 to 10"),
        ("state_rows", torch.tensor([-2]), "values from -2 to -2; valid: -1 to 7"),
    ],
)
def test_rows_of_a_compression_are_checked_in_debug_mode(field: str, value: torch.Tensor, message: str) -> None:
    dsv4.configure(debug=True)
    *arguments, state, written, plan = compress_call()
    compressor(*arguments, state, written, plan)
    before = state.clone(), written.data.clone()
    with pytest.raises(ContractError, match=f"compression.{field}: found {message}"):
        compressor(*arguments, state, written, plan._replace(**{field: value}))
    assert torch.equal(state, before[0]) and torch.equal(written.data, before[1])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tokens": torch.tensor([0, 9, 3])}, "tokens: found values from 0 to 9; valid: 0 to 8"),
        ({"tokens": torch.tensor([0, 2**32, 3])}, "tokens: found values from 0 to 4294967296; valid: 0 to 8"),
        ({"tid2eid": torch.full((9, 2), -1)}, "tid2eid: found values from -1 to -1; valid: 0 to 3"),
    ],
)
def test_a_table_of_experts_is_checked_in_debug_mode(changed: dict[str, torch.Tensor], message: str) -> None:
    dsv4.configure(debug=True)
    options = {"tid2eid": ints(9, 2, high=4), "tokens": ints(3, high=9), "k": 2, "factor": 1.5}
    y, weight = torch.randn(3, 32), torch.randn(4, 32)
    router(y, weight, **options)  # type: ignore[arg-type]
    with pytest.raises(ContractError, match=f"router: {message}"):
        router(y, weight, **{**options, **changed})  # type: ignore[arg-type]


def flat(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [tensor for part in value for tensor in flat(part)] if isinstance(value, tuple) else []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "fp8_64"}, "format: found 'fp8_64'; valid: fp8_128, fp8_32, mxfp4, nvfp4"),
        ({"format": "mxfp4", "scale_layout": "tiles"}, "scale_layout: found 'tiles'; valid: row_major, swizzled"),
        ({"format": "mxfp4", "scale_layout": "m_major"}, "scale_layout: found m_major with mxfp4; valid: with fp8_128"),
        ({"format": "nvfp4"}, "input_scale: found none with nvfp4; valid: with nvfp4 alone"),
        ({"format": "mxfp4", "input_scale": torch.tensor(1.0)}, "input_scale: found one with mxfp4"),
        ({"format": "fp8_128", "scale_layout": "swizzled_128x4"}, "found 128 columns .*; valid: a multiple of 512"),
    ],
)
def test_formats_and_layouts_that_do_not_go_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quantize_blocks(torch.randn(3, 128), **options)


SYNCHRONISING = {"experts"}
"""Reads counts on the host unless it is told not to."""


@pytest.mark.parametrize("stem", STEMS)
def test_fake_tensors(stem: str) -> None:
    function, arguments, options = cases()[stem]
    if stem in SYNCHRONISING:
        options = {**options, "sync_free": True}
    real = flat(function(*arguments, **options))

    def faked(value: Any, mode: FakeTensorMode) -> Any:
        if isinstance(value, torch.Tensor):
            return mode.from_tensor(value)
        if isinstance(value, Pool):
            return Pool(mode.from_tensor(value.data), value.format, value.page)
        if isinstance(value, Weight):
            return Weight(value.format, mode.from_tensor(value.codes))
        if isinstance(value, Quantized):
            return Quantized(mode.from_tensor(value.codes), mode.from_tensor(value.scale), value.block)
        if isinstance(value, Compression):
            return Compression(*(mode.from_tensor(part) if isinstance(part, torch.Tensor) else part for part in value))
        return value

    with FakeTensorMode() as mode:
        given = [faked(value, mode) for value in arguments]
        got = flat(function(*given, **{name: faked(value, mode) for name, value in options.items()}))
    assert [(t.shape, t.dtype) for t in got] == [(t.shape, t.dtype) for t in real]


@pytest.mark.parametrize("stem", STEMS)
def test_compiled_without_a_graph_break(stem: str) -> None:
    function, arguments, options = cases()[stem]
    if stem in SYNCHRONISING:
        options = {**options, "sync_free": True}
    torch._dynamo.reset()
    expected = flat(function(*arguments, **options))
    compiled = torch.compile(lambda *given: function(*given, **options), fullgraph=True, backend="eager")
    for one, other in zip(flat(compiled(*arguments)), expected, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one.float(), other.float())


def test_no_kernel_is_an_error_where_that_was_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    request = dispatch.Request("embed", torch.device("cuda"), {}, {}, {})
    with pytest.warns(dsv4.Dsv4Warning, match="PyTorch serves the calls that no kernel is made for"):
        dispatch.without_kernel(request)
    dispatch.without_kernel(request)  # said once
    dsv4.configure(missing="raise")
    with pytest.raises(KernelMissing, match=r"embed on cuda, \{\}: no kernel is made for it; valid: missing="):
        dispatch.without_kernel(request)


def test_lines_of_ports() -> None:
    port = door.Port.read("bias?: wide [E, 2*n]")
    assert port == door.Port("bias", "wide", ("E", "2*n"), True)
    for line in ("bias wide [E]", "x: half [T]", "x: float"):
        with pytest.raises(ValueError, match="valid: 'name: kind"):
            door.Port.read(line)
    operator = Operator("add_one", lambda x, *, by: x + by, "x: float [.., d]")
    assert torch.equal(operator(torch.ones(2, 3), by=2), torch.full((2, 3), 3.0))
    with pytest.raises(ContractError, match=r"add_one: x: found shape \[\]; valid: \[\.\., d\]"):
        operator(torch.tensor(1.0), by=2)


def test_formats_do_not_share_an_entry() -> None:
    """Two weights of one shape in different formats, the second one wrong: the first call's entry must not serve it."""
    x = torch.randn(3, 64)
    linear(x, mxfp4_weight(torch.randn(5, 64)))
    with pytest.raises(ContractError, match="weight"):
        linear(x, Weight.plain(torch.randn(5, 32)))
