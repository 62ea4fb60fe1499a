"""The router, the sorting of its routes and the sampler through their doors to compiled kernels on the emulator."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import dsv4
from dsv4.runtime import dispatch
from dsv4.runtime.errors import ContractError
from dsv4.runtime.ops import plain
from dsv4.runtime.ops.expert_offsets import expert_offsets
from dsv4.runtime.ops.router import (
    GATE_GEMM_TOKENS,
    LOGITS_GEMM_TOKENS,
    ONE_LAUNCH_TOKENS,
    counters_of,
    logit_parts,
    router,
)
from dsv4.runtime.ops.sample import sample
from dsv4.runtime.reference import expert_offsets as expert_offsets_reference
from dsv4.runtime.reference import router as router_reference
from dsv4.runtime.reference import sample as sample_reference

EXPERTS, K, VOCABULARY = 16, 6, 50
CPU = torch.device("cpu")


def gate(tokens: int, columns: int = 512) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(tokens)
    weight = torch.randn(EXPERTS, columns) / columns**0.5
    return torch.randn(tokens, columns).bfloat16(), weight.bfloat16()


def choice(by_table: bool, tokens: int, table_dtype: torch.dtype = torch.int64) -> dict[str, Any]:
    if not by_table:
        return {"bias": 0.1 * torch.randn(EXPERTS)}
    table = torch.rand(VOCABULARY, EXPERTS).argsort(dim=1)[:, :K]
    return {"tid2eid": table.to(table_dtype), "tokens": torch.randint(VOCABULARY, (tokens,))}


def is_the_references(got: tuple[torch.Tensor, torch.Tensor], *arguments: torch.Tensor, **options: Any) -> None:
    experts, weights = router_reference.router(*arguments, **options)
    assert torch.equal(got[0], experts) and got[0].dtype == torch.int32
    torch.testing.assert_close(got[1], weights, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("by_table", "chip", "tokens", "kernels"),
    [
        (False, "sm_90a", ONE_LAUNCH_TOKENS, ["router"]),
        (False, "sm_90a", LOGITS_GEMM_TOKENS - 1, ["router_logits", "router_choose"]),
        (False, "sm_90a", LOGITS_GEMM_TOKENS, ["router_logits_many", "router_choose"]),
        (True, "sm_90a", GATE_GEMM_TOKENS - 1, ["router_hash"]),
        (True, "sm_90a", GATE_GEMM_TOKENS, ["router_hash_many"]),
        (True, "sm_100a", ONE_LAUNCH_TOKENS + 1, ["router_logits", "router_choose"]),
    ],
)
def test_few_tokens_are_one_kernel_and_many_are_two_or_the_whole_gate(
    served: list[str],
    monkeypatch: pytest.MonkeyPatch,
    by_table: bool,
    chip: str,
    tokens: int,
    kernels: list[str],
) -> None:
    monkeypatch.setattr(dispatch, "arch_of", lambda device: chip)
    y, weight = gate(tokens)
    options = {"k": K, "factor": 1.5, **choice(by_table, tokens)}
    with dsv4.trace_dispatch() as calls:
        is_the_references(router(y, weight, **options), y, weight, **options)
    assert served == [call.op for call in calls] == kernels
    assert all(call.implementation.startswith(call.op) and call.sizes["T"] == tokens for call in calls)


def test_ids_in_32_bits_and_rows_with_gaps(served: list[str]) -> None:
    y, weight = gate(3, 520)
    options = {"k": K, "factor": 2.5, **choice(True, 3, torch.int32)}
    y, weight = y[:, :512], weight[:, :512].contiguous()
    is_the_references(router(y, weight, **options), y, weight, **options)
    with pytest.raises(ContractError, match="router_hash: gate: found stride"):
        router(y, weight.t().contiguous().t(), **options)
    assert served == ["router_hash"]


def test_counters_are_kept_and_come_back_as_zeros(served: list[str]) -> None:
    y, weight = gate(19, 1024)  # two groups of tokens, four CTAs that share the columns
    options = {"k": K, "factor": 1.5, **choice(False, 19)}
    kept = counters_of(CPU)
    for _ in range(2):
        is_the_references(router(y, weight, **options), y, weight, **options)
        assert counters_of(CPU) is kept and not kept.any()
    assert served == ["router"]


def test_calls_of_other_kinds_go_to_the_reference(served: list[str]) -> None:
    y, weight = gate(3)
    bias = torch.randn(EXPERTS)
    for options in ({}, {"bias": bias.double()}, {"bias": bias, "dtype": torch.float64}):
        router(y, weight, k=K, factor=1.0, **options)  # type: ignore[arg-type]
    router(y[:, :130], weight[:, :130], k=K, factor=1.0, bias=bias)
    router(y[:0], weight, k=K, factor=1.0, bias=bias)
    nothing = expert_offsets(torch.zeros(0, K, dtype=torch.int32), count=8, align=64)
    assert nothing.offsets.tolist() == [0] * 9 and nothing.route_row.shape == (0, K)
    assert served == []


def test_one_of_two_kernels_alone_does_not_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    def serve(request: dispatch.Request) -> Any:
        return None if request.op == "router_choose" else SimpleNamespace()

    dispatch.reset()
    monkeypatch.setattr(plain, "KERNEL_DEVICES", ("cpu",))
    monkeypatch.setattr(dispatch, "serve", serve)
    y, weight = gate(ONE_LAUNCH_TOKENS + 1)
    options = {"k": K, "factor": 1.5, "bias": torch.randn(EXPERTS)}
    with dsv4.trace_dispatch() as calls:
        is_the_references(router(y, weight, **options), y, weight, **options)
    assert [(call.op, call.implementation) for call in calls] == [("router", "reference")]
    dispatch.reset()


def test_parts_of_the_columns() -> None:
    assert [logit_parts(tokens, 4096) for tokens in (33, 64, 65, 256, 2048, 2049)] == [8, 8, 4, 4, 2, 1]
    assert logit_parts(33, 256) == 4
    assert [logit_parts(tokens, 4096, gemm=True) for tokens in (257, 2048, 4096, 8192, 8193)] == [8, 8, 4, 2, 1]


def test_routes_sorted_by_expert(served: list[str]) -> None:
    torch.manual_seed(0)
    experts = torch.rand(40, EXPERTS).argsort(dim=1)[:, :K].int()
    experts[torch.rand(40, K) < 0.2] = -1
    got = expert_offsets(experts, count=EXPERTS, align=64)
    expected = expert_offsets_reference.expert_offsets(experts, count=EXPERTS, align=64)
    for name, one, other in zip(got._fields, got, expected, strict=True):
        assert torch.equal(one, other), name
    assert served == ["expert_offsets"]


def test_an_expert_beyond_the_last_is_said_in_debug_mode() -> None:
    dispatch.reset()
    dsv4.configure(debug=True)
    with pytest.raises(ContractError, match="expert_offsets: experts: found values from 0 to 8; valid: -1 to 7"):
        expert_offsets(torch.tensor([[0, 8]], dtype=torch.int32), count=8, align=1)
    dispatch.reset()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_tokens_of_a_row(served: list[str], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    logits = (3 * torch.randn(3, 1024)).to(dtype)
    parameters = (torch.tensor([0.0, 1.0, 0.7]), torch.tensor([0, 0, 40]), torch.tensor([1.0, 1.0, 0.9]))
    noise = torch.tensor([1, 2, -3]), torch.tensor([5, 6, 7])
    expected = sample_reference.sample(logits, *parameters, *noise)
    assert torch.equal(sample(logits, *parameters, *noise), expected)
    assert served == ["sample"]


def test_nan_is_the_largest_logit_with_a_sign_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where torch.sort takes floats by their bits, as it does on a GPU."""

    def by_bits(values: torch.Tensor, **options: Any) -> torch.return_types.sort:
        bits = values.view(torch.int64)
        order = sort(torch.where(bits < 0, bits ^ torch.iinfo(torch.int64).max, bits), **options)
        return torch.return_types.sort((values.gather(-1, order.indices), order.indices))

    logits = torch.randn(2, 300, dtype=torch.float64)
    logits[:, 200] = torch.nan
    logits.view(torch.int64)[:, 100] = -1  # a NaN with a sign
    sort = torch.sort
    zeros = torch.zeros(2, dtype=torch.int64)
    parameters = torch.tensor([0.0, 1.0]), zeros, torch.ones(2), zeros, zeros
    assert sample_reference.sample(logits, *parameters, dtype=torch.float64).tolist() == [100, 100]
    monkeypatch.setattr(torch, "sort", by_bits)
    assert bool(torch.sort(logits, dim=-1, descending=True).values[:, -1].isnan().all())
    assert sample_reference.sample(logits, *parameters, dtype=torch.float64).tolist() == [100, 100]
