"""sparse_attention_decode for Hopper with pairs of CTAs that make half of the keys each for one another."""

from __future__ import annotations

import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from dsv4.emulator.client import Client
from dsv4.emulator.objects import from_artifact
from dsv4.emulator.policy import FIXED, MAX_INSTRUCTIONS, starving
from dsv4.emulator.sources import Sources
from dsv4.generator.build import BuildResult, probe
from dsv4.generator.spec import SpecError, plan
from dsv4.generator.verify import cases
from dsv4.generator.verify.emulator import EmulatedKernel
from dsv4.generator.verify.mutation_run import Subject, attempt
from dsv4.generator.verify.run import run_case
from dsv4.runtime.cache import Artifact
from tests.ops import builds as builds

OP, ARCH = "sparse_attention_decode", "sm_90a"
ALL: dict[str, bool | str] = {"extra": "rows", "has_length0": True, "has_length1": True, "has_sink": True}
PLAIN: dict[str, bool | str] = {
    "cache": "plain",
    "extra": "rows",
    "has_length0": True,
    "has_sink": True,
    "has_max": True,
}
PAGES: dict[str, bool | str] = {"extra": "pages", "has_length0": True}
# heads, flags, configuration
CONFIGURATIONS: dict[str, tuple[int, dict[str, bool | str], dict[str, int | str]]] = {
    "one split": (80, {**ALL, "pdl": True}, {"pair": 1, "splits": 1}),
    "rows of bf16, one split": (128, PLAIN, {"pair": 1, "splits": 1}),
    "as many splits as there is room for": (128, {**PAGES, "has_sink": True}, {"pair": 1}),
}
EMULATED: dict[str, tuple[list[int], str]] = {
    "one split": ([2, 6], "early"),
    "rows of bf16, one split": ([2, 6, 8], "mixed:0"),
    "as many splits as there is room for": ([2, 8], "early"),
}
"""Numbers of cases, and the schedule: thousands of ``st.async`` on their way take the emulator long."""
SWEPT = CONFIGURATIONS | {
    "two splits": (128, {"extra": "rows", "has_length1": True}, {"pair": 1, "splits": 2}),
    "four splits": (256, {"extra": "pages", "has_sink": True, "has_max": True}, {"pair": 1, "splits": 4}),
    "window, four splits": (128, {"has_length0": True}, {"pair": 1, "splits": 4}),
    "window of bf16, two splits": (128, {"cache": "plain"}, {"pair": 1, "splits": 2}),
    "rows of bf16, four splits": (100, PLAIN, {"pair": 1, "splits": 4}),
}
SCHEDULES = [policy.name for policy in (*FIXED, starving(0), starving(4, 1), starving(9))]


def built_as(name: str, root: Path, **changed: int) -> BuildResult:
    heads, flags, config = SWEPT[name]
    dims, variant = {"H": heads}, dict(flags)
    (result,) = builds.build_all([plan(OP, ARCH, dims=dims, variant=variant, config={**config, **changed})], root)
    return result


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, BuildResult]:
    root = tmp_path_factory.mktemp(OP)
    return {name: built_as(name, root) for name in CONFIGURATIONS}


@pytest.mark.parametrize("heads", [65, 128, 256, 512])
def test_the_default_is_no_pair_until_one_was_measured(heads: int) -> None:
    assert plan(OP, ARCH, dims={"H": heads}).config["pair"] == 0
    assert plan(OP, ARCH, dims={"H": heads}, config={"pair": 1}).config["pair"] == 1


@pytest.mark.parametrize(("heads", "splits"), [(64, 1), (192, 1), (128, 8)])
def test_no_pair_otherwise(heads: int, splits: int) -> None:
    with pytest.raises(SpecError, match="pair"):
        plan(OP, ARCH, dims={"H": heads}, config={"pair": 1, "splits": splits})


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_it_compiles_to_what_was_predicted(built: dict[str, BuildResult], name: str) -> None:
    builds.takes_what_was_predicted(built[name])
    (launch,) = builds.manifest(built[name]).launches
    assert launch.block == (512, 1, 1) and launch.cluster == (2 * int(CONFIGURATIONS[name][2].get("splits", 1)), 1, 1)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_each_key_is_made_once_and_stored_twice(built: dict[str, BuildResult], name: str) -> None:
    text = builds.ptx(built[name])
    packed = builds.manifest(built[name]).variant["cache"] == "kv_fp8"
    pieces = 2 * 8  # copies of a warp for its eight rows of bf16, half a row each
    assert len(re.findall(r"st\.async\.\S+complete_tx::bytes\.b32", text)) == 1  # which rows are keys
    assert text.count("cp.async.bulk.shared::cluster.shared::cta") == 1  # for each eight rows of 64 columns
    assert text.count("cp.async.cg.shared.global") == (3 * 9 if packed else pieces)  # raw rows: twice before the loop
    assert len(re.findall(r"mbarrier\.arrive\.shared::cluster", text)) == 1


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_values_in_the_emulator(built: dict[str, BuildResult], name: str) -> None:
    numbers, schedule = EMULATED[name]
    assert builds.findings(built[name], numbers, schedule) == []


def outputs_of(result: BuildResult, number: int, schedule: str) -> list[torch.Tensor]:
    """The bits of the outputs of one case."""
    artifact = Artifact.read(builds.folder(result))
    made = artifact.manifest
    kernel = EmulatedKernel(artifact)
    kernel.schedule = schedule
    case = cases(made.op, made.dims, made.variant, config=made.config)[number]
    held: dict[str, torch.Tensor] = {}

    def keeping(*arguments: Any) -> None:
        kernel(*arguments)
        named = zip(made.contract.arguments, arguments, strict=True)
        held.update({argument.name: value.clone() for argument, value in named if argument.name in case.outputs})

    assert run_case(keeping, made.contract, case).ok
    assert kernel.report is not None and kernel.report.ok
    return [value.view(torch.int16 if value.dtype == torch.bfloat16 else torch.int32) for value in held.values()]


@pytest.mark.parametrize("name", ["one split", "rows of bf16, one split"])
def test_a_proxy_fence_that_is_left_out_is_reported(built: dict[str, BuildResult], name: str) -> None:
    artifact = Artifact.read(builds.folder(built[name]))
    made, compiled = artifact.manifest, from_artifact(artifact)
    case = cases(made.op, made.dims, made.variant, config=made.config)[2]
    sources = Sources([artifact.folder])
    whole = Subject(made, compiled, compiled.texts[0].ptx, ((case, "early"),), sources, MAX_INSTRUCTIONS)
    with Client() as client:
        fences = [each for each in whole.mutations() if each.opcode.startswith("fence.proxy.async")]
        trials = [attempt(whole, each, client) for each in fences if each.family == "drop-fence"]
    kinds = {trial.mutation.id.removeprefix("drop-fence/"): trial.category for trial in trials}
    assert len(kinds) >= 3 and set(kinds.values()) <= {"missing_proxy_fence", "missing_copy_fence"}, kinds


def test_the_same_bits_as_without_a_pair(built: dict[str, BuildResult], tmp_path: Path) -> None:
    alone = outputs_of(built_as("one split", tmp_path, pair=0), 1, "early")
    for got, expected in zip(outputs_of(built["one split"], 1, "late"), alone, strict=True):
        assert torch.equal(got, expected)


def test_the_same_bits_under_every_schedule(built: dict[str, BuildResult]) -> None:
    result = built["rows of bf16, one split"]
    first = outputs_of(result, 3, "early")
    assert len(first) == 3
    for got, expected in zip(outputs_of(result, 3, "late"), first, strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize(
    ("requests", "keys", "splits"),
    [(1, (128, 1024), 4), (14, (128, 1024), 4), (15, (128, 1024), 2), (29, (128, 1024), 1), (1, (64, 64), 2)],
)
def test_pairs_fill_the_chip_and_leave_each_split_a_tile(
    built: dict[str, BuildResult], tmp_path: Path, requests: int, keys: tuple[int, int], splits: int
) -> None:
    result = built["as many splits as there is room for"]
    shutil.copy(builds.folder(result) / "kernel.so", tmp_path)

    def tensor(dtype: str, *shape: int) -> dict[str, Any]:
        strides = [math.prod(shape[place + 1 :]) for place in range(len(shape))]
        return {"dtype": dtype, "shape": shape, "strides": strides}

    out, pool = tensor("bf16", requests, 1, 128, 512), tensor("u8", 3, 37440)
    none, count = {"none": True}, tensor("i32", requests)
    table = tensor("i32", requests, keys[1] // 64)
    arguments = [out, pool, none, tensor("i32", requests, 1, keys[0]), count, pool, none, none, none, table]
    arguments += [tensor("i32", requests, 1), tensor("f32", 128), out, tensor("f32", requests, 128, 1), none, none]
    arguments += [{"scalar": value} for value in (64, 64, 0.04, -1e30)]
    artifact = Artifact.read(builds.folder(result))
    request = {"function": artifact.manifest.function, "candidates": [arguments]}
    (launch,) = probe.run(tmp_path, request, artifact.root / "support" / "libdsv4_probe.so")
    assert launch["cluster"][0] == 2 * splits and launch["grid"] == [requests * 2 * splits, 1, 1]


@pytest.mark.sweep  # minutes of emulator; EMULATED has some of these
@pytest.mark.parametrize("name", SWEPT)
def test_every_case(tmp_path: Path, name: str) -> None:
    result = built_as(name, tmp_path)
    made = builds.manifest(result)
    count = len(cases(OP, made.dims, made.variant, config=made.config))
    assert builds.findings(result, range(count), "late") == []


@pytest.mark.sweep  # minutes of emulator; EMULATED has some of these
@pytest.mark.parametrize("name", SWEPT)
def test_drawn_schedules(tmp_path: Path, name: str) -> None:
    result = built_as(name, tmp_path)
    for seed in range(2):
        assert builds.findings(result, [2, 8], f"mixed:{seed}") == []


@pytest.mark.sweep  # minutes of emulator; EMULATED has some of these
@pytest.mark.parametrize("name", SWEPT)
def test_the_schedules(tmp_path: Path, name: str) -> None:
    result = built_as(name, tmp_path)
    for schedule in SCHEDULES:
        assert builds.findings(result, [2, 3, 6, 8], schedule) == []
