"""How a call reaches a kernel, and how torch sees an operator that has one. No GPU: kernels are stood in for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode

from dsv4.runtime import dispatch
from dsv4.runtime.artifact import Argument, Contract
from dsv4.runtime.errors import ContractError
from dsv4.runtime.ops import plain
from dsv4.runtime.ops.door import Port
from dsv4.runtime.ops.kernel import KernelPath, Served
from dsv4.runtime.ops.torch_face import TorchFace
from dsv4.runtime.pool import Pool
from dsv4.runtime.reference.compressor import Compression
from dsv4.runtime.reference.quantize import fp8_weight, quantize_fp8
from dsv4.runtime.weight import Quantized, Weight


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("DSV4_CACHE", str(tmp_path))
    dispatch.reset()
    yield
    dispatch.reset()


def scaled(x: torch.Tensor, w: torch.Tensor | None, *, by: float, dtype: torch.dtype | None = None) -> torch.Tensor:
    return (x * by if w is None else x * w * by).to(dtype or x.dtype)


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(one.view(torch.uint8), other.view(torch.uint8))


def never(*_: Any, **__: Any) -> None:
    raise AssertionError("no kernel is to be asked for")


PATH = KernelPath(serves=never, call=never)
operator = plain.Operator("test_scaled", scaled, "x: float [T, d]", "w?: float [d]", kernel=PATH)


def test_torch_knows_the_operator_by_its_schema() -> None:
    schema = str(torch.ops.dsv4.test_scaled.default._schema)
    assert schema == "dsv4::test_scaled(Tensor x, Tensor? w, float by, ScalarType? dtype) -> Tensor[]"


@pytest.mark.parametrize("weight", [None, torch.arange(3.0)], ids=["without w", "with w"])
def test_the_registered_operator_computes_what_the_function_does(weight: torch.Tensor | None) -> None:
    x = torch.randn(2, 3)
    (got,) = torch.ops.dsv4.test_scaled(x, weight, 2.0, torch.float64)
    torch.testing.assert_close(got, operator(x, weight, by=2.0, dtype=torch.float64))
    torch.library.opcheck(torch.ops.dsv4.test_scaled.default, (x, weight, 2.0, None))


def test_a_trace_for_a_gpu_holds_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    monkeypatch.setattr(plain, "_on_gpu", lambda arguments: True)
    torch._dynamo.reset()
    x = torch.randn(2, 3)
    compiled = torch.compile(lambda x: operator(x, None, by=3.0, dtype=None), backend=backend, fullgraph=True)
    torch.testing.assert_close(compiled(x), x * 3)
    assert [name for name in seen if "dsv4" in name] == ["dsv4.test_scaled.default"]
    with FakeTensorMode() as mode:
        assert operator(mode.from_tensor(x), None, by=1.0, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_a_transform_goes_into_the_reference() -> None:
    x = torch.randn(5, 2, 3)
    got = torch.func.vmap(lambda x: operator(x, None, by=2.0, dtype=None))(x)
    torch.testing.assert_close(got, x * 2)


def test_records_are_taken_apart_and_put_together() -> None:
    """Every kind of argument arrives as it was given, what is written to is written, and tuples come back."""
    arrived: dict[str, Any] = {}

    def reference(
        x: torch.Tensor, y: Any, z: Any, w: Weight, pool: Pool, plan: Compression, *, eps: float
    ) -> Quantized:
        arrived.update(x=x, y=y, z=z, w=w, pool=pool, plan=plan)
        pool.data.fill_(eps)
        return quantize_fp8(x, 128)

    lines = (
        "x: float [T, i]",
        "y: activation [T, i]",
        "z: activation [T, i]",
        "w: weight [o, i]",
        "pool: pool [D]",
        "plan: compression [T, N, s]",
    )
    ports = [Port.read(line) for line in lines]
    face = TorchFace(
        "test_records",
        ports,
        reference,
        reference,
        mutates=("pool",),
        returns=2,
        rebuild=lambda tensors, options: Quantized(tensors[0], tensors[1], 128),
    )
    x = torch.randn(3, 128)
    weight, pool = fp8_weight(torch.randn(5, 128)), Pool.allocate(4, page=2, width=8)
    plan = Compression(*(torch.zeros(1) for _ in range(5)), apart=True)
    result = face((x, x, quantize_fp8(x, 128), weight, pool, plan), {"eps": 2.5})
    assert isinstance(result, Quantized) and same(result.codes, quantize_fp8(x, 128).codes)
    assert arrived["y"] is x and isinstance(arrived["z"], Quantized) and arrived["z"].block == 128
    assert arrived["w"].format is weight.format and same(arrived["w"].codes, weight.codes)
    assert arrived["pool"].page == 2 and bool((pool.data == 2.5).all())
    assert isinstance(arrived["plan"], Compression) and arrived["plan"].apart is True
    schema = torch.ops.dsv4.test_records.default._schema
    assert [each.name for each in schema.arguments if each.alias_info is not None] == ["pool_data"]


def test_a_kernel_gets_the_arguments_and_its_complaint_names_one() -> None:
    x = Argument(name="x", kind="tensor", dtype="f32", shape=("T", 4), strides=("any", 1), stride_multiple=4)
    manifest = SimpleNamespace(op="test_scaled", contract=Contract(dims={"T": None}, arguments=(x,)))

    def function(x: torch.Tensor) -> None:
        if x.stride(-1) != 1:
            raise ValueError("Mismatched x.strides[1] on argument #0 when calling: `f(x)`")
        x.add_(1)

    def call(kernel: Any, x: torch.Tensor, *, by: float) -> torch.Tensor:
        kernel(x)
        return x

    path = KernelPath(serves=lambda *_, **__: Served({}, {}, {}), call=call)
    loaded: Any = SimpleNamespace(function=function, artifact=SimpleNamespace(manifest=manifest))
    entry = path.adapted(loaded)
    assert float(entry(torch.zeros(2, 4), by=1.0).sum()) == 8
    with pytest.raises(ContractError, match=r"test_scaled: x: found stride 1 in dimension T; valid: a multiple of 4"):
        entry(torch.zeros(4, 2).transpose(0, 1), by=1.0)
