"""sample beside flashinfer and torch.compile: ``python -m benchmarks.sample --help``.

flashinfer draws with noise of its own: its tokens are held against what top-k and top-p leave, not against ours.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from benchmarks.harness.cli import main
from benchmarks.harness.operator import Call, Case, Inputs, Peer, Unavailable, Work
from benchmarks.kernels import TOKENS, compiled, loaded_kernel
from benchmarks.peers import flashinfer

VOCABULARY = 129280
SORTED_ROWS = 2048
"""Of more rows the sorted copies with their indices take a GPU's memory."""
CHECKED, MASS_ERROR = 16, 1e-4
WAYS = {"all tokens": (0, 1.0), "top-k 50 top-p 0.9": (50, 0.9), "top-p 0.9": (0, 0.9)}


def formula(way: int, logits: Any, temperature: Any, seed: Any, position: Any, tokens: Any) -> Any:
    """Tokens i64 [R] as one would write it in torch: only as much order among the logits as the way asks for.

    ``tokens`` i64 [V] counts from 0; made in here, the compiler would take it for 32 bits wide (2.11).
    """
    import torch

    from dsv4.runtime.reference.sample import gumbel

    top_k, top_p = list(WAYS.values())[way]
    scaled = logits / temperature[:, None]
    seed, position = seed[:, None], position[:, None]
    if top_k == 0 and top_p == 1:
        return (scaled + gumbel(seed, position, tokens)).argmax(dim=-1)
    values, tokens = torch.topk(scaled, top_k) if top_k else torch.sort(scaled, dim=-1, descending=True)
    probability = torch.softmax(values, dim=-1)
    left = cumulative(probability) - probability < top_p
    drawn = (values + gumbel(seed, position, tokens)).masked_fill(~left, -torch.inf).argmax(dim=-1, keepdim=True)
    return tokens.gather(1, drawn).squeeze(1)


def cumulative(values: Any) -> Any:
    """Left to torch's own kernel: of a scan of rows so long the compiler cannot make one with what follows (2.11)."""
    import torch

    return torch.compiler.disable(torch.cumsum)(values, dim=-1)


class SampleBenchmark:
    """One token of each row of float32 logits [R, 129280]: temperature 1, top-k and top-p, Gumbel noise."""

    op = "sample"
    ours = "dsv4"

    def cases(self) -> list[Case]:
        made = []
        for number, way in enumerate(WAYS):
            for rows in TOKENS:
                made.append(Case(f"R={rows} {way}", {"R": rows, "way": number}))
        return made

    def peers(self) -> list[Peer]:
        return [
            Peer("dsv4", lambda case: ours(case, pdl=False), "the kernel's host function"),
            Peer("dsv4 pdl", lambda case: ours(case, pdl=True), "programmatic dependent launch", shown=False),
            Peer("flashinfer", flashinfer_peer, "flashinfer's sampling, with noise of its own", flashinfer.versions),
            Peer("torch.compile", torch_compiled, "plain torch (top-p sorts), compiled for each shape (dynamic=False)"),
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

        if isinstance(output, flashinfer.Drawn):
            return check_drawn(inputs, output)
        exact, accepted = acceptable(inputs["logits"][:CHECKED], *(inputs[name][:CHECKED] for name in PARAMETERS))
        token = output[:CHECKED].clamp(0, VOCABULARY - 1)
        wrong = ~accepted.gather(1, token[:, None]).squeeze(1) | (token != output[:CHECKED])
        if wrong.any():
            raise ValueError(f"{int(wrong.sum())} of {len(exact)} tokens are wrong")
        return {"not_the_reference": (token != exact).double().mean().item()}

    def work(self, case: Case) -> Work:
        rows = int(case.sizes["R"])
        return Work(bytes=4 * rows * VOCABULARY + 40 * rows, flops=60 * rows * VOCABULARY)


def check_drawn(inputs: Inputs, drawn: flashinfer.Drawn) -> dict[str, float]:
    """Each token is one of the k largest, and the probabilities of those before it sum to less than p.

    They are probabilities among the k largest, or, where ``drawn.joint``, among all tokens.
    """
    import torch

    logits = inputs["logits"][:CHECKED].double()
    token = drawn.tokens[:CHECKED].long()[:, None]
    if int(token.min()) < 0 or int(token.max()) >= VOCABULARY:
        raise ValueError(f"tokens from {int(token.min())} to {int(token.max())}; valid: 0 to {VOCABULARY - 1}")
    k, p = inputs["top_k"][:CHECKED, None], inputs["top_p"][:CHECKED, None].double()
    larger = logits > logits.gather(1, token)
    among = k if not drawn.joint else torch.zeros_like(k)
    kept = torch.where(
        among > 0, logits.sort(dim=1, descending=True).values.gather(1, (among - 1).clamp(min=0)), -torch.inf
    )
    before = (torch.softmax(logits.masked_fill(logits < kept, -torch.inf), dim=1) * larger).sum(1, keepdim=True)
    wrong = ((k > 0) & (larger.sum(1, keepdim=True) >= k)) | ((p < 1) & (before >= p + MASS_ERROR))
    if wrong.any():
        raise ValueError(f"{int(wrong.sum())} of {len(wrong)} tokens are not among those that are left")
    return {"outside": 0.0}


def flashinfer_peer(case: Case) -> Call:
    top_k, top_p = list(WAYS.values())[int(case.sizes["way"])]
    return flashinfer.sample(case, top_k=top_k, top_p=top_p)


def ours(case: Case, *, pdl: bool) -> Call:
    return loaded_kernel(
        "sample",
        dims={"V": VOCABULARY},
        variant={"bf16_logits": False, "pdl": pdl},
        sizes={"R": int(case.sizes["R"])},
        result=lambda s: s["token"],
    )


def torch_compiled(case: Case) -> Call:
    import torch

    way = int(case.sizes["way"])
    top_k, top_p = list(WAYS.values())[way]
    if top_k == 0 and top_p < 1 and int(case.sizes["R"]) > SORTED_ROWS:
        raise Unavailable(f"it sorts, which is measured up to {SORTED_ROWS} rows")
    tokens = torch.arange(VOCABULARY, device="cuda")
    names = ("logits", "temperature", "seed", "position")
    return compiled(functools.partial(formula, way), lambda s: (*(s[name] for name in names), tokens))


BENCHMARK = SampleBenchmark()

if __name__ == "__main__":
    main(BENCHMARK, "benchmarks.sample")
