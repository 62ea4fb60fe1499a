"""Kernels with dependent launch leave alone what the launch before may still be using, until they have waited."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.mutated_kernels import operator_kernels
from dsv4.emulator.client import Client
from dsv4.generator.build import build
from dsv4.generator.kernel import KernelPlan
from dsv4.generator.verify.mutation_run import attempt, subject
from dsv4.runtime.cache import Artifact

FEW = ("embed", "mhc_post", "q_norm_rope_kv_insert", "swiglu_quant")


def check(plan: KernelPlan, cache: Path) -> None:
    """Without findings as it is; without its wait it is accused of what it reads or writes."""
    (built,) = build([plan], cache_root=cache, jobs=1)
    assert built.artifact is not None, built.error
    whole = subject(Artifact.read(built.artifact), schedules=1, wide=False)
    waits = [each for each in whole.mutations() if each.opcode == "griddepcontrol.wait"]
    assert waits
    with Client() as client:
        assert "prior_grid" in {attempt(whole, each, client).category for each in waits}


@pytest.mark.parametrize("plan", [each for each in operator_kernels(FEW) if each.arch == "sm_90a"], ids=lambda p: p.op)
def test_nothing_is_touched_before_the_wait(plan: KernelPlan, tmp_path: Path) -> None:
    check(plan, tmp_path)


@pytest.mark.sweep
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("plan", operator_kernels(), ids=lambda p: f"{p.op} {p.arch}")
def test_nothing_is_touched_before_the_wait_in_any_operator(plan: KernelPlan, tmp_path: Path) -> None:
    check(plan, tmp_path)
