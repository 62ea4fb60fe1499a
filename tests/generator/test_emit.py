"""Emission: deterministic, readable, and closed to everything that is no identifier, enum or number."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import jinja2
import pytest
from scale_kernel import TEMPLATE, TEXT, emitter, loader, scale_plan

from dsv4.generator.emit import EmitError, emit, served_variants


def text_of(template: str, **changes: object) -> str:
    """What a template renders to inside the test module's frame."""
    return emitter(TEXT + template)(scale_plan(**changes)).text  # type: ignore[arg-type]


def test_same_bytes_twice_and_in_every_process_order() -> None:
    first = emitter()(scale_plan())
    emitter()(scale_plan(threads=128))
    again = emit(scale_plan(), loader=loader())
    assert (first.text, first.sha256, first.devices) == (again.text, again.sha256, again.devices)


def test_the_header_names_its_origin_and_nothing_that_changes_by_itself() -> None:
    text = emitter()(scale_plan(threads=96, spec_sha256="ab" * 32)).text
    assert text.startswith(f"# Emitted from generator/templates/{TEMPLATE} for op scale on sm_90a. Do not edit.\n")
    assert "# config: threads=96, stages=3\n" in text and f"# spec sha256: {'ab' * 32}\n" in text


def test_the_config_reaches_the_source_and_changes_its_sha() -> None:
    one, other = emitter()(scale_plan(threads=64)), emitter()(scale_plan(threads=128))
    assert "THREADS = 64\n" in one.text and "THREADS = 128\n" in other.text and one.sha256 != other.sha256


def test_one_file_serves_both_variants() -> None:
    one, other = emitter()(scale_plan(square=False)), emitter()(scale_plan(square=True))
    assert one.sha256 == other.sha256
    assert served_variants(one.text) == ({"square": False}, {"square": True})


def test_the_result_is_formatted() -> None:
    assert "A = [1, 2]\n" in text_of("\nA = [  1,2 ]\n")


def test_undefined_name_gives_one_line_with_template_line_and_name() -> None:
    with pytest.raises(EmitError) as caught:
        text_of("\nX = {{ tile_of_nothing }}\n")
    last = len(TEXT.splitlines()) + 2
    assert str(caught.value) == f"template {TEMPLATE}, line {last}: 'tile_of_nothing' is undefined"


def test_undefined_field_names_the_field() -> None:
    with pytest.raises(EmitError, match=r"line \d+: 'dict object' has no attribute 'tile_m'"):
        text_of("\nX = {{ config.tile_m }}\n")


def test_a_macro_of_another_template_is_code_and_an_error_in_it_is_found_there() -> None:
    templates = {
        TEMPLATE: TEXT + '\n{% import "scale/parts.py.j2" as parts with context %}\n{{ parts.pair("A", 3) }}\n',
        "scale/parts.py.j2": "{% macro pair(a, n) %}\n{{ a }} = ({{ n }}, {{ config.threads }})\n{% endmacro %}\n",
    }
    assert "A = (3, 64)\n" in emit(scale_plan(), loader=jinja2.DictLoader(templates)).text


@pytest.mark.parametrize(
    "value",
    ["1); import os  #", "x\ny", "__import__('os').system('id')", "{{ config }}", 'a"', "a b", "lambda: 0", ""],
)
def test_no_value_can_carry_code(value: str) -> None:
    with pytest.raises(EmitError, match="only identifiers, enums and numbers"):
        text_of("\nX = {{ config.mode }}\n", config={"threads": 64, "stages": 3, "mode": value})


def test_no_key_can_carry_code() -> None:
    with pytest.raises(EmitError, match="only identifiers"):
        text_of("", config={"threads": 64, "stages": 3, "x = 1; y": 1})


@dataclass(frozen=True)
class Region:
    name: str
    columns: int = 32


@dataclass(frozen=True)
class TalkativeBudget:
    """A budget with text that people read, which must not stop emission as long as no template reaches for it."""

    regions: dict[str, Region] = field(default_factory=lambda: {"scores": Region("scores"), "bad": Region("0; evil()")})
    reason: str = "fits, with 4 kB to spare (see explain)"

    def names(self) -> list[str]:
        return [region.name for region in self.regions.values()]

    def lazily(self) -> object:
        return (region.name for region in self.regions.values())


def test_text_in_the_budget_is_refused_only_where_a_template_reaches_it() -> None:
    changes = {"budget": TalkativeBudget()}
    assert "COLUMNS = 32\n" in text_of("\nCOLUMNS = {{ budget.regions.scores.columns }}\n", **changes)
    for reach in (
        "budget.reason",
        "budget.regions.bad.name",
        "budget['reason']",
        "budget.names()[0]",
        "budget.lazily()[0]",
    ):
        with pytest.raises(EmitError, match="only identifiers"):
            text_of(f"\nX = '{{{{ {reach} }}}}'\n", **changes)


def test_numbers_are_written_as_python_writes_them() -> None:
    config = {"threads": 64, "stages": 3, "flag": True, "scale": 0.1, "mode": "bulk_row"}
    text = text_of("\nX = ({{ config.flag }}, {{ config.scale }}, {{ none }}, '{{ config.mode }}')\n", config=config)
    assert 'X = (True, 0.1, None, "bulk_row")\n' in text


def test_a_container_is_not_written_out_as_a_whole() -> None:
    with pytest.raises(EmitError, match="got a dict"):
        text_of("\nX = {{ config }}\n")


def test_device_modules_are_found_through_their_own_imports() -> None:
    source = emitter(
        TEXT.replace("VARIANTS", "from dsv4.generator.device.row_reduce import sum_of_squares\n\nVARIANTS", 1)
    )
    assert "dsv4.generator.device.row_reduce" in source(scale_plan()).devices
    assert emitter()(scale_plan()).devices == ()


@pytest.mark.parametrize("line", ["import os", "from subprocess import run", "from dsv4.generator import emit"])
def test_an_emitted_module_imports_cutlass_and_device_code_only(line: str) -> None:
    with pytest.raises(EmitError, match=r"imports .* only cutlass and dsv4\.generator\.device are allowed"):
        text_of(f"\n{line}\n")


def test_a_device_module_that_does_not_exist() -> None:
    with pytest.raises(EmitError, match=r"flux_capacitor \(line [0-9]+\), which does not exist"):
        text_of("\nfrom dsv4.generator.device.flux_capacitor import charge\n")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (TEXT + "\nX = (\n", "does not render to Python"),
        (TEXT + "\n{% if %}\n", "line"),
        (TEXT.replace("def launch", "def start"), r"defines no function launch\(\)"),
        (TEXT.replace("VARIANTS", "VARIATIONS"), "has to define VARIANTS"),
        (TEXT.replace('({"square": False}, {"square": True})', "tuple(range(3))"), "literal tuple"),
        (TEXT.replace('{"square": False}, {"square": True}', '{"square": False},'), "does not contain"),
        (TEXT + "\n{{ config.threads // 0 }}\n", "ZeroDivisionError"),
    ],
)
def test_a_broken_template_is_one_line(template: str, message: str) -> None:
    with pytest.raises(EmitError, match=message) as caught:
        emitter(template)(scale_plan(square=True))
    assert "\n" not in str(caught.value) and TEMPLATE in str(caught.value)


def test_a_missing_template_is_named() -> None:
    with pytest.raises(EmitError, match=r"template norm/nothing\.py\.j2 not found"):
        emit(replace(scale_plan(), template="norm/nothing.py.j2"))
