"""fmha_varlen and fmha_paged beside fmha on equal lengths, torch's and flash-attention's: --help."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.fmha import COSINE_MIN, ROW_REL_L2_MAX
from benchmarks.fmha import make_case as dense_case
from benchmarks.fmha import visible as visible_of_one
from benchmarks.harness.cli import main
from benchmarks.harness.operator import Call, Case, Inputs, Peer, Unavailable, Work
from benchmarks.kernels import loaded_kernel

HEADS, KV_HEADS, WIDTH = 32, 8, 128


def make_case(batch: int, longest: int, page: int, causal: bool, *, mixed: bool, width: int = WIDTH) -> Case:
    """``batch`` sequences of as many queries as keys; ``mixed``: from longest / batch up to ``longest``, else all of
    ``longest``. ``page`` 0: in rows."""
    sizes: dict[str, int | bool] = {
        "B": batch, "S": longest, "Hq": HEADS, "Hkv": KV_HEADS, "D": width, "page": page, "mixed": mixed,
        "causal": causal,
    }  # fmt: skip
    lengths = f"S={longest // batch}…{longest}" if mixed else f"S={longest}"
    where = f"pages of {page}" if page else "rows"
    return Case(f"B={batch} {lengths} D={width} {where} {'causal' if causal else 'full'}", sizes)


def lengths(case: Case) -> list[int]:
    """Of the sequences, the longest neither first nor last."""
    batch, longest = int(case.sizes["B"]), int(case.sizes["S"])
    if not case.sizes["mixed"]:
        return [longest] * batch
    rising = [longest * (b + 1) // batch for b in range(batch)]
    return rising[0::2] + rising[1::2][::-1]


class FmhaVarlenBenchmark:
    """Attention forward of sequences in q [TQ, Hq, D], k and v [TQ, Hkv, D] or in pages, bf16."""

    op = "fmha_varlen"
    ours = "dsv4"

    def __init__(self) -> None:
        self._expected: tuple[Any, Any] = (None, None)

    def cases(self) -> list[Case]:
        """fmha's square shape in rows and in pages, full and causal, then lengths that differ."""
        equal = [make_case(4, 4096, page, causal, mixed=False) for page in (0, 64, 16) for causal in (False, True)]
        mixed = [make_case(16, 4096, page, True, mixed=True) for page in (0, 64)]
        return [
            *equal,
            *mixed,
            make_case(64, 512, 0, True, mixed=True),
            make_case(4, 4096, 0, True, mixed=False, width=64),
        ]

    def peers(self) -> list[Peer]:
        return [
            Peer("dsv4", public_function, "fmha_varlen or fmha_paged, the kernel that the runtime picks"),
            Peer("dsv4 kernel", lambda case: kernel(case, pdl=False), "the same kernel, called bare"),
            Peer("dsv4 kernel pdl", lambda case: kernel(case, pdl=True), "programmatic dependent launch"),
            Peer("dsv4 fmha", dense, "dsv4.fmha's kernel on the same equal lengths, without starts or pages"),
            Peer("torch varlen", torch_varlen, "torch.nn.attention.varlen.varlen_attn"),
            Peer("flash-attention 3", lambda case: flash_attention(case, "flash_attn_interface"), "FA3's own function"),
            Peer("flash-attention 2", lambda case: flash_attention(case, "flash_attn"), "FA2's own function"),
        ]

    def make_inputs(self, case: Case, seed: int) -> Inputs:
        import torch

        s, each = case.sizes, lengths(case)
        total, width, page = sum(each), int(s["D"]), int(s["page"])
        generator = torch.Generator(device="cuda").manual_seed(seed)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, device="cuda", dtype=torch.bfloat16, generator=generator)

        q, k, v = (normal(total, heads, width) for heads in (s["Hq"], s["Hkv"], s["Hkv"]))
        starts = torch.tensor([0, *each], device="cuda").cumsum(0).to(torch.int32)
        inputs: Inputs = {
            "q": q,
            "k_rows": k,
            "v_rows": v,
            "k": k[None],
            "v": v[None],
            "cu_seqlens_q": starts,
            "cu_seqlens_k": starts,
            "o": torch.full_like(q, float("nan")),
            "lse": torch.full((int(s["Hq"]), total), float("nan"), device="cuda"),
            "softmax_scale": width**-0.5,
            "seed": seed,
        }
        if page:
            counts = [-(-length // page) for length in each]
            order = torch.randperm(sum(counts), generator=generator, device="cuda").to(torch.int32)
            table = torch.zeros(len(each), max(counts), dtype=torch.int32, device="cuda")
            pools = [torch.zeros(sum(counts), page, int(s["Hkv"]), width, device="cuda").bfloat16() for _ in range(2)]
            taken, first = 0, 0
            for b, (length, count) in enumerate(zip(each, counts, strict=True)):
                table[b, :count] = order[taken : taken + count]
                for pool, rows in zip(pools, (k, v), strict=True):
                    flat = torch.zeros(count * page, *rows.shape[1:], device="cuda").bfloat16()
                    flat[:length] = rows[first : first + length]
                    pool[table[b, :count].long()] = flat.view(count, page, *rows.shape[1:])
                taken, first = taken + count, first + length
            lengths_of = torch.tensor(each, dtype=torch.int32, device="cuda")
            inputs |= {
                "k": pools[0],
                "v": pools[1],
                "block_table": table,
                "seqlens_k": lengths_of,
                "cu_seqlens_k": None,
            }
            inputs["starts_k"] = starts
        return inputs

    def check(self, case: Case, inputs: Inputs, output: Any) -> Mapping[str, float]:
        """Against float64, over the whole output and in the worst row."""
        expected, got = self._float64(case, inputs), output.double()
        rows = (got - expected).norm(dim=-1) / expected.norm(dim=-1).clamp_min(1e-30)
        worst = rows.max().item()
        cosine = ((got * expected).sum() / (got.norm() * expected.norm())).item()
        if not (cosine >= COSINE_MIN and worst <= ROW_REL_L2_MAX):
            limits = f"at least {COSINE_MIN}, at most {ROW_REL_L2_MAX}"
            raise ValueError(f"cosine {cosine:.6f}, worst row's relative L2 error {worst:.3g}; valid: {limits}")
        return {"cosine": cosine, "worst_row_rel_l2": worst}

    def _float64(self, case: Case, inputs: Inputs) -> Any:
        import torch

        from dsv4.runtime.reference.fmha_varlen import fmha_varlen

        known = case.label, inputs["seed"]
        if self._expected[0] != known:
            wide, causal, starts = torch.float64, bool(case.sizes["causal"]), inputs["cu_seqlens_q"]
            rows = inputs["q"], inputs["k_rows"], inputs["v_rows"]
            out, _ = fmha_varlen(*rows, starts, starts, causal=causal, dtype=wide, out_dtype=wide)
            self._expected = known, out
        return self._expected[1]

    def work(self, case: Case) -> Work:
        """Bytes of q, k, v, o and the lse, each once; 4 · D operations for each query and key that meet."""
        s, each = case.sizes, lengths(case)
        total, width = sum(each), int(s["D"])
        moved = 2 * width * 2 * total * (int(s["Hq"]) + int(s["Hkv"])) + 4 * total * int(s["Hq"])
        return Work(bytes=moved, flops=4 * int(s["Hq"]) * width * visible(case))


def visible(case: Case) -> int:
    """(query, key) pairs of one head, over all sequences."""
    causal = bool(case.sizes["causal"])
    return sum(visible_of_one(dense_case(1, length, length, 1, 1, 64, causal)) for length in lengths(case))


def public_function(case: Case) -> Call:
    try:
        import dsv4
        from dsv4.runtime.ops.fmha_varlen import fmha_paged, fmha_varlen
    except ImportError as error:
        raise Unavailable(f"dsv4 is not installed ({error})") from None
    dsv4.configure(missing="raise")
    causal, paged = bool(case.sizes["causal"]), bool(case.sizes["page"])

    def call(s: Inputs) -> Any:
        try:
            if paged:
                arguments = s["q"], s["k"], s["v"], s["cu_seqlens_q"], s["seqlens_k"], s["block_table"]
                return fmha_paged(*arguments, causal=causal)[0]
            return fmha_varlen(s["q"], s["k_rows"], s["v_rows"], s["cu_seqlens_q"], s["cu_seqlens_k"], causal=causal)[0]
        except dsv4.KernelMissing as error:
            raise Unavailable(str(error)) from None

    return call


def kernel(case: Case, *, pdl: bool) -> Call:
    s, total = case.sizes, sum(lengths(case))
    page = int(s["page"])
    sizes = {"B": int(s["B"]), "TQ": total, "Hq": int(s["Hq"]), "Hkv": int(s["Hkv"]), "P": 1, "T": total, "PT": 0}
    if page:
        counts = [-(-length // page) for length in lengths(case)]
        sizes |= {"P": sum(counts), "T": page, "PT": max(counts)}
    rows = 0 if not page else 64 if page % 64 == 0 else 16
    variant = {"page_rows": rows, "causal": bool(s["causal"]), "has_sink": False, "pdl": pdl}
    return loaded_kernel(
        "fmha_varlen", dims={"D": int(s["D"])}, variant=variant, sizes=sizes, result=lambda given: given["o"]
    )


def dense(case: Case) -> Call:
    """fmha's kernel on [B, S, H, D] views of the same rows."""
    s = case.sizes
    if s["mixed"] or s["page"]:
        raise Unavailable("it takes sequences of one length, in rows")
    batch, length = int(s["B"]), int(s["S"])
    sizes = {"B": batch, "Sq": length, "Sk": length, "Hq": int(s["Hq"]), "Hkv": int(s["Hkv"])}
    variant = {"causal": bool(s["causal"]), "has_sink": False, "pdl": False}
    bare = loaded_kernel(
        "fmha", dims={"D": int(s["D"])}, variant=variant, sizes=sizes, result=lambda given: given["o"].flatten(0, 1)
    )

    def call(given: Inputs) -> Any:
        views = {name: given[name].view(batch, length, -1, int(s["D"])) for name in ("q", "o")}
        views |= {name: given[f"{name}_rows"].view(batch, length, -1, int(s["D"])) for name in "kv"}
        lse = given["lse"].view(-1, batch, length).transpose(0, 1)
        return bare({**views, "lse": lse, "softmax_scale": given["softmax_scale"]})

    return call


def torch_varlen(case: Case) -> Call:
    try:
        function: Callable[..., Any] = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    except (ImportError, AttributeError):
        raise Unavailable("this torch has no torch.nn.attention.varlen") from None
    if case.sizes["page"]:
        raise Unavailable("with pages it takes other kernels than its own")
    longest, window = int(case.sizes["S"]), (-1, 0) if case.sizes["causal"] else (-1, -1)

    def call(s: Inputs) -> Any:
        rows, starts = (s["q"], s["k_rows"], s["v_rows"]), s["cu_seqlens_q"]
        try:
            return function(*rows, starts, starts, longest, longest, window_size=window, enable_gqa=True)
        except TypeError as error:  # an older torch, whose function knows no groups of heads
            raise Unavailable(f"this torch's varlen_attn cannot ({error})") from None

    return call


def flash_attention(case: Case, module: str) -> Call:
    """``flash_attn_varlen_func`` of an installed flash-attention, in rows or in pages."""
    try:
        function = importlib.import_module(module).flash_attn_varlen_func
    except (ImportError, AttributeError) as error:
        raise Unavailable(f"{module} is not installed ({type(error).__name__})") from None
    if case.sizes["page"]:
        raise Unavailable("its pages are of other sizes or arguments")
    causal, longest = bool(case.sizes["causal"]), int(case.sizes["S"])

    def call(s: Inputs) -> Any:
        rows, starts = (s["q"], s["k_rows"], s["v_rows"]), s["cu_seqlens_q"]
        result = function(*rows, starts, starts, longest, longest, causal=causal)
        return result[0] if isinstance(result, tuple) else result

    return call


BENCHMARK = FmhaVarlenBenchmark()

if __name__ == "__main__":
    main(BENCHMARK, "benchmarks.fmha_varlen")
