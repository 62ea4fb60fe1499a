"""rms_norm's kernel: what is emitted, what the compiled code contains, what is refused, and its values on a GPU."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from dsv4.generator.build import BuildResult, build, probe
from dsv4.generator.device.row_reduce import partials_stride, tree_sum, warps_per_row
from dsv4.generator.device.vector_io import has_partial_last, vectors_per_lane
from dsv4.generator.emit import emit
from dsv4.generator.kernel import KernelPlan
from dsv4.generator.spec import Refused, default_plans, plan
from dsv4.generator.verify import cases, run_case
from dsv4.runtime.cache import Artifact
from dsv4.runtime.loader import load

ARCHS = ("sm_90a", "sm_100a")
# d, threads per row, rows side by side, rows in flight, pdl: whole rows, partial last vectors, one warp a row and less.
SHAPES = {
    "4096 whole": (4096, 256, 1, 1, False),
    "4104 partial, 2 × 2 rows": (4104, 256, 2, 2, True),
    "1544 partial, few shuffles": (1544, 96, 2, 1, True),
    "72 in a quarter warp": (72, 8, 4, 1, False),
    "1000 in one warp, 2 × 2 rows": (1000, 32, 2, 2, True),
}


def make_plan(arch: str, shape: str) -> KernelPlan:
    d, threads, rows, flight, pdl = SHAPES[shape]
    config = {"threads_per_row": threads, "rows_per_cta": rows, "rows_in_flight": flight}
    config["shuffle_lanes"] = 4 if "few shuffles" in shape else 32
    return plan("rms_norm", arch, dims={"d": d}, variant={"pdl": pdl}, config=config)


@pytest.fixture(scope="module", params=ARCHS)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, BuildResult]:
    plans = [make_plan(request.param, shape) for shape in SHAPES]
    results = build(plans, cache_root=tmp_path_factory.mktemp(f"rms_{request.param}"), jobs=2)
    return dict(zip(SHAPES, results, strict=True))


def folder(result: BuildResult) -> Path:
    assert result.error is None, result.error
    assert result.artifact is not None
    return result.artifact


def ptx(result: BuildResult) -> str:
    return (folder(result) / "kernel.ptx").read_text()


@pytest.mark.parametrize("shape", SHAPES)
def test_it_compiles_without_spills_and_takes_what_was_predicted(built: dict[str, BuildResult], shape: str) -> None:
    result = built[shape]
    manifest = Artifact.read(folder(result)).manifest
    assert manifest.used.spill_bytes == 0 and manifest.used.local_bytes == 0
    assert manifest.used.smem_bytes == manifest.predicted.smem_bytes
    assert manifest.used.threads == manifest.predicted.threads
    (launch,) = manifest.launches
    assert launch.pdl == SHAPES[shape][4]


def test_shuffles_add_no_more_lanes_than_they_are_told(built: dict[str, BuildResult]) -> None:
    def shuffles(shape: str) -> int:
        return len(re.findall(r"\bshfl\.sync\.bfly", ptx(built[shape])))

    assert shuffles("4096 whole") == 5
    assert shuffles("4104 partial, 2 × 2 rows") == 2 * 5
    assert shuffles("1544 partial, few shuffles") == 2
    assert shuffles("72 in a quarter warp") == 3


@pytest.mark.parametrize("shape", SHAPES)
def test_every_global_access_is_16_bytes_wide(built: dict[str, BuildResult], shape: str) -> None:
    d, threads, _, flight, _ = SHAPES[shape]
    text = ptx(built[shape])
    loads, stores = re.findall(r"\bld\.global\S*", text), re.findall(r"\bst\.global\S*", text)
    assert {name[-6:] for name in loads + stores} == {"v4.b32"}
    vectors = vectors_per_lane(d, threads)
    assert len(loads) == vectors * (1 + flight)  # the weight once, then every row
    assert len(stores) == vectors * flight


@pytest.mark.parametrize("shape", SHAPES)
def test_dependent_launch_instructions_exist_only_in_that_variant(built: dict[str, BuildResult], shape: str) -> None:
    text = ptx(built[shape])
    pdl = SHAPES[shape][4]
    assert ("griddepcontrol.wait" in text) == pdl
    assert ("griddepcontrol.launch_dependents" in text) == pdl
    if pdl:  # the weight is read while the launch before still runs, x only after it
        before, after = text.split("griddepcontrol.wait")
        vectors = vectors_per_lane(*SHAPES[shape][:2])
        assert before.count("ld.global") == vectors
        assert after.count("ld.global") == vectors * SHAPES[shape][3]


@pytest.mark.parametrize("shape", SHAPES)
def test_shared_memory_and_the_barrier_exist_only_where_warps_share_a_row(
    built: dict[str, BuildResult], shape: str
) -> None:
    shared = warps_per_row(SHAPES[shape][1]) > 1
    text = ptx(built[shape])
    assert len(re.findall(r"\bbar(?:rier)?\.sync", text)) == (1 if shared else 0)
    assert ("st.shared" in text) == shared


def test_row_offsets_are_64_bits_wide(built: dict[str, BuildResult]) -> None:
    assert re.search(r"mad\.lo\.s64|mul\.lo\.s64", ptx(built["4096 whole"]))


@pytest.mark.parametrize(("rows", "ctas"), [(0, None), (1, 1), (4, 1), (5, 2), (9, 3)])
def test_the_grid_covers_every_row_and_no_rows_mean_no_launch(
    built: dict[str, BuildResult], tmp_path: Path, rows: int, ctas: int | None
) -> None:
    result = built["1000 in one warp, 2 × 2 rows"]
    shutil.copy(folder(result) / "kernel.so", tmp_path)
    matrix = {"dtype": "bf16", "shape": [rows, 1000], "strides": [1000, 1]}
    arguments = [matrix, {"dtype": "bf16", "shape": [1000], "strides": [1]}, matrix, {"scalar": 1e-6}]
    request = {"function": Artifact.read(folder(result)).manifest.function, "candidates": [arguments]}
    stub = Artifact.read(folder(result)).root / "support" / "libdsv4_probe.so"
    if ctas is None:
        with pytest.raises(probe.ProbeFailed, match="launched nothing"):
            probe.run(tmp_path, request, stub)
    else:
        (launch,) = probe.run(tmp_path, request, stub)
        assert launch["grid"] == [ctas, 1, 1]


@pytest.mark.parametrize("arch", ARCHS)
def test_an_emitted_file_serves_both_variants(arch: str) -> None:
    texts = {emit(plan("rms_norm", arch, dims={"d": 1536}, variant={"pdl": pdl})).text for pdl in (False, True)}
    assert len(texts) == 1
    assert 'VARIANTS = ({"pdl": False}, {"pdl": True})' in texts.pop()


def test_an_emitted_file_has_nothing_that_its_configuration_does_not_take() -> None:
    single = emit(make_plan("sm_90a", "72 in a quarter warp")).text
    assert "SmemAllocator" not in single and "sum_over_row" not in single
    whole = emit(make_plan("sm_90a", "4096 whole")).text
    assert "total_rows" not in whole and "SmemAllocator" in whole
    assert "{%" not in single + whole and "{{" not in single + whole


@pytest.mark.parametrize("arch", ARCHS)
def test_the_models_row_lengths_are_default_kernels_with_and_without_pdl(arch: str) -> None:
    made = {(each.dims["d"], each.variant["pdl"]) for each in default_plans("rms_norm", arch)}
    assert made == {(d, pdl) for d in (512, 1024, 1536, 4096, 7168) for pdl in (False, True)}


@pytest.mark.parametrize("d", [8, 40, 248, 264, 1000, 1544, 2056, 8200, 16392, 32768])
def test_the_default_configuration_fits_any_multiple_of_8(d: int) -> None:
    found = plan("rms_norm", "sm_90a", dims={"d": d})
    assert isinstance(found, KernelPlan)
    assert vectors_per_lane(d, int(found.config["threads_per_row"])) <= 4


@pytest.mark.parametrize(
    ("d", "config", "named"),
    [
        (512, {"threads_per_row": 512}, "fewer threads_per_row"),
        (7168, {"threads_per_row": 32}, "more threads_per_row"),
        (7168, {"threads_per_row": 64, "rows_in_flight": 2}, "fewer rows_in_flight"),
        (4096, {"threads_per_row": 512, "rows_per_cta": 4}, "from 32 to 1024"),
        (64, {"threads_per_row": 8, "rows_per_cta": 2}, "from 32 to 1024"),
        (512, {"threads_per_row": 32, "shuffle_lanes": 8}, "shuffle_lanes 32"),
        (7168, {"threads_per_row": 448, "shuffle_lanes": 8}, "more shuffle_lanes"),
    ],
)
def test_what_cannot_work_is_refused_with_what_to_change(d: int, config: dict[str, Any], named: str) -> None:
    with pytest.raises(Refused) as refusal:
        plan("rms_norm", "sm_90a", dims={"d": d}, config=config)
    assert any(named in reason for reason in refusal.value.reasons)


@pytest.mark.parametrize("lanes", [0, -32, 3, 24, 33, 48])
def test_threads_that_make_no_whole_warps_are_refused(lanes: int) -> None:
    with pytest.raises(ValueError, match=f"threads_per_row: found {lanes}"):
        warps_per_row(lanes)


def test_vectors_of_a_row_are_counted_up() -> None:
    assert [vectors_per_lane(columns, 32) for columns in (8, 256, 264, 512)] == [1, 1, 2, 2]
    assert [has_partial_last(columns, 32) for columns in (8, 256, 264, 512)] == [True, False, True, False]
    with pytest.raises(ValueError, match="columns: found 12"):
        vectors_per_lane(12, 32)


def test_partial_sums_are_padded_to_16_bytes() -> None:
    assert [partials_stride(lanes, 32) for lanes in (64, 128, 160, 896)] == [4, 4, 8, 28]
    assert [partials_stride(lanes, 4) for lanes in (64, 96)] == [16, 24]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 28])
def test_tree_sum_takes_every_term_once(count: int) -> None:
    assert tree_sum([3**i for i in range(count)]) == sum(3**i for i in range(count))


@pytest.mark.gpu
@pytest.mark.parametrize("shape", SHAPES)
def test_values_on_the_gpu(tmp_path: Path, shape: str) -> None:
    capability = torch.cuda.get_device_capability()
    arch = "sm_90a" if capability[0] == 9 else "sm_100a"
    (result,) = build([make_plan(arch, shape)], cache_root=tmp_path, jobs=1)
    artifact = Artifact.read(folder(result))
    kernel = load(artifact, capability)
    for case in cases("rms_norm", artifact.manifest.dims, artifact.manifest.variant, device="cuda"):
        if case.outputs["y"].shape[0]:
            verdict = run_case(kernel, artifact.manifest.contract, case)
            assert verdict.ok, f"{case.name}: {verdict.findings}"
