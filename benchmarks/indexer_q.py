"""indexer_q beside torch.compile: ``python -m benchmarks.indexer_q --help``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from benchmarks.harness.cli import main
from benchmarks.harness.operator import Call, Case, Inputs, Peer, Work
from benchmarks.kernels import TOKENS, compiled_peer, loaded_kernel, our_peers

if TYPE_CHECKING:
    import torch

HEADS, WIDTH, ROTARY = 64, 128, 64
FACTOR = (HEADS * WIDTH) ** -0.5
ERRORS = {"fp8": 4e-2, "fp4": 0.16}
"""Of codes · scales, relative L2: the codes alone give 2.6e-2 and 0.11 of a normal."""
CHECKED = 256
"""Tokens at either end that are compared with float64."""


class IndexerQBenchmark:
    """q [T, 64, 128] rotated, transformed and quantised, its weights folded; Flash and Pro have the same sizes."""

    op = "indexer_q"
    ours = "dsv4 kernel"

    def cases(self) -> list[Case]:
        return [
            Case(f"T={tokens} {'fp4' if fp4 else 'fp8'}", {"T": tokens, "fp4": fp4})
            for fp4 in (False, True)
            for tokens in TOKENS
        ]

    def peers(self) -> list[Peer]:
        return [
            *our_peers(kernel),
            compiled_peer(formula, arguments),
        ]

    def make_inputs(self, case: Case, seed: int) -> Inputs:
        import torch

        tokens, fp4 = int(case.sizes["T"]), bool(case.sizes["fp4"])
        generator = torch.Generator(device="cuda").manual_seed(seed)
        angles = 6.28 * torch.rand(tokens, ROTARY // 2, device="cuda", generator=generator)

        def filled(columns: int, byte: int) -> torch.Tensor:
            return torch.full((tokens, HEADS, columns), byte, device="cuda", dtype=torch.uint8)

        inputs: Inputs = {
            "q": torch.randn(tokens, HEADS, WIDTH, device="cuda", dtype=torch.bfloat16, generator=generator),
            "cos_sin": torch.cat((angles.cos(), angles.sin()), dim=-1),
            "weights": torch.randn(tokens, HEADS, device="cuda", generator=generator),
            "scale": filled(4 if fp4 else 1, 0xFF).view(torch.float8_e8m0fnu),
            "folded": torch.full((tokens, HEADS), float("nan"), device="cuda"),
            "factor": FACTOR,
            "hadamard": sylvester(torch.float32, angles.device),
        }
        if fp4:
            inputs["packed"] = filled(WIDTH // 2, 0xFF)
        else:
            inputs["codes"] = filled(WIDTH, 0x7F).view(torch.float8_e4m3fn)
        return inputs

    def check(self, case: Case, inputs: Inputs, output: Any) -> Mapping[str, float]:
        """Against float64 (of the first and the last tokens): relative errors of codes · scales and of the weights."""
        import torch

        from dsv4.runtime.reference import codes as number_codes

        tokens, code = int(case.sizes["T"]), "fp4" if case.sizes["fp4"] else "fp8"
        ends = torch.arange(tokens, device=inputs["q"].device)
        ends = torch.cat([ends[:CHECKED], ends[CHECKED:][-CHECKED:]])
        q, table = inputs["q"][ends].double(), inputs["cos_sin"][ends].double()
        expected = turned(q, table) @ sylvester(torch.float64, q.device)
        made, scale, folded = (part[ends] for part in output)
        size = torch.exp2(scale.view(torch.uint8).double() - 127)
        said = number_codes.unpack_e2m1(made, dtype=torch.float64) if code == "fp4" else made.double()
        said = said * size.repeat_interleave(WIDTH // size.shape[-1], dim=-1)
        error = ((said - expected).norm() / expected.norm()).item()
        weights = inputs["weights"][ends].double() * FACTOR * (1 if code == "fp4" else size[..., 0])
        off = ((folded.double() - weights).abs() / weights.abs()).max().item()
        if not (error <= ERRORS[code] and off <= 1e-6):
            raise ValueError(f"relative errors {error:.3g}, {off:.3g}; valid: at most {ERRORS[code]}, 1e-6")
        return {"rel_l2": error, "weights": off}

    def work(self, case: Case) -> Work:
        rows = int(case.sizes["T"]) * HEADS
        written = WIDTH // 2 + 4 if case.sizes["fp4"] else WIDTH + 1
        return Work(bytes=rows * (2 * WIDTH + written + 8) + int(case.sizes["T"]) * 4 * ROTARY, flops=1100 * rows)


def sylvester(dtype: torch.dtype, device: Any) -> torch.Tensor:
    """The normalised Hadamard matrix [128, 128]."""
    import torch

    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < WIDTH:
        matrix = torch.cat((torch.cat((matrix, matrix), 1), torch.cat((matrix, -matrix), 1)))
    return (matrix * WIDTH**-0.5).to(dtype=dtype, device=device)


def turned(x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """x [T, h, 128] with its last 64 numbers rotated by the table's angles, in the dtype of both."""
    import torch

    even, odd = x[..., -ROTARY::2], x[..., -ROTARY + 1 :: 2]
    cos, sin = table[:, None, : ROTARY // 2], table[:, None, ROTARY // 2 :]
    pairs = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)
    return torch.cat((x[..., :-ROTARY], pairs), dim=-1)


def formula(
    q: torch.Tensor, cos_sin: torch.Tensor, weights: torch.Tensor, hadamard: torch.Tensor, fp4: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """float32 inside (the transform as a product with its matrix): codes, the bytes of their scales, weights."""
    import torch

    wide = turned(q.float(), cos_sin) @ hadamard
    blocks = wide.unflatten(-1, (4 if fp4 else 1, -1))
    floor, largest = (6 * 2.0**-126, 6) if fp4 else (1e-4, 448)
    bits = (blocks.abs().amax(-1).clamp(min=floor) * (1 / largest)).view(torch.int32)
    exponent = ((bits + 0x7FFFFF) >> 23) & 0xFF
    scaled = (blocks * ((254 - exponent) << 23).view(torch.float32)[..., None]).flatten(-2)
    if not fp4:
        folded = weights * FACTOR * (exponent << 23).view(torch.float32).squeeze(-1)
        return scaled.to(torch.float8_e4m3fn), exponent.to(torch.uint8), folded
    size = scaled.abs()
    code = (size > 0.25).to(torch.uint8) + (size >= 0.75) + (size > 1.25) + (size >= 1.75) + (size > 2.5)
    code = code + (size >= 3.5) + (size > 5) + 8 * torch.signbit(scaled)
    return (code[..., 0::2] | code[..., 1::2] << 4).to(torch.uint8), exponent.to(torch.uint8), weights * FACTOR


def arguments(s: Inputs) -> tuple[Any, ...]:
    return s["q"], s["cos_sin"], s["weights"], s["hadamard"], "packed" in s


def kernel(case: Case, *, pdl: bool) -> Call:
    code = "fp4" if case.sizes["fp4"] else "fp8"
    return loaded_kernel(
        "indexer_q",
        dims={"H": HEADS},
        variant={"code": code, "fold": "f32", "pdl": pdl},
        sizes={"T": int(case.sizes["T"])},
        result=lambda s: (s["packed"] if code == "fp4" else s["codes"], s["scale"], s["folded"]),
    )


BENCHMARK = IndexerQBenchmark()

if __name__ == "__main__":
    main(BENCHMARK, "benchmarks.indexer_q")
