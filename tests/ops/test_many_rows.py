"""8193 rows in the emulator: the rows of a verified case again and again, each bit what it is in the case alone.

The judges hold the cases to float64; this shows that a row depends neither on how many there are nor on its place.
``expert_offsets`` has 8193 tokens among its cases, the ``compressor`` in ``test_doors_gpu``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dsv4.generator.build import BuildResult
from dsv4.generator.spec import load_op, plan
from dsv4.generator.verify import cases
from dsv4.generator.verify.case import Case
from dsv4.generator.verify.emulator import EmulatedKernel
from dsv4.generator.verify.run import bind
from tests.ops import builds as builds

ROWS = 8193
ARCHS = ("sm_90a", pytest.param("sm_100a", marks=pytest.mark.sweep))
# The operator, its static sizes, its flags.
KERNELS: dict[str, tuple[str, dict[str, int], dict[str, Any]]] = {
    "embed": ("embed", {"d": 256}, {}),
    "mhc_pre": ("mhc_pre", {"d": 128}, {"norm": True}),
    "mhc_post": ("mhc_post", {"d": 256}, {}),
    "mhc_post_pre": ("mhc_post_pre", {"d": 128}, {"norm": True}),
    "mhc_head": ("mhc_head", {"d": 128}, {"norm": True}),
    "rms_norm": ("rms_norm", {"d": 64}, {}),
    "rms_norm_quant": ("rms_norm_quant", {"d": 128}, {"with_y": True}),
    "q_norm_rope_kv_insert": ("q_norm_rope_kv_insert", {"H": 1}, {}),
    "indexer_q fp8": ("indexer_q", {"H": 1}, {"code": "fp8", "fold": "f32"}),
    "indexer_q fp4": ("indexer_q", {"H": 1}, {"code": "fp4"}),
    "inverse_rope_quant": ("inverse_rope_quant", {"H": 1, "G": 1}, {"output": "fp8"}),
    "router_choose": ("router_choose", {"E": 8}, {}),
    "router_logits": ("router_logits", {"d": 64, "E": 8}, {}),
    "router_logits_many": ("router_logits_many", {"d": 512, "E": 16}, {}),
    "router_hash_many": ("router_hash_many", {"d": 512, "E": 16}, {}),
    "swiglu_quant": ("swiglu_quant", {"I": 128}, {"weighted": True}),
    "quantize": ("quantize", {"K": 128}, {}),
    "quantize nvfp4": ("quantize", {"K": 128}, {"format": "nvfp4"}),
    "dequantize": ("dequantize", {"K": 128}, {}),
    "moe_combine": ("moe_combine", {"d": 8, "k": 1}, {}),
    "sample": ("sample", {"V": 320}, {}),
}
SPLIT_BY_ROWS = {"router_hash_many"}
"""The order of sums depends on how many rows there are: whole numbers, whose sums are exact, are taken."""


def case_of(result: BuildResult) -> Case:
    """The first case of between 5 and 100 rows that lie side by side."""
    made = builds.manifest(result)
    for case in cases(made.op, made.dims, made.variant, config=made.config):
        rows = rows_of(result, case)
        wanted = "whole numbers" in case.name if made.op in SPLIT_BY_ROWS else True
        if 5 <= rows <= 100 and wanted and "gap" not in case.name:
            return case
    raise AssertionError("no such case")


def axes(result: BuildResult) -> dict[str, int]:
    """The axis of rows of each argument that has one."""
    rows = "R" if builds.manifest(result).op == "sample" else "T"
    shapes = {each.name: each.shape for each in builds.manifest(result).contract.arguments}
    return {name: shape.index(rows) for name, shape in shapes.items() if rows in shape}


def rows_of(result: BuildResult, case: Case) -> int:
    name, axis = next((name, axis) for name, axis in axes(result).items() if case.inputs.get(name) is not None)
    held = case.inputs[name]
    assert isinstance(held, torch.Tensor)
    return held.shape[axis]


def repeated(tensor: torch.Tensor, axis: int) -> torch.Tensor:
    index = torch.arange(ROWS) % tensor.shape[axis]
    if tensor.itemsize > 1 or not tensor.is_floating_point():
        return tensor.index_select(axis, index)
    return tensor.view(torch.uint8).index_select(axis, index).view(tensor.dtype)


def ran(result: BuildResult, values: dict[str, Any], outputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    kernel = EmulatedKernel(builds.artifact(result))
    kernel(*bind(builds.manifest(result).contract, {**values, **outputs}))
    assert kernel.report is not None and list(kernel.report.findings) == []
    return outputs


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("name", KERNELS)
def test_each_row_is_what_it_is_among_few(name: str, arch: str, tmp_path: Path) -> None:
    op, dims, variant = KERNELS[name]
    if arch not in load_op(op).archs:
        pytest.skip(f"{op} has no kernel for {arch}")
    (result,) = builds.build_all([plan(op, arch, dims=dims, variant=variant)], tmp_path)
    case, along = case_of(result), axes(result)
    assert builds.findings(result, [cases_number(result, case)]) == []
    few = {each: torch.zeros(layout.shape, dtype=layout.dtype) for each, layout in case.outputs.items()}
    kept = {each: value.clone() for each, value in case.inouts.items()}
    ran(result, {**case.inputs, **kept}, few)
    inputs = {
        each: repeated(value, along[each]) if isinstance(value, torch.Tensor) and each in along else value
        for each, value in case.inputs.items()
    }
    if "rows" in inputs:  # of a pool: no two tokens may have one
        inputs["rows"] = torch.full((ROWS,), -1)
    many = {each: repeated(torch.zeros_like(value), along[each]) for each, value in few.items()}
    ran(result, {**inputs, **{each: value.clone() for each, value in case.inouts.items()}}, many)
    for each, value in few.items():
        expected = repeated(value, along[each])
        assert torch.equal(expected.contiguous().view(torch.uint8), many[each].contiguous().view(torch.uint8)), each


def cases_number(result: BuildResult, case: Case) -> int:
    made = builds.manifest(result)
    names = [each.name for each in cases(made.op, made.dims, made.variant, config=made.config)]
    return names.index(case.name)
