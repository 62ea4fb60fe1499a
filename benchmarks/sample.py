"""sample beside torch.compile: ``python -m benchmarks.sample --help``.

The place for flashinfer's sampling kernels (sampling_from_logits, top_k_top_p_sampling_from_logits) is ``peers``; their
noise is another, so that they can be timed and not compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.harness.cli import main
from benchmarks.harness.operator import Call, Case, Inputs, Peer, Work
from benchmarks.kernels import compiled, loaded_kernel

VOCABULARY = 129280
ROWS = (1, 4, 16, 64, 256)
WAYS = {"all tokens": (0, 1.0), "top-k 50 top-p 0.9": (50, 0.9), "top-p 0.9": (0, 0.9)}


def formula(logits: Any, temperature: Any, top_k: Any, top_p: Any, seed: Any, position: Any) -> Any:
    from dsv4.runtime.reference.sample import sample

    return sample(logits, temperature, top_k, top_p, seed, position)


class SampleBenchmark:
    """One token of each row of float32 logits [R, 129280]: temperature 1, top-k and top-p, Gumbel noise."""

    op = "sample"
    ours = "dsv4"

    def cases(self) -> list[Case]:
        made = []
        for number, way in enumerate(WAYS):
            for rows in ROWS:
                made.append(Case(f"R={rows} {way}", {"R": rows, "way": number}))
        return made

    def peers(self) -> list[Peer]:
        return [
            Peer("dsv4", lambda case: ours(case, pdl=False), "the kernel's host function"),
            Peer("dsv4 pdl", lambda case: ours(case, pdl=True), "programmatic dependent launch", shown=False),
            Peer(
                "torch.compile", torch_compiled, "the reference (which sorts), compiled for each shape (dynamic=False)"
            ),
        ]

    def make_inputs(self, case: Case, seed: int) -> Inputs:
        import torch

        rows = int(case.sizes["R"])
        top_k, top_p = list(WAYS.values())[int(case.sizes["way"])]
        generator = torch.Generator(device="cuda").manual_seed(seed)
        return {
            "logits": 3 * torch.randn(rows, VOCABULARY, device="cuda", generator=generator),
            "temperature": torch.ones(rows, device="cuda"),
            "top_k": torch.full((rows,), top_k, dtype=torch.int64, device="cuda"),
            "top_p": torch.full((rows,), top_p, device="cuda"),
            "seed": torch.arange(rows, device="cuda") + seed,
            "position": 7 * torch.arange(rows, device="cuda"),
            "token": torch.full((rows,), -1, dtype=torch.int64, device="cuda"),
        }

    def check(self, case: Case, inputs: Inputs, output: Any) -> Mapping[str, float]:
        """Against float64 by the rule of generator/verify/operators/sample.py, the first 16 rows."""
        from dsv4.generator.verify.operators.sample import PARAMETERS, acceptable

        exact, accepted = acceptable(inputs["logits"][:16], *(inputs[name][:16] for name in PARAMETERS))
        token = output[:16].clamp(0, VOCABULARY - 1)
        wrong = ~accepted.gather(1, token[:, None]).squeeze(1) | (token != output[:16])
        if wrong.any():
            raise ValueError(f"{int(wrong.sum())} of {len(exact)} tokens are wrong")
        return {"not_the_reference": (token != exact).double().mean().item()}

    def work(self, case: Case) -> Work:
        rows = int(case.sizes["R"])
        return Work(bytes=4 * rows * VOCABULARY + 40 * rows, flops=60 * rows * VOCABULARY)


def ours(case: Case, *, pdl: bool) -> Call:
    return loaded_kernel(
        "sample",
        dims={"V": VOCABULARY},
        variant={"bf16_logits": False, "pdl": pdl},
        sizes={"R": int(case.sizes["R"])},
        result=lambda s: s["token"],
    )


def torch_compiled(case: Case) -> Call:
    names = ("logits", "temperature", "top_k", "top_p", "seed", "position")
    return compiled(formula, lambda s: tuple(s[name] for name in names))


BENCHMARK = SampleBenchmark()

if __name__ == "__main__":
    main(BENCHMARK, "benchmarks.sample")
