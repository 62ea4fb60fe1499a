"""What a call allocates: outputs and the workspace that the spec declares, each handed to a kernel, and nothing else.

No kernel is compiled: what takes its place knows the contract, which the spec alone decides, and notes its arguments.
On a GPU, where host functions take part, ``test_doors_gpu`` counts bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from dsv4.generator.spec import plan
from dsv4.runtime import dispatch
from dsv4.runtime.ops import plain
from dsv4.runtime.ops.expert_offsets import expert_offsets
from dsv4.runtime.ops.indexer_q import indexer_q_folded
from dsv4.runtime.ops.quantize import quantize
from dsv4.runtime.ops.rms_norm import rms_norm
from dsv4.runtime.ops.router import router
from dsv4.runtime.ops.sample import sample
from dsv4.runtime.weight import Format, Weight
from tests.ops.test_doors import CALLS, normal, table

EXPERTS, VOCABULARY = 16, 50


def gate(tokens: int, by_table: bool) -> tuple[Callable[..., Any], Callable[[], tuple[Any, ...]], dict[str, Any]]:
    choice: dict[str, Any] = {"bias": torch.randn(EXPERTS)}
    if by_table:
        named = torch.rand(VOCABULARY, EXPERTS).argsort(dim=1)[:, :6]
        choice = {"tid2eid": named, "tokens": torch.randint(VOCABULARY, (tokens,))}
    return router, lambda: (normal(tokens, 512), normal(EXPERTS, 512)), {"k": 6, "factor": 1.5, **choice}


def drawing() -> tuple[torch.Tensor, ...]:
    zeros = torch.zeros(3, dtype=torch.int64)
    return normal(3, 1024), torch.rand(3), zeros, torch.rand(3), zeros, zeros


MORE: dict[str, tuple[Callable[..., Any], Callable[[], tuple[Any, ...]], dict[str, Any]]] = {
    "rms_norm": (rms_norm, lambda: (normal(3, 512), normal(512)), {}),
    "indexer_q folded": (
        indexer_q_folded,
        lambda: (normal(3, 8, 128), table(3), torch.randn(3, 8)),
        {"scale": 0.1, "code": "fp8", "rotate_hadamard": True},
    ),
    "mhc_post_pre many": (CALLS["mhc_post_pre"][0], lambda: many_tokens(256), {}),
    "router few": gate(19, by_table=False),
    "router many": gate(40, by_table=False),
    "router very many": gate(300, by_table=False),
    "router by a table": gate(19, by_table=True),
    "router by a table, many": gate(800, by_table=True),
    "expert_offsets": (
        expert_offsets,
        lambda: (torch.randint(EXPERTS, (700, 6), dtype=torch.int32),),
        {"count": EXPERTS, "align": 64},
    ),
    "sample": (sample, drawing, {}),
    "quantize nvfp4": (
        quantize,
        lambda: (
            normal(3, 256),
            Weight(
                Format.NVFP4,
                torch.zeros(5, 128, dtype=torch.uint8),
                torch.ones(5, 16).to(torch.float8_e4m3fn),
                torch.tensor(0.01),
                torch.tensor(0.002),
            ),
        ),
        {"rule": "nvfp4"},
    ),
}


def many_tokens(tokens: int) -> tuple[torch.Tensor, ...]:
    residual = normal(tokens, 512), normal(tokens, 4, 512), torch.rand(tokens, 4), torch.rand(tokens, 4, 4)
    return (*residual, torch.randn(24, 2048), torch.randn(24), torch.rand(3), normal(512))


class Allocations(TorchFunctionMode):
    """The storages that calls of torch have made, by address; kept, so that no address comes twice."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, torch.UntypedStorage] = {}

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {
            each.untyped_storage().data_ptr() for each in (*args, *(kwargs or {}).values()) if torch.is_tensor(each)
        }
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if torch.is_tensor(tensor) and tensor.untyped_storage().data_ptr() not in given:
                storage = tensor.untyped_storage()
                self.made.setdefault(storage.data_ptr(), storage)
        return result


@pytest.fixture
def handed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, str, torch.Tensor]]]:
    """(operator and argument, role, tensor) of every tensor that is handed to what stands in for kernels."""
    noted: list[tuple[str, str, torch.Tensor]] = []

    def serve(request: dispatch.Request) -> Any:
        made = plan(request.op, "sm_90a", dims=request.dims, variant=request.variant)

        def function(*values: Any) -> None:
            assert len(values) == len(made.contract.arguments)
            for argument, value in zip(made.contract.arguments, values, strict=True):
                if isinstance(value, torch.Tensor):
                    noted.append((f"{request.op}.{argument.name}", argument.role, value))

        manifest = SimpleNamespace(op=request.op, contract=made.contract)
        return SimpleNamespace(artifact=SimpleNamespace(manifest=manifest), function=function)

    dispatch.reset()
    monkeypatch.setattr(plain, "KERNEL_DEVICES", ("cpu",))
    monkeypatch.setattr(dispatch, "serve", serve)
    monkeypatch.setattr(dispatch, "arch_of", lambda device: "sm_90a")
    yield noted
    dispatch.reset()


@pytest.mark.parametrize("name", [*CALLS, *MORE])
def test_a_call_allocates_outputs_and_declared_workspace(
    handed: list[tuple[str, str, torch.Tensor]], name: str
) -> None:
    function, make, options = {**CALLS, **MORE}[name]
    function(*make(), **options)  # counters that are kept are made by the first call
    arguments = make()
    handed.clear()
    with Allocations() as allocations:
        function(*arguments, **options)
    assert handed, "no kernel was called"
    roles = {tensor.untyped_storage().data_ptr(): role for _, role, tensor in reversed(handed)}
    # Rows with their strides: those of transposed scales begin at multiples of 16 bytes.
    sizes = {each.untyped_storage().data_ptr(): each.itemsize * each.stride(0) * each.shape[0] for _, _, each in handed}
    for address, storage in allocations.made.items():
        assert address in roles, f"{storage.nbytes()} bytes that no kernel is given"
        assert roles[address] in ("output", "workspace"), f"made, and given as {roles[address]}"
        assert storage.nbytes() <= sizes[address]


def test_a_copy_that_a_kernel_is_given_is_noticed(handed: list[tuple[str, str, torch.Tensor]]) -> None:
    x = normal(3, 512)
    with Allocations() as allocations:
        rms_norm(x.float().to(torch.bfloat16), normal(512))
    roles = {tensor.untyped_storage().data_ptr(): role for _, role, tensor in handed}
    found = [roles.get(address) for address in allocations.made]
    assert found.count("output") == 1 and "input" in found and None in found
