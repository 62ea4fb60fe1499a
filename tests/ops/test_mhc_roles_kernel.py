"""mhc_pre and mhc_head where some warps project and others mix: instructions, resources, and values in the emulator."""

from __future__ import annotations

import pytest

from dsv4.generator.build import BuildResult
from dsv4.generator.device import mhc_role_barriers
from dsv4.generator.device.mhc_tiling import Tiling
from dsv4.generator.spec import Refused, plan
from tests.ops.builds import build_all, findings, ptx, takes_what_was_predicted

# Seven passes of one cluster through two stages. With seven mixers a warp has 64 columns, the fourth warp of the last
# warpgroup owns, solves and loads, and the last term of a weight is a byte: as the kernel of 7168 columns.
SHAPES = {
    "a warp a role": ("mhc_pre", "sm_90a", 512, {"mixers": 4, "register_terms": 2}, {"norm": True, "pdl": True}),
    "roles together": (
        "mhc_pre",
        "sm_90a",
        1792,
        {"mixers": 7, "register_terms": 1, "byte_terms": 1},
        {"norm": True, "pdl": False},
    ),
    "before the LM head": ("mhc_head", "sm_90a", 512, {"mixers": 4}, {"norm": False, "pdl": False}),
}
CONFIG = {"cluster": 4, "clusters": 1, "stages": 2, "ahead": 0}
CASES = {"mhc_pre": range(13), "mhc_head": range(12)}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, BuildResult]:
    plans = [
        plan(op, arch, dims={"d": columns}, variant=variant, config={**CONFIG, **config})
        for op, arch, columns, config, variant in SHAPES.values()
    ]
    return dict(zip(SHAPES, build_all(plans, tmp_path_factory.mktemp("mhc_roles")), strict=True))


@pytest.mark.parametrize("shape", SHAPES)
def test_it_compiles_without_spills_and_with_the_expected_instructions(
    built: dict[str, BuildResult], shape: str
) -> None:
    result = built[shape]
    takes_what_was_predicted(result)
    text = ptx(result)
    outputs = 1 if result.plan.op == "mhc_head" else 3
    groups = 2 if result.plan.config["mixers"] == 7 else 1
    # Streams times steps of 16 columns: three terms of each output tile, and the squares of the tokens' two halves.
    assert text.count("mma.sync.aligned.m16n8k16") == groups * 4 * 2 * (3 * outputs + 2)
    assert text.count("ldmatrix.sync.aligned.m8n8.x4") == groups * 4 * 2
    assert "cp.async.bulk.tensor.3d" in text and "setmaxnreg" in text
    assert text.count("barrier.cluster.arrive.relaxed") == text.count("barrier.cluster.arrive") == 1


@pytest.mark.parametrize("shape", SHAPES)
def test_values_in_the_emulator(built: dict[str, BuildResult], shape: str) -> None:
    few = built[shape].plan.dims["d"] > 512
    assert findings(built[shape], (1, 3, 10) if few else CASES[built[shape].plan.op]) == []


def test_nobody_waits_for_what_comes_late(built: dict[str, BuildResult]) -> None:
    assert findings(built["a warp a role"], (3,), schedule="mixed:3") == []


@pytest.mark.parametrize(
    ("d", "config", "named"),
    [
        (4096, {"mixers": 7}, "a warp for each 32 or"),
        (4096, {"mixers": 8, "stages": 1, "ahead": 0}, "two stages"),
        (7168, {"mixers": 7, "stages": 3}, "shared memory"),
    ],
)
def test_what_cannot_work_is_refused_with_what_to_change(d: int, config: dict[str, int], named: str) -> None:
    with pytest.raises(Refused) as refusal:
        plan("mhc_pre", "sm_90a", dims={"d": d}, config=config)
    assert any(named in reason for reason in refusal.value.reasons)


def test_barriers_are_counted_as_they_are_placed() -> None:
    tiling = Tiling(columns=4096, cluster=16, outputs=24, token_tiles=1, stages=4, register_terms=2)
    assert (mhc_role_barriers.batch(tiling), mhc_role_barriers.buffers(tiling)) == (8, 16)
    placed = mhc_role_barriers.place(0, tiling)
    assert placed.solved + 16 == mhc_role_barriers.count(tiling) == 5 * 4 + 4 + 2 * 16
