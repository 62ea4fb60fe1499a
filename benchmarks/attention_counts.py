"""What attention on sm_100a asks of an SM for a tile of keys: ``python -m benchmarks.attention_counts --write``.

The counts are the cost model's (``tuner/cost/launches.yaml``) and stand in docs/notes/attention_sm100_counts.md: what
every prediction for these kernels rests on. Nothing in it was measured. Without --write the file is compared with what
would be written: exit code 1 if it differs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from dsv4.generator.kernel import KernelPlan
from dsv4.generator.spec import plan
from dsv4.runtime.artifact import Scalar
from dsv4.tuner.cost.counts import count

ARCH = "sm_100a"
NOTE = Path(__file__).parent.parent / "docs" / "notes" / "attention_sm100_counts.md"
FLOP_PER_CYCLE, EXP2_PER_CYCLE, SMEM_BYTES_PER_CYCLE, ISSUES_PER_CYCLE = 8192, 16, 128, 4
"""Of one SM: bf16 products (the datasheet's 2,250 TFLOP/s at 1.856 GHz), exponentials, shared memory, warps."""
FEW_TILES, MORE_TILES = 8, 24
QUERIES = 148
COLUMNS = (
    *("kernel", "keys", "bytes", "shared memory", "tensor cores", "exp2", "issue", "limit", "CTAs an SM"),
    *("its shared memory", "TMEM columns"),
)
HEAD = """# Attention on sm_100a: counts for a tile of keys

Written by `python -m benchmarks.attention_counts --write` from the cost model's counts; a test holds this file to them.
**Nothing here was measured, and no kernel for sm_100a has run on a chip.** Of one CTA, for one tile of its keys: bytes
through the SM's port to the L2; cycles of an SM at 8,192 FLOP of bf16, 16 exponentials, 128 bytes of shared memory and
4 warp instructions a cycle (those of the correction as if some row's maximum grew in every tile). The most cycles of a
row are its limit if everything overlaps. Up to 32 heads the heads are columns of the products, and the tensor cores
wait for operands from shared memory: the cycles that these take count as theirs. Defaults but for what is named.

"""


@dataclass(frozen=True)
class Tile:
    """Bytes and cycles of one CTA for one tile, and what fits an SM."""

    keys: int
    bytes: int
    smem: int
    mma: int
    exp2: int
    issue: int
    resident: int

    @property
    def limit(self) -> str:
        cycles = {"shared memory": self.smem, "tensor cores": self.mma, "exp2": self.exp2, "issue": self.issue}
        return max(cycles, key=lambda name: cycles[name])


def kernels() -> dict[str, KernelPlan]:
    def decode(heads: int, variant: dict[str, Scalar], **config: Scalar) -> KernelPlan:
        return plan("sparse_attention_decode", ARCH, dims={"H": heads}, variant=variant, config={"splits": 1, **config})

    def fmha(op: str, width: int, **config: Scalar) -> KernelPlan:
        return plan(op, ARCH, dims={"D": width}, config=config)

    packed: dict[str, Scalar] = {"cache": "kv_fp8_aligned"}
    return {
        **{f"decode, {heads} heads, packed": decode(heads, packed) for heads in (8, 16, 32, 64)},
        "16 heads, K in shared memory (`k_operand` smem)": decode(16, packed, k_operand="smem"),
        "16 heads filled up to 64 (`heads_as_rows`)": decode(16, packed, operand_order="heads_as_rows"),
        "decode, 16 heads, bf16": decode(16, {"cache": "plain"}),
        "decode, 64 heads, bf16": decode(64, {"cache": "plain"}),
        "decode, 128 heads, packed": decode(128, packed),
        "the same in pairs (`cta_group` 2)": decode(128, packed, cta_group=2),
        **{f"fmha, D = {width}": fmha("fmha", width) for width in (64, 128, 256, 512)},
        "fmha, D = 64, `exp2_emulated` 8": fmha("fmha", 64, exp2_emulated=8, opt_level=1),
        "fmha_varlen, D = 128": fmha("fmha_varlen", 128),
    }


def tile_of(kernel: KernelPlan) -> Tile:
    """From the difference between calls with more and with fewer tiles, all of whose CTAs have the same work."""
    ctas, found = QUERIES, []
    for tiles in (FEW_TILES, MORE_TILES):
        if kernel.op == "sparse_attention_decode":
            keys, ctas = 64, QUERIES * -(-kernel.dims["H"] // 64)
            sizes = {"B": QUERIES, "Q": 1, "K0": tiles * keys, "K1": 0, "PT": 0, "page1": 1}
        else:
            keys, ctas = int(kernel.config["tile_n"]), QUERIES * int(kernel.config["column_split"])
            rows = int(kernel.config["q_tiles"]) * int(kernel.config["tile_m"])
            sizes = {"B": 1, "Hq": QUERIES, "Hkv": QUERIES}
            if kernel.op == "fmha":
                sizes |= {"Sq": rows, "Sk": tiles * keys}
            else:
                sizes |= {"TQ": rows, "P": 1, "T": tiles * keys}
        (launch,) = count(kernel, sizes)
        found.append(launch)
    few, more = found

    def each(name: str, rate: int = 1, of: int = ctas) -> int:
        return round((getattr(more, name) - getattr(few, name)) / (MORE_TILES - FEW_TILES) / of / rate)

    return Tile(
        keys=keys,
        bytes=each("l2_bytes"),
        smem=each("smem_bytes", SMEM_BYTES_PER_CYCLE),
        mma=each("mma_flop", FLOP_PER_CYCLE),
        exp2=each("exp2", EXP2_PER_CYCLE),
        issue=each("instructions", ISSUES_PER_CYCLE, more.ctas),
        resident=more.resident,
    )


def text() -> str:
    """The note."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    for name, kernel in kernels().items():
        tile = tile_of(kernel)
        numbers = (tile.keys, tile.bytes, tile.smem, tile.mma, tile.exp2, tile.issue)
        budget = kernel.budget
        cells = [name, *(f"{number:,}" for number in numbers), tile.limit, str(tile.resident)]
        cells += [f"{budget.smem_bytes:,} B", str(budget.tmem_columns)]
        lines.append("| " + " | ".join(cells) + " |")
    return HEAD + "\n".join(lines) + "\n"


def main(write: Annotated[bool, typer.Option("--write", help="Write the note.")] = False) -> None:
    made = text()
    if write:
        NOTE.write_text(made)
    raise typer.Exit(int(not NOTE.exists() or NOTE.read_text() != made))


if __name__ == "__main__":
    typer.run(main)
