"""sparse_attention_decode beside FlashMLA: ``python -m benchmarks.sparse_attention_decode --help``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from benchmarks.harness.cli import main
from benchmarks.harness.operator import Call, Case, Inputs, Peer, Work
from benchmarks.kernels import loaded_kernel, our_peers
from benchmarks.peers import flash_mla as peer

if TYPE_CHECKING:
    import torch

WIDTH, ROW_BYTES, SCALE = 512, 584, 512**-0.5
WINDOW = 128
BATCHES = (1, 2, 64, 74, 128, 148, 256)
SHAPES = (("CSA", 64, 512, 64), ("CSA", 128, 1024, 64), ("HCA", 64, 1024, 2), ("HCA", 128, 1024, 2))
"""Name, heads, compressed entries of a query, rows of a page of them: FlashMLA's production cases for DeepSeek-V4."""
LOCAL_HEADS = (8, 16, 32)
POOL_ROWS_OF_REQUEST, POOL_ROWS_MAX, DRAWN_ROWS = 16384, 1 << 21, 1 << 16
CHECKED = 5
"""Requests that are compared with float64: as many as all of them would take too long."""
OUT_ABS_MAX, OUT_REL_MAX = 1e-3, 2.01 / 128
LSE_ABS_MAX, LSE_REL_MAX = 1e-6, 8.01 / 65536


def make_case(name: str, heads: int, batch: int, queries: int, extra: int, page: int) -> Case:
    sizes = {"B": batch, "Q": queries, "H": heads, "K0": WINDOW, "K1": extra, "page": page}
    return Case(f"{name} H={heads} B={batch} Q={queries} {WINDOW}+{extra}", sizes)


class SparseAttentionDecodeBenchmark:
    """Window of 128 (pages of 256) and compressed entries, packed FP8 rows from large pools; HCA rows have lengths."""

    op = "sparse_attention_decode"
    ours = "dsv4 kernel"

    def cases(self) -> list[Case]:
        production = [
            make_case(name, heads, batch, queries, extra, page)
            for name, heads, extra, page in SHAPES
            for queries in (1, 2)
            for batch in BATCHES
        ]
        local = [make_case("CSA", heads, batch, 1, 512, 64) for heads in LOCAL_HEADS for batch in (64, 128, 256)]
        return production + local

    def peers(self) -> list[Peer]:
        return [
            *our_peers(kernel),
            Peer("dsv4.flash_mla", ours_as_flash_mla, "the compatible function, host code included"),
            Peer("FlashMLA", flash_mla, "flash_mla_with_kvcache, metadata made before", versions=peer.versions),
        ]

    def make_inputs(self, case: Case, seed: int) -> Inputs:
        import torch

        s = case.sizes
        batch, queries, heads = int(s["B"]), int(s["Q"]), int(s["H"])
        generator = torch.Generator(device="cuda").manual_seed(seed)
        q = torch.randn(batch, queries, heads, WIDTH, device="cuda", generator=generator).clamp(-1, 1)
        inputs: Inputs = {
            "q": q.to(torch.bfloat16),
            "sink": torch.randn(heads, device="cuda", generator=generator),
            "out": torch.full((batch, queries, heads, WIDTH), torch.nan, device="cuda", dtype=torch.bfloat16),
            "lse": torch.full((batch, heads, queries), torch.nan, device="cuda"),
            "softmax_scale": SCALE,
            "empty_lse": -torch.inf,
            "length0": None,
            "length1": None,
            **dict.fromkeys(("kv0", "kv1", "table1", "count1", "max_logits")),
            "parts": workspace(batch * queries, heads),
        }
        rows = min(POOL_ROWS_MAX, batch * POOL_ROWS_OF_REQUEST)
        for number, (keys, page) in enumerate(((s["K0"], 256), (s["K1"], s["page"]))):
            data, made = drawn_pool(rows, int(page), generator)
            shape = (batch, queries, int(keys))
            index = torch.randint(0, made, shape, device="cuda", dtype=torch.int32, generator=generator)
            inputs.update({f"pool{number}": data, f"index{number}": index, f"page{number}": int(page)})
        if has_lengths(case):
            inputs["length1"] = torch.tensor(lengths(case), device="cuda", dtype=torch.int32)
        return inputs

    def check(self, case: Case, inputs: Inputs, output: Any) -> Mapping[str, float]:
        """The largest errors against float64 of a few requests, held to the tolerances of FlashMLA's own tests."""
        import torch

        from dsv4.runtime.pool import Pool, PoolFormat
        from dsv4.runtime.reference.sparse_attention_decode import sparse_attention_decode

        out, lse = output
        some = torch.linspace(0, out.shape[0] - 1, min(CHECKED, out.shape[0])).long().to(out.device)
        pools = [Pool(inputs[f"pool{n}"], PoolFormat.KV_FP8, inputs[f"page{n}"]) for n in range(2)]
        lengths = [None if inputs[f"length{n}"] is None else inputs[f"length{n}"][some] for n in range(2)]
        expected, expected_lse = sparse_attention_decode(
            inputs["q"][some],
            *(pools[0], inputs["index0"][some], lengths[0]),
            *(pools[1], inputs["index1"][some], lengths[1]),
            inputs["sink"],
            softmax_scale=SCALE,
            dtype=torch.float64,
            out_dtype=torch.float64,
        )
        errors: dict[str, float] = {}
        for name, got, wanted, absolute, relative in (
            ("out", out[some], expected, OUT_ABS_MAX, OUT_REL_MAX),
            ("lse", lse[some], expected_lse, LSE_ABS_MAX, LSE_REL_MAX),
        ):
            error = (got.double() - wanted).abs()
            wrong = ~((error <= absolute) | (error <= relative * wanted.abs()))
            if wrong.any():
                raise ValueError(f"{name}: {int(wrong.sum())} elements are off by up to {float(error.max()):.3g}")
            errors[f"{name}_max_abs"] = float(error.max())
        return errors

    def work(self, case: Case) -> Work:
        s = case.sizes
        tokens, heads, queries = int(s["B"]) * int(s["Q"]), int(s["H"]), int(s["Q"])
        keys = queries * sum(int(s["K0"]) + count for count in lengths(case))
        return Work(
            bytes=keys * (ROW_BYTES + 4) + 4 * tokens * heads * WIDTH + 4 * tokens * heads,
            flops=4 * heads * keys * WIDTH,
        )


def has_lengths(case: Case) -> bool:
    return case.label.startswith("HCA")


def lengths(case: Case) -> list[int]:
    """Compressed entries of each request that count: all, or with lengths from few to all."""
    batch, keys = int(case.sizes["B"]), int(case.sizes["K1"])
    return [keys * (number + 1) // batch if has_lengths(case) else keys for number in range(batch)]


def drawn_pool(rows: int, page: int, generator: torch.Generator) -> tuple[torch.Tensor, int]:
    """Packed pages with at least ``rows`` rows, in which some 65,536 drawn ones repeat; and how many rows they are."""
    import torch

    from dsv4.runtime.pool import PoolFormat, page_bytes
    from dsv4.runtime.reference import pages

    drawn = -(-DRAWN_ROWS // page)
    values = torch.randn(drawn * page, WIDTH, device="cuda", generator=generator) / 10
    body, tail = pages.pack(PoolFormat.KV_FP8, values.clamp(-1, 1))
    block = torch.zeros(drawn, page_bytes(PoolFormat.KV_FP8, page), device="cuda", dtype=torch.uint8)
    block[:, : page * body.shape[1]] = body.view(drawn, -1)
    block[:, page * body.shape[1] : page * ROW_BYTES] = tail.view(drawn, -1)
    times = -(-rows // (drawn * page))
    return block.repeat(times, 1), times * drawn * page


def workspace(tokens: int, heads: int) -> torch.Tensor:
    """As the door makes it."""
    import torch

    from dsv4.runtime.ops.sparse_attention_decode import PART_NUMBERS, parts_wanted

    return torch.empty(parts_wanted(tokens, heads), PART_NUMBERS, device="cuda")


def page_flag() -> str:
    """The flag ``cache`` that the door gives here to pools like these, whose strides are multiples of 576 bytes."""
    import torch

    from dsv4.runtime import dispatch
    from dsv4.runtime.ops.sparse_attention_decode import page_format

    return page_format("kv_fp8", dispatch.arch_of(torch.device(dispatch.SHAPES_ONLY)))


def kernel(case: Case, *, pdl: bool) -> Call:
    s = case.sizes
    flags = {"cache": page_flag(), "extra": "rows", "has_length0": False, "has_length1": has_lengths(case)}
    return loaded_kernel(
        "sparse_attention_decode",
        dims={"H": int(s["H"])},
        variant={**flags, "has_sink": True, "has_max": False, "pdl": pdl},
        sizes={name: int(s[name]) for name in ("B", "Q", "K0", "K1")},
        result=lambda s: (s["out"], s["lse"]),
    )


def with_interface(module: Any) -> Call:
    """A call of ``flash_mla_with_kvcache``, ours or theirs; the metadata is made by the first call."""
    metadata = module.get_mla_metadata()[0]

    def call(s: Inputs) -> Any:
        return module.flash_mla_with_kvcache(
            s["q"],
            envelope(s["pool0"], s["page0"]),
            *(None, None, WIDTH, metadata),
            softmax_scale=SCALE,
            is_fp8_kvcache=True,
            indices=s["index0"],
            attn_sink=s["sink"],
            extra_k_cache=envelope(s["pool1"], s["page1"]),
            extra_indices_in_kvcache=s["index1"],
            extra_topk_length=s["length1"],
        )

    return call


def envelope(pool: torch.Tensor, page: int) -> torch.Tensor:
    """FlashMLA's view of packed pages: [pages, P, 1, 584]."""
    import torch

    shape, strides = (pool.shape[0], page, 1, ROW_BYTES), (pool.stride(0), ROW_BYTES, ROW_BYTES, 1)
    return pool.view(torch.float8_e4m3fn).as_strided(shape, strides)


def ours_as_flash_mla(case: Case) -> Call:
    return peer.ours(with_interface)


def flash_mla(case: Case) -> Call:
    return peer.theirs(case, with_interface)


BENCHMARK = SparseAttentionDecodeBenchmark()

if __name__ == "__main__":
    main(BENCHMARK, "benchmarks.sparse_attention_decode")
