"""router_hash beside torch.compile: ``python -m benchmarks.router_hash --help``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.harness.cli import main
from benchmarks.harness.operator import Call, Case, Inputs, Peer, Unavailable, Work
from benchmarks.kernels import TOKENS, compiled, loaded_kernel
from benchmarks.peers import flashinfer
from benchmarks.peers.read_only import read_only
from benchmarks.router import SIZES, K

VOCABULARY = 129280
FEWEST_FOR_GATE = 256
"""Tokens from which on the kernel with the whole gate is measured too."""


def formula(y: Any, gate: Any, tid2eid: Any, tokens: Any, factor: float) -> Any:
    import torch

    experts = tid2eid[tokens]
    logits = (gate[experts].float() * y[:, None].float()).sum(-1)
    affinity = torch.nn.functional.softplus(logits).sqrt()
    return experts, affinity / affinity.sum(-1, keepdim=True) * factor


class RouterHashBenchmark:
    """The experts that a table names for a token, their gate rows · y, √softplus, normalised weights."""

    op = "router_hash"
    ours = "dsv4"

    def cases(self) -> list[Case]:
        made = []
        for model, (d, experts, _) in SIZES.items():
            for tokens in TOKENS:
                made.append(Case(f"{model} T={tokens}", {"T": tokens, "d": d, "E": experts}))
        return made

    def peers(self) -> list[Peer]:
        return [
            Peer("dsv4", lambda case: ours(case, pdl=False), "the host function of the kernel that the operator takes"),
            Peer("dsv4 pdl", lambda case: ours(case, pdl=True), "programmatic dependent launch", shown=False),
            Peer("dsv4 rows", rows_alone, "router_hash, which reads the named rows of the gate", shown=False),
            Peer("dsv4 whole gate", whole_gate, "router_hash_many, the gate as a GEMM", shown=False),
            Peer(
                "flashinfer",
                flashinfer.router_hash,
                "torch's product with the whole gate, flashinfer's hash_topk, the factor",
                flashinfer.versions,
            ),
            Peer("torch.compile", torch_compiled, "gather and sum in float32, compiled for each shape (dynamic=False)"),
            read_only(lambda s: s["gate"][: K * len(s["y"])]),
        ]

    def make_inputs(self, case: Case, seed: int) -> Inputs:
        import torch

        from dsv4.runtime.ops.router import GATE_GEMM_COUNTERS, GATE_GEMM_PARTS

        tokens, d, experts = (int(case.sizes[name]) for name in ("T", "d", "E"))
        generator = torch.Generator(device="cuda").manual_seed(seed)
        options: dict[str, Any] = {"device": "cuda", "generator": generator}
        first = torch.randint(0, experts, (VOCABULARY, 1), **options)
        table = (first + torch.arange(K, device="cuda") * (experts // K)) % experts
        return {
            "y": torch.randn(tokens, d, dtype=torch.bfloat16, **options),
            "gate": (torch.randn(experts, d, **options) / d**0.5).to(torch.bfloat16),
            "tid2eid": table.to(torch.int32),
            "tokens": torch.randint(0, VOCABULARY, (tokens,), **options).to(torch.int32),
            "factor": next(factor for width, _, factor in SIZES.values() if width == d),
            "experts": torch.full((tokens, K), -1, dtype=torch.int32, device="cuda"),
            "weights": torch.full((tokens, K), float("nan"), device="cuda"),
            "counters": torch.zeros(GATE_GEMM_COUNTERS, dtype=torch.int32, device="cuda"),
            "parts": torch.full(GATE_GEMM_PARTS, float("nan"), device="cuda"),
        }

    def check(self, case: Case, inputs: Inputs, output: Any) -> Mapping[str, float]:
        """Against float64 by the rule of generator/verify/routing.py, with room for float32 sums in any order."""
        from dsv4.generator.verify.routing import choice, judge_choice

        y, gate, factor = inputs["y"].double(), inputs["gate"].double(), inputs["factor"]
        error = 64 * 2.0**-24 * (y.abs() @ gate.abs().T)
        named = inputs["tid2eid"][inputs["tokens"].long()]
        expected = choice(y @ gate.T, error, k=K, factor=factor, bias=None, experts=named)
        verdict = judge_choice({"experts": output[0], "weights": output[1]}, expected, factor, named=True)
        if not verdict.ok:
            raise ValueError("; ".join(verdict.findings))
        return {"weights_max_abs": verdict.max_abs, "weights_rel_l2": verdict.rel_l2}

    def work(self, case: Case) -> Work:
        tokens, d, experts = (int(case.sizes[name]) for name in ("T", "d", "E"))
        gate_rows = min(tokens * K, experts)
        return Work(bytes=2 * gate_rows * d + 2 * tokens * d + 12 * K * tokens, flops=2 * tokens * K * d)


def ours(case: Case, *, pdl: bool) -> Call:
    """What the operator takes: the whole gate for many tokens, on chips with a kernel for that."""
    import torch

    from dsv4.runtime.dispatch import arch_of
    from dsv4.runtime.ops.router import GATE_GEMM_TOKENS, WITHOUT_GATE_GEMM

    arch = arch_of(torch.device("meta"))  # that of the GPU here, if there is one
    many = int(case.sizes["T"]) >= GATE_GEMM_TOKENS and arch not in WITHOUT_GATE_GEMM
    return kernel("router_hash_many" if many else "router_hash", case, pdl=pdl)


def rows_alone(case: Case) -> Call:
    return kernel("router_hash", case, pdl=False)


def whole_gate(case: Case) -> Call:
    if int(case.sizes["T"]) < FEWEST_FOR_GATE:
        raise Unavailable("for many tokens")
    return kernel("router_hash_many", case, pdl=False)


def kernel(op: str, case: Case, *, pdl: bool) -> Call:
    tokens, d, experts = (int(case.sizes[name]) for name in ("T", "d", "E"))
    return loaded_kernel(
        op,
        dims={"d": d, "E": experts, "k": K},
        variant={"pdl": pdl},
        sizes={"T": tokens, "V": VOCABULARY},
        result=lambda s: (s["experts"], s["weights"]),
    )


def torch_compiled(case: Case) -> Call:
    return compiled(formula, lambda s: (s["y"], s["gate"], s["tid2eid"], s["tokens"], s["factor"]))


BENCHMARK = RouterHashBenchmark()

if __name__ == "__main__":
    main(BENCHMARK, "benchmarks.router_hash")
