"""mhc_pre: the input of a sub-layer and the weights for mixing back, judged by what a float32 product can know.

The chain is long, so the rule follows the error through it.

Logits (:func:`logit_error`). The products are exact: streams are bf16, a weight is three bf16 terms that add up to
it. The sums round. A tensor-core instruction aligns 16 products and the sum so far to the largest exponent, cuts each
behind 25 fraction bits and the result behind 23 (emulator/core/matrix_sum.c, as an H100 does). The cut of a result of
the size 2^e is 2^(e − 24) in the mean and always towards zero, so within one warp's chain (eight chunks of 16 columns,
three terms each) the means add up. The 17 cuts of the addends, of either sign, √(17/3) · 2^(m − 25) in the root mean
square with m the largest exponent, and the deviation of the result's from its mean, √(1/12) · 2^(m − 23), are
independent: together ``SPREAD`` · 2^(m − 23). Chains of different warps are
independent, and so are the float32 additions behind them, 2^-24 of the sum each. The judge works out the partial sums
of each chain in float64; ``DEVIATIONS`` = 5 of the resulting standard deviations are allowed, so that one logit in two
million exceeds them by chance. Where nothing is added (only zeros), nothing is allowed. ``LOGIT`` · (|logit| + |base|)
is for what follows: three roundings (ρ, scale, base: 3 · 2^-24), rsqrt.approx (2^-22.9), mean and eps before the root
(half of 2 · 2^-24), and half of five deviations of the sum of squares' last twenty additions (2.8 · 2^-24).

post = 2σ(z): a logit's error δ moves it by at most δ relative. pre: the same, and ``GATE`` for the function, which is
ex2.approx (2^-22.5), rcp.approx (2^-23), an addition, and the rounded exponent, 1.5 · 2^-24 |z|, |z| up to 20.

comb: to first order an entry moves by Σ_l |∂comb/∂z_l| δ_l over the sixteen logits, which the judge takes from the
float64 function by differences. ``RELATIVE`` is for the function itself: each of the 39 steps has three additions, a
multiply-add and a product (5 · 2^-24) and a reciprocal (2^-23), 4.2e-7 at most; that is 1.6e-5 if all pointed the same
way and no step corrected the one before, 2.6e-6 in the root of the squares. It is the tolerance of the spec, and post
has it too, where it is far more than is needed.

u: every element is the bf16 of a number within Σ_j |δ pre_j · X_j| + 5 · 2^-24 · Σ|term| of the float64 result. With
``norm`` the same, carried through y = w · u / √(mean u² + eps) with u rounded to bf16 before: one bf16 step of u is
one of y, so an element counts as right that is the rounding of a number between those that u's neighbours give. In
either case an element more than two bf16 steps off must be a cancellation: |u| < 2^-8 · Σ|term|.
"""

from __future__ import annotations

import math

import torch

from dsv4.generator.verify import judging, metrics
from dsv4.generator.verify.case import Case, OutputLayout, Value, Verdict
from dsv4.runtime.artifact import Scalar
from dsv4.runtime.reference import mhc_pre as reference
from dsv4.runtime.reference import rms_norm

STREAMS, OUTPUTS = 4, 24
EPS = 1e-6
ROUNDING = 2.0**-24
WARP_COLUMNS, CHUNK_LANES, CHUNKS = 32, 4, 2
"""A warp's columns are eight of each of four lanes; an instruction takes four of each, so a stream makes two chunks."""
TERMS = 3
DEVIATIONS = 5
SPREAD = math.sqrt(17 / 48 + 1 / 12)
LOGIT = 9 * 2.0**-24
GATE = 2.5e-6
RELATIVE = 1e-5
STEP = 1e-6
"""Of the differences by which comb's derivatives are taken; float64 leaves ten digits of them."""
CANCELLED = 2.0**-8
FLUSHED = 2.0**-125
"""Twice the smallest normal float32: approximate instructions flush what is smaller, so 2σ may come out as zero."""
INEXACT_WITH_NORM = 3e-3
"""Share of y that may be the neighbour of the correctly rounded: u and y are rounded one after the other."""

THOROUGH_CASES = (1, 3)
"""Seven tokens, and more passes than pipeline stages (numbers in the list without empty cases)."""

WORKLOAD_SIZES = {"T": 8192}

CHECK_LOGITS = (
    *(0.3, -1.2, 0.7, 2.0, -0.5, 0.1, 1.5, -2.0),
    *(1.0, -0.5, 0.2, 0.9, -1.3, 0.4, 2.2, 0.0),
    *(0.6, 0.6, -0.8, 1.1, -2.0, 1.7, 0.3, -0.4),
)
"""The logits of the worked example in dsv4-reference §2.6."""


def parameters(columns: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """fn, base and scale with logits of a few units, as trained ones have."""
    fn = torch.randn(OUTPUTS, STREAMS * columns, generator=generator) / math.sqrt(STREAMS * columns)
    return {
        "fn": fn,
        "base": torch.randn(OUTPUTS, generator=generator),
        "scale": torch.tensor([0.7, 1.1, 1.6]),
    }


def cases(
    dims: dict[str, int], variant: dict[str, Scalar], *, config: dict[str, Scalar], seed: int, device: torch.device
) -> list[Case]:
    columns, norm = dims["d"], bool(variant.get("norm"))
    generator = torch.Generator(device="cpu").manual_seed(seed)
    usual = parameters(columns, generator)
    norm_weight = (1.0 + 0.5 * torch.randn(columns, generator=generator)).to(torch.bfloat16)
    clusters = int(config.get("clusters", 8))
    round_of_passes = 16 * int(config.get("token_tiles", 1)) * clusters
    many = round_of_passes * (6 if clusters == 1 else 1) + 5
    made: list[Case] = []

    def normal(tokens: int) -> torch.Tensor:
        return torch.randn(tokens, STREAMS, columns, generator=generator)

    def add(name: str, streams: torch.Tensor, *, eps: float = EPS, **changed: torch.Tensor) -> None:
        inputs: dict[str, Value] = {
            "streams": streams.to(torch.bfloat16).contiguous().to(device),
            **{key: value.to(torch.float32).contiguous().to(device) for key, value in {**usual, **changed}.items()},
            "norm_weight": norm_weight.to(device) if norm else None,
            "norm_eps": EPS,
            "eps": eps,
        }
        tokens = streams.shape[0]
        made.append(
            Case(
                op="mhc_pre",
                name=name,
                inputs=inputs,
                outputs={
                    "y": OutputLayout((tokens, columns), (columns, 1), torch.bfloat16),
                    "post": OutputLayout((tokens, STREAMS), (STREAMS, 1), torch.float32),
                    "comb": OutputLayout((tokens, STREAMS, STREAMS), (16, 4, 1), torch.float32),
                },
                expected=expected_float64(inputs),
                limits={
                    "cluster": float(config.get("cluster", 16)),
                    "groups": 2.0 if config.get("mixers") == 7 else 1.0,
                },
            )
        )

    for tokens in (0, 1, 7, 40, many):
        add(f"T={tokens}, normal", normal(tokens))
    by_stream = torch.tensor([1.0, 1e-2, 3.0, 1e2])[:, None]
    add("streams of different size", normal(9) * by_stream)
    add(
        "tokens from 1e-15 to 1e15: eps counts, a wrong token's mean shows",
        normal(31) * torch.logspace(-15, 15, 31)[:, None, None],
    )
    spread = torch.randn(OUTPUTS, STREAMS * columns, generator=generator) / math.sqrt(columns)
    add(
        "logits up to a dozen: matrices near permutations",
        normal(6),
        fn=spread * 2,
        scale=torch.tensor([1.0, 1.0, 2.0]),
    )
    add(
        "the worked example of dsv4-reference 2.6",
        normal(3),
        fn=torch.zeros(OUTPUTS, STREAMS * columns),
        scale=torch.ones(3),
        base=torch.tensor(CHECK_LOGITS),
    )
    edge = torch.zeros(OUTPUTS, STREAMS * columns)
    place = torch.arange(OUTPUTS) * (STREAMS * columns // OUTPUTS)
    edge[torch.arange(OUTPUTS), place] = math.sqrt(columns) * torch.linspace(-1, 1, OUTPUTS)
    edge[:, -1] = 3.0
    add("each output from two elements of its own: a wrong column or output shows", normal(5), fn=edge)
    streams, fn = one_each(columns)
    add(
        "single products with all the bits of a weight: a lost term shows",
        streams,
        fn=fn,
        base=torch.zeros(OUTPUTS),
        scale=torch.full((3,), 12 * math.sqrt(OUTPUTS / (STREAMS * columns))),
    )
    add("all zeros", torch.zeros(3, STREAMS, columns))
    add("a large eps of the Sinkhorn steps", normal(4), eps=0.01)
    strange = normal(21)
    strange[2, 1, 0] = math.nan
    strange[9, 3, columns - 1] = math.inf
    strange[17, 0, columns // 2] = -math.inf
    add("NaN and infinite tokens between finite ones", strange)
    if clusters > 1:  # buffers and phases come round with the third pass of a cluster: waits that the second has not
        add("three passes of a cluster", normal(2 * round_of_passes + 5))
    return made


def one_each(columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Streams of four tokens and fn: each output has one product, with a weight little above 2^k whose third
    term is 63 units of its last bit, 63 · 2^-23, so that a logit of −12 is 9e-5 off without it."""
    streams = torch.zeros(4, STREAMS, columns)
    fn = torch.zeros(OUTPUTS, STREAMS * columns)
    place = torch.arange(OUTPUTS) * (STREAMS * columns // OUTPUTS) + 3
    streams.flatten(1)[:, place] = 1.0
    units = (torch.arange(OUTPUTS) % 5 + 1) * 2**16 + (torch.arange(OUTPUTS) * 3 + 129) * 2**7 + 63
    fn[torch.arange(OUTPUTS), place] = -(1.0 + units * 2.0**-23)
    return streams, fn


def tensor_of(inputs: dict[str, Value], name: str) -> torch.Tensor:
    found = inputs[name]
    assert isinstance(found, torch.Tensor)
    return found


def optional_tensor(inputs: dict[str, Value], name: str) -> torch.Tensor | None:
    return None if inputs[name] is None else tensor_of(inputs, name)


def number(inputs: dict[str, Value], name: str) -> float:
    """A number as a kernel gets it: rounded to float32."""
    found = inputs[name]
    assert isinstance(found, (int, float))
    return float(torch.tensor(found, dtype=torch.float32))


def expected_float64(inputs: dict[str, Value]) -> dict[str, torch.Tensor]:
    """The reference in float64; u is rounded to bf16 before it is normalised."""
    norm_eps = number(inputs, "norm_eps")
    u, post, comb = reference.mhc_pre(
        tensor_of(inputs, "streams"),
        tensor_of(inputs, "fn"),
        tensor_of(inputs, "base"),
        tensor_of(inputs, "scale"),
        norm_eps=norm_eps,
        eps=number(inputs, "eps"),
        dtype=torch.float64,
        out_dtype=torch.float64,
    )
    weight = optional_tensor(inputs, "norm_weight")
    if weight is not None:
        rounded = metrics.round_to_bf16(u)
        u = rms_norm.rms_norm(rounded, weight, norm_eps, dtype=torch.float64, out_dtype=torch.float64)
    return {"y": u, "post": post, "comb": comb}


def scaled_by(inputs: dict[str, Value]) -> torch.Tensor:
    """ρ · scale of each logit, [T, outputs] in float64: what a projection is multiplied by."""
    x, scale = tensor_of(inputs, "streams").to(torch.float64).flatten(1), tensor_of(inputs, "scale").to(torch.float64)
    rho = (x.square().mean(1, keepdim=True) + number(inputs, "norm_eps")).rsqrt()
    shares = torch.tensor([STREAMS, STREAMS, STREAMS**2][: len(scale)], device=scale.device)  # mhc_head has one
    return rho * torch.repeat_interleave(scale, shares)


def logits_of(inputs: dict[str, Value]) -> torch.Tensor:
    """[T, outputs] in float64."""
    x = tensor_of(inputs, "streams").to(torch.float64).flatten(1)
    projections = x @ tensor_of(inputs, "fn").to(torch.float64).T
    return projections * scaled_by(inputs) + tensor_of(inputs, "base").to(torch.float64)


def sum_variance(x: torch.Tensor, fn: torch.Tensor, cluster: int, groups: int = 1) -> torch.Tensor:
    """The squared standard deviation of the projections of ``x`` [T, 4, d] on ``fn`` [outputs, 4 · d], as summed by the
    kernel: [T, outputs]; float64."""
    warps, chunks = x.shape[2] // (groups * WARP_COLUMNS), groups * CHUNKS
    shape = (-1, STREAMS, warps, CHUNK_LANES, chunks, WARP_COLUMNS // (CHUNK_LANES * CHUNKS))

    def in_chunks(rows: torch.Tensor) -> torch.Tensor:
        """[chunks of a chain, warps, rows, 16]."""
        return rows.reshape(shape).permute(1, 4, 2, 0, 3, 5).flatten(4).flatten(0, 1)

    parts, weights = in_chunks(x), in_chunks(fn).transpose(2, 3)
    variance, total, total_squares = torch.zeros(3, len(x), len(fn), dtype=torch.float64, device=x.device)
    means = torch.zeros(warps, len(x), len(fn), dtype=torch.float64, device=x.device)
    after = torch.zeros_like(means)
    for part, weight in zip(parts, weights, strict=True):
        before, added = after, part @ weight
        after, squares = before + added, part.square() @ weight.square()
        rounds = TERMS * (squares > 0)
        means += 2.0**-24 * power_of_two(after) * rounds
        largest = torch.maximum(torch.maximum(before.abs(), after.abs()), squares.sqrt())
        variance = variance + ((2.0**-23 * SPREAD * power_of_two(largest)).square() * rounds).sum(0)
        total, total_squares = total + added.sum(0), total_squares + squares.sum(0)
    additions = warps // cluster + cluster
    return variance + means.square().sum(0) + 2.0**-48 * additions * (total_squares + total.square())


def power_of_two(values: torch.Tensor) -> torch.Tensor:
    """2^⌊log2 |value|⌋."""
    return torch.where(values == 0, 0.0, torch.exp2(torch.frexp(values).exponent - 1.0))


def logit_error(inputs: dict[str, Value], cluster: int, groups: int = 1) -> torch.Tensor:
    """How far each of a token's logits may be off, [T, outputs] in float64; a warp's chain is over ``groups`` times 32
    columns."""
    x, fn = tensor_of(inputs, "streams").to(torch.float64), tensor_of(inputs, "fn").to(torch.float64)
    factor, base = scaled_by(inputs).abs(), tensor_of(inputs, "base").to(torch.float64).abs()
    projections = (x.flatten(1) @ fn.T).abs()
    return DEVIATIONS * sum_variance(x, fn, cluster, groups).sqrt() * factor + LOGIT * (projections * factor + base)


def comb_moves(logits: torch.Tensor, error: torch.Tensor, eps: float) -> torch.Tensor:
    """Σ_l |∂comb/∂z_l| · error_l for logits and errors [T, 16] of comb: [T, 4, 4]."""

    def comb(moved: torch.Tensor) -> torch.Tensor:
        return reference.sinkhorn(moved.unflatten(-1, (STREAMS, STREAMS)), eps=eps, iterations=20)

    total = torch.zeros_like(logits).unflatten(-1, (STREAMS, STREAMS))
    for place in range(STREAMS**2):
        step = torch.zeros_like(logits[0])
        step[place] = STEP
        slope = (comb(logits + step) - comb(logits - step)) / (2 * STEP)
        total += slope.abs() * error[:, place, None, None]
    return total


def judge(got: dict[str, torch.Tensor], case: Case) -> Verdict:
    limits = int(case.limits["cluster"]), int(case.limits["groups"])
    findings = findings_of(got, case.inputs, case.expected, *limits)
    return judging.verdict(got["y"], case.expected["y"], findings)


def findings_of(
    got: dict[str, torch.Tensor],
    inputs: dict[str, Value],
    expected: dict[str, torch.Tensor],
    cluster: int,
    groups: int = 1,
) -> list[str]:
    """What is wrong with y, post and comb for ``inputs``; a fusion's judge asks too."""
    if not got["y"].numel():
        return []
    error, logits = logit_error(inputs, cluster, groups), logits_of(inputs)
    post_error = expected["post"] * (RELATIVE + error[:, STREAMS : 2 * STREAMS]) + FLUSHED
    moves = comb_moves(logits[:, 2 * STREAMS :], error[:, 2 * STREAMS :], number(inputs, "eps"))
    findings = judging.f32_within("post", got["post"], expected["post"], post_error)
    findings += judging.f32_within("comb", got["comb"], expected["comb"], expected["comb"] * RELATIVE + moves)
    bare = expected_float64({**inputs, "norm_weight": None})["y"]
    return findings + input_findings(got["y"], bare, error, inputs, expected["y"])


def input_findings(
    y: torch.Tensor, u: torch.Tensor, error: torch.Tensor, inputs: dict[str, Value], expected: torch.Tensor
) -> list[str]:
    """What is wrong with y: u itself, or with a ``norm_weight`` its RMS norm. ``error``: of the logits."""
    streams, weights = tensor_of(inputs, "streams").to(torch.float64), stream_weights(inputs)
    moved = weights * (GATE + error[:, :STREAMS] + 5 * ROUNDING)
    slack = (moved[:, :, None] * streams.abs()).sum(1)
    weight = optional_tensor(inputs, "norm_weight")
    if weight is None:
        findings = judging.bf16_within("y", y, u, slack)
    else:
        findings = _norm_findings(y, u, slack, weight, number(inputs, "norm_eps"), expected)
    cancelled = u.abs() < CANCELLED * (weights[:, :, None] * streams.abs()).sum(1)
    apart = metrics.bf16_ulps_apart(y.contiguous(), metrics.round_to_bf16(expected))
    far = (apart > 2) & torch.isfinite(expected) & ~cancelled
    if int(far.sum()):
        findings.append(
            f"y: {int(far.sum())} of {y.numel()} elements are more than two bf16 steps off and no cancellations, the "
            f"first at {far.nonzero()[0].tolist()}"
        )
    return findings


def stream_weights(inputs: dict[str, Value]) -> torch.Tensor:
    """pre in float64, [T, 4]: the weights of u."""
    return torch.sigmoid(logits_of(inputs)[:, :STREAMS]) + number(inputs, "eps")


def _norm_findings(
    y: torch.Tensor,
    u: torch.Tensor,
    slack: torch.Tensor,
    weight: torch.Tensor,
    norm_eps: float,
    expected: torch.Tensor,
) -> list[str]:
    """y between what the two bf16 values next to u give; for nearly all elements that is one value."""
    finite = torch.isfinite(u)
    slack = torch.where(finite, slack, 0.0)
    low, high = metrics.round_to_bf16(u - slack).double(), metrics.round_to_bf16(u + slack).double()
    rounded = metrics.round_to_bf16(u).double()
    mean = rounded.square().mean(1, keepdim=True) + norm_eps
    # Few elements of a row lie so near a rounding boundary that u may become its neighbour: the mean hardly moves.
    moved = ((high - low).square() + 2 * rounded.abs() * (high - low)).mean(1, keepdim=True) / mean
    factor = weight.double() / mean.sqrt()
    apart = (high - low).abs() * factor.abs()
    error = torch.where(torch.isfinite(expected), apart + expected.abs() * (moved + 4 * ROUNDING), 0.0)
    return judging.bf16_within("y", y, expected, error, inexact_share=INEXACT_WITH_NORM)


def first_wrong(
    got: dict[str, torch.Tensor], case: Case, config: dict[str, Scalar]
) -> tuple[str, tuple[int, ...], str] | None:
    """The first element of y more than one bf16 step off; a tile is the tokens of a pass."""
    apart = metrics.bf16_ulps_apart(got["y"].contiguous(), metrics.round_to_bf16(case.expected["y"]))
    places = (apart > 1).nonzero()
    if not len(places):
        return None
    token, column = places[0].tolist()
    tokens = 16 * int(config.get("token_tiles", 1))
    return "y", (token, column), f"pass {token // tokens}, token {token % tokens} of its {tokens}"


def workload(
    dims: dict[str, int], variant: dict[str, Scalar], sizes: dict[str, int], *, seed: int, device: torch.device
) -> dict[str, Value]:
    generator = torch.Generator(device="cpu").manual_seed(seed)
    tokens, columns = sizes["T"], dims["d"]
    made = {name: value.to(device) for name, value in parameters(columns, generator).items()}
    here = torch.Generator(device=device).manual_seed(seed)
    bf16 = torch.bfloat16
    weight = torch.randn(columns, generator=here, device=device, dtype=bf16) if variant.get("norm") else None
    return {
        "streams": torch.randn(tokens, STREAMS, columns, generator=here, device=device, dtype=bf16),
        **made,
        "norm_weight": weight,
        "norm_eps": EPS,
        "eps": EPS,
        "y": torch.empty(tokens, columns, device=device, dtype=bf16),
        "post": torch.empty(tokens, STREAMS, device=device),
        "comb": torch.empty(tokens, STREAMS, STREAMS, device=device),
    }
