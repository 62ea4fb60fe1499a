"""Adapters of packages that are not installed here: stand-ins with the documented arguments compute the documented
result, and the benchmark's own check is satisfied. The formulas for torch.compile are held to the same checks.
"""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import all_operators, router_choose
from benchmarks.harness.operator import Case, Unavailable
from benchmarks.peers import flashinfer, tile_kernels
from dsv4.runtime.reference.expert_offsets import expert_offsets
from tests.benchmarks.on_cpu import on_cpu

EPS = 1e-6


def rmsnorm(input: Any, weight: Any, eps: float = 1e-6, out: Any = None, enable_pdl: Any = None) -> Any:
    wide = input.float()
    made = (wide * (wide.square().mean(-1, keepdim=True) + eps).rsqrt() * weight.float()).to(input.dtype)
    return made if out is None else out.copy_(made)


def rmsnorm_quant(out: Any, input: Any, weight: Any, scale: Any, eps: float = 1e-6, enable_pdl: Any = None) -> None:
    out.copy_((rmsnorm(input.float(), weight, eps) / scale).to(out.dtype))


def fi_mhc_post(x: Any, residual: Any, post_layer_mix: Any, comb_res_mix: Any) -> Any:
    mixed = torch.einsum("toh,ton->tnh", residual.float(), comb_res_mix)
    return (x.float()[:, None] * post_layer_mix[..., None] + mixed).to(residual.dtype)


def fi_mhc_pre(
    dot_mix: Any, residual: Any, mhc_scale: Any, mhc_base: Any, rms_eps: float = EPS, mhc_pre_eps: float = EPS,
    mhc_sinkhorn_eps: float = EPS, mhc_post_mult_value: float = 1.0, sinkhorn_repeat: int = 20, block_size: int = 0,
) -> Any:  # fmt: skip
    """From logits alone: of a weight that gives them, mhc_pre's formula without its norm."""
    x = residual.float().flatten(1)
    mu = dot_mix * (x.square().mean(1, keepdim=True) + rms_eps).rsqrt()
    pre = torch.sigmoid(mu[:, :4] * mhc_scale[0] + mhc_base[:4]) + mhc_pre_eps
    post = torch.sigmoid(mu[:, 4:8] * mhc_scale[1] + mhc_base[4:8]) * mhc_post_mult_value
    comb = torch.softmax((mu[:, 8:] * mhc_scale[2] + mhc_base[8:]).unflatten(1, (4, 4)), -1) + mhc_sinkhorn_eps
    comb = comb / (comb.sum(1, keepdim=True) + mhc_sinkhorn_eps)
    for _ in range(sinkhorn_repeat - 1):
        comb = comb / (comb.sum(2, keepdim=True) + mhc_sinkhorn_eps)
        comb = comb / (comb.sum(1, keepdim=True) + mhc_sinkhorn_eps)
    u = (pre[:, :, None] * residual.float()).sum(1).to(residual.dtype)
    return post[..., None], comb, u


def hash_topk(router_logits: Any, input_ids: Any, tid2eid: Any, **_: Any) -> Any:
    assert router_logits.dtype == torch.float32 and input_ids.dtype == torch.int64 and tid2eid.dtype == torch.int32
    experts = tid2eid[input_ids]
    affinity = torch.nn.functional.softplus(router_logits.gather(1, experts.long())).sqrt()
    return affinity / affinity.sum(1, keepdim=True), experts


def drawn_first(logits: Any, *_: Any, seed: Any, offset: Any, **__: Any) -> Any:
    assert seed.dtype == offset.dtype == torch.int64
    return logits.argmax(-1).int()


FLASHINFER = {
    "norm": SimpleNamespace(rmsnorm=rmsnorm, rmsnorm_quant=rmsnorm_quant),
    "mhc": SimpleNamespace(mhc_post=fi_mhc_post, mhc_pre_big_fuse_with_prenorm=fi_mhc_pre),
    "fused_moe.hash_topk": SimpleNamespace(hash_topk=hash_topk),
    "sampling": SimpleNamespace(
        softmax=lambda logits: torch.softmax(logits, -1),
        sampling_from_logits=drawn_first,
        top_p_sampling_from_probs=drawn_first,
        top_k_top_p_sampling_from_probs=drawn_first,
    ),
}


def reduce_fused(x: Any, topk_weights: Any, token_topk_to_pos: Any, *, out: Any) -> Any:
    assert topk_weights is None and x.shape[1] == out.shape[1]
    return out.copy_(x[token_topk_to_pos.long()].float().sum(1))


def top2_sum_gate(
    logits: Any, bias: Any, num_topk: int, num_topk_groups: int, num_groups: int, use_shared_as_routed: bool,
    num_shared_experts: int, routed_scaling_factor: float, ep_rank: int, num_ep_ranks: int, tp_rank: int,
    num_tp_ranks: int, scoring_func: str,
) -> Any:  # fmt: skip
    assert num_groups == num_topk_groups and not use_shared_as_routed and scoring_func == "sqrtsoftplus"
    assert logits.dim() == 2 and num_topk == router_choose.K
    experts, weights = router_choose.formula(logits[None], bias, routed_scaling_factor)
    return experts.long(), weights


def get_fused_mapping(topk_idx: Any, num_experts: int, num_expanded_tokens: int, alignment: int) -> Any:
    assert topk_idx.dtype == torch.int64
    found = expert_offsets(topk_idx.int(), count=num_experts, align=alignment)
    assert len(found.row_token) == num_expanded_tokens
    start, end = found.offsets[:-1], found.offsets[1:]
    return None, found.row_token, None, found.route_row, start, end, end - start, []


def per_token_cast_back(x: Any, fmt: str, num_per_channels: int) -> Any:
    codes, scale = x
    assert fmt == "bf16" and scale.dtype == torch.float32
    return (codes.float() * scale.repeat_interleave(num_per_channels, 1)).to(torch.bfloat16)


def tk_mhc_head(
    residual: Any, fn: Any, scale: Any, base: Any, *, norm_eps: float, pre_eps: float, n_splits: int
) -> Any:
    assert residual.dim() == 4  # sequences, their tokens, streams, columns
    x = residual.float().flatten(2)
    mu = (x @ fn.T) * (x.square().mean(-1, keepdim=True) + norm_eps).rsqrt()
    pre = torch.sigmoid(mu * scale + base) + pre_eps
    return (pre[..., None] * residual.float()).sum(2).to(residual.dtype)


TILE_KERNELS = {
    "moe.reduce_fused_kernel": SimpleNamespace(reduce_fused=reduce_fused),
    "moe.top2_sum_gate_kernel": SimpleNamespace(top2_sum_gate=top2_sum_gate),
    "moe.get_fused_mapping_kernel": SimpleNamespace(get_fused_mapping=get_fused_mapping),
    "quant.cast_back_kernel": SimpleNamespace(per_token_cast_back=per_token_cast_back),
    "mhc.expand_kernel": SimpleNamespace(
        expand_to_mhc_fwd_tl=lambda columns, streams: lambda x, o: o.copy_(x[:, None].expand(-1, streams, -1))
    ),
    "modeling.mhc.functional": SimpleNamespace(mhc_head=tk_mhc_head),
}


def small_cases(name: str) -> list[tuple[Any, Case]]:
    """Of each kind of case the one with four tokens."""
    bench = importlib.import_module(f"benchmarks.{name}").BENCHMARK
    return [(bench, case) for case in bench.cases() if case.sizes.get("T", case.sizes.get("R")) == 4]


def judged(bench: Any, peer_name: str, case: Case) -> Any:
    """The errors by the benchmark's own check; ``None`` where the peer takes no part in the case."""
    (peer,) = [peer for peer in bench.peers() if peer.name == peer_name]
    inputs = bench.make_inputs(case, 3)
    try:
        return bench.check(case, inputs, peer.prepare(case)(inputs))
    except Unavailable:
        return None


@pytest.mark.parametrize(
    "name", ["rms_norm", "rms_norm_quant", "mhc_post", "mhc_pre", "mhc_post_pre", "router_hash", "sample"]
)
def test_flashinfer_gets_what_its_documentation_asks_for(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    on_cpu(monkeypatch)
    real = flashinfer.function.__wrapped__

    def function(path: str) -> Any:
        module, _, attribute = path.rpartition(".")
        return getattr(FLASHINFER[module], attribute) if module in FLASHINFER else real(path)

    monkeypatch.setattr(flashinfer, "function", function)
    results = [judged(bench, "flashinfer", case) for bench, case in small_cases(name)]
    assert any(results) and all(result is not None for result in results if name != "rms_norm_quant")


@pytest.mark.parametrize("name", ["moe_combine", "router_choose", "expert_offsets", "dequantize", "embed", "mhc_head"])
def test_tile_kernels_get_what_they_ask_for(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    on_cpu(monkeypatch)
    monkeypatch.setattr(tile_kernels, "module", TILE_KERNELS.__getitem__)
    results = [judged(bench, "tile-kernels", case) for bench, case in small_cases(name)]
    assert any(results) and all(result is not None for result in results if name != "dequantize")


# compressor makes its plan on a GPU; beside the three attentions there is no formula for torch.compile
OTHERS = {"compressor", "sparse_attention_decode", "sparse_attention_prefill", "fmha_varlen"}


@pytest.mark.parametrize("name", sorted(set(all_operators.ORDER) - OTHERS))
def test_the_formula_for_torch_satisfies_the_check(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    on_cpu(monkeypatch)
    results = [judged(bench, "torch.compile", case) for bench, case in small_cases(name)]
    assert any(results)


def test_a_wrong_result_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check of the benchmark finds streams that are mixed the other way round."""
    on_cpu(monkeypatch)
    wrong = {"mhc.mhc_post": lambda x, residual, post, comb: fi_mhc_post(x, residual, post, comb.transpose(1, 2))}
    monkeypatch.setattr(flashinfer, "function", wrong.__getitem__)
    bench, case = small_cases("mhc_post")[0]
    with pytest.raises(ValueError, match="bf16 steps from the float64 result"):
        judged(bench, "flashinfer", case)
