"""Dtypes and extents that a flag decides: what the contract of a kernel has of them."""

from __future__ import annotations

import pytest

from dsv4.generator.spec import plan
from dsv4.generator.spec.errors import Invalid
from dsv4.generator.spec.expression import parse_expression
from dsv4.generator.spec.tensor_schema import Tensor


def test_a_conditional_is_its_part_where_its_condition_is_known() -> None:
    expr = parse_expression("T if layout == 'rows' else P if layout == 'tiles' else blocks")
    assert expr.chosen({"layout": "rows"}).text == "T"
    assert expr.chosen({"layout": "tiles"}).text == "P"
    assert expr.chosen({"layout": "other", "blocks": 3}).text == "blocks"
    assert expr.chosen({"blocks": 3}) is expr
    assert parse_expression("T * 2").chosen({}).text == "T * 2"


def test_the_first_condition_that_holds_decides_the_dtype() -> None:
    tensor = Tensor.model_validate({"shape": ("T",), "dtypes": {"f32": "wide", "u8": "not packed", "e8m0": "packed"}})
    assert tensor.dtype_in({"wide": True, "packed": True}) == "f32"
    assert tensor.dtype_in({"wide": False, "packed": True}) == "e8m0"
    lacking = Tensor.model_validate({"shape": ("T",), "dtypes": {"f32": "wide"}})
    with pytest.raises(Invalid):
        lacking.dtype_in({"wide": False})


@pytest.mark.parametrize("given", [{"dtype": "f32", "dtypes": {"u8": "true"}}, {}, {"dtypes": {"f33": "true"}}])
def test_a_tensor_has_either_a_dtype_or_conditions(given: dict[str, object]) -> None:
    with pytest.raises(Exception, match="dtype"):
        Tensor.model_validate({"shape": ("T",), **given})


@pytest.mark.parametrize(
    ("variant", "codes", "scale"),
    [
        ({"format": "fp8_128"}, ("e4m3", ("T", 4096)), ("e8m0", ("T", 32))),
        ({"format": "nvfp4", "scale_layout": "swizzled_128x4"}, ("u8", ("T", 2048)), ("e4m3", ("P", 32768))),
        ({"format": "fp8_128", "scale_layout": "m_major"}, ("e4m3", ("T", 4096)), ("f32", (32, "T"))),
    ],
)
def test_a_contract_has_names_and_numbers_alone(variant: dict[str, str], codes: tuple, scale: tuple) -> None:
    found = {each.name: each for each in plan("quantize", "sm_90a", variant=variant).contract.arguments}
    assert (found["codes"].dtype, found["codes"].shape) == codes
    assert (found["scale"].dtype, found["scale"].shape) == scale
    assert found["input_scale"].optional == (variant["format"] != "nvfp4")
