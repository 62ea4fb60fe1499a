"""attention_combine's kernels: what the compiled code contains, their values in the emulator, the door, the judge."""

from __future__ import annotations

import pytest
import torch

from dsv4.generator.build import BuildResult
from dsv4.generator.spec import plan
from dsv4.generator.verify import cases, judge
from dsv4.runtime.ops.attention_combine import attention_combine
from dsv4.runtime.reference import attention_combine as reference
from tests.ops import builds as builds

OP = "attention_combine"
# arch, columns, dtype of the parts, with a sink, warps
CONFIGURATIONS = {
    "float32": ("sm_90a", 512, "f32", True, 4),
    "bf16": ("sm_100a", 72, "bf16", False, 2),
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, BuildResult]:
    plans = [
        plan(OP, arch, dims={"D": columns}, variant={"parts_dtype": dtype, "has_sink": sink}, config={"warps": warps})
        for arch, columns, dtype, sink, warps in CONFIGURATIONS.values()
    ]
    return dict(zip(CONFIGURATIONS, builds.build_all(plans, tmp_path_factory.mktemp(OP)), strict=True))


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_it_compiles_to_what_was_predicted(built: dict[str, BuildResult], name: str) -> None:
    builds.takes_what_was_predicted(built[name])
    text = builds.ptx(built[name])
    assert builds.widths(text, "ld.global") <= {"b32", "v4.b32", "v2.b64"}
    assert builds.widths(text, "st.global") <= {"b32", "v4.b32", "v2.b64"}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_values_in_the_emulator(built: dict[str, BuildResult], name: str) -> None:
    made = builds.manifest(built[name])
    assert builds.findings(built[name], range(len(cases(OP, made.dims, made.variant)))) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_its_door(served: list[str], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    parts, lses, sink = torch.randn(3, 4, 2, 512).to(dtype), torch.randn(3, 4, 2), torch.randn(2)
    lses[1, 2], lses[2, 0] = torch.inf, -torch.inf
    out, lse = attention_combine(parts, lses, sink, out_dtype=torch.bfloat16)
    assert served == [OP] and out.dtype == torch.bfloat16
    expected, expected_lse = reference.attention_combine(parts, lses, sink, dtype=torch.float64)
    torch.testing.assert_close(out.double(), expected.double(), rtol=2**-7, atol=2**-12)
    torch.testing.assert_close(lse.double(), expected_lse, rtol=1e-6, atol=1e-6)


def test_the_judge() -> None:
    case = cases(OP, {"D": 512}, {"parts_dtype": "f32", "has_sink": True})[1]
    right = builds.right_outputs(case)
    assert judge(OP, right, case).ok
    part_lse, parts = case.inputs["part_lse"], case.inputs["parts"]
    assert isinstance(part_lse, torch.Tensor) and isinstance(parts, torch.Tensor)
    without_sink, _ = reference.attention_combine(parts, part_lse, out_dtype=torch.bfloat16)
    assert "out" in " ".join(judge(OP, {**right, "out": without_sink}, case).findings)
    first = torch.logsumexp(part_lse[1:], 0)
    assert "lse" in " ".join(judge(OP, {**right, "lse": first}, case).findings)
