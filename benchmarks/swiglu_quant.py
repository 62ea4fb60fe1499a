"""swiglu_quant beside torch.compile: ``python -m benchmarks.swiglu_quant --help``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

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
from benchmarks.peers import tile_kernels

if TYPE_CHECKING:
    import torch

WIDTHS = (2048, 3072)
FORMATS = ("fp8_128", "nvfp4")
LIMIT = 10.0


class SwigluQuantBenchmark:
    """h = silu(min(gate, 10)) · clamp(up, ±10) · weight, quantised; the experts of Flash and Pro. T: routed rows.

    The routed experts have gates and ups in one row and a weight; the shared one two tensors and no weight (1 here).
    """

    op = "swiglu_quant"
    ours = "dsv4 kernel"

    def cases(self) -> list[Case]:
        return [
            Case(
                f"{format}{' two tensors' if two else ''} T={tokens} I={width}",
                {"T": tokens, "I": width, "format": FORMATS.index(format), "two": two},
            )
            for format, two in (("fp8_128", False), ("nvfp4", False), ("fp8_128", True))
            for width in WIDTHS
            for tokens in TOKENS
        ]

    def peers(self) -> list[Peer]:
        return [
            *our_peers(kernel),
            Peer("tile-kernels", tile_peer, "TileKernels' fused SwiGLU and cast (fp8_128 only)", tile_kernels.versions),
            Peer("torch.compile", torch_compiled, "the formula, compiled for each shape (fp8_128 only)"),
        ]

    def make_inputs(self, case: Case, seed: int) -> Inputs:
        import torch

        rows, width, format = sizes(case)
        generator = torch.Generator(device="cuda").manual_seed(seed)
        options: dict[str, Any] = {"device": "cuda", "generator": generator}
        gate_up = 2 * torch.randn(rows, 2 * width, dtype=torch.bfloat16, **options)
        held: Inputs = {"gate_up": gate_up, "route_weight": torch.rand(rows, **options) + 0.05}
        if case.sizes["two"]:
            gates, ups = (part.contiguous() for part in gate_up.chunk(2, dim=-1))
            held = {"gates": gates, "ups": ups}
        return {
            **held,
            "input_scale": torch.full((1,), 0.01, device="cuda"),
            "limit": LIMIT,
            **quantized_outputs(format, SCALE_LAYOUTS[format], rows, width),
        }

    def check(self, case: Case, inputs: Inputs, output: Any) -> Mapping[str, float]:
        """Of the first 1,024 rows: what the codes stand for, against float64."""
        rows, _, format = sizes(case)
        kept = min(rows, 1024)
        expected = formula(*(part[:kept].double() for part in arguments(inputs)))
        values = dequantized(format, output, rows, inputs["input_scale"])[:kept]
        return error_of_codes(format, values, expected)

    def work(self, case: Case) -> Work:
        rows, width, format = sizes(case)
        moved = 4 * rows * width + code_bytes(format, rows, width) + rows * scale_count(format, width)
        weights = 0 if case.sizes["two"] else 4 * rows
        return Work(bytes=moved + weights, flops=8 * rows * width)


def arguments(s: Inputs) -> tuple[torch.Tensor, ...]:
    """Gates, ups and, where there is one, the rows' weight."""
    if "gates" in s:
        return s["gates"], s["ups"]
    return *s["gate_up"].chunk(2, dim=-1), s["route_weight"]


def formula(gate: torch.Tensor, up: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
    gate, up = gate.clamp(max=LIMIT), up.clamp(-LIMIT, LIMIT)
    h = gate * gate.neg().exp().add(1).reciprocal() * up
    return h if weight is None else h * weight[:, None]


def fused(gate: torch.Tensor, up: torch.Tensor, *weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return fp8_formula(formula(gate.float(), up.float(), *weight))


def sizes(case: Case) -> tuple[int, int, str]:
    return int(case.sizes["T"]), int(case.sizes["I"]), FORMATS[int(case.sizes["format"])]


def kernel(case: Case, *, pdl: bool) -> Call:
    rows, width, format = sizes(case)
    two = bool(case.sizes["two"])
    variant = {"format": format, "scale_layout": SCALE_LAYOUTS[format], "pdl": pdl}
    return loaded_kernel(
        "swiglu_quant",
        dims={"I": width},
        variant={"gate_up_layout": "separate" if two else "halves", "weighted": not two, **variant},
        sizes={"T": rows},
        result=lambda s: (s["codes"], s["scale"]),
    )


def tile_peer(case: Case) -> Call:
    if sizes(case)[2] != "fp8_128" or case.sizes["two"]:
        raise Unavailable("for gates and ups in one row; measured for fp8_128 only")
    return tile_kernels.swiglu_quant(case, limit=LIMIT)


def torch_compiled(case: Case) -> Call:
    if sizes(case)[2] != "fp8_128":
        raise Unavailable("written for fp8_128 only")
    return compiled(fused, arguments)


BENCHMARK = SwigluQuantBenchmark()

if __name__ == "__main__":
    main(BENCHMARK, "benchmarks.swiglu_quant")
