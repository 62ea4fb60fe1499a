"""dequantize beside torch.compile: ``python -m benchmarks.dequantize --help``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from benchmarks.block_codes import BLOCK, code_bytes, dequantized, scale_count
from benchmarks.harness.cli import main
from benchmarks.harness.operator import Call, Case, Inputs, Peer, Unavailable, Work
from benchmarks.kernels import TOKENS, bf16_position, compiled, loaded_kernel, our_peers
from benchmarks.peers import tile_kernels

if TYPE_CHECKING:
    import torch

COLUMNS = (4096, 7168)
FORMATS = ("fp8_128", "nvfp4")


class DequantizeBenchmark:
    """Codes and row-major scales [T, K] back as bf16, the sizes of Flash and Pro."""

    op = "dequantize"
    ours = "dsv4 kernel"

    def cases(self) -> list[Case]:
        made = [("fp8_128", columns) for columns in COLUMNS] + [("nvfp4", 4096)]
        return [
            Case(f"{format} T={tokens} K={columns}", {"T": tokens, "K": columns, "format": FORMATS.index(format)})
            for format, columns in made
            for tokens in TOKENS
        ]

    def peers(self) -> list[Peer]:
        return [
            *our_peers(kernel),
            Peer("tile-kernels", tile_peer, "TileKernels' per_token_cast_back (fp8_128 only)", tile_kernels.versions),
            Peer("torch.compile", torch_compiled, "the formula, compiled for each shape (fp8_128 only)"),
        ]

    def make_inputs(self, case: Case, seed: int) -> Inputs:
        import torch

        rows, columns, format = sizes(case)
        generator = torch.Generator(device="cuda").manual_seed(seed)

        def drawn(width: int, low: int, high: int) -> torch.Tensor:
            return torch.randint(low, high, (rows, width), device="cuda", generator=generator, dtype=torch.uint8)

        packed = format == "nvfp4"
        codes = drawn(columns // 2, 0, 256) if packed else drawn(columns, 0, 0x7F).view(torch.float8_e4m3fn)
        scale = drawn(scale_count(format, columns), 100, 126)  # none is NaN in either dtype
        return {
            "codes": codes,
            "scale": scale.view(torch.float8_e4m3fn if packed else torch.float8_e8m0fnu),
            "input_scale": torch.full((1,), 0.01, device="cuda"),
            "x": torch.full((rows, columns), float("nan"), dtype=torch.bfloat16, device="cuda"),
        }

    def check(self, case: Case, inputs: Inputs, output: Any) -> Mapping[str, float]:
        """Of the first 1,024 rows, against float64: bf16 steps apart."""
        import torch

        rows, _, format = sizes(case)
        pair = inputs["codes"][:1024], inputs["scale"][:1024]
        expected = dequantized(format, pair, min(rows, 1024), inputs["input_scale"])
        steps = (bf16_position(output[:1024]) - bf16_position(expected.to(torch.bfloat16))).abs()
        worst = float(steps.max().item())
        if not worst <= 1:
            raise ValueError(f"{worst:.0f} bf16 steps from the float64 result; valid: at most 1")
        return {"max_bf16_steps": worst}

    def work(self, case: Case) -> Work:
        rows, columns, format = sizes(case)
        moved = 2 * rows * columns + code_bytes(format, rows, columns) + rows * scale_count(format, columns)
        return Work(bytes=moved, flops=rows * columns)


def formula(codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    import torch

    blocks = codes.float().unflatten(-1, (-1, BLOCK["fp8_128"]))
    return (blocks * scale.float()[..., None]).flatten(-2).to(torch.bfloat16)


def sizes(case: Case) -> tuple[int, int, str]:
    return int(case.sizes["T"]), int(case.sizes["K"]), FORMATS[int(case.sizes["format"])]


def kernel(case: Case, *, pdl: bool) -> Call:
    rows, columns, format = sizes(case)
    return loaded_kernel(
        "dequantize",
        dims={"K": columns},
        variant={"format": format, "scale_layout": "row_major", "pdl": pdl},
        sizes={"T": rows},
        result=lambda s: s["x"],
    )


def tile_peer(case: Case) -> Call:
    if sizes(case)[2] != "fp8_128":
        raise Unavailable("measured for fp8_128 only")
    return tile_kernels.cast_back(case, block=BLOCK["fp8_128"])


def torch_compiled(case: Case) -> Call:
    if sizes(case)[2] != "fp8_128":
        raise Unavailable("written for fp8_128 only")
    return compiled(formula, lambda s: (s["codes"], s["scale"]))


BENCHMARK = DequantizeBenchmark()

if __name__ == "__main__":
    main(BENCHMARK, "benchmarks.dequantize")
