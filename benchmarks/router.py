"""router beside torch.compile: ``python -m benchmarks.router --help``.

Few tokens are one launch (the gate product and the choice), many are two (logits, choice); both are measured where both
make sense, and the column of ours takes what the operator does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.harness.cli import main
from benchmarks.harness.operator import Call, Case, Inputs, Peer, Unavailable, Work
from benchmarks.kernels import TOKENS, compiled, loaded_kernel
from benchmarks.peers.read_only import read_only

K = 6
SIZES = {"Flash": (4096, 256, 1.5), "Pro": (7168, 384, 2.5)}
MOST_SPLITS = 16


def splits(tokens: int, d: int, *, gemm: bool = False) -> int:
    from dsv4.runtime.ops.router import logit_parts

    return logit_parts(tokens, d, gemm=gemm)


def formula(y: Any, gate: Any, bias: Any, factor: float) -> Any:
    import torch

    affinity = torch.nn.functional.softplus(y.float() @ gate.float().T).sqrt()
    experts = torch.topk(affinity + bias, K, dim=-1).indices
    chosen = affinity.gather(1, experts)
    return experts.to(torch.int32), chosen / chosen.sum(-1, keepdim=True) * factor


class RouterBenchmark:
    """Gate logits, √softplus, top 6 by affinity + bias, normalised weights; y [T, d], gate [E, d]."""

    op = "router"
    ours = "dsv4"

    def cases(self) -> list[Case]:
        made = []
        for model, (d, experts, _) in SIZES.items():
            for tokens in TOKENS:
                made.append(Case(f"{model} T={tokens}", {"T": tokens, "d": d, "E": experts}))
        return made

    def peers(self) -> list[Peer]:
        return [
            Peer("dsv4", ours, "the kernels' host functions: one launch for few tokens, two for many"),
            Peer("dsv4 one launch", one_launch, "router", shown=False),
            Peer("dsv4 two launches", two_launches, "router_logits and router_choose", shown=False),
            Peer("dsv4 gemm", gemm, "router_logits_many and router_choose", shown=False),
            Peer("torch.compile", torch_compiled, "the formula in float32, compiled for each shape (dynamic=False)"),
            read_only(lambda s: s["gate"]),
        ]

    def make_inputs(self, case: Case, seed: int) -> Inputs:
        import torch

        tokens, d, experts = (int(case.sizes[name]) for name in ("T", "d", "E"))
        generator = torch.Generator(device="cuda").manual_seed(seed)
        options: dict[str, Any] = {"device": "cuda", "generator": generator}
        inputs = {
            "y": torch.randn(tokens, d, dtype=torch.bfloat16, **options),
            "gate": (torch.randn(experts, d, **options) / d**0.5).to(torch.bfloat16),
            "bias": 0.1 * torch.randn(experts, **options),
            "factor": next(factor for width, _, factor in SIZES.values() if width == d),
            "experts": torch.full((tokens, K), -1, dtype=torch.int32, device="cuda"),
            "weights": torch.full((tokens, K), float("nan"), device="cuda"),
            "logits": torch.full((splits(tokens, d), tokens, experts), float("nan"), device="cuda"),
            "gemm_logits": torch.full((splits(tokens, d, gemm=True), tokens, experts), float("nan"), device="cuda"),
        }
        if tokens <= 256:
            inputs["counters"] = torch.zeros(-(-tokens // 16), dtype=torch.int32, device="cuda")
            inputs["partials"] = torch.full((MOST_SPLITS, tokens, experts), float("nan"), device="cuda")
        return inputs

    def check(self, case: Case, inputs: Inputs, output: Any) -> Mapping[str, float]:
        """Against float64 by the rule of generator/verify/routing.py, with room for float32 sums in any order."""
        from dsv4.generator.verify.routing import choice, judge_choice, tensor_core_error

        wide = inputs["y"].double(), inputs["gate"].double()
        logits = wide[0] @ wide[1].T
        error = tensor_core_error(wide[0].abs() @ wide[1].abs().T, wide[0].shape[1] // 16, 0)
        factor = inputs["factor"]
        expected = choice(logits, error, k=K, factor=factor, bias=inputs["bias"], experts=None)
        verdict = judge_choice({"experts": output[0], "weights": output[1].float()}, expected, factor)
        if not verdict.ok:
            raise ValueError("; ".join(verdict.findings))
        return {"weights_max_abs": verdict.max_abs, "weights_rel_l2": verdict.rel_l2}

    def work(self, case: Case) -> Work:
        tokens, d, experts = (int(case.sizes[name]) for name in ("T", "d", "E"))
        return Work(bytes=2 * experts * d + 2 * tokens * d + 8 * K * tokens, flops=2 * tokens * experts * d)


def result(inputs: Inputs) -> Any:
    return inputs["experts"], inputs["weights"]


def one_launch(case: Case) -> Call:
    tokens, d, experts = (int(case.sizes[name]) for name in ("T", "d", "E"))
    if tokens > 256:
        raise Unavailable("for few tokens")
    dims = {"d": d, "E": experts, "k": K}
    return loaded_kernel("router", dims=dims, variant={"pdl": False}, sizes={"T": tokens}, result=result)


def two_launches(case: Case) -> Call:
    return logits_and_choice("router_logits", case, splits(int(case.sizes["T"]), int(case.sizes["d"])))


def gemm(case: Case) -> Call:
    tokens, d = int(case.sizes["T"]), int(case.sizes["d"])
    if tokens <= 16:
        raise Unavailable("for many tokens")
    both = logits_and_choice("router_logits_many", case, splits(tokens, d, gemm=True))
    return lambda s: both({**s, "logits": s["gemm_logits"]})


def logits_and_choice(op: str, case: Case, parts: int) -> Call:
    tokens, d, experts = (int(case.sizes[name]) for name in ("T", "d", "E"))
    sizes = {"T": tokens, "S": parts}
    dims, width = {"d": d, "E": experts}, {"E": experts, "k": K}
    first = loaded_kernel(op, dims=dims, variant={"pdl": False}, sizes=sizes, result=lambda s: None)
    choose = loaded_kernel(
        "router_choose", dims=width, variant={"hash": False, "pdl": False}, sizes=sizes, result=result
    )
    return lambda s: (first(s), choose(s))[1]


def ours(case: Case) -> Call:
    """What the operator takes; the GEMM only on chips with a kernel for it."""
    import torch

    from dsv4.runtime.dispatch import ARCH_OF_CAPABILITY
    from dsv4.runtime.ops.router import LOGITS_GEMM_TOKENS, WITHOUT_GATE_GEMM, one_launch_tokens

    tokens = int(case.sizes["T"])
    arch = ARCH_OF_CAPABILITY.get(torch.cuda.get_device_capability()) if torch.cuda.is_available() else None
    if tokens <= one_launch_tokens(int(case.sizes["d"])):
        return one_launch(case)
    return (gemm if tokens >= LOGITS_GEMM_TOKENS and arch not in WITHOUT_GATE_GEMM else two_launches)(case)


def torch_compiled(case: Case) -> Call:
    return compiled(formula, lambda s: (s["y"], s["gate"], s["bias"], s["factor"]))


BENCHMARK = RouterBenchmark()

if __name__ == "__main__":
    main(BENCHMARK, "benchmarks.router")
