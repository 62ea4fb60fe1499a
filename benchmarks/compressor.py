"""compressor beside torch.compile: ``python -m benchmarks.compressor --help``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from benchmarks.harness.cli import main
from benchmarks.harness.operator import Call, Case, Inputs, Peer, Work
from benchmarks.kernels import TOKENS, compiled_peer, loaded_kernel, our_peers

if TYPE_CHECKING:
    import torch

COMPRESSORS = (("csa", 4, 512), ("keys", 4, 128), ("hca", 128, 512))
DECODING = 256
"""Up to so many tokens each is a sequence's next one, their phases spread evenly; more are one prompt from 0 on."""
SPARE, PAGE, EPS, ROTARY = 1, 64, 1e-6, 64
FORMATS = {512: "kv_fp8", 128: "index_fp8"}
ROW_BYTES = {512: (576, 8), 128: (128, 4)}
PAGE_BYTES = {512: 37440, 128: 8640}
ERROR = 4e-2
"""Of stored rows, relative L2: E4M3 alone gives 2.6e-2 of a normal."""
CHECKED = 128
"""Entries at either end that are compared with float64."""


class CompressorBenchmark:
    """The compressors of CSA (main and indexer) and HCA, FP8 pages; Flash and Pro have the same sizes."""

    op = "compressor"
    ours = "dsv4 kernel"

    def cases(self) -> list[Case]:
        return [
            Case(f"T={tokens} {name}", {"T": tokens, "m": ratio, "D": width})
            for name, ratio, width in COMPRESSORS
            for tokens in TOKENS
        ]

    def peers(self) -> list[Peer]:
        return [
            *our_peers(kernel),
            compiled_peer(formula, arguments),
        ]

    def make_inputs(self, case: Case, seed: int) -> Inputs:
        import torch

        tokens, ratio, width = (int(case.sizes[name]) for name in ("T", "m", "D"))
        channels = width * (2 if ratio == 4 else 1)
        generator = torch.Generator(device="cuda").manual_seed(seed)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, device="cuda", generator=generator)

        plan = made_plan(tokens, ratio)
        entries, sequences = plan["entry_rows"].shape[0], tokens if tokens <= DECODING else 1
        angles = 6.28 * torch.rand(entries, ROTARY // 2, device="cuda", generator=generator)
        pages = -(-entries // PAGE) + 1
        return {
            "kv": normal(tokens, channels),
            "score": 1.5 * normal(tokens, channels),
            "ape": 0.5 * normal(ratio, channels),
            "norm": (1 + 0.3 * normal(width)).to(torch.bfloat16),
            "cos_sin": torch.cat((angles.cos(), angles.sin()), dim=-1),
            "state": normal(sequences * (slots_of(ratio) + SPARE) + 1, 2 * channels),
            "pool": torch.zeros(pages, PAGE_BYTES[width], device="cuda", dtype=torch.uint8),
            **plan,
            "page": PAGE,
            "apart": int(tokens <= DECODING),
            "eps": EPS,
        }

    def check(self, case: Case, inputs: Inputs, output: Any) -> Mapping[str, float]:
        """Against float64 (of the first and the last entries): relative errors of stored rows; rows of state exactly.

        No row of state that is read is written in these steps, so they may be repeated.
        """
        import torch

        from dsv4.runtime.pool import Pool, PoolFormat
        from dsv4.runtime.reference import pages

        width = int(case.sizes["D"])
        complete = (inputs["entry_rows"] >= 0).nonzero()[:, 0]
        some = torch.cat([complete[:CHECKED], complete[CHECKED:][-CHECKED:]])
        double = {name: inputs[name].double() for name in ("kv", "score", "ape", "norm", "state")}
        plan = {name: inputs[name][some] for name in ("fresh", "stored")}
        expected = entries_of(**double, cos_sin=inputs["cos_sin"][some].double(), **plan)
        pool = Pool(inputs["pool"], PoolFormat(FORMATS[width]), PAGE)
        got = pages.read_rows(pool, inputs["entry_rows"][some]).double()
        error = ((got - expected).norm() / expected.norm()).item()
        if not error <= ERROR:
            raise ValueError(f"rows: relative error {error:.3g}; valid: at most {ERROR}")
        kept = inputs["state_rows"] >= 0
        gates = inputs["score"] + inputs["ape"][inputs["phase"]]
        rows = torch.cat((inputs["kv"], gates), dim=-1)[kept]
        if not torch.equal(inputs["state"][inputs["state_rows"][kept]], rows):
            raise ValueError("state: rows of kept tokens are not kv and score + ape")
        return {"rows_rel_l2": error, "entries": float(len(complete))}

    def work(self, case: Case) -> Work:
        tokens, ratio, width = (int(case.sizes[name]) for name in ("T", "m", "D"))
        channels, slots = width * (2 if ratio == 4 else 1), slots_of(ratio)
        decoding = tokens <= DECODING
        complete = -(-tokens // ratio) if decoding else tokens // ratio
        kept = tokens if decoding else slots + SPARE
        stored = complete * (slots - 1) if decoding else 0
        read = 8 * channels * tokens + 8 * width * stored + 4 * ratio * channels
        written = 8 * channels * kept + sum(ROW_BYTES[width]) * complete
        return Work(bytes=read + written, flops=6 * complete * slots * width)


def slots_of(ratio: int) -> int:
    return 8 if ratio == 4 else ratio


def made_plan(tokens: int, ratio: int) -> dict[str, torch.Tensor]:
    """The plan of a step (``dsv4.runtime.reference.compressor.Compression``) by name, on the GPU.

    Of T decoding sequences with phases spread over 0 … m − 1 about T / m complete an entry, the first one always.
    """
    import torch

    slots = slots_of(ratio)
    ring = slots + SPARE
    if tokens <= DECODING:
        first = 2 * ratio + ratio - 1 - torch.arange(tokens) * ratio // tokens
        owner = sequence = torch.arange(tokens)
        entry, positions, last = first // ratio, first, first
        complete = (first + 1) % ratio == 0
    else:
        first, positions, entry = torch.zeros(1, dtype=torch.int64), torch.arange(tokens), torch.arange(tokens // ratio)
        owner, sequence, last = torch.zeros_like(entry), torch.zeros_like(positions), positions[-1:]
        complete = torch.ones_like(entry, dtype=torch.bool)
    members = (entry[:, None] + 1) * ratio - slots + torch.arange(slots)
    since = members - first[owner][:, None]
    fresh = torch.where((since >= 0) & complete[:, None], owner[:, None] + since, -1)
    is_stored = (since < 0) & (members >= 0) & complete[:, None]
    plan = {
        "phase": positions % ratio,
        "fresh": fresh,
        "stored": torch.where(is_stored, owner[:, None] * ring + members % ring, -1),
        "entry_rows": torch.where(complete, torch.arange(len(entry)), -1),
        "state_rows": torch.where(positions > last - ring, sequence * ring + positions % ring, -1),
    }
    return {name: tensor.contiguous().cuda() for name, tensor in plan.items()}


def entries_of(
    kv: torch.Tensor,
    score: torch.Tensor,
    ape: torch.Tensor,
    norm: torch.Tensor,
    state: torch.Tensor,
    cos_sin: torch.Tensor,
    fresh: torch.Tensor,
    stored: torch.Tensor,
) -> torch.Tensor:
    """Entries [N, D] before they are quantised, in the dtype of kv (dsv4-reference §5.2, §6.2)."""
    import torch

    width, channels, slots = norm.shape[0], kv.shape[1], fresh.shape[1]
    half = (
        torch.arange(slots, device=kv.device) // ape.shape[0] if channels == 2 * width else torch.zeros_like(fresh[0])
    )
    columns = (half[:, None] * width + torch.arange(width, device=kv.device)).expand(fresh.shape[0], -1, -1)
    turn = torch.arange(slots, device=kv.device) % ape.shape[0]
    is_fresh, is_stored = (fresh >= 0)[..., None], (stored >= 0)[..., None]
    new, old = fresh.clamp(min=0)[..., None], stored.clamp(min=0)[..., None]
    values = torch.where(is_fresh, kv[new, columns], state[old, columns])
    gates = torch.where(is_fresh, score[new, columns] + ape[turn[:, None], columns], state[old, columns + channels])
    exists = is_fresh | is_stored
    weights = gates.masked_fill(~exists, -torch.inf).softmax(dim=1).nan_to_num(nan=0.0)
    mean = (weights * values.masked_fill(~exists, 0.0)).sum(dim=1)
    mean = mean * (mean.square().mean(-1, keepdim=True) + EPS).rsqrt() * norm
    even, odd = mean[:, -ROTARY::2], mean[:, -ROTARY + 1 :: 2]
    cos, sin = cos_sin[:, : ROTARY // 2], cos_sin[:, ROTARY // 2 :]
    turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)
    rows = torch.cat((mean[:, :-ROTARY], turned), dim=-1)
    if width == 128:
        places = torch.arange(width, device=kv.device)
        bits = (places[:, None] & places)[..., None] >> torch.arange(7, device=kv.device) & 1
        rows = rows @ (1 - 2 * (bits.sum(-1) & 1)).to(rows.dtype) * width**-0.5
    return rows


def formula(s: Inputs) -> torch.Tensor:
    """float32 inside, one rounding; entries that are not complete go to the pool's last row, as −1 says."""
    import torch

    names = ("kv", "score", "ape", "norm", "state", "cos_sin", "fresh", "stored")
    rows = entries_of(**{name: s[name].float() if s[name].is_floating_point() else s[name] for name in names})
    pool, width = s["pool"], rows.shape[1]
    body_bytes, tail_bytes = ROW_BYTES[width]
    page, offset = s["entry_rows"] // PAGE, s["entry_rows"] % PAGE
    body = pool[:, : PAGE * body_bytes].unflatten(1, (PAGE, body_bytes))
    tail = pool[:, PAGE * body_bytes : PAGE * (body_bytes + tail_bytes)].unflatten(1, (PAGE, tail_bytes))
    block, coded = (64, 448) if width == 512 else (128, 128)
    blocks = rows[:, :coded].unflatten(-1, (-1, block))
    exponent = (((blocks.abs().amax(-1).clamp(min=1e-4) * (1 / 448)).view(torch.int32) + 0x7FFFFF) >> 23) & 0xFF
    codes = (blocks * ((254 - exponent) << 23).view(torch.float32)[..., None]).to(torch.float8_e4m3fn).flatten(1)
    if width == 512:
        rotary = rows[:, coded:].to(torch.bfloat16)
        body[page, offset] = torch.cat((codes.view(torch.uint8), rotary.view(torch.uint8)), dim=-1)
        tail[page, offset, :7] = exponent.to(torch.uint8)
    else:
        body[page, offset] = codes.view(torch.uint8)
        tail[page, offset] = (exponent << 23).view(torch.float32).view(torch.uint8).view(-1, 4)
    kept = torch.cat((s["kv"], s["score"] + s["ape"][s["phase"]]), dim=-1)
    s["state"][s["state_rows"]] = kept
    return pool


def arguments(s: Inputs) -> tuple[Any, ...]:
    return (s,)


def kernel(case: Case, *, pdl: bool) -> Call:
    tokens, ratio, width = (int(case.sizes[name]) for name in ("T", "m", "D"))
    entries = tokens if tokens <= DECODING else tokens // ratio
    sequences = tokens if tokens <= DECODING else 1
    return loaded_kernel(
        "compressor",
        dims={"m": ratio, "D": width},
        variant={"format": FORMATS[width], "hadamard": width == 128, "inputs": "f32", "pdl": pdl},
        sizes={
            "T": tokens,
            "N": entries,
            "R": sequences * (slots_of(ratio) + SPARE) + 1,
            "NP": -(-entries // PAGE) + 1,
            "PB": PAGE_BYTES[width],
            "PR": 1,
        },
        result=lambda s: s["pool"],
    )


BENCHMARK = CompressorBenchmark()

if __name__ == "__main__":
    main(BENCHMARK, "benchmarks.compressor")
