"""The project's own kernels through the builder: one default of every operator and arch, with all of its flags on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dsv4.generator.build import BuildResult, build
from dsv4.generator.build.ptx import source_lines, untaken_lines
from dsv4.generator.emit import emit
from dsv4.generator.kernel import KernelPlan
from dsv4.generator.lint import lint_source
from dsv4.generator.spec import default_plans, list_archs, list_ops


def last_defaults() -> list[KernelPlan]:
    """The last default plan of each template and arch: the largest head or row, every flag set."""
    plans = [plan for op in list_ops() for arch in list_archs() for plan in default_plans(op, arch)]
    return list({(plan.template, plan.arch): plan for plan in plans}.values())


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[BuildResult]:
    return build(last_defaults(), cache_root=tmp_path_factory.mktemp("cache"), jobs=2)


def test_every_operator_builds_as_predicted(results: list[BuildResult]) -> None:
    assert {(result.plan.op, result.plan.arch) for result in results} >= {("rms_norm", "sm_90a"), ("fmha", "sm_100a")}
    for result in results:
        assert result.error is None, f"{result.plan.name}: {result.error}"
        used, predicted = result.used, result.plan.predicted
        assert used is not None and (used.smem_bytes, used.tmem_columns) == (
            predicted.smem_bytes,
            predicted.tmem_columns,
        )
        in_tmem = result.plan.op in ("fmha", "fmha_varlen", "sparse_attention_decode") and result.plan.arch == "sm_100a"
        assert (used.tmem_columns > 0) == in_tmem


def test_their_ptx_has_no_line_of_a_branch_not_taken(results: list[BuildResult]) -> None:
    """With a control: with programmatic launch taken for off, its lines are there to be accused of.

    (Not where the wait stands in a function of its own, which the branch only calls: the lines are the function's.)
    """
    controlled = set()
    for result in results:
        assert result.artifact is not None, result.error
        source = (result.artifact / "source.py").read_text()
        ptx = (result.artifact / "kernel.ptx").read_text()
        assert source_lines(ptx) and untaken_lines(source, ptx, result.plan.variant) == []
        if result.plan.variant["pdl"] and "def wait_for_" not in source:
            assert untaken_lines(source, ptx, {**result.plan.variant, "pdl": False})
            controlled.add(result.plan.op)
    assert controlled >= {"fmha", "rms_norm", "mhc_post", "router"}


def test_programmatic_launch_reaches_the_host_code(results: list[BuildResult]) -> None:
    for result in results:
        assert result.artifact is not None, result.error
        launches = json.loads((result.artifact / "manifest.json").read_text())["launches"]
        assert [launch["pdl"] for launch in launches] == [result.plan.variant["pdl"]] * len(launches)


def test_what_they_are_emitted_as_keeps_the_lessons() -> None:
    for plan in last_defaults():
        assert [str(finding) for finding in lint_source(emit(plan).text)] == [], plan.name
        assert str(Path.cwd()) not in emit(plan).text
