"""router_hash_many: the code of its products, what it takes, and its weights in the emulator at every share of work."""

from __future__ import annotations

import pytest
import torch

from dsv4.generator.build import BuildResult
from dsv4.generator.spec import Refused, load_op, plan
from dsv4.generator.verify.case import Case
from dsv4.generator.verify.emulator import EmulatedKernel
from dsv4.generator.verify.operators.router_hash_many import as_case, several_tiles
from dsv4.generator.verify.routing_cases import gate_inputs
from dsv4.generator.verify.run import run_case
from dsv4.runtime.cache import Artifact
from tests.ops.builds import build_all, findings, folder, manifest, ptx, takes_what_was_predicted

OP = "router_hash_many"
# dims, pdl, configuration; cases of 129 and 500 tokens are numbers 8 and 9
KERNELS = {
    "tiles shared by several": ({"d": 512, "E": 16}, True, {"slabs_min": 2}),
    "shares that end within tiles": ({"d": 512, "E": 32}, True, {"slabs_min": 4, "ctas": 8, "stages": 3}),
    "two products, each CTA its own gate": ({"d": 640, "E": 288}, False, {"pair": 1, "slabs_min": 4, "stages": 2}),
}
MULTICAST = ".multicast::cluster"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, BuildResult]:
    plans = [
        plan(OP, "sm_90a", dims=dims, variant={"pdl": pdl}, config=config) for dims, pdl, config in KERNELS.values()
    ]
    return dict(zip(KERNELS, build_all(plans, tmp_path_factory.mktemp(OP)), strict=True))


@pytest.mark.parametrize("name", KERNELS)
def test_it_takes_what_was_predicted(built: dict[str, BuildResult], name: str) -> None:
    takes_what_was_predicted(built[name])
    assert ("griddepcontrol" in ptx(built[name])) == KERNELS[name][1]


def test_the_gate_comes_for_two_ctas_where_they_share_it(built: dict[str, BuildResult]) -> None:
    assert {name: MULTICAST in ptx(result) for name, result in built.items()} == {
        name: config.get("pair", 2) == 2 for name, (_, _, config) in KERNELS.items()
    }
    alone = ptx(built["two products, each CTA its own gate"])
    assert "m64n144k16" in alone and "m64n288k16" not in alone
    assert "m64n32k16" in ptx(built["shares that end within tiles"])


@pytest.mark.parametrize("name", KERNELS)
def test_weights(built: dict[str, BuildResult], name: str) -> None:
    assert findings(built[name], range(10)) == []


def case_of(dims: dict[str, int], rows: int) -> Case:
    generator = torch.Generator().manual_seed(rows)
    first = gate_inputs(dims["d"], dims["E"], generator, torch.device("cpu"))[1]
    return as_case(several_tiles(first, rows, generator), dims, generator, halves=False)


@pytest.mark.parametrize("schedule", ["mixed:1", "mixed:2"])
def test_more_tokens_than_ctas_take_at_once(built: dict[str, BuildResult], schedule: str) -> None:
    """2049 tokens are nine pairs of tiles, which four clusters share: rings and their phases go on."""
    made = manifest(built["shares that end within tiles"])
    kernel = EmulatedKernel(Artifact.read(folder(built["shares that end within tiles"])))
    kernel.schedule = schedule
    verdict = run_case(kernel, made.contract, case_of(made.dims, 2049))
    assert kernel.report is not None and list(kernel.report.findings) == [] and verdict.findings == ()


def test_hopper_alone_has_it() -> None:
    assert load_op(OP).archs == ("sm_90a",)


@pytest.mark.parametrize(
    ("dims", "config", "named"),
    [
        ({"d": 4096, "E": 256}, {"stages": 5}, "shared memory"),
        ({"d": 7168, "E": 384}, {"stages": 4}, "shared memory"),
        ({"d": 512, "E": 272}, {"stages": 2}, "a multiple of 32"),
    ],
)
def test_what_cannot_work_is_refused(dims: dict[str, int], config: dict[str, int], named: str) -> None:
    with pytest.raises(Refused) as refusal:
        plan(OP, "sm_90a", dims=dims, config=config)
    assert any(named in reason for reason in refusal.value.reasons)
