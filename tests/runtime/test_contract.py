"""What the doors of the public operators refuse, and in which words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import dsv4
from dsv4.generator.spec import plan
from dsv4.runtime import contract
from dsv4.runtime.artifact import Contract
from dsv4.runtime.errors import ContractError
from dsv4.runtime.ops.fmha import CONTRACT as FMHA
from dsv4.runtime.ops.rms_norm import CONTRACT as RMS_NORM

X, W = torch.randn(6, 24).bfloat16(), torch.randn(24).bfloat16()
Q, K, V = (torch.randn(2, n, h, 16).bfloat16() for n, h in ((5, 4), (7, 2), (7, 2)))
SINK = torch.randn(4)


def odd(*shape: int) -> torch.Tensor:
    """A contiguous bf16 tensor whose data starts 2 bytes past a 16-byte boundary."""
    count = 1
    for size in shape:
        count *= size
    return torch.zeros(count + 1, dtype=torch.bfloat16)[1:].view(shape)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "dtype": (lambda: dsv4.rms_norm(X.half(), W), r"rms_norm: x: found torch\.float16; valid: torch\.bfloat16"),
    "weight dtype": (lambda: dsv4.rms_norm(X, W.float()), r"weight: found torch\.float32; valid: torch\.bfloat16"),
    "no tensor": (lambda: dsv4.rms_norm([1.0], W), r"x: found list; valid: torch\.Tensor"),  # type: ignore[arg-type]
    "rank": (lambda: dsv4.rms_norm(X, W[None]), r"weight: found 2 dimensions; valid: 1, \[d\]"),
    "rank 0": (lambda: dsv4.rms_norm(X[0, 0], W), r"x: found 0 dimensions; valid: \[\.\.\., d\]"),
    "shape": (lambda: dsv4.rms_norm(X, W[:16]), r"weight: found shape \[16\]; valid: \[24\], that is \[d\]"),
    "columns": (
        lambda: dsv4.rms_norm(X[:, :20], W[:20]),
        "x: found a last dimension of 20; valid: a positive multiple",
    ),
    "no columns": (
        lambda: dsv4.rms_norm(X[:, :0], W[:0]),
        "x: found a last dimension of 0; valid: a positive multiple",
    ),
    "last stride": (
        lambda: dsv4.rms_norm(torch.zeros(24, 48).bfloat16().T[::8], W),
        r"x: found stride 48 in dimension d; valid: stride 1",
    ),
    "row stride": (
        lambda: dsv4.rms_norm(torch.zeros(6, 25).bfloat16()[:, :24], W),
        r"x: found stride 25 in dimension T; valid: a multiple of 8 elements",
    ),
    "flatten": (
        lambda: dsv4.rms_norm(torch.zeros(3, 6, 24).bfloat16().transpose(0, 1), W),
        r"x: found strides \[24, 144, 1\] of shape \[6, 3, 24\]; valid: leading dimensions that flatten",
    ),
    "device": (lambda: dsv4.rms_norm(X, W.to("meta")), "weight: found device meta; valid: cpu, the device of x"),
    "alignment": (lambda: dsv4.rms_norm(odd(6, 24), W), "x: found data 2 bytes past a boundary; valid: .* 16 bytes"),
    "weight alignment": (lambda: dsv4.rms_norm(X, odd(24)), "weight: found data 2 bytes past a boundary"),
    "out shape": (lambda: dsv4.rms_norm(X, W, out=X[:3].clone()), r"out: found shape \[3, 24\]; valid: \[6, 24\]"),
    "out leading": (
        lambda: dsv4.rms_norm(X.view(2, 3, 24), W, out=torch.empty(3, 2, 24).bfloat16()),
        r"out: found shape \[3, 2, 24\]; valid: \[2, 3, 24\], that of x",
    ),
    "out no tensor": (lambda: dsv4.rms_norm(X, W, out=3), r"out: found int; valid: torch\.Tensor"),  # type: ignore[arg-type]
    "out is x": (lambda: dsv4.rms_norm(X, W, out=X), "out: found memory that x uses too; valid: memory of its own"),
    "out in x": (lambda: dsv4.rms_norm(X[:4], W, out=X[2:]), "out: found memory that x uses too"),
    "out in weight": (
        lambda: dsv4.rms_norm(X[:1], (wide := torch.zeros(1, 48).bfloat16())[0, :24], out=wide[:, 16:40]),
        "out: found memory that weight uses too",
    ),
    "eps": (lambda: dsv4.rms_norm(X, W, "1e-6"), "eps: found str; valid: float or int"),  # type: ignore[arg-type]
    "q rank": (lambda: dsv4.fmha(Q[0], K, V), r"fmha: q: found 3 dimensions; valid: 4, \[B, Sq, Hq, D\]"),
    "k dtype": (lambda: dsv4.fmha(Q, K.float(), V), r"k: found torch\.float32; valid: torch\.bfloat16"),
    "k batch": (lambda: dsv4.fmha(Q, K[:1], V), r"k: found shape \[1, 7, 2, 16\]; valid: \[2, Sk, Hkv, 16\]"),
    "v length": (lambda: dsv4.fmha(Q, K, V[:, :5]), r"v: found shape \[2, 5, 2, 16\]; valid: \[2, 7, 2, 16\]"),
    "heads": (
        lambda: dsv4.fmha(Q, K[:, :, :1].repeat(1, 1, 3, 1), V[:, :, :1].repeat(1, 1, 3, 1)),
        "q: found 4 heads; valid: a multiple of k's 3 heads",
    ),
    "head dim": (lambda: dsv4.fmha(Q[..., :12], K[..., :12], V[..., :12]), "q: found a head dimension of 12"),
    "sink shape": (lambda: dsv4.fmha(Q, K, V, sink=SINK[:2]), r"sink: found shape \[2\]; valid: \[4\]"),
    "sink dtype": (
        lambda: dsv4.fmha(Q, K, V, sink=SINK.bfloat16()),
        r"sink: found torch\.bfloat16; valid: torch\.float32",
    ),
    "causal": (lambda: dsv4.fmha(Q, K, V, causal=2), "causal: found 2; valid: True or False"),  # type: ignore[arg-type]
    "q alignment": (lambda: dsv4.fmha(odd(2, 5, 4, 16), K, V), "q: found data 2 bytes past a boundary"),
    "out is q": (lambda: dsv4.fmha(Q, K, V, out=Q), "out: found memory that q uses too"),
    "out in v": (
        lambda: dsv4.fmha(Q, K, (p := torch.zeros(2, 7, 8, 16).bfloat16())[:, :, :2], out=p[:, 2:, 1:5]),
        "out: found memory that v uses too",
    ),
    "lse shape": (
        lambda: dsv4.fmha(Q, K, V, lse=torch.zeros(2, 5, 4)),
        r"lse: found shape \[2, 5, 4\]; valid: \[2, 4, 5\]",
    ),
    "lse in out": (
        lambda: dsv4.fmha(
            Q, K, V, out=(o := torch.zeros_like(Q)), lse=o.view(torch.float32).flatten()[:40].view(2, 4, 5)
        ),
        "lse: found memory that out uses too",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    call, reason = REFUSED[case]
    for _ in range(2):  # the second call finds its entry in the table
        with pytest.raises(ContractError, match=reason) as raised:
            call()
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("case", ["dtype", "alignment", "row stride", "weight alignment"])
def test_refused_after_a_good_call_of_the_same_shape(case: str) -> None:
    dsv4.rms_norm(X, W)
    with pytest.raises(ContractError, match=REFUSED[case][1]):
        REFUSED[case][0]()


def test_a_refused_call_changes_nothing() -> None:
    before = X.clone()
    with pytest.raises(ContractError):
        dsv4.rms_norm(X, W, out=X)
    assert torch.equal(X, before)


@pytest.mark.parametrize("rows", [(0,), (0, 3), (2, 0)])
def test_empty_rms_norm(rows: tuple[int, ...]) -> None:
    y = dsv4.rms_norm(torch.empty(*rows, 24).bfloat16(), W)
    assert y.shape == (*rows, 24) and y.dtype == torch.bfloat16


@pytest.mark.parametrize(("batch", "queries", "keys"), [(0, 5, 7), (2, 0, 7), (2, 5, 0), (0, 0, 0)])
def test_empty_fmha(batch: int, queries: int, keys: int) -> None:
    q, k, v = (torch.randn(batch, n, h, 16).bfloat16() for n, h in ((queries, 4), (keys, 2), (keys, 2)))
    out, lse = dsv4.fmha(q, k, v, sink=SINK, causal=True)
    assert out.shape == q.shape and (out == 0).all()
    assert lse.shape == (batch, 4, queries) and (lse == -torch.inf).all()


def test_empty_is_checked_too() -> None:
    with pytest.raises(ContractError, match=r"x: found torch\.float32"):
        dsv4.rms_norm(torch.empty(0, 24), W)
    with pytest.raises(ContractError, match=r"k: found torch\.float32"):
        dsv4.fmha(Q, torch.empty(2, 0, 2, 16), V[:, :0])


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: dsv4.rms_norm(X, W, -1e-6), "eps: found -1e-06; valid: a finite number ≥ 0"),
        (lambda: dsv4.rms_norm(X, W, float("nan")), "eps: found nan"),
        (lambda: dsv4.rms_norm(X, torch.full_like(W, torch.nan)), "weight: found NaN; valid: no NaN"),
        (lambda: dsv4.fmha(Q, K, V, sink=SINK * torch.nan), "sink: found NaN; valid: no NaN"),
    ],
)
def test_domains_are_checked_in_debug_mode_only(call: Callable[[], Any], reason: str) -> None:
    call()
    dsv4.configure(debug=True)
    with pytest.raises(ContractError, match=reason):
        call()
    dsv4.configure(debug=False)
    call()


def test_infinite_sink_is_in_its_domain() -> None:
    dsv4.configure(debug=True)
    out, _ = dsv4.fmha(Q, K, V, sink=torch.tensor([torch.inf, -torch.inf, 0.0, 1.0]))
    assert (out[:, :, 0] == 0).all() and not out.isnan().any()


def names_instead_of_numbers(one: Contract) -> list[tuple[Any, ...]]:
    """Every argument without its name; a static size becomes its dimension's name, ``optional`` is left out."""
    static = {size: name for name, size in one.dims.items() if size is not None}
    return [
        (
            a.kind,
            a.dtype,
            tuple(static.get(d, d) if isinstance(d, int) else d for d in a.shape),
            a.strides,
            a.stride_multiple,
            a.align if a.kind == "tensor" else None,
            a.role,
        )
        for a in one.arguments
    ]


@pytest.mark.parametrize(("op", "public"), [("rms_norm", RMS_NORM), ("fmha", FMHA)])
@pytest.mark.parametrize("arch", ["sm_90a", "sm_100a"])
def test_public_contract_is_the_specs(op: str, public: Contract, arch: str) -> None:
    spec = plan(op, arch).contract
    assert set(spec.dims) == set(public.dims)
    assert names_instead_of_numbers(spec) == names_instead_of_numbers(public)


def test_explanation_finds_the_argument() -> None:
    values = {"x": X, "weight": W.float(), "out": X, "eps": 1e-6}
    error = contract.explain("rms_norm", RMS_NORM, values, ValueError("Mismatched Tensor on argument #1 when calling"))
    assert str(error) == "rms_norm: weight: found torch.float32; valid: torch.bfloat16"


def test_explanation_keeps_the_hosts_words_with_our_names() -> None:
    said = (
        "Mismatched x.strides[0] on argument #2 when calling: `f(x: Tensor([n0, 8], bfloat16), e: float)`, expected 8"
    )
    values = {"x": X, "weight": W, "out": X, "eps": 1e-6}
    error = contract.explain("rms_norm", RMS_NORM, values, ValueError(said))
    assert str(error) == "rms_norm: Mismatched x.strides[0] on argument out, expected 8"


@pytest.mark.parametrize(
    ("tensor", "span"),
    [
        (torch.empty(3, 8), 96),
        (torch.empty(3, 16)[:, :8], 2 * 64 + 32),
        (torch.empty(0, 16)[:, :8], 0),
        (torch.empty(4, 3).T, 48),
        (torch.empty(8).expand(5, 8), 32),
    ],
)
def test_span(tensor: torch.Tensor, span: int) -> None:
    assert contract.span_bytes(tensor) == span


@pytest.mark.parametrize("scale", [0.0, -0.5, float("inf"), float("-inf"), float("nan")])
def test_a_softmax_scale_that_is_not_positive_is_refused_always_and_on_every_way_in(scale: float) -> None:
    out, lse = dsv4.fmha(Q, K, V)
    ways = (
        lambda: dsv4.fmha(Q, K, V, softmax_scale=scale),
        lambda: dsv4.fmha(Q, K, V, softmax_scale=scale, out=torch.empty_like(out), lse=torch.empty_like(lse)),
        lambda: torch.ops.dsv4.fmha(Q, K, V, None, False, scale),
        lambda: torch.ops.dsv4.fmha_out(Q, K, V, None, torch.empty_like(out), torch.empty_like(lse), False, scale),
    )
    for way in ways:
        with pytest.raises(ContractError, match=f"softmax_scale: found {scale}; valid: a finite number > 0"):
            way()
