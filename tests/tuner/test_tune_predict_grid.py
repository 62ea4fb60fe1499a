"""The cost model's grids are those that compiled host code asks for: in the emulator, on the operators' own cases."""

from __future__ import annotations

from math import prod
from pathlib import Path

import pytest
import torch

from dsv4.generator.build import build
from dsv4.generator.spec import load_op, plan
from dsv4.generator.verify import registry
from dsv4.generator.verify.case import Case
from dsv4.generator.verify.emulator import EmulatedKernel
from dsv4.generator.verify.run import run_case
from dsv4.runtime.artifact import Contract
from dsv4.runtime.cache import Artifact
from dsv4.tuner.cost.counts import count
from dsv4.tuner.cost.launches import known_ops

SMALL = {
    "fmha": {"D": 64},
    "rms_norm": {"d": 512},
    "mhc_pre": {"d": 512},
    "mhc_post_pre": {"d": 512},
    "mhc_head": {"d": 512},
    "mhc_post": {"d": 512},
    "embed": {"d": 512},
    "sample": {"V": 1024},
}
CASES = 3


def sizes_of(contract: Contract, case: Case) -> dict[str, int]:
    """The sizes that the case's tensors give to the contract's names."""
    tensors = {**case.inputs, **case.outputs, **case.inouts}
    found: dict[str, int] = {name: size for name, size in contract.dims.items() if size is not None}
    for argument in contract.arguments:
        value = tensors.get(argument.name)
        if value is None or argument.kind == "scalar":
            if isinstance(value, int):
                found[argument.name] = value
            continue
        for size, extent in zip(argument.shape, value.shape, strict=False):
            name, _, more = str(size).partition(" + ")  # B + 1 starts tell of B sequences
            if name.isidentifier() and (more.isdigit() or not more):
                found[name] = int(extent) - int(more or 0)
    return found


@pytest.mark.sweep  # compiles a kernel of each operator; what is counted from the grids has fast tests beside this file
@pytest.mark.parametrize("arch", ["sm_90a", "sm_100a"])
@pytest.mark.parametrize("op", known_ops())
def test_grids(op: str, arch: str, tmp_path: Path):
    if arch not in load_op(op).archs:
        pytest.skip(f"{op} is not written for {arch}")
    kernel = plan(op, arch, dims=SMALL.get(op, {}))
    (built,) = build([kernel], cache_root=tmp_path, jobs=1)
    assert built.error is None and built.artifact is not None
    artifact = Artifact.read(built.artifact)
    contract = artifact.manifest.contract
    emulated = EmulatedKernel(artifact)
    for case in registry.cases(op, kernel.dims, kernel.variant, config=kernel.config, device=torch.device("cpu"))[
        :CASES
    ]:
        run_case(emulated, contract, case)
        assert emulated.report is not None
        grids = [prod(launch.grid) for launch in emulated.report.launches]
        assert [each.ctas for each in count(kernel, sizes_of(contract, case))] == grids, case.name
