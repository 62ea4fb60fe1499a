"""sparse_attention_prefill: out, lse and max_logits of queries over rows of bf16, judged as decoding attention is.

The cases are those of ``sparse_attention_decode`` with a request for each query, and some with more queries than CTAs.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from dsv4.generator.verify.case import Case, OutputLayout, Value, Verdict
from dsv4.generator.verify.operators import sparse_attention_decode as decode
from dsv4.generator.verify.operators.sparse_attention_decode import Shape
from dsv4.runtime.artifact import Scalar
from dsv4.runtime.pool import KV_WIDTH

OP = "sparse_attention_prefill"
THOROUGH_CASES = (2, 6)
"""Two tiles and a bit of another, and gaps (numbers in the list without empty cases)."""

WORKLOAD_SIZES = {"T": 4096, "K": 640, "S": 32768}

NUMBERS = ("lse", "max_logits")


def _shapes(config: dict[str, Scalar]) -> list[Shape]:
    every_length = (0, -3, 1, 15, 16, 17, 63, 64, 65, 127, 128, 129, 191, 400, 1 << 30)
    many = int(config["persistent_ctas"]) + 4
    # CTAs that have a second query find a place for its Q in each slot of the ring, one where a tile was before; one of
    # them finds a place for a tile where Q was.
    some_lengths = [(0, 1, 64, 65, 200, 0, 128)[number * number % 7] for number in range(many)]
    return [
        Shape("one key", 1, 1, (1, 0)),
        Shape("one tile", 3, 1, (64, 0)),
        Shape("two tiles and a bit of another", 2, 1, (129, 0), pattern="rising"),
        Shape("three tiles, half of the keys missing", 2, 1, (192, 0), pattern="falling", holes=0.5),
        Shape("seventeen tiles, a row more than one", 1, 1, (64 * 17 - 5, 0), pattern="mixed"),
        Shape("rows of every length", len(every_length), 1, (192, 0), lengths=every_length),
        Shape("everything with gaps", 5, 1, (128, 0), pattern="mixed", gap=8, lengths=(100, 128, 0, 1, 77)),
        Shape("the same rows many times, the last one among them", 2, 1, (128, 0), duplicates=True),
        Shape("queries without a single key", 3, 1, (128, 0), holes=1.0),
        Shape("five tiles, the first ones empty", 1, 1, (320, 0), pattern="late"),
        Shape("a NaN in one row: its queries only", 3, 1, (128, 0), nan=True),
        Shape("an infinite sink leaves nothing", 2, 1, (64, 0), sink=math.inf),
        Shape("a sink of minus infinity takes nothing", 2, 1, (64, 0), sink=-math.inf),
        Shape("a sink far above the scores", 2, 1, (65, 0), sink=30.0),
        Shape("more queries than CTAs", many, 1, (200, 0), lengths=tuple(some_lengths), holes=0.1, duplicates=True),
        Shape("no query", 0, 1, (128, 0)),
        Shape("no columns", 2, 1, (0, 0)),
    ]


def cases(
    dims: dict[str, int], variant: dict[str, Scalar], *, config: dict[str, Scalar], seed: int, device: torch.device
) -> list[Case]:
    generator = torch.Generator(device="cpu").manual_seed(seed)
    return [case_of(shape, dims, variant, generator, device) for shape in _shapes(config)]


def case_of(
    shape: Shape, dims: dict[str, int], variant: dict[str, Scalar], generator: torch.Generator, device: torch.device
) -> Case:
    """One case of this shape; the values are the next that ``generator`` (on the CPU) gives."""
    flags = {"cache": "plain", "extra": "none", "has_length0": variant["has_length"], "has_length1": False}
    of_requests = decode.case_of(
        shape, dims, {**flags, "has_sink": variant["has_sink"], "has_max": True}, generator, device
    )
    inputs = of_requests.inputs
    q, rows = inputs["q"], inputs["index0"]
    assert isinstance(q, torch.Tensor) and isinstance(rows, torch.Tensor)
    expected = {name: value[..., 0] for name, value in of_requests.expected.items() if name in NUMBERS}
    return Case(
        op=OP,
        name=shape.name,
        inputs={
            "q": q[:, 0],
            "kv": inputs["kv0"],
            "rows": rows[:, 0],
            "length": inputs["length0"],
            **{name: inputs[name] for name in ("sink", "softmax_scale", "empty_lse")},
        },
        outputs=_outputs(shape.requests, dims["H"], shape.gap),
        expected={"out": of_requests.expected["out"][:, 0], **expected},
    )


def _outputs(queries: int, heads: int, gap: int) -> dict[str, OutputLayout]:
    head, number_row = KV_WIDTH + gap, heads * (1 + gap) + gap
    numbers = OutputLayout((queries, heads), (number_row, 1 + gap), torch.float32)
    out = OutputLayout((queries, heads, KV_WIDTH), (heads * head + 2 * gap, head, 1), torch.bfloat16)
    return {"out": out, **dict.fromkeys(NUMBERS, numbers)}


def judge(got: dict[str, torch.Tensor], case: Case) -> Verdict:
    return decode.judge(_of_requests(got), replace(case, expected=_of_requests(case.expected)))


def first_wrong(
    got: dict[str, torch.Tensor], case: Case, config: dict[str, Scalar]
) -> tuple[str, tuple[int, ...], str] | None:
    """The first wrong element of out, else the first wrong lse."""
    found = decode.first_wrong(_of_requests(got), replace(case, expected=_of_requests(case.expected)), {"splits": 1})
    if found is None:
        return None
    name, place, _ = found
    query, head = place[0], place[2] if name == "out" else place[1]
    owner = f", columns of value warpgroup {place[3] // 256}" if name == "out" else ""
    return name, (query, head, *place[3:]), f"query {query}, head {head}{owner}"


def _of_requests(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """out as [T, 1, H, 512] and numbers as [T, H, 1]."""
    return {name: value[..., None] if name in NUMBERS else value[:, None] for name, value in tensors.items()}


def workload(
    dims: dict[str, int], variant: dict[str, Scalar], sizes: dict[str, int], *, seed: int, device: torch.device
) -> dict[str, Value]:
    generator = torch.Generator(device=device).manual_seed(seed)
    queries, heads, keys, rows = sizes["T"], dims["H"], sizes["K"], sizes["S"]
    q = torch.randn(queries, heads, KV_WIDTH, generator=generator, device=device, dtype=torch.bfloat16)
    index = torch.randint(0, rows, (queries, keys), generator=generator, device=device, dtype=torch.int32)
    return {
        "q": q,
        "kv": torch.ones(rows, KV_WIDTH, device=device, dtype=torch.bfloat16),
        "rows": index,
        "length": torch.full((queries,), keys, device=device, dtype=torch.int32) if variant["has_length"] else None,
        "sink": torch.randn(heads, generator=generator, device=device) if variant["has_sink"] else None,
        "softmax_scale": KV_WIDTH**-0.5,
        "empty_lse": -math.inf,
        "out": torch.empty_like(q),
        **{name: torch.empty(queries, heads, device=device) for name in NUMBERS},
    }
