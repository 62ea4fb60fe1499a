"""Exponentials by a polynomial: their values, and attention for sm_100a that has some of them, in the emulator."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from dsv4.emulator import launcher
from dsv4.emulator.arguments import output, reads
from dsv4.emulator.objects import from_compiled
from dsv4.generator.build import BuildResult
from dsv4.generator.spec import plan
from dsv4.generator.verify import cases
from dsv4.generator.verify.emulator import EmulatedKernel
from dsv4.generator.verify.operators import fmha
from dsv4.generator.verify.run import bind
from tests.ops import builds as builds
from tests.ops.exp2_kernel import compile_exp2

WORST = 3.1e-6
"""Relative, of the polynomial and of its roundings."""
# operator, head dimension, flags, configuration
KERNELS: dict[str, tuple[str, int, dict[str, bool | int], dict[str, int]]] = {
    "8 of 32": ("fmha", 64, {"causal": True, "has_sink": True}, {"exp2_emulated": 8, "opt_level": 1}),
    "12 of 32": ("fmha_varlen", 64, {"page_rows": 0}, {"exp2_emulated": 12, "opt_level": 1}),
}


@pytest.fixture(scope="module")
def exp2(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return from_compiled(compile_exp2("sm_100a", str(tmp_path_factory.mktemp("exp2"))))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, BuildResult]:
    plans = [
        plan(op, "sm_100a", dims={"D": width}, variant=dict(flags), config=dict(config))
        for op, width, flags, config in KERNELS.values()
    ]
    return dict(zip(KERNELS, builds.build_all(plans, tmp_path_factory.mktemp("fmha")), strict=True))


def exponentials(kernel: Any, x: torch.Tensor) -> torch.Tensor:
    y = torch.zeros_like(x)
    report = launcher.run(kernel, reads(x), output(y))
    assert not report.findings
    return y


def test_values_are_close_for_all_that_a_row_can_ask_for(exp2: Any) -> None:
    drawn = -torch.rand(20000, generator=torch.Generator().manual_seed(0)) * torch.logspace(-7, 2, 20000)
    whole = -torch.arange(127.0)
    near = torch.cat([torch.nextafter(whole, whole + step) for step in (-1, 1)])
    x = torch.cat([drawn, whole, near[near >= -126]])
    error = (exponentials(exp2, x).double() / torch.exp2(x.double()) - 1).abs()
    assert float(error.max()) < WORST
    assert torch.equal(exponentials(exp2, whole), torch.exp2(whole))  # whole numbers exactly, 1 among them


def test_hidden_keys_and_nan(exp2: Any) -> None:
    hidden = torch.tensor([-math.inf, -1e30, -127.0, -500.0])
    assert exponentials(exp2, hidden).view(torch.int32).tolist() == [0, 0, 0, 0]
    below = exponentials(exp2, torch.tensor([-126.25, -126.999]))
    assert bool(((below >= 0) & (below < 2.0**-126)).all())
    assert bool(exponentials(exp2, torch.tensor([math.nan, -math.nan])).isnan().all())


@pytest.mark.parametrize("name", KERNELS)
def test_so_many_of_them_are_left_to_the_exponential_unit(built: dict[str, BuildResult], name: str) -> None:
    op, width, flags, config = KERNELS[name]
    builds.takes_what_was_predicted(built[name])
    text = builds.ptx(built[name])
    made = builds.manifest(built[name])
    assert text.count("add.rm.f32") == int(made.config["tile_n"]) * config["exp2_emulated"] // 32
    without = plan(op, "sm_100a", dims={"D": width}, variant=dict(flags), config={**config, "exp2_emulated": 0})
    assert (
        without.config != made.config
        and without.budget == plan(op, "sm_100a", dims={"D": width}, variant=dict(flags), config=dict(config)).budget
    )


@pytest.mark.parametrize("name", KERNELS)
def test_values_in_the_emulator(built: dict[str, BuildResult], name: str) -> None:
    made = builds.manifest(built[name])
    count = len(cases(made.op, made.dims, made.variant, config=made.config))
    assert builds.findings(built[name], range(count - 1)) == []


def test_a_nan_among_the_keys_stays_one(built: dict[str, BuildResult]) -> None:
    """One key of the tile after the other: whichever way its exponential is made, all rows that see it are NaN."""
    made = builds.manifest(built["8 of 32"])
    shape = fmha.Shape(1, 40, 64, 1, 1)
    case = fmha.case_of(shape, made.dims, made.variant, torch.Generator().manual_seed(1), torch.device("cpu"))
    kernel = EmulatedKernel(builds.artifact(built["8 of 32"]))
    right = case.inputs["k"]
    assert isinstance(right, torch.Tensor)
    for key in range(24):
        k = right.clone()
        k[0, key] = math.nan
        o, lse = torch.zeros(1, 40, 1, 64, dtype=torch.bfloat16), torch.zeros(1, 1, 40)
        kernel(*bind(made.contract, {**case.inputs, "k": k, "o": o, "lse": lse}))
        assert bool(o.isnan().all()) and bool(lse.isnan().all())
