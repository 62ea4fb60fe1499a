"""router_logits_many: what it takes, and its logits in the emulator, also of more tiles than CTAs take at once."""

from __future__ import annotations

import pytest
import torch

from dsv4.generator.build import BuildResult
from dsv4.generator.spec import load_op, plan
from dsv4.generator.verify.emulator import EmulatedKernel
from dsv4.generator.verify.operators.router_logits_many import several_tiles
from dsv4.generator.verify.run import run_case
from dsv4.runtime.cache import Artifact
from tests.ops.builds import build_all, findings, folder, manifest, ptx, takes_what_was_predicted

OP = "router_logits_many"
# dims, pdl, configuration
KERNELS = {
    "gate for two": ({"d": 512, "E": 16}, True, {"ctas": 8, "stages": 3}),
    "two products, each CTA its own gate": ({"d": 320, "E": 288}, False, {"pair": 1, "ctas": 8, "stages": 2}),
}


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
    assert (".multicast::cluster" in ptx(built[name])) == (KERNELS[name][2].get("pair", 2) == 2)


@pytest.mark.parametrize("name", KERNELS)
def test_logits(built: dict[str, BuildResult], name: str) -> None:
    assert findings(built[name], range(7)) == []


def test_more_tokens_than_ctas_take_at_once(built: dict[str, BuildResult]) -> None:
    made = manifest(built["gate for two"])
    kernel = EmulatedKernel(Artifact.read(folder(built["gate for two"])))
    case = several_tiles(made.dims, 1700, 2, torch.Generator().manual_seed(1), torch.device("cpu"))
    verdict = run_case(kernel, made.contract, case)
    assert kernel.report is not None and list(kernel.report.findings) == [] and verdict.findings == ()


def test_hopper_alone_has_it() -> None:
    assert load_op(OP).archs == ("sm_90a",)
