"""sample: the token of each row, held against float64 scores and cumulative probabilities.

The rule. A row that takes the largest logit (temperature 0, top_k 1, top_p 0, a NaN or an infinity as the largest) must
name the reference's token. Otherwise, with the scores l/T + G and the probability mass before each token in float64:
the kernel computes the mass in float32 and may differ on tokens whose mass before lies within 1e-5 of p, and on nothing
else, top-k being exact. So its token must be one that may be kept, and no token that must be kept may have a score that
is larger by more than the error of a score, 1e-5 and 2^-21 · |l − max|/T (noise by approximate logarithms of absolute
error 2^-22, a quotient and a sum of float32).
"""

from __future__ import annotations

import math

import torch

from dsv4.generator.verify.case import Case, OutputLayout, Value, Verdict
from dsv4.generator.verify.judging import verdict
from dsv4.runtime.artifact import Scalar
from dsv4.runtime.reference import sample as reference

MASS_ERROR = 1e-5
SCORE_ERROR = 1e-5
RELATIVE_SCORE_ERROR = 2.0**-21

THOROUGH_CASES = (1, 8)
"""One row each: a small top-k with top-p, and a large one (numbers in the list without empty cases)."""

FLAT = 1e4
"""A temperature at which the noise alone decides between logits of a few units."""

WORKLOAD_SIZES = {"R": 64}

LISTED = 256
"""Tokens on the short list of a CTA of so many threads or more."""

PARAMETERS = ("temperature", "top_k", "top_p", "seed", "position")


def acceptable(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    seed: torch.Tensor,
    position: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The reference's token (i64 [R], float64) and which tokens the rule accepts (bool [R, V])."""
    wide = torch.float64
    args = (temperature.double(), top_k, top_p.double(), seed, position)
    exact = reference.sample(logits, *args, dtype=wide)
    order = reference.descending(logits.to(wide))
    rank = torch.arange(logits.shape[1], device=logits.device)
    draws = (temperature > 0) & (top_p > 0) & (top_k != 1) & order.values[:, 0].isfinite()
    warmth = torch.where(draws, temperature.double(), 1.0)[:, None]
    ranked = (order.values - order.values[:, :1]) / warmth
    by_k = (rank < top_k[:, None]) | (top_k[:, None] <= 0)
    probability = torch.softmax(ranked.masked_fill(~by_k, -math.inf), dim=-1)
    before = probability.cumsum(dim=-1) - probability
    p, all_of_p = top_p.double()[:, None], top_p[:, None] >= 1
    must = by_k & ((before < p - MASS_ERROR) | (rank == 0) | all_of_p)
    may = by_k & ((before < p + MASS_ERROR) | (rank == 0) | all_of_p)
    noise = reference.gumbel(seed[:, None], position[:, None], order.indices, dtype=wide)
    score = ranked + noise
    error = SCORE_ERROR + RELATIVE_SCORE_ERROR * ranked.abs()
    least = (score - error).masked_fill(~must, -math.inf).amax(dim=-1, keepdim=True)
    accepted = may & (score + error >= least)
    accepted = torch.where(draws[:, None], accepted, rank == 0)
    return exact, torch.zeros_like(accepted).scatter(1, order.indices, accepted)


def cases(
    dims: dict[str, int], variant: dict[str, Scalar], *, config: dict[str, Scalar], seed: int, device: torch.device
) -> list[Case]:
    vocabulary = dims["V"]
    generator = torch.Generator(device="cpu").manual_seed(seed)
    dtype = torch.bfloat16 if variant["bf16_logits"] else torch.float32
    made: list[Case] = []

    def normal(rows: int, spread: float = 3.0) -> torch.Tensor:
        return torch.randn(rows, vocabulary, generator=generator) * spread

    def random_seeds(rows: int) -> torch.Tensor:
        """Seeds and positions, i64 [2, rows]."""
        big = torch.randint(-(2**62), 2**62, (2, rows), generator=generator)
        return torch.stack((big[0], big[1].abs() % 100000))

    def add(
        name: str,
        logits: torch.Tensor,
        temperature: list[float],
        top_k: list[int],
        top_p: list[float],
        gap: int = 0,
        seeds: torch.Tensor | None = None,
    ) -> None:
        rows = logits.shape[0]
        padded = torch.full((rows, vocabulary + gap), math.nan, dtype=dtype)  # NaN in the gap: never to be read
        padded[:, :vocabulary] = logits.to(dtype)
        held = padded.to(device)[:, :vocabulary]
        big = seeds if seeds is not None else random_seeds(rows)
        values = (
            torch.tensor(temperature, dtype=torch.float32),
            torch.tensor(top_k, dtype=torch.int64),
            torch.tensor(top_p, dtype=torch.float32),
            big[0],
            big[1],
        )
        inputs: dict[str, Value] = dict(zip(PARAMETERS, (each.to(device) for each in values), strict=True))
        exact, accepted = acceptable(held, *(inputs[each] for each in PARAMETERS))  # type: ignore[arg-type]
        inputs["logits_bf16" if variant["bf16_logits"] else "logits"] = held
        outputs = {"token": OutputLayout((rows,), (1,), torch.int64)}
        made.append(Case("sample", name, inputs, outputs, {"token": exact, "accepted": accepted}))

    add("no row", normal(0), [], [], [])
    add("the largest", normal(1), [0.0], [0], [1.0])
    add("top-k 40 and top-p 0.9", normal(1), [0.7], [40], [0.9])
    add("all tokens; temperature 1 and 0.3; gaps between rows", normal(2), [1.0, 0.3], [0, 0], [1.0, 1.0], gap=8)
    equal = torch.zeros(2, vocabulary)
    equal[0, 5:] = -1.0
    add("equal logits: top-k and top-p take the lowest", equal, [1.0, 1.0], [100, 0], [1.0, 0.01])
    add("top-p 0.5 of a flat row, top-k of one", normal(2, 0.1), [2.0, 1.0], [0, 1], [0.5, 0.4])
    strange = normal(3).to(dtype)
    strange[0, vocabulary - 1] = math.nan
    strange.view(torch.int16 if variant["bf16_logits"] else torch.int32)[0, vocabulary // 3] = -1  # NaN with a sign
    strange[1, [7, vocabulary // 2]] = math.inf
    strange[2, : vocabulary - 20] = -math.inf
    add("a NaN, an infinity, all but 20 −∞", strange, [1.0, 0.5, 1.0], [0, 10, 50], [1.0, 0.9, 1.0])
    add("top-p 0, temperature tiny and huge", normal(3), [1.0, 1e-6, 1e6], [0, 0, 7], [0.0, 1.0, 0.99])
    zeros = torch.full((2, vocabulary), -2.0)
    zeros[0, 3], zeros[0, 9] = -0.0, 0.0
    zeros[1, 9], zeros[1, vocabulary - 2] = 0.0, -0.0
    add("zeros of both signs are equal: the lower index", zeros, [0.0, 1.0], [0, 1], [1.0, 1.0])
    add("a large top-k and top-p 0.7", normal(1), [0.9], [min(600, vocabulary // 2)], [0.7])
    add("top-p tiny, small, nearly 1", normal(3), [2.0, 5.0, 1.0], [0, 0, 0], [1e-6, 0.05, 1 - 2.0**-24])
    add("huge, tiny and denormal", *_extreme(normal(5), dtype))
    sides = torch.stack((normal(1)[0], normal(1)[0]))
    sides[0, :100] += 100.0
    sides[1, -min(400, vocabulary // 2) :] += 100.0
    add("the large ones side by side: the list of a small top-k fits or not", sides, [9.0] * 2, [20] * 2, [1.0, 0.9])

    listed = min(int(config.get("threads", LISTED)), LISTED)
    two = torch.zeros(2, vocabulary)
    for row, size in enumerate((listed, listed + 1)):
        two[row, torch.randperm(vocabulary, generator=generator)[:size]] = 4.0
    add("as many above the bound as the list holds, and one more", two, [FLAT] * 2, [2, 2], [1.0, 1.0])

    # The token with the largest noise is the first to be dropped, or the last to be kept.
    def at_edge(name: str, logits: torch.Tensor, rank: int | None, wanted: int = 0) -> None:
        """``rank``: where to put that token, None to leave it. Top-k ends there, or top-p of the first ``wanted``."""
        seeds = random_seeds(1)
        row = logits.to(dtype).clone()
        best = int(reference.gumbel(seeds[0], seeds[1], torch.arange(vocabulary), dtype=torch.float64).argmax())
        order = reference.descending(row[None]).indices[0]
        if rank is not None:
            row[[best, int(order[rank])]] = row[[int(order[rank]), best]]
            order = reference.descending(row[None]).indices[0]
        rank = int((order == best).nonzero())
        top_k, top_p = [rank, rank + 1], [1.0, 1.0]
        if wanted:
            top_k, top_p = [wanted, wanted], [(rank - 0.5) / wanted, (rank + 0.5) / wanted]
        add(name, row.float().repeat(2, 1), [FLAT, FLAT], top_k, top_p, seeds=seeds.repeat(1, 2))

    at_edge("all logits equal, by the edge of top-k", torch.full((vocabulary,), 0.25), None)
    at_edge("two logits, by the edge of top-k", (torch.arange(vocabulary) % 3 == 0).float(), None)
    for rank in (2, 30, min(1000, vocabulary // 2), vocabulary - 2):
        at_edge(f"by the edge of top-k, rank {rank}", normal(1)[0], rank)
    at_edge("by the edge of top-p in a small top-k", normal(1)[0], 33, 36)
    at_edge("by the edge of top-p in a large top-k", normal(1)[0], 100, 300)
    if config.get("many_ctas") != config.get("ctas"):
        made.append(_together(made, int(config["many_rows"])))
    return made


def _together(made: list[Case], rows: int) -> Case:
    """The rows of all cases in one, again and again until there are ``rows``: to draw them as many rows are."""
    number = sum(int(case.expected["token"].numel()) for case in made)
    times = -(-rows // number)

    def joined(values: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat(values * times)

    inputs: dict[str, Value] = {
        name: joined([case.inputs[name] for case in made])  # type: ignore[misc]
        for name in made[0].inputs
    }
    outputs = {"token": OutputLayout((number * times,), (1,), torch.int64)}
    expected = {name: joined([case.expected[name] for case in made]) for name in made[0].expected}
    return Case("sample", "all of them together", inputs, outputs, expected)


def _extreme(logits: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, list[float], list[int], list[float]]:
    """Rows of ``logits`` [5, V], standard normal times 3, taken to the ends of float32; temperature, top-k, top-p."""
    rows = logits.clone()
    rows[0] = rows[0] * 1e-40  # denormal
    largest = torch.finfo(dtype).max
    rows[1] = (rows[1] * 1e38).clamp(-largest, largest)  # differences beyond float32
    rows[3] = rows[3] * 2.0 - 95.0  # weights around the least float32
    rows[3, 17] = 0.0
    rows[4] = rows[4] * 1e4
    return rows, [2e-38, 1e37, 1e-3, 1.0, 3.0], [7, 50, 0, 0, 300], [0.9, 0.99, 0.999999, 0.9999999, 1.0]


def judge(got: dict[str, torch.Tensor], case: Case) -> Verdict:
    token, exact, accepted = got["token"], case.expected["token"], case.expected["accepted"]
    wrong = _wrong(token, accepted)
    findings = []
    if wrong.any():
        row = int(wrong.nonzero()[0])
        findings.append(
            f"token: {int(wrong.sum())} of {wrong.numel()} are wrong, the first at [{row}]: {int(token[row])} "
            f"instead of {int(exact[row])} or one of {int(accepted[row].sum())} that are as good"
        )
    same = torch.where(wrong, token.double(), exact.double())
    found = verdict(same[:, None], exact.double()[:, None], findings)
    found.detail["not_the_reference"] = int((token != exact).sum())
    return found


def _wrong(token: torch.Tensor, accepted: torch.Tensor) -> torch.Tensor:
    inside = (token >= 0) & (token < accepted.shape[1])
    return ~(inside & accepted.gather(1, token.clamp(0, accepted.shape[1] - 1)[:, None]).squeeze(1))


def first_wrong(
    got: dict[str, torch.Tensor], case: Case, config: dict[str, Scalar]
) -> tuple[str, tuple[int, ...], str] | None:
    """The first wrong token; a tile is a row."""
    wrong = _wrong(got["token"], case.expected["accepted"])
    if not wrong.any():
        return None
    row = int(wrong.nonzero()[0])
    return "token", (row,), f"row {row}"


def workload(
    dims: dict[str, int], variant: dict[str, Scalar], sizes: dict[str, int], *, seed: int, device: torch.device
) -> dict[str, Value]:
    generator = torch.Generator(device=device).manual_seed(seed)
    rows = sizes["R"]
    logits = torch.randn(rows, dims["V"], generator=generator, device=device) * 3
    values: dict[str, Value] = {
        "temperature": torch.ones(rows, device=device),
        "top_k": torch.zeros(rows, dtype=torch.int64, device=device),
        "top_p": torch.ones(rows, device=device),
        "seed": torch.arange(rows, device=device),
        "position": torch.arange(rows, device=device) * 7,
        "token": torch.empty(rows, dtype=torch.int64, device=device),
    }
    if variant["bf16_logits"]:
        values["logits_bf16"] = logits.to(torch.bfloat16)
    else:
        values["logits"] = logits
    return values
