"""dsv4.fmha_varlen and fmha_paged: the reference against the formula, the door, debug mode, what torch sees."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode

import dsv4
from dsv4.runtime import dispatch
from dsv4.runtime.errors import ContractError
from dsv4.runtime.ops import fmha_varlen as module
from dsv4.runtime.ops.fmha_varlen import fmha_paged, fmha_varlen
from dsv4.runtime.reference import fmha_varlen as reference

LENGTHS = [(5, 9), (0, 4), (7, 3), (1, 0), (1, 12)]
HEADS, KV_HEADS, WIDTH, PAGE = 4, 2, 64, 16


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Iterator[None]:
    for variable in ("DSV4_MISSING", "DSV4_DEBUG", "DSV4_PDL"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("DSV4_CACHE", str(tmp_path))
    dispatch.reset()
    yield
    dispatch.reset()


def starts(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def rows_call() -> list[torch.Tensor]:
    """q, k, v, cu_seqlens_q, cu_seqlens_k."""
    torch.manual_seed(1)
    queries, keys = [q for q, _ in LENGTHS], [k for _, k in LENGTHS]
    q = torch.randn(sum(queries), HEADS, WIDTH).bfloat16()
    k, v = (torch.randn(sum(keys), KV_HEADS, WIDTH).bfloat16() for _ in range(2))
    return [q, k, v, starts(queries), starts(keys)]


def pages_call() -> list[torch.Tensor]:
    """The same keys in pages: q, k, v, cu_seqlens_q, seqlens_k, block_table."""
    q, k, v, q_starts, k_starts = rows_call()
    lengths = k_starts.diff()
    table = torch.full((len(LENGTHS), 2), -7, dtype=torch.int32)
    pools = [torch.full((2 * len(LENGTHS), PAGE, KV_HEADS, WIDTH), math.nan).bfloat16() for _ in range(2)]
    for b, keys in enumerate(lengths.tolist()):
        if keys:
            table[b, 0] = 2 * b + 1
        for pool, rows in zip(pools, (k, v), strict=True):
            pool[2 * b + 1, :keys] = rows[k_starts[b] : k_starts[b + 1]]
    return [q, *pools, q_starts, lengths, table]


def formula(sink: torch.Tensor | None, causal: bool, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Row by row in float64, from the definition."""
    q, k, v, q_starts, k_starts = rows_call()
    q, k, v = q.double(), k.double(), v.double()
    out, lse = torch.zeros_like(q), torch.full((HEADS, q.shape[0]), -math.inf, dtype=torch.float64)
    for b, (queries, keys) in enumerate(LENGTHS):
        for i in range(queries):
            seen = [j for j in range(keys) if not causal or j <= i + keys - queries]
            for h in range(HEADS if seen else 0):
                row, rows = int(q_starts[b]) + i, [int(k_starts[b]) + j for j in seen]
                scores = scale * (k[rows, h // 2] @ q[row, h])
                lse[h, row] = torch.logsumexp(scores, 0)
                total = lse[h, row] if sink is None else torch.logaddexp(lse[h, row], sink[h].double())
                out[row, h] = torch.exp(scores - total) @ v[rows, h // 2]
    return out, lse


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("with_sink", [False, True])
def test_the_reference_is_the_formula(causal: bool, with_sink: bool) -> None:
    sink = torch.tensor([1.0, -2.0, 0.5, -math.inf]) if with_sink else None
    expected = formula(sink, causal, 0.3)
    options: dict[str, Any] = {
        "causal": causal,
        "softmax_scale": 0.3,
        "dtype": torch.float64,
        "out_dtype": torch.float64,
    }
    for got in (
        reference.fmha_varlen(*rows_call(), sink, **options),  # type: ignore[arg-type]
        reference.fmha_paged(*pages_call(), sink, **options),  # type: ignore[arg-type]
        fmha_varlen(*rows_call(), sink, **options),  # type: ignore[arg-type]
        fmha_paged(*pages_call(), sink, **options),  # type: ignore[arg-type]
    ):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-13)


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Any]]:
    """Kernels serve the CPU through the emulator, in small tiles that compile fast; gives the requests served so."""
    from dsv4.generator.spec import plan
    from dsv4.generator.verify.emulator import EmulatedKernel
    from dsv4.runtime.cache import Artifact
    from dsv4.runtime.ops import plain
    from tests.ops import builds

    requests: list[Any] = []

    def serve(request: dispatch.Request) -> Any:
        config = {"tile_m": 64, "tile_n": 64, "pv_n_tile": 64, "consumer_warpgroups": 1, "ping_pong": False}
        made = plan(request.op, "sm_90a", dims=request.dims, variant=request.variant, config=config)
        (result,) = builds.build_all([made], tmp_path_factory.mktemp("kernels"))
        artifact = Artifact.read(builds.folder(result))
        requests.append(request)
        return SimpleNamespace(artifact=artifact, function=EmulatedKernel(artifact))

    monkeypatch.setattr(plain, "KERNEL_DEVICES", ("cpu",))
    monkeypatch.setattr(dispatch, "serve", serve)
    yield requests


def test_a_kernel_serves_pages(emulated: list[Any]) -> None:
    sink = torch.tensor([1.0, -2.0, 0.5, -math.inf])
    out, lse = fmha_paged(*pages_call(), sink, causal=True)  # type: ignore[arg-type]
    (request,) = emulated
    assert request.op == "fmha_varlen" and request.variant["page_rows"] == 16 and request.dims == {"D": 64}
    expected, expected_lse = formula(sink, True, WIDTH**-0.5)
    torch.testing.assert_close(out.double(), expected, rtol=2**-6, atol=2**-8)
    torch.testing.assert_close(lse.double(), expected_lse, rtol=1e-5, atol=1e-5)


@pytest.mark.sweep
def test_a_kernel_serves_rows(emulated: list[Any]) -> None:
    out, lse = fmha_varlen(*rows_call())  # type: ignore[arg-type]
    assert [request.variant["page_rows"] for request in emulated] == [0]
    expected, expected_lse = formula(None, False, WIDTH**-0.5)
    torch.testing.assert_close(out.double(), expected, rtol=2**-6, atol=2**-8)
    torch.testing.assert_close(lse.double(), expected_lse, rtol=1e-5, atol=1e-5)
    with pytest.raises(ContractError, match="k: found"):
        q, k, v, q_starts, k_starts = rows_call()
        fmha_varlen(q, k.transpose(0, 2).contiguous().transpose(0, 2), v, q_starts, k_starts)


def test_which_pages_a_kernel_has() -> None:
    assert [module.page_rows(page) for page in (0, 1, 8, 16, 24, 48, 64, 96, 128, 192)] == [
        0,
        0,
        0,
        16,
        0,
        16,
        64,
        16,
        64,
        64,
    ]


def changed(call: Callable[[], list[torch.Tensor]], place: int, value: Any) -> list[Any]:
    arguments: list[Any] = call()
    arguments[place] = value(arguments[place]) if callable(value) else value
    return arguments


@pytest.mark.parametrize(
    ("function", "arguments", "options", "said"),
    [
        (fmha_varlen, (rows_call, 0, lambda q: q[0]), {}, "fmha_varlen: q: found 2 dimensions; valid: 3"),
        (fmha_varlen, (rows_call, 1, lambda k: k[:, :1].repeat(1, 3, 1)), {}, r"q: found 4 heads; valid: a multiple"),
        (fmha_varlen, (rows_call, 2, lambda v: v[1:]), {}, r"v: found shape \[27, 2, 64\]; valid: \[28, 2, 64\]"),
        (fmha_varlen, (rows_call, 3, lambda s: s.long()), {}, "cu_seqlens_q: found torch.int64; valid: torch.int32"),
        (fmha_varlen, (rows_call, 4, lambda s: s[1:]), {}, r"cu_seqlens_k: found shape \[5\]; valid: \[6\]"),
        (fmha_varlen, (rows_call, 3, lambda s: s[:0]), {}, r"cu_seqlens_q: found shape \[0\]"),
        (fmha_varlen, (rows_call, 0, lambda q: q), {"causal": 1}, "causal: found 1; valid: True or False"),
        (fmha_varlen, (rows_call, 0, lambda q: q), {"softmax_scale": 0.0}, "softmax_scale: found 0"),
        (fmha_paged, (pages_call, 1, lambda k: k[0]), {}, "fmha_paged: k: found 3 dimensions; valid: 4"),
        (fmha_paged, (pages_call, 3, lambda s: s[1:]), {}, r"cu_seqlens_q: found shape \[5\]; valid: \[6\]"),
        (fmha_paged, (pages_call, 5, lambda t: t[1:]), {}, r"block_table: found shape \[4, 2\]; valid: \[5, PT\]"),
    ],
)
def test_the_door(function: Any, arguments: tuple[Any, ...], options: dict[str, Any], said: str) -> None:
    with pytest.raises(ContractError, match=said):
        function(*changed(*arguments), **options)


def test_debug_mode_reads_the_starts_and_the_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSV4_DEBUG", "1")
    dispatch.reset()
    fmha_varlen(*rows_call())  # type: ignore[arg-type]
    fmha_paged(*pages_call())  # type: ignore[arg-type]

    def at(place: int, value: int) -> Callable[[torch.Tensor], torch.Tensor]:
        def set_it(tensor: torch.Tensor) -> torch.Tensor:
            tensor = tensor.clone()
            tensor.view(-1)[place] = value
            return tensor

        return set_it

    for function, call, place, change, said in (
        (fmha_varlen, rows_call, 3, at(2, 3), "cu_seqlens_q: found 3 after 5 at 2; valid: sums that never fall"),
        (fmha_varlen, rows_call, 4, at(5, 27), r"cu_seqlens_k: found 0 … 27; valid: 0 … 28"),
        (fmha_paged, pages_call, 4, at(1, 33), "seqlens_k: found values from 0 to 33; valid: 0 to 32"),
        (fmha_paged, pages_call, 5, at(0, 99), "block_table: found values from 3 to 99; valid: 0 to 9"),
    ):
        with pytest.raises(ContractError, match=said):
            function(*changed(call, place, change))


def test_torch_sees_one_operator_of_known_shapes() -> None:
    calls = rows_call(), pages_call()
    with FakeTensorMode():
        rows, pages = ([torch.empty(each.shape, dtype=each.dtype, device="cuda") for each in call] for call in calls)
        for out, lse in (fmha_varlen(*rows, causal=True), fmha_paged(*pages)):  # type: ignore[arg-type]
            assert out.shape == (14, HEADS, WIDTH) and out.dtype == torch.bfloat16 and out.device.type == "cuda"
            assert lse.shape == (HEADS, 14) and lse.dtype == torch.float32
    out, lse = fmha_varlen(*(each.to("meta") for each in rows_call()))
    assert out.is_meta and out.shape == (14, HEADS, WIDTH) and lse.shape == (HEADS, 14)


def test_no_queries_and_no_keys() -> None:
    q, k, v, q_starts, k_starts = rows_call()
    with dsv4.trace_dispatch() as trace:
        out, lse = fmha_varlen(q, k[:0], v[:0], q_starts, torch.zeros_like(k_starts))
    assert [call.implementation for call in trace] == ["reference"]
    assert bool((out == 0).all()) and bool((lse == -math.inf).all())
    out, lse = fmha_varlen(q[:0], k, v, torch.zeros_like(q_starts), k_starts)
    assert out.shape == (0, HEADS, WIDTH) and lse.shape == (HEADS, 0)
