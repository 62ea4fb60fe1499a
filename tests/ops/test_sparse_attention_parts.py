"""Queries that full rounds of CTAs leave over, shared among all CTAs of one more: each part, and all put together."""

from __future__ import annotations

import pytest
import torch

from dsv4.generator.build import BuildResult
from dsv4.generator.spec import plan
from dsv4.generator.verify.case import Case
from dsv4.generator.verify.emulator import EmulatedKernel
from dsv4.generator.verify.operators.sparse_attention_decode import Shape, case_of
from dsv4.generator.verify.run import bind, run_case
from tests.ops import builds as builds

OP, ARCH, CTAS = "sparse_attention_decode", "sm_90a", 8
KERNELS = {
    "two pools, 64 heads": (64, {"extra": "rows", "has_sink": True, "has_max": True}),
    "a window, 72 heads": (72, {"extra": "none", "pdl": True}),
}
SHAPES = {
    # name: shape, and whether there are parts (of 64 heads; of 72)
    "eight parts, some without keys": (Shape("", 9, 1, (320, 130), pattern="late", holes=0.2), (True, True)),
    "no key at all": (Shape("", 9, 1, (320, 130), holes=1.0), (True, True)),
    "four parts, the last one shorter": (Shape("", 5, 2, (250, 140), (53, 2), "mixed", gap=8), (True, True)),
    "two parts, half of the keys missing": (
        Shape("", 12, 1, (320, 193), (64, 61), "falling", holes=0.5),
        (True, False),
    ),
    "a tile each, of one item": (Shape("", 17, 1, (64 * 14, 1), pattern="rising"), (True, True)),
    "four parts of each of two blocks of heads": (Shape("", 9, 1, (570, 1), pattern="mixed", holes=0.1), (True, True)),
    "a NaN in some queries": (Shape("", 9, 1, (320, 130), nan=True), (True, True)),
    "a sink that takes nearly all": (Shape("", 9, 1, (320, 64), sink=30.0), (True, True)),
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, BuildResult]:
    plans = [
        plan(OP, ARCH, dims={"H": heads}, variant=dict(flags), config={"split_ctas": CTAS})
        for heads, flags in KERNELS.values()
    ]
    return dict(zip(KERNELS, builds.build_all(plans, tmp_path_factory.mktemp(OP)), strict=True))


def case(result: BuildResult, shape: Shape, room: int = CTAS) -> Case:
    made = builds.manifest(result)
    generator = torch.Generator().manual_seed(5)
    whole = case_of(shape, made.dims, made.variant, generator, torch.device("cpu"), parts=CTAS)
    whole.inouts["parts"] = whole.inouts["parts"][:room]
    return whole


def ran(result: BuildResult, given: Case, schedule: str) -> tuple[EmulatedKernel, list[str]]:
    """The kernel after a run, and what the emulator and the judge say."""
    kernel = EmulatedKernel(builds.artifact(result))
    kernel.schedule = schedule
    verdict = run_case(kernel, builds.manifest(result).contract, given)
    assert kernel.report is not None
    return kernel, [finding.line() for finding in kernel.report.findings] + list(verdict.findings)


def shared(kernel: EmulatedKernel) -> bool:
    """Whether its last run put parts together."""
    assert kernel.report is not None
    names = [launch.kernel for launch in kernel.report.launches]
    assert "rounds_kernel" in names[0]
    return any("parts_kernel" in name for name in names[1:])


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_values_and_findings(built: dict[str, BuildResult], kernel: str, name: str) -> None:
    shape, parts = SHAPES[name]
    for schedule in ("mixed:0", "late", "early"):
        run, said = ran(built[kernel], case(built[kernel], shape), schedule)
        assert said == [] and shared(run) == parts[list(KERNELS).index(kernel)]


def test_without_room_others_serve(built: dict[str, BuildResult]) -> None:
    result = built["two pools, 64 heads"]
    for room, parts in ((0, False), (2, False), (3, True)):
        run, said = ran(result, case(result, SHAPES["eight parts, some without keys"][0], room), "mixed:0")
        assert said == [] and shared(run) == parts


def test_the_bits_depend_on_no_schedule(built: dict[str, BuildResult]) -> None:
    result = built["two pools, 64 heads"]
    found = []
    for schedule in ("late", "early"):
        given = case(result, SHAPES["four parts, the last one shorter"][0])
        outputs = {each: torch.zeros(layout.shape, dtype=layout.dtype) for each, layout in given.outputs.items()}
        kernel = EmulatedKernel(builds.artifact(result))
        kernel.schedule = schedule
        kernel(*bind(builds.manifest(result).contract, {**given.inputs, **outputs, **given.inouts}))
        found.append(outputs)
    for each, bits in found[0].items():
        assert torch.equal(bits.view(torch.int16), found[1][each].view(torch.int16))


def test_what_stands_in_the_workspace(built: dict[str, BuildResult]) -> None:
    """Of one item in eight parts of a tile: m and l of each, −∞ and 0 where a tile has no keys; behind them nothing."""
    result = built["two pools, 64 heads"]
    given = case(result, SHAPES["eight parts, some without keys"][0])
    outputs = {each: torch.zeros(layout.shape, dtype=layout.dtype) for each, layout in given.outputs.items()}
    parts = given.inouts["parts"]
    EmulatedKernel(builds.artifact(result))(
        *bind(builds.manifest(result).contract, {**given.inputs, **outputs, "parts": parts})
    )
    top, total = parts[:, 64 * 512 : 64 * 513], parts[:, 64 * 513 :]
    assert top[:4].isneginf().all() and total[:4].eq(0).all() and parts[:4, : 64 * 512].eq(0).all()
    assert top[4:].isfinite().all() and total[4:].gt(0).all()
    scale = given.inputs["softmax_scale"]
    assert isinstance(scale, float)
    lse = torch.logsumexp(top * scale + total.log(), 0)
    torch.testing.assert_close(lse, outputs["lse"][-1, :, 0], rtol=1e-5, atol=1e-5)
