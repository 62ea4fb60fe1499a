"""A candidate at the shapes that are timed: what is wrong there alone is found, another order of additions is not."""

from __future__ import annotations

import pytest
import torch

from dsv4.runtime.artifact import Argument, Contract
from dsv4.tuner.agreement import Disagrees, Sample, difference, require_agreement

ROWS, COLUMNS = 512, 64


def argument(name: str, dtype: str, role: str = "input") -> Argument:
    return Argument(name=name, kind="tensor", dtype=dtype, shape=("T", COLUMNS), strides=(COLUMNS, 1), role=role)


CONTRACT = Contract(
    dims={"T": None},
    arguments=(argument("x", "bf16"), argument("y", "bf16", "output"), argument("state", "f32", "inout")),
)


def right(x, y, state):
    y.copy_(x.float() * 2)
    state.add_(1.0)


def sample() -> Sample:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, COLUMNS, generator=generator).to(torch.bfloat16)
    return Sample({"x": x, "y": torch.empty_like(x), "state": torch.zeros(ROWS, COLUMNS)}, CONTRACT)


def verdict(kernel) -> str | None:
    both = sample()
    wanted = both.outcome(right, CONTRACT)
    try:
        require_agreement(both.outcome(kernel, CONTRACT), wanted, "T=512")
    except Disagrees as problem:
        return str(problem)
    return None


def leaves_a_row(x, y, state):
    right(x[:-1], y[:-1], state)


def one_row_of_another(x, y, state):
    right(x, y, state)
    y[300] = y[301]


def nan_at_the_end(x, y, state):
    right(x, y, state)
    y[-1, -1] = float("nan")


def twice(x, y, state):
    right(x, y, state)
    state.add_(1.0)


@pytest.mark.parametrize(
    ("kernel", "words"),
    [
        (leaves_a_row, "y: cosine"),
        (one_row_of_another, "elements are more than 5 % off"),
        (nan_at_the_end, "1 of 32768 elements are finite in one of the two only"),
        (twice, "state: cosine"),
    ],
)
def test_what_is_wrong_at_a_timed_shape_is_told(kernel, words):
    found = verdict(kernel)
    assert found is not None and found.startswith("at T=512 it does not agree with the default: ") and words in found


def test_each_call_begins_with_the_same_inputs_and_another_rounding_is_no_difference():
    assert verdict(right) is None

    def rounded(x, y, state):
        y.copy_((x.float() * 2 * (1 + 2**-8)).to(torch.bfloat16))
        state.add_(1.0 + 1e-6)

    assert verdict(rounded) is None


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.float8_e4m3fn])
def test_of_codes_and_indices_few_may_differ(dtype):
    wanted = (torch.arange(4000) % 100).to(torch.uint8).view(40, 100)
    wanted = wanted.view(dtype) if dtype.itemsize == 1 else wanted.to(dtype)
    got = wanted.clone()
    raw = got.view(torch.uint8) if dtype.itemsize == 1 else got
    raw[0, :30] += 1
    assert difference(got, wanted) is None
    raw[1, :30] += 1
    assert difference(got, wanted) == "60 of 4000 elements are others"
    assert difference(got[:1, :1], wanted[:1, :1]) is None  # one always may


def test_zeros_empty_and_scalars_are_no_trouble():
    assert difference(torch.zeros(4, 4), torch.zeros(4, 4)) is None
    assert difference(torch.zeros(0, 4), torch.zeros(0, 4)) is None
    assert difference(torch.ones(4, 4), torch.zeros(4, 4)) is not None
    one = Argument(name="n", kind="tensor", dtype="f32", shape=(), strides=(), role="output")
    contract = Contract(dims={}, arguments=(one,))
    values = Sample({"n": torch.zeros(())}, contract)
    assert float(values.outcome(lambda n: n.fill_(3.0), contract)["n"]) == 3.0
