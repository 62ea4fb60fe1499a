"""rms_norm_quant beside torch.compile: ``python -m benchmarks.rms_norm_quant --help``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from benchmarks.block_codes import (
    BLOCK,
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
from benchmarks.peers import flashinfer

if TYPE_CHECKING:
    import torch

COLUMNS = (1024, 1536, 4096, 7168)
FORMATS = ("fp8_128", "nvfp4")
EPS = 1e-6


class RmsNormQuantBenchmark:
    """RMS norm with quantised output: q_norm and attn_norm of Flash and Pro; nvfp4, with y, in front of the experts."""

    op = "rms_norm_quant"
    ours = "dsv4 kernel"

    def cases(self) -> list[Case]:
        made = [(format, columns) for format in (0, 1) for columns in COLUMNS if format == 0 or columns >= 4096]
        return [
            Case(
                f"{FORMATS[format]} T={tokens} d={columns}{' with y' if format else ''}",
                {"T": tokens, "d": columns, "format": format},
            )
            for format, columns in made
            for tokens in TOKENS
        ]

    def peers(self) -> list[Peer]:
        return [  # quack's norm has no quantised output
            *our_peers(kernel),
            Peer(
                "flashinfer",
                flashinfer_peer,
                "fp8: one given scale for the whole tensor, which is less to do; nvfp4: without y",
                flashinfer.versions,
            ),
            Peer("torch.compile", torch_compiled, "the formula, compiled for each shape (fp8_128 only)"),
        ]

    def make_inputs(self, case: Case, seed: int) -> Inputs:
        import torch

        rows, columns, format = sizes(case)
        generator = torch.Generator(device="cuda").manual_seed(seed)
        options: dict[str, Any] = {"device": "cuda", "dtype": torch.bfloat16, "generator": generator}
        x = torch.randn(rows, columns, **options)
        return {
            "x": x,
            "w": 1 + 0.5 * torch.randn(columns, **options),
            "input_scale": torch.full((1,), 6.0 / (6 * 448), device="cuda"),
            "eps": EPS,
            "y": torch.full_like(x, float("nan")),
            **quantized_outputs(format, SCALE_LAYOUTS[format], rows, columns),
        }

    def check(self, case: Case, inputs: Inputs, output: Any) -> Mapping[str, float]:
        """Of the first 1,024 rows: what the codes stand for, against float64."""
        rows, _, format = sizes(case)
        kept = min(rows, 1024)
        expected = formula(inputs["x"][:kept].double(), inputs["w"].double())
        values = dequantized(format, output, rows, inputs["input_scale"])[:kept]
        return error_of_codes(format, values, expected)

    def work(self, case: Case) -> Work:
        rows, columns, format = sizes(case)
        moved = 2 * (rows + 1) * columns + code_bytes(format, rows, columns) + rows * scale_count(format, columns)
        with_y = 2 * rows * columns if format == "nvfp4" else 0
        return Work(bytes=moved + with_y, flops=5 * rows * columns)


def formula(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return w * x * (x.square().mean(-1, keepdim=True) + EPS).rsqrt()


def fused(x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return fp8_formula(formula(x.float(), w.float()).to(x.dtype))


def sizes(case: Case) -> tuple[int, int, str]:
    return int(case.sizes["T"]), int(case.sizes["d"]), FORMATS[int(case.sizes["format"])]


def kernel(case: Case, *, pdl: bool) -> Call:
    rows, columns, format = sizes(case)
    variant = {"format": format, "scale_layout": SCALE_LAYOUTS[format], "with_y": format == "nvfp4", "pdl": pdl}
    return loaded_kernel(
        "rms_norm_quant",
        dims={"d": columns},
        variant=variant,
        sizes={"T": rows},
        result=lambda s: (s["codes"], s["scale"]),
    )


def flashinfer_peer(case: Case) -> Call:
    if sizes(case)[2] == "nvfp4":
        return flashinfer.rms_norm_nvfp4(case)
    return flashinfer.rms_norm_fp8(case, block=BLOCK["fp8_128"])


def torch_compiled(case: Case) -> Call:
    if sizes(case)[2] != "fp8_128":
        raise Unavailable("written for fp8_128 only")
    return compiled(fused, lambda s: (s["x"], s["w"]))


BENCHMARK = RmsNormQuantBenchmark()

if __name__ == "__main__":
    main(BENCHMARK, "benchmarks.rms_norm_quant")
