"""mhc_post: the next streams, judged element by element.

A kernel adds five products in float32 and rounds once. Each of the five operations is off by at most 2^-24 of the sum
of the magnitudes Σ|term| = |post·update| + Σ_j |comb·stream|, so the rule is: every element is the bf16 of a number
within 5 · 2^-24 · Σ|term| of the float64 result, and 99.9 % of them are the correctly rounded one.
"""

from __future__ import annotations

import math

import torch

from dsv4.generator.verify import judging, metrics
from dsv4.generator.verify.case import Case, OutputLayout, Value, Verdict
from dsv4.runtime.artifact import Scalar
from dsv4.runtime.reference import mhc_post as reference

STREAMS = 4
TERMS = STREAMS + 1
ROUNDING = 2.0**-24

THOROUGH_CASES = (1, 5)
"""Seven tokens, and five whose streams change places (numbers in the list without empty cases)."""

WORKLOAD_SIZES = {"T": 8192}


def cases(
    dims: dict[str, int], variant: dict[str, Scalar], *, config: dict[str, Scalar], seed: int, device: torch.device
) -> list[Case]:
    columns = dims["d"]
    generator = torch.Generator(device="cpu").manual_seed(seed)
    made: list[Case] = []

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    def add(
        name: str,
        tokens: int,
        *,
        update: torch.Tensor | None = None,
        streams: torch.Tensor | None = None,
        post: torch.Tensor | None = None,
        comb: torch.Tensor | None = None,
    ) -> None:
        update = normal(tokens, columns) if update is None else update
        streams = normal(tokens, STREAMS, columns) if streams is None else streams
        post = 2 * torch.rand(tokens, STREAMS, generator=generator) if post is None else post
        comb = torch.rand(tokens, STREAMS, STREAMS, generator=generator) if comb is None else comb
        inputs: dict[str, torch.Tensor] = {
            "update": update.to(torch.bfloat16).contiguous().to(device),
            "streams": streams.to(torch.bfloat16).contiguous().to(device),
            "post": post.to(torch.float32).contiguous().to(device),
            "comb": comb.to(torch.float32).contiguous().to(device),
        }
        shape = (tokens, STREAMS, columns)
        made.append(
            Case(
                op="mhc_post",
                name=name,
                inputs=dict(inputs),
                outputs={"new_streams": OutputLayout(shape, (STREAMS * columns, columns, 1), torch.bfloat16)},
                expected={"new_streams": reference.mhc_post(**inputs, dtype=torch.float64, out_dtype=torch.float64)},
            )
        )

    for tokens in (0, 1, 7, 64, 190):
        add(f"T={tokens}, normal", tokens)
    by_stream = torch.tensor([1e-3, 1.0, 1e3, 1e6])[:, None]
    add(
        "streams of very different size: a wrong stream or weight shows", 11, streams=normal(11, 4, columns) * by_stream
    )
    turned = torch.eye(STREAMS).roll(1, dims=1).expand(5, STREAMS, STREAMS)
    add("streams change places, no update: exact, and the transpose shows", 5, post=torch.zeros(5, 4), comb=turned)
    add("the update alone", 3, post=torch.full((3, 4), 0.5), comb=torch.zeros(3, 4, 4))
    add("a matrix that is far from symmetric", 9, comb=torch.logspace(-6, 3, 16).reshape(4, 4).expand(9, 4, 4))
    against = normal(6, columns)
    streams = normal(6, STREAMS, columns) * 1e-2
    streams[:, 2] = -against
    add(
        "the update cancels a stream",
        6,
        update=against,
        streams=streams,
        post=torch.ones(6, 4),
        comb=torch.ones(6, 4, 4),
    )
    add("tokens from 1e-18 to 1e17", 36, streams=normal(36, 4, columns) * torch.logspace(-18, 17, 36)[:, None, None])
    strange = normal(8, STREAMS, columns)
    strange[1, 2, 0] = math.nan
    strange[3, 0, columns - 1] = math.inf
    strange[4, 3, columns // 2] = -math.inf
    update = normal(8, columns)
    update[6, 5] = math.nan
    add("NaN and infinite elements between finite ones", 8, streams=strange, update=update)
    weights = torch.rand(5, STREAMS, STREAMS, generator=generator)
    weights[2, 1, 3] = math.nan
    add("a NaN weight spoils one stream of one token", 5, comb=weights)
    return made


def error_bound(inputs: dict[str, Value]) -> torch.Tensor:
    """5 · 2^-24 · Σ|term| of each element, [T, 4, d] in float64."""
    magnitudes = {name: value.abs() for name, value in inputs.items() if isinstance(value, torch.Tensor)}
    return TERMS * ROUNDING * reference.mhc_post(**magnitudes, dtype=torch.float64, out_dtype=torch.float64)


def judge(got: dict[str, torch.Tensor], case: Case) -> Verdict:
    ours, expected = got["new_streams"], case.expected["new_streams"]
    findings = judging.bf16_within("new_streams", ours, expected, error_bound(case.inputs))
    return judging.verdict(ours, expected, findings)


def first_wrong(
    got: dict[str, torch.Tensor], case: Case, config: dict[str, Scalar]
) -> tuple[str, tuple[int, ...], str] | None:
    """The element with the most bf16 steps between it and the right one, first of those; a tile is a CTA's columns."""
    apart = metrics.bf16_ulps_apart(
        got["new_streams"].contiguous(), metrics.round_to_bf16(case.expected["new_streams"])
    )
    if not apart.numel() or not int(apart.max()):
        return None
    token, stream, column = (apart == apart.max()).nonzero()[0].tolist()
    width = 8 * int(config.get("threads", 128))
    return "new_streams", (token, stream, column), f"columns {column // width * width} … of a CTA of {width}"


def workload(
    dims: dict[str, int], variant: dict[str, Scalar], sizes: dict[str, int], *, seed: int, device: torch.device
) -> dict[str, Value]:
    generator = torch.Generator(device=device).manual_seed(seed)
    tokens, columns = sizes["T"], dims["d"]

    def normal(*shape: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=device, dtype=dtype)

    streams = normal(tokens, STREAMS, columns, dtype=torch.bfloat16)
    return {
        "update": normal(tokens, columns, dtype=torch.bfloat16),
        "streams": streams,
        "post": normal(tokens, STREAMS, dtype=torch.float32),
        "comb": normal(tokens, STREAMS, STREAMS, dtype=torch.float32),
        "new_streams": torch.empty_like(streams),
    }
