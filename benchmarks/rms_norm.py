"""rms_norm beside torch, torch.compile and quack: ``python -m benchmarks.rms_norm --help``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.harness.cli import main
from benchmarks.harness.operator import Call, Case, Inputs, Peer, Unavailable, Work
from benchmarks.kernels import TOKENS, bf16_position, compiled, loaded_kernel, round_up
from benchmarks.peers import flashinfer, quack

EPS = 1e-6
COLUMNS = (512, 1024, 1536, 4096, 7168)
LARGE_ELEMENTS = 64 << 20
REL_L2_MAX = 1e-2
"""bf16 rounding alone gives 1.7e-3; above this a result is wrong, not inexact."""


class RmsNormBenchmark:
    """y = bf16(w · x / √(mean x² + eps)), x [T, d]; as many rows as there may be tokens, and 64 M elements."""

    op = "rms_norm"
    ours = "dsv4"

    def cases(self) -> list[Case]:
        made = []
        for columns in COLUMNS:
            large = round_up(LARGE_ELEMENTS // columns, 32)
            for rows in (*TOKENS, *((large,) if large > TOKENS[-1] else ())):
                made.append(Case(f"T={rows} d={columns}", {"T": rows, "d": columns}))
        return made

    def peers(self) -> list[Peer]:
        return [
            Peer("dsv4", public_function, "dsv4.rms_norm with out=, the default kernel"),
            Peer("dsv4 kernel", lambda case: kernel(case, pdl=False), "the same, called bare", shown=False),
            Peer("dsv4 kernel pdl", lambda case: kernel(case, pdl=True), "programmatic dependent launch"),
            Peer("quack", quack.rms_norm, "quack's rmsnorm forward, its own configuration", quack.versions),
            Peer("flashinfer", flashinfer.rms_norm, "flashinfer.norm.rmsnorm with out=", flashinfer.versions),
            Peer("torch", torch_eager, "torch.nn.functional.rms_norm"),
            Peer("torch.compile", torch_compiled, "the same, compiled for each shape (dynamic=False)"),
        ]

    def make_inputs(self, case: Case, seed: int) -> Inputs:
        import torch

        rows, columns = int(case.sizes["T"]), int(case.sizes["d"])
        generator = torch.Generator(device="cuda").manual_seed(seed)
        options: dict[str, Any] = {"device": "cuda", "dtype": torch.bfloat16, "generator": generator}
        x = torch.randn(rows, columns, **options)
        w = 1 + 0.5 * torch.randn(columns, **options)
        return {"x": x, "w": w, "eps": EPS, "y": torch.full_like(x, float("nan"))}

    def check(self, case: Case, inputs: Inputs, output: Any) -> Mapping[str, float]:
        """Against float64, rounded to bf16: the share of elements that differ, by how many bf16 steps at most."""
        import torch

        x, w = inputs["x"].double(), inputs["w"].double()
        expected = w * x / (x.square().mean(-1, keepdim=True) + inputs["eps"]).sqrt()
        rel_l2 = ((output.double() - expected).norm() / expected.norm()).item()
        if not rel_l2 <= REL_L2_MAX:
            raise ValueError(f"relative L2 error {rel_l2:.3g}; valid: at most {REL_L2_MAX}")
        steps = (bf16_position(output) - bf16_position(expected.to(torch.bfloat16))).abs()
        return {
            "rel_l2": rel_l2,
            "not_correctly_rounded": (steps > 0).double().mean().item(),
            "max_bf16_steps": float(steps.max().item()),
        }

    def work(self, case: Case) -> Work:
        rows, columns = int(case.sizes["T"]), int(case.sizes["d"])
        return Work(bytes=4 * rows * columns + 2 * columns, flops=4 * rows * columns)


def public_function(case: Case) -> Call:
    try:
        import dsv4
    except ImportError as error:
        raise Unavailable(f"dsv4 is not installed ({error})") from None
    dsv4.configure(missing="raise")

    def call(s: Inputs) -> Any:
        try:
            return dsv4.rms_norm(s["x"], s["w"], s["eps"], out=s["y"])
        except dsv4.KernelMissing as error:
            raise Unavailable(str(error)) from None

    return call


def kernel(case: Case, *, pdl: bool) -> Call:
    dims, sizes = {"d": int(case.sizes["d"])}, {"T": int(case.sizes["T"])}
    return loaded_kernel("rms_norm", dims=dims, variant={"pdl": pdl}, sizes=sizes, result=lambda s: s["y"])


def torch_eager(case: Case) -> Call:
    import torch

    columns = (int(case.sizes["d"]),)
    return lambda s: torch.nn.functional.rms_norm(s["x"], columns, s["w"], s["eps"])


def torch_compiled(case: Case) -> Call:
    import torch

    columns = (int(case.sizes["d"]),)

    def formula(x: torch.Tensor, w: torch.Tensor, eps: float) -> torch.Tensor:
        return torch.nn.functional.rms_norm(x, columns, w, eps)

    return compiled(formula, lambda s: (s["x"], s["w"], s["eps"]))


BENCHMARK = RmsNormBenchmark()

if __name__ == "__main__":
    main(BENCHMARK, "benchmarks.rms_norm")
