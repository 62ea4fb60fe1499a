"""sparse_attention_decode for Hopper: what the compiled code contains, its values in the emulator, and the judge."""

from __future__ import annotations

import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from dsv4.generator.build import BuildResult, probe
from dsv4.generator.spec import Refused, plan
from dsv4.generator.verify import cases, judge
from dsv4.generator.verify.emulator import EmulatedKernel
from dsv4.generator.verify.operators.sparse_attention_decode import Shape, case_of
from dsv4.generator.verify.run import run_case
from dsv4.runtime.cache import Artifact
from tests.ops import builds as builds
from tests.ops.sparse_attention_runs import alone_and_again, launched

OP, ARCH = "sparse_attention_decode", "sm_90a"
ALL = {"extra": "rows", "has_length0": True, "has_length1": True, "has_sink": True}
FEW: dict[str, int | str] = {"operand_order": "heads_as_rows"}  # not the default up to 32 heads
# heads, flags, configuration
CONFIGURATIONS: dict[str, tuple[int, dict[str, bool | str], dict[str, int | str]]] = {
    "alone": (64, {**ALL, "pdl": True}, {"splits": 1, "gather_warps": 8}),
    "window only": (8, {"has_sink": False, "has_max": True}, {**FEW, "splits": 1}),
    "two blocks of heads, two splits": (80, {"extra": "rows", "has_length1": True}, {"splits": 2, "pair": 0}),
    "eight splits": (16, ALL, {**FEW, "splits": 8}),
    "pages of a request": (
        64,
        {"extra": "pages", "has_length0": True, "has_sink": True},
        {"splits": 4},
    ),
    "rows of bf16": (
        64,
        {"cache": "plain", "extra": "rows", "has_length0": True, "has_sink": True, "has_max": True},
        {"splits": 2, "q_register_columns": 192},
    ),
    "as many splits as there is room for": (64, {"extra": "rows", "has_sink": True}, {}),
    "more queries than CTAs": (72, ALL, {"split_ctas": 8}),
    "more queries than CTAs, pages": (64, {"extra": "pages", "has_max": True}, {"split_ctas": 8}),
    "more queries than CTAs, window only": (64, {"has_length0": True, "has_sink": True}, {"split_ctas": 8}),
    "more queries than CTAs, shared": (64, {"extra": "rows", "has_sink": True, "has_max": True}, {"split_ctas": 8}),
    "more queries than CTAs, shared, 72 heads": (72, {"pdl": True}, {"split_ctas": 8}),
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, BuildResult]:
    plans = [
        plan(OP, ARCH, dims={"H": heads}, variant=dict(flags), config=dict(config))
        for heads, flags, config in CONFIGURATIONS.values()
    ]
    return dict(zip(CONFIGURATIONS, builds.build_all(plans, tmp_path_factory.mktemp(OP)), strict=True))


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_it_compiles_to_what_was_predicted(built: dict[str, BuildResult], name: str) -> None:
    builds.takes_what_was_predicted(built[name])
    (launch,) = builds.manifest(built[name]).launches
    threads = 640 if builds.manifest(built[name]).config["gather_warps"] == 8 else 512
    assert launch.block == (threads, 1, 1) and launch.cluster == (CONFIGURATIONS[name][2].get("splits", 1), 1, 1)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_each_product_is_issued_once(built: dict[str, BuildResult], name: str) -> None:
    text = builds.ptx(built[name])
    found = re.findall(r"wgmma\.mma_async\.sync\.aligned\.m64n(\d+)k16\.f32\.bf16\.bf16", text)
    made = builds.manifest(built[name])
    few = ["8", "16", "32"] if made.config["small_batch"] == "few_heads" else []  # of kernels of their own
    whole = 2 if few else 1  # the other one for many queries
    expected = (["64"] * (512 // 16) + ["128"] * (2 * 64 // 16)) * whole + few * (512 // 16 + 8 * 64 // 16)
    assert sorted(found) == sorted(expected)
    assert "cp.async.bulk" not in text
    # Two slots of eight rows, 36 pieces each, before and in the loop; of four rows, five times 32 pieces and fewer.
    copies = 4 * 5 if made.config["gather_warps"] == 8 else 4 * 9 * whole + (2 + 2) * 5 * len(few)
    assert text.count("cp.async.cg.shared.global") == (copies if made.variant["cache"] == "kv_fp8" else 32)


@pytest.mark.parametrize("requests", [512, 513])
def test_as_many_requests_as_are_sorted_and_one_more(built: dict[str, BuildResult], requests: int) -> None:
    """By CTAs that take one after another: most have no key, the others up to a tile."""
    result = built["more queries than CTAs, window only"]
    lengths = tuple(29 * number % 64 + 1 if number % 37 == 0 else 0 for number in range(requests))
    shape = Shape(f"{requests} requests", requests, 1, (64, 1), lengths=lengths)
    made = builds.manifest(result)
    case = case_of(shape, made.dims, made.variant, torch.Generator().manual_seed(5), torch.device("cpu"))
    kernel = EmulatedKernel(builds.artifact(result))
    kernel.schedule = "mixed:0"
    verdict = run_case(kernel, made.contract, case)
    assert kernel.report is not None and kernel.report.ok and not verdict.findings


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_values_in_the_emulator(built: dict[str, BuildResult], name: str) -> None:
    made = builds.manifest(built[name])
    count = len(cases(OP, made.dims, made.variant, config=made.config))
    assert builds.findings(built[name], range(count)) == []


def test_the_kernels_of_small_batches_depend_on_no_schedule(built: dict[str, BuildResult]) -> None:
    """A tile of either pool: CTAs of eight heads. Six tiles of two queries: CTAs of sixteen."""
    artifact = Artifact.read(builds.folder(built["as many splits as there is room for"]))
    made = artifact.manifest
    for number in (1, 2):
        case = cases(OP, made.dims, made.variant, config=made.config)[number]
        runs = [launched(artifact, case, slice(None), schedule) for schedule in ("late", "early")]
        for got, again in zip(*runs, strict=True):
            assert torch.equal(got.view(torch.int16), again.view(torch.int16))


@pytest.mark.parametrize("name", ["alone", "eight splits"])
def test_a_query_depends_on_itself_only_and_on_no_schedule(built: dict[str, BuildResult], name: str) -> None:
    alone_and_again(built[name], (3, 7, 13))


@pytest.mark.parametrize(
    ("requests", "queries", "keys", "heads", "splits"),
    [
        (1, 1, (128, 512), 8, 8),
        (1, 2, (128, 512), 8, 5),
        (1, 3, (128, 512), 16, 8),
        (4, 1, (128, 512), 16, 4),
        (4, 2, (128, 512), 16, 3),
        (16, 1, (128, 512), 16, 2),
        (14, 1, (128, 512), 32, 4),
        (15, 1, (128, 512), 16, 2),  # 120 CTAs in clusters of four would not find room everywhere
        (17, 1, (128, 512), 32, 3),
        (14, 2, (128, 512), 32, 2),
        (14, 2, (128, 4096), 64, 4),
        (29, 1, (128, 4096), 32, 2),
        (66, 1, (128, 512), 64, 2),
        (67, 1, (128, 512), 64, 1),
        (132, 1, (128, 512), 64, 1),
        (1, 1, (128, 65), 8, 4),  # four tiles
        (1, 1, (64, 1), 8, 2),
        (1, 1, (64, 0), 8, 1),
    ],
)
def test_splits_fill_the_chip_and_leave_each_cta_a_tile(
    built: dict[str, BuildResult],
    tmp_path: Path,
    requests: int,
    queries: int,
    keys: tuple[int, int],
    heads: int,
    splits: int,
) -> None:
    """A CTA has as many ``heads`` as is expected to take the least time, of which the kernel's name tells."""
    (launch,) = launches(built, tmp_path, requests, queries, keys)
    named = "" if heads == 64 else f"_{heads}_heads"
    assert launch["kernel"].startswith(f"kernel_cutlass_sparse_attention_decode{named}_kernel")
    assert launch["cluster"][0] == splits and launch["grid"] == [requests * queries * splits, 64 // heads, 1]


@pytest.mark.parametrize(
    ("requests", "keys", "left"),
    [
        (133, (128, 512), 1),
        (148, (128, 512), 16),
        (200, (128, 512), 0),  # 68 of a round: two CTAs a query would not find room
        (264, (128, 512), 0),
        (9000, (128, 512), 24),
        (148, (64, 0), 0),  # one tile each: nothing to share
    ],
)
def test_what_is_left_of_full_rounds_is_a_small_batch_where_parts_have_no_room(
    built: dict[str, BuildResult], tmp_path: Path, requests: int, keys: tuple[int, int], left: int
) -> None:
    first, *further = launches(built, tmp_path, requests, 1, keys)
    assert first["kernel"].startswith("kernel_cutlass_sparse_attention_decode_rounds_kernel")
    assert first["grid"] == [132, 1, 1] and len(further) == (left > 0)
    for launch in further:
        heads = int(found[1]) if (found := re.search(r"_(\d+)_heads_kernel", launch["kernel"])) else 64
        splits = launch["cluster"][0]
        assert launch["grid"] == [left * splits, 64 // heads, 1] and left * splits * 64 // heads <= 132


@pytest.mark.parametrize(
    ("requests", "keys", "room", "left"),
    [
        (140, (128, 512), 132, 8),
        (148, (128, 512), 132, 16),
        (172, (128, 512), 132, 40),
        (198, (128, 512), 132, 0),  # two CTAs each: as long as one
        (198, (128, 4096), 132, 66),
        (199, (128, 4096), 132, 0),  # two CTAs for each of 67 would not find room
        (264, (128, 512), 132, 0),
        (9000, (128, 512), 200, 24),
        (148, (64, 0), 132, 0),  # one tile each: nothing to share
    ],
)
def test_what_is_left_of_full_rounds_is_shared_among_their_ctas(
    built: dict[str, BuildResult], tmp_path: Path, requests: int, keys: tuple[int, int], room: int, left: int
) -> None:
    first, *further = launches(built, tmp_path, requests, 1, keys, room)
    assert first["grid"] == [132, 1, 1] and len(further) == (left > 0)
    for launch in further:
        assert launch["kernel"].startswith("kernel_cutlass_sparse_attention_decode_parts_kernel")
        assert launch["grid"] == [32, left, 1] and launch["pdl"]


def launches(
    built: dict[str, BuildResult], tmp_path: Path, requests: int, queries: int, keys: tuple[int, int], room: int = 0
) -> list[dict[str, Any]]:
    """What one call with these sizes launches, with a workspace of ``room`` parts."""
    result = built["as many splits as there is room for"]
    shutil.copy(builds.folder(result) / "kernel.so", tmp_path)

    def tensor(dtype: str, *shape: int) -> dict[str, Any]:
        strides = [math.prod(shape[place + 1 :]) for place in range(len(shape))]
        return {"dtype": dtype, "shape": shape, "strides": strides}

    out, pool = tensor("bf16", requests, queries, 64, 512), tensor("u8", 3, 37440)
    index0, index1 = (tensor("i32", requests, queries, count) for count in keys)
    none = {"none": True}
    arguments = [out, pool, none, index0, none, pool, none, index1, none, none, none, tensor("f32", 64), out]
    arguments += [
        tensor("f32", requests, 64, queries),
        none,
        tensor("f32", room, 64 * 514),
        *({"scalar": value} for value in (64, 64, 0.04, -1e30)),
    ]
    artifact = Artifact.read(builds.folder(result))
    request = {"function": artifact.manifest.function, "candidates": [arguments]}
    return probe.run(tmp_path, request, artifact.root / "support" / "libdsv4_probe.so")


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(Refused, match="has_length1 with extra rows only"):
        plan(OP, ARCH, variant={"has_length1": True})


def test_the_judge() -> None:
    variant = plan(OP, ARCH, variant=dict(ALL)).variant
    case = cases(OP, {"H": 16}, variant, config={})[2]
    right = builds.right_outputs(case)
    assert judge(OP, right, case).ok

    def said(**changed: torch.Tensor) -> str:
        return " ".join(judge(OP, {**right, **changed}, case).findings)

    sink = case.inputs["sink"]
    assert isinstance(sink, torch.Tensor)
    assert "lse" in said(lse=torch.logaddexp(right["lse"], sink[None, :, None]))
    assert "out" in said(out=right["out"] * 1.02)
    swapped = right["out"].clone()
    swapped[0, 0, 3, 64:128] = right["out"][0, 0, 3, 128:192]
    assert "[0, 0, 3, 6" in said(out=swapped)
    nothing = cases(OP, {"H": 16}, variant, config={})[8]
    answer = builds.right_outputs(nothing)
    assert judge(OP, answer, nothing).ok
    assert "not exactly 0" in " ".join(judge(OP, {**answer, "out": answer["out"] + 1e-6}, nothing).findings)
