"""The operators as torch sees them: torch.ops, fake tensors, torch.compile, functional transforms, CUDA graphs."""

from __future__ import annotations

import os

import pytest
import torch
from torch._subclasses import FakeTensorMode

import dsv4
import dsv4.runtime.ops
from dsv4.runtime import dispatch
from dsv4.runtime.errors import ContractError, Dsv4Warning

REAL_CACHE = os.environ.get("DSV4_CACHE")

X, W = torch.randn(3, 7, 24).bfloat16(), torch.randn(24).bfloat16()
Q, K, V = (torch.randn(2, n, h, 16).bfloat16() for n, h in ((5, 4), (9, 2), (9, 2)))
SINK = torch.randn(4)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("rms_norm", (X, W, 1e-6)),
        ("rms_norm", (X[:0], W, 1e-5)),
        ("rms_norm_out", (X, W, torch.empty_like(X), 1e-6)),
        ("fmha", (Q, K, V, SINK, True, 0.25)),
        ("fmha", (Q, K[:, :0], V[:, :0], None, False, 0.25)),
        ("fmha_out", (Q, K, V, None, torch.empty_like(Q), torch.empty(2, 4, 5), True, 0.25)),
    ],
)
def test_opcheck(name: str, arguments: tuple[object, ...]) -> None:
    torch.library.opcheck(getattr(torch.ops.dsv4, name).default, arguments)


def test_ops_and_public_functions_agree() -> None:
    assert torch.equal(torch.ops.dsv4.rms_norm(X, W, 1e-5), dsv4.rms_norm(X, W, 1e-5))
    out, lse = torch.ops.dsv4.fmha(Q, K, V, SINK, True, 0.25)
    again, lse_again = dsv4.fmha(Q, K, V, sink=SINK, causal=True)
    assert torch.equal(out, again) and torch.equal(lse, lse_again)


def norm_twice(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    return dsv4.rms_norm(x * 2, weight) + dsv4.rms_norm(x, weight, 1e-3, out=out) + out


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sink: torch.Tensor) -> torch.Tensor:
    out, lse = dsv4.fmha(q, k, v, sink=sink, causal=True)
    into = torch.empty_like(q)
    other, _ = dsv4.fmha(q, k, v, out=into, softmax_scale=0.5)
    return out + other + into + lse.transpose(1, 2)[..., None].bfloat16()


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_without_a_graph_break(dynamic: bool) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(norm_twice, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    assert torch.equal(compiled(X, W), norm_twice(X, W))
    assert torch.equal(compiled(X[:2], W), norm_twice(X[:2], W))
    attended = torch.compile(attend, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    assert torch.equal(attended(Q, K, V, SINK), attend(Q, K, V, SINK))


def test_compiled_graph_holds_the_operator() -> None:
    torch._dynamo.reset()
    targets: list[object] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> torch.fx.GraphModule:
        targets.extend(node.target for node in graph.graph.nodes if node.op == "call_function")
        return graph

    torch.compile(norm_twice, fullgraph=True, backend=backend)(X, W)
    assert targets.count(torch.ops.dsv4.rms_norm.default) == 1
    assert targets.count(torch.ops.dsv4.rms_norm_out.default) == 1


def test_fake_tensors_inside_and_outside_their_mode() -> None:
    with FakeTensorMode() as mode:
        x, weight, q, k = (mode.from_tensor(t) for t in (X, W, Q, K))
        inside = dsv4.rms_norm(x, weight)
    outside, (out, lse) = dsv4.rms_norm(x, weight), dsv4.fmha(q, k, k)
    assert all(type(t).__name__ == "FakeTensor" for t in (inside, outside, out, lse))
    assert inside.shape == X.shape and out.shape == Q.shape and lse.shape == (2, 4, 5) and lse.dtype == torch.float32


def test_fake_tensors_are_checked() -> None:
    mode = FakeTensorMode()
    x, weight = mode.from_tensor(X.half()), mode.from_tensor(W)
    with mode, pytest.raises(ContractError, match=r"x: found torch\.float16"):
        dsv4.rms_norm(x, weight)


def test_meta_tensors() -> None:
    y = dsv4.rms_norm(X.to("meta"), W.to("meta"))
    assert y.is_meta and y.shape == X.shape
    assert not dsv4.rms_norm(X, W).isnan().any()  # of the same shape: it must not find the other's entry


def test_functionalized() -> None:
    def normed(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return dsv4.rms_norm(x * 2, weight).add_(1)

    assert torch.equal(torch.func.functionalize(normed)(X, W), normed(X, W))


def test_exported() -> None:
    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            return dsv4.rms_norm(x, weight) + 1

    program = torch.export.export(Model(), (X, W))
    assert torch.equal(program.module()(X, W), Model()(X, W))


def test_parameters_without_gradients() -> None:
    weight = torch.nn.Parameter(W.clone())
    assert torch.equal(dsv4.rms_norm(X, weight), dsv4.rms_norm(X, W))
    assert not dsv4.rms_norm(X, weight).requires_grad


def replayed_on_new_input(columns: int) -> list[dispatch.Call]:
    """Capture one call with an output, replay it on another input, compare with a call outside a graph."""
    x, weight = (torch.randn(*size, columns, device="cuda").bfloat16() for size in ((21,), ()))
    out = torch.empty_like(x)
    graph = torch.cuda.CUDAGraph()
    with dsv4.trace_dispatch() as calls, torch.cuda.graph(graph):
        dsv4.rms_norm(x, weight, out=out)
    x.copy_(torch.randn_like(x))
    graph.replay()
    torch.testing.assert_close(out, dsv4.rms_norm(x, weight), rtol=0, atol=0)
    return calls


@pytest.mark.gpu
def test_reference_is_captured_in_a_cuda_graph() -> None:
    with pytest.warns(Dsv4Warning, match="no kernel"):
        assert [call.implementation for call in replayed_on_new_input(768)] == ["reference"]


@pytest.mark.gpu
@pytest.mark.skipif("DSV4_CACHE" not in os.environ, reason="needs a cache with kernels in $DSV4_CACHE")
def test_kernel_is_captured_in_a_cuda_graph() -> None:
    dsv4.configure(cache=REAL_CACHE, missing="raise")
    warmed = dsv4.warmup(["rms_norm"])
    assert [call.implementation in warmed for call in replayed_on_new_input(4096)] == [True]


@pytest.mark.gpu
def test_devices_must_agree() -> None:
    with pytest.raises(ContractError, match="weight: found device cpu; valid: cuda:0, the device of x"):
        dsv4.rms_norm(X.cuda(), W)
