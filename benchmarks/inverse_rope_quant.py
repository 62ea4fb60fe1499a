"""inverse_rope_quant beside torch.compile: ``python -m benchmarks.inverse_rope_quant --help``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from benchmarks.harness.cli import main
from benchmarks.harness.operator import Call, Case, Inputs, Peer, Work
from benchmarks.kernels import TOKENS, bf16_position, compiled_peer, loaded_kernel, our_peers

if TYPE_CHECKING:
    import torch

GROUPS = {64: 8, 128: 16}
"""Groups by heads: Flash and Pro."""
WIDTH, ROTARY, BLOCK = 512, 64, 128
FLOOR = 1e-10
CHECKED = 256
"""Tokens at either end that are compared with float64."""


class InverseRopeQuantBenchmark:
    """[T, H, 512] bf16 turned back, as E4M3 with a scale for each 128 columns (and for Flash as bf16 too)."""

    op = "inverse_rope_quant"
    ours = "dsv4 kernel"

    def cases(self) -> list[Case]:
        made = []
        for heads, fp8 in ((64, True), (128, True), (64, False)):
            for tokens in TOKENS:
                label = f"T={tokens} H={heads} {'fp8' if fp8 else 'bf16'}"
                made.append(Case(label, {"T": tokens, "H": heads, "fp8": fp8}))
        return made

    def peers(self) -> list[Peer]:
        return [
            *our_peers(kernel),
            compiled_peer(formula, arguments),
        ]

    def make_inputs(self, case: Case, seed: int) -> Inputs:
        import torch

        tokens, heads = int(case.sizes["T"]), int(case.sizes["H"])
        groups = GROUPS[heads]
        generator = torch.Generator(device="cuda").manual_seed(seed)
        angles = 6.28 * torch.rand(tokens, ROTARY // 2, device="cuda", generator=generator)
        attention = torch.randn(tokens, heads, WIDTH, device="cuda", dtype=torch.bfloat16, generator=generator)
        inputs = {"attention": attention, "cos_sin": torch.cat((angles.cos(), angles.sin()), dim=-1)}
        columns = heads // groups * WIDTH
        if case.sizes["fp8"]:
            codes = torch.full((tokens, groups, columns), 0x7F, device="cuda", dtype=torch.uint8)
            scale = torch.full((tokens, groups, columns // BLOCK), 0xFF, device="cuda", dtype=torch.uint8)
            inputs |= {"codes": codes.view(torch.float8_e4m3fn), "scale": scale.view(torch.float8_e8m0fnu)}
        else:
            inputs["grouped"] = torch.full((tokens, groups, columns), float("nan"), device="cuda", dtype=torch.bfloat16)
        return inputs

    def check(self, case: Case, inputs: Inputs, output: Any) -> Mapping[str, float]:
        """Against float64 (of the first and the last tokens): bf16 steps, or the relative error of codes · scales."""
        import torch

        tokens = int(case.sizes["T"])
        ends = torch.arange(tokens, device=inputs["attention"].device)
        ends = torch.cat([ends[:CHECKED], ends[CHECKED:][-CHECKED:]])
        expected = turned(inputs["attention"][ends].double(), inputs["cos_sin"][ends].double())
        if not case.sizes["fp8"]:
            got = output[ends].view(expected.shape)
            steps = (bf16_position(got) - bf16_position(expected.to(torch.bfloat16))).abs()
            worst = float(steps[expected.abs() > 1e-3].max().item())
            if not worst <= 1:
                raise ValueError(f"{worst:.0f} bf16 steps from the float64 result; valid: at most 1")
            return {"not_correctly_rounded": (steps > 0).double().mean().item()}
        codes, scale = (part[ends] for part in output)
        size = torch.exp2(scale.view(torch.uint8).double() - 127).repeat_interleave(BLOCK, dim=-1)
        said = (codes.double() * size).view(expected.shape)
        error = ((said - expected).norm() / expected.norm()).item()
        if not error <= 4e-2:  # E4M3 alone gives 2.6e-2 of a normal
            raise ValueError(f"relative L2 error {error:.3g}; valid: at most 4e-2")
        return {"rel_l2": error}

    def work(self, case: Case) -> Work:
        rows = int(case.sizes["T"]) * int(case.sizes["H"])
        written = WIDTH + WIDTH // BLOCK if case.sizes["fp8"] else 2 * WIDTH
        return Work(bytes=rows * (2 * WIDTH + written) + int(case.sizes["T"]) * 4 * ROTARY, flops=3 * rows * ROTARY)


def turned(x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """x [T, H, 512] with its last 64 numbers rotated by minus the table's angles, in the dtype of both."""
    import torch

    even, odd = x[..., -ROTARY::2], x[..., -ROTARY + 1 :: 2]
    cos, sin = table[:, None, : ROTARY // 2], table[:, None, ROTARY // 2 :]
    pairs = torch.stack((even * cos + odd * sin, odd * cos - even * sin), dim=-1).flatten(-2)
    return torch.cat((x[..., :-ROTARY], pairs), dim=-1)


def formula(attention: torch.Tensor, cos_sin: torch.Tensor, groups: int, fp8: bool) -> Any:
    """float32 inside; bf16, or codes and the bytes of the scales."""
    import torch

    wide = turned(attention.float(), cos_sin)
    grouped = wide.view(wide.shape[0], groups, -1)
    if not fp8:
        return grouped.to(attention.dtype)
    blocks = grouped.unflatten(-1, (-1, BLOCK))
    bits = (blocks.abs().amax(-1).clamp(min=FLOOR) * (1 / 448)).view(torch.int32)
    exponent = ((bits + 0x7FFFFF) >> 23) & 0xFF
    codes = (blocks * ((254 - exponent) << 23).view(torch.float32)[..., None]).to(torch.float8_e4m3fn)
    return codes.flatten(-2), exponent.to(torch.uint8)


def arguments(s: Inputs) -> tuple[Any, ...]:
    return s["attention"], s["cos_sin"], GROUPS[s["attention"].shape[1]], "codes" in s


def kernel(case: Case, *, pdl: bool) -> Call:
    tokens, heads, fp8 = int(case.sizes["T"]), int(case.sizes["H"]), bool(case.sizes["fp8"])
    return loaded_kernel(
        "inverse_rope_quant",
        dims={"H": heads, "G": GROUPS[heads]},
        variant={"output": "fp8" if fp8 else "bf16", "scale_layout": "row_major", "pdl": pdl},
        sizes={"T": tokens, "TP": tokens},
        result=lambda s: (s["codes"], s["scale"]) if fp8 else s["grouped"],
    )


BENCHMARK = InverseRopeQuantBenchmark()

if __name__ == "__main__":
    main(BENCHMARK, "benchmarks.inverse_rope_quant")
