"""router_choose (routing from logits) beside TileKernels: ``python -m benchmarks.router_choose --help``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.harness.cli import main
from benchmarks.harness.operator import Call, Case, Inputs, Peer, Work
from benchmarks.kernels import TOKENS, compiled, loaded_kernel
from benchmarks.peers import tile_kernels

K = 6
FACTOR = 1.5
EXPERTS = {"Flash": 256, "Pro": 384}


def formula(logits: Any, bias: Any, factor: float) -> Any:
    import torch

    affinity = torch.nn.functional.softplus(logits[0]).sqrt()
    experts = torch.topk(affinity + bias, K, dim=-1).indices
    chosen = affinity.gather(1, experts)
    return experts.to(torch.int32), chosen / chosen.sum(-1, keepdim=True) * factor


class RouterChooseBenchmark:
    """√softplus of logits [T, E], top 6 by affinity + bias, normalised weights."""

    op = "router_choose"
    ours = "dsv4"

    def cases(self) -> list[Case]:
        made = []
        for model, experts in EXPERTS.items():
            for tokens in TOKENS:
                made.append(Case(f"{model} T={tokens}", {"T": tokens, "E": experts}))
        return made

    def peers(self) -> list[Peer]:
        return [
            Peer("dsv4", lambda case: ours(case, pdl=False), "the kernel's host function"),
            Peer("dsv4 pdl", lambda case: ours(case, pdl=True), "programmatic dependent launch", shown=False),
            Peer(
                "tile-kernels",
                lambda case: tile_kernels.router_choose(case, k=K, factor=FACTOR),
                "TileKernels' top2_sum_gate without groups",
                tile_kernels.versions,
            ),
            Peer("torch.compile", torch_compiled, "the formula, compiled for each shape (dynamic=False)"),
        ]

    def make_inputs(self, case: Case, seed: int) -> Inputs:
        import torch

        tokens, experts = int(case.sizes["T"]), int(case.sizes["E"])
        generator = torch.Generator(device="cuda").manual_seed(seed)
        return {
            "logits": torch.randn(1, tokens, experts, device="cuda", generator=generator),
            "bias": 0.1 * torch.randn(experts, device="cuda", generator=generator),
            "factor": FACTOR,
            "experts": torch.full((tokens, K), -1, dtype=torch.int32, device="cuda"),
            "weights": torch.full((tokens, K), float("nan"), device="cuda"),
        }

    def check(self, case: Case, inputs: Inputs, output: Any) -> Mapping[str, float]:
        """Against float64 by the rule of generator/verify/routing.py."""
        from dsv4.generator.verify.routing import choice, judge_choice

        logits = inputs["logits"][0].double()
        error = 1e-7 * logits.abs()  # of torch, which rounds √softplus + bias in its own way
        expected = choice(logits, error, k=K, factor=FACTOR, bias=inputs["bias"], experts=None)
        verdict = judge_choice({"experts": output[0].int(), "weights": output[1]}, expected, FACTOR)
        if not verdict.ok:
            raise ValueError("; ".join(verdict.findings))
        return {"weights_max_abs": verdict.max_abs, "weights_rel_l2": verdict.rel_l2}

    def work(self, case: Case) -> Work:
        tokens, experts = int(case.sizes["T"]), int(case.sizes["E"])
        return Work(bytes=4 * tokens * experts + 8 * K * tokens, flops=30 * tokens * experts)


def ours(case: Case, *, pdl: bool) -> Call:
    return loaded_kernel(
        "router_choose",
        dims={"E": int(case.sizes["E"]), "k": K},
        variant={"hash": False, "pdl": pdl},
        sizes={"T": int(case.sizes["T"]), "S": 1},
        result=lambda s: (s["experts"], s["weights"]),
    )


def torch_compiled(case: Case) -> Call:
    return compiled(formula, lambda s: (s["logits"], s["bias"], s["factor"]))


BENCHMARK = RouterChooseBenchmark()

if __name__ == "__main__":
    main(BENCHMARK, "benchmarks.router_choose")
