"""Lessons held by text: Jinja control, unrolled pipelines, 16-bit TMEM stores; and that our own sources keep them."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest

from dsv4.generator.lint import control_fraction, lint_source, lint_template


def rules(text: str) -> list[tuple[str, int]]:
    return [(finding.rule, finding.line) for finding in lint_source(text)]


def test_control_lines_are_counted_and_comments_and_blank_lines_are_not() -> None:
    template = "{# a\ncomment #}\n{% if config.x %}\na = 1\n\nb = {{ config.x }}\nc = 3\n{% endif %}\n"
    assert control_fraction(template) == pytest.approx(2 / 5)
    assert lint_template(template) == []
    assert [finding.rule for finding in lint_template(template + "{% set a = 1 %}\n{%- set b =\n 2 %}\n")] == [
        "template"
    ]


KERNEL = """\
STAGES = 3
TILES = STAGES * 20

@cute.kernel
def kernel(n: cutlass.Constexpr[int]):
    for tile in {range}:
        ring.consumer_wait(tile)
        work(tile)
"""


@pytest.mark.parametrize(
    ("range_", "found"),
    [
        ("range(TILES)", False),  # the compiler makes a device loop of it
        ("cutlass.range(TILES, unroll=1)", False),
        ("cutlass.range(TILES, unroll_full=True)", True),
        ("cutlass.range_constexpr(TILES)", True),
        ("range_constexpr(2, TILES)", True),
        ("cutlass.range_constexpr(STAGES)", False),
        ("cutlass.range_constexpr(n)", False),
    ],
)
def test_a_pipeline_loop_that_python_unrolls(range_: str, found: bool) -> None:
    assert rules(KERNEL.format(range=range_)) == ([("unrolled-pipeline", 6)] if found else [])


def test_an_undecorated_helper_unrolls_every_loop() -> None:
    text = KERNEL.replace("@cute.kernel\n", "").format(range="range(tiles)")
    assert rules(text) == [("unrolled-pipeline", 5)]
    assert rules(text.replace("ring.consumer_wait(tile)", "pass")) == []


@pytest.mark.parametrize(
    ("dtype", "found"),
    [("cutlass.Float32", False), ("Float32", False), ("cutlass.BFloat16", True), ("element", True), ("wide", False)],
)
def test_a_tmem_store_of_16_bit_elements(dtype: str, found: bool) -> None:
    text = (
        "element = cutlass.BFloat16\nwide = cutlass.Float32\n"
        "op = tcgen05.copy.St32x32bOp(tcgen05.copy.Repetition(32))\n"
        f"store = cute.make_copy_atom(op, {dtype})\n"
        "load = cute.make_copy_atom(tcgen05.copy.Ld32x32bOp(r), cutlass.BFloat16)\n"
    )
    assert rules(text) == ([("tmem-store-type", 4)] if found else [])


def test_our_own_templates_and_device_modules_keep_the_rules() -> None:
    root = Path(str(resources.files("dsv4.generator")))
    templates, modules = list(root.glob("templates/*/*.j2")), list(root.glob("device/*.py"))
    assert templates and modules
    found = {path.name: lint_template(path.read_text()) for path in templates}
    found |= {path.name: lint_source(path.read_text()) for path in modules}
    assert {name: [str(finding) for finding in findings] for name, findings in found.items() if findings} == {}
