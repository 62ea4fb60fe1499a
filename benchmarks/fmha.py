"""fmha beside torch's SDPA backends and flash-attention: ``python -m benchmarks.fmha --help``."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from benchmarks.harness.cli import main
from benchmarks.harness.operator import Call, Case, Inputs, Peer, Unavailable, Work
from benchmarks.kernels import loaded_kernel

COSINE_MIN = 0.9999
ROW_REL_L2_MAX = 3e-2
"""bf16 gives about 2e-3 in a typical row and less than 1e-2 in the worst; above this a result is wrong, not inexact."""


NO_BACKEND = ("No available kernel", "No viable backend")


def make_case(batch: int, queries: int, keys: int, heads: int, kv_heads: int, width: int, causal: bool) -> Case:
    sizes: dict[str, int | bool] = {
        "B": batch, "Sq": queries, "Sk": keys, "Hq": heads, "Hkv": kv_heads, "D": width, "causal": causal
    }  # fmt: skip
    lengths = f"S={queries}" if queries == keys else f"Sq={queries} Sk={keys}"
    shared = f"H={heads}" if heads == kv_heads else f"Hq={heads} Hkv={kv_heads}"
    return Case(f"B={batch} {shared} {lengths} D={width} {'causal' if causal else 'full'}", sizes)


class FmhaBenchmark:
    """o = softmax(q kᵀ / √D) v, forward; q [B, Sq, Hq, D], k and v [B, Sk, Hkv, D], bf16."""

    op = "fmha"
    ours = "dsv4"

    def __init__(self) -> None:
        self._expected: tuple[Any, Any] = (None, None)

    def cases(self) -> list[Case]:
        """The reference shape four times, then grouped heads, long and short sequences, one query, 256 columns."""
        square = [make_case(4, 4096, 4096, 32, 32, width, causal) for width in (128, 64) for causal in (False, True)]
        others = [
            make_case(2, 4096, 4096, 32, 8, 128, True),
            make_case(1, 16384, 16384, 16, 2, 128, True),
            make_case(8, 1000, 3000, 16, 4, 128, True),
            make_case(16, 512, 512, 32, 32, 128, False),
            make_case(1, 128, 128, 8, 8, 64, False),
            make_case(32, 1, 4096, 32, 8, 128, False),
            make_case(4, 4096, 4096, 16, 16, 256, False),
            make_case(4, 4096, 4096, 16, 16, 256, True),
            make_case(8, 1000, 3000, 16, 4, 256, False),
        ]
        return square + others

    def peers(self) -> list[Peer]:
        return [
            Peer("dsv4", public_function, "dsv4.fmha with out= and lse=, the kernel that the runtime picks"),
            Peer("dsv4 kernel", lambda case: kernel(case, pdl=False), "the same kernel, called bare"),
            Peer("dsv4 kernel pdl", lambda case: kernel(case, pdl=True), "programmatic dependent launch"),
            Peer("torch cudnn", lambda case: torch_sdpa(case, "CUDNN_ATTENTION"), "SDPA, cuDNN backend"),
            Peer("torch flash", lambda case: torch_sdpa(case, "FLASH_ATTENTION"), "SDPA, flash backend"),
            Peer("flash-attention 3", lambda case: flash_attention(case, "flash_attn_interface"), "FA3's own function"),
            Peer("flash-attention 2", lambda case: flash_attention(case, "flash_attn"), "FA2's own function"),
        ]

    def make_inputs(self, case: Case, seed: int) -> Inputs:
        import torch

        s = case.sizes
        generator = torch.Generator(device="cuda").manual_seed(seed)

        def normal(length: int, heads: int) -> torch.Tensor:
            shape = (s["B"], length, heads, s["D"])
            return torch.randn(*shape, device="cuda", dtype=torch.bfloat16, generator=generator)

        q, k, v = normal(s["Sq"], s["Hq"]), normal(s["Sk"], s["Hkv"]), normal(s["Sk"], s["Hkv"])
        lse = torch.full((s["B"], s["Hq"], s["Sq"]), float("nan"), device="cuda")
        outputs = {"o": torch.full_like(q, float("nan")), "lse": lse}
        return {"q": q, "k": k, "v": v, **outputs, "softmax_scale": s["D"] ** -0.5, "seed": seed}

    def check(self, case: Case, inputs: Inputs, output: Any) -> Mapping[str, float]:
        """Against float64, over the whole output and in the worst row."""
        expected = self._float64(case, inputs)
        got = output.double()
        row_norms = expected.norm(dim=-1)
        rows = (got - expected).norm(dim=-1) / row_norms.clamp_min(1e-30)
        worst = rows.max().item()
        cosine = ((got * expected).sum() / (got.norm() * expected.norm())).item()
        if not (cosine >= COSINE_MIN and worst <= ROW_REL_L2_MAX):
            limits = f"at least {COSINE_MIN}, at most {ROW_REL_L2_MAX}"
            raise ValueError(f"cosine {cosine:.6f}, worst row's relative L2 error {worst:.3g}; valid: {limits}")
        rel_l2 = ((got - expected).norm() / expected.norm()).item()
        return {"cosine": cosine, "rel_l2": rel_l2, "worst_row_rel_l2": worst}

    def _float64(self, case: Case, inputs: Inputs) -> Any:
        """The answer for these inputs; kept until others come, since every peer is held to the same."""
        import torch

        from dsv4.runtime.reference.fmha import fmha

        known = case.label, inputs["seed"]
        if self._expected[0] != known:
            wide, causal = torch.float64, bool(case.sizes["causal"])
            out, _ = fmha(inputs["q"], inputs["k"], inputs["v"], causal=causal, dtype=wide, out_dtype=wide)
            self._expected = known, out
        return self._expected[1]

    def work(self, case: Case) -> Work:
        """Bytes of q, k, v, o and the lse, each once; 4 · D operations for each query and key that meet."""
        s = case.sizes
        query_rows, key_rows = s["B"] * s["Sq"] * s["Hq"], s["B"] * s["Sk"] * s["Hkv"]
        moved = 2 * s["D"] * 2 * (query_rows + key_rows) + 4 * query_rows
        return Work(bytes=moved, flops=4 * s["B"] * s["Hq"] * s["D"] * visible(case))


def visible(case: Case) -> int:
    """(query, key) pairs of one head: with causal, query i sees key j iff j ≤ i + Sk − Sq."""
    queries, keys = int(case.sizes["Sq"]), int(case.sizes["Sk"])
    if not case.sizes["causal"]:
        return queries * keys
    with_keys = min(queries, keys)  # rows that see a key: the last of them sees all, each before it one less
    return with_keys * keys - with_keys * (with_keys - 1) // 2


def public_function(case: Case) -> Call:
    try:
        import dsv4
    except ImportError as error:
        raise Unavailable(f"dsv4 is not installed ({error})") from None
    dsv4.configure(missing="raise")
    causal = bool(case.sizes["causal"])

    def call(s: Inputs) -> Any:
        try:
            return dsv4.fmha(s["q"], s["k"], s["v"], causal=causal, out=s["o"], lse=s["lse"])[0]
        except dsv4.KernelMissing as error:
            raise Unavailable(str(error)) from None

    return call


def kernel(case: Case, *, pdl: bool) -> Call:
    columns = int(case.sizes["D"])
    sizes = {name: int(size) for name, size in case.sizes.items() if name not in ("D", "causal")}
    variant = {"causal": bool(case.sizes["causal"]), "has_sink": False, "pdl": pdl}
    return loaded_kernel("fmha", dims={"D": columns}, variant=variant, sizes=sizes, result=lambda s: s["o"])


def torch_sdpa(case: Case, backend: str) -> Call:
    """scaled_dot_product_attention held to one backend, on transposed views of the same tensors."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.attention.bias import causal_lower_right

    s = case.sizes
    chosen = getattr(SDPBackend, backend)
    options: dict[str, Any] = {"is_causal": bool(s["causal"])}
    if s["causal"] and s["Sq"] != s["Sk"]:
        if backend != "FLASH_ATTENTION":
            raise Unavailable("its causal mask is aligned at the top left")
        options = {"attn_mask": causal_lower_right(int(s["Sq"]), int(s["Sk"]))}
    if s["Hq"] != s["Hkv"]:
        options["enable_gqa"] = True

    def call(inputs: Inputs) -> Any:
        q, k, v = (inputs[name].transpose(1, 2) for name in ("q", "k", "v"))
        try:
            with sdpa_kernel(chosen):
                return torch.nn.functional.scaled_dot_product_attention(q, k, v, **options).transpose(1, 2)
        except RuntimeError as error:
            if not any(words in str(error) for words in NO_BACKEND):
                raise
            raise Unavailable("torch has no kernel of this backend for the shape") from None

    return call


def flash_attention(case: Case, module: str) -> Call:
    """``flash_attn_func`` of an installed flash-attention; its causal mask is aligned as ours is (bottom right)."""
    try:
        function = importlib.import_module(module).flash_attn_func
    except (ImportError, AttributeError) as error:
        raise Unavailable(f"{module} is not installed ({type(error).__name__})") from None
    causal = bool(case.sizes["causal"])

    def call(s: Inputs) -> Any:
        result = function(s["q"], s["k"], s["v"], causal=causal)
        return result[0] if isinstance(result, tuple) else result

    return call


BENCHMARK = FmhaBenchmark()

if __name__ == "__main__":
    main(BENCHMARK, "benchmarks.fmha")
