"""quantize beside torch.compile: ``python -m benchmarks.quantize --help``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.block_codes import (
    SCALE_LAYOUTS,
    code_bytes,
    dequantized,
    error_of_codes,
    fp8_formula,
    quantized_outputs,
    scale_count,
)
from benchmarks.harness.cli import main
from benchmarks.harness.operator import Call, Case, Inputs, Peer, Unavailable, Work
from benchmarks.kernels import TOKENS, compiled, loaded_kernel, our_peers
from benchmarks.peers import flashinfer, tile_kernels

COLUMNS = (4096, 7168)
FORMATS = ("fp8_128", "nvfp4")


class QuantizeBenchmark:
    """x bf16 [T, K] as codes and scales, the sizes of Flash and Pro."""

    op = "quantize"
    ours = "dsv4 kernel"

    def cases(self) -> list[Case]:
        return [
            Case(f"{format} T={tokens} K={columns}", {"T": tokens, "K": columns, "format": number})
            for number, format in enumerate(FORMATS)
            for columns in COLUMNS
            for tokens in TOKENS
        ]

    def peers(self) -> list[Peer]:
        return [
            *our_peers(kernel),
            Peer("tile-kernels", tile_peer, "TileKernels' per_token_cast (fp8_128 only)", tile_kernels.versions),
            Peer("flashinfer", flashinfer_peer, "flashinfer's fp4_quantize (nvfp4 only)", flashinfer.versions),
            Peer("torch.compile", torch_compiled, "the formula, compiled for each shape (fp8_128 only)"),
        ]

    def make_inputs(self, case: Case, seed: int) -> Inputs:
        import torch

        rows, columns, format = sizes(case)
        generator = torch.Generator(device="cuda").manual_seed(seed)
        x = torch.randn(rows, columns, device="cuda", dtype=torch.bfloat16, generator=generator)
        return {
            "x": x,
            "input_scale": torch.full((1,), 4.5 / (6 * 448), device="cuda"),
            **quantized_outputs(format, SCALE_LAYOUTS[format], rows, columns),
        }

    def check(self, case: Case, inputs: Inputs, output: Any) -> Mapping[str, float]:
        """Of the first 1,024 rows: what the codes stand for, against x. Half a step of the format is its due."""
        rows, _, format = sizes(case)
        kept = min(rows, 1024)
        values = dequantized(format, output, rows, inputs["input_scale"])[:kept]
        return error_of_codes(format, values, inputs["x"][:kept].double())

    def work(self, case: Case) -> Work:
        rows, columns, format = sizes(case)
        moved = 2 * rows * columns + code_bytes(format, rows, columns) + rows * scale_count(format, columns)
        return Work(bytes=moved, flops=rows * columns)


def sizes(case: Case) -> tuple[int, int, str]:
    return int(case.sizes["T"]), int(case.sizes["K"]), FORMATS[int(case.sizes["format"])]


def tile_peer(case: Case) -> Call:
    if sizes(case)[2] != "fp8_128":
        raise Unavailable("measured for fp8_128 only")
    return tile_kernels.per_token_cast(case, block=128)


def flashinfer_peer(case: Case) -> Call:
    if sizes(case)[2] != "nvfp4":
        raise Unavailable("flashinfer has no codes by 128 columns with powers of two as scales")
    return flashinfer.quantize_nvfp4(case)


def kernel(case: Case, *, pdl: bool) -> Call:
    rows, columns, format = sizes(case)
    variant = {"format": format, "scale_layout": SCALE_LAYOUTS[format], "pdl": pdl}
    return loaded_kernel(
        "quantize",
        dims={"K": columns},
        variant=variant,
        sizes={"T": rows},
        result=lambda s: (s["codes"], s["scale"]),
    )


def torch_compiled(case: Case) -> Call:
    if sizes(case)[2] != "fp8_128":
        raise Unavailable("written for fp8_128 only")
    return compiled(fp8_formula, lambda s: (s["x"],))


BENCHMARK = QuantizeBenchmark()

if __name__ == "__main__":
    main(BENCHMARK, "benchmarks.quantize")
