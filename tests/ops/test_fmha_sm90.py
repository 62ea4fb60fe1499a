"""fmha for Hopper: what is emitted, what the compiled code contains, what is refused, and its values on a GPU."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path
from typing import Any

import cutlass
import cutlass.cute as cute
import fmha_sm90_stages as stages
import pytest
import torch
from cutlass import Int32
from cutlass.cute.runtime import from_dlpack

from dsv4.generator.build import BuildResult, build
from dsv4.generator.build.loading import load_source
from dsv4.generator.device import attention_tiles
from dsv4.generator.emit import emit
from dsv4.generator.kernel import KernelPlan
from dsv4.generator.spec import Refused, default_plans, plan
from dsv4.generator.verify import cases, run_case
from dsv4.runtime.artifact import Manifest
from dsv4.runtime.cache import Artifact
from dsv4.runtime.loader import load

# name: (head dimension, flags, configuration where it is not the default)
KERNELS: dict[str, tuple[int, dict[str, bool], dict[str, Any]]] = {
    "128": (128, {}, {}),
    "128 causal, sink, pdl": (128, {"causal": True, "has_sink": True, "pdl": True}, {"tile_n": 176, "o_apart": False}),
    "64 in three warpgroups": (64, {"causal": True}, {}),
    "256 in one slot, without turns": (256, {}, {"kv_stage": 1, "ping_pong": False, "persistent_ctas": 0}),
    "256 in two column parts, O apart": (
        256,
        {"causal": True},
        {"tile_m": 64, "pv_n_tile": 128, "tile_n": 64, "kv_stage": 1, "o_apart": True},
    ),
    "512 in two column parts": (512, {"has_sink": True}, {}),
}


def make_plan(name: str) -> KernelPlan:
    head_dim, flags, config = KERNELS[name]
    return plan("fmha", "sm_90a", dims={"D": head_dim}, variant=dict(flags), config=dict(config))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, BuildResult]:
    results = build([make_plan(name) for name in KERNELS], cache_root=tmp_path_factory.mktemp("fmha_sm90"), jobs=2)
    return dict(zip(KERNELS, results, strict=True))


def folder(result: BuildResult) -> Path:
    assert result.error is None, result.error
    assert result.artifact is not None
    return result.artifact


def manifest_of(result: BuildResult) -> Manifest:
    return Artifact.read(folder(result)).manifest


@pytest.mark.parametrize("name", KERNELS)
def test_it_compiles_without_spills_and_takes_what_was_predicted(built: dict[str, BuildResult], name: str) -> None:
    manifest = manifest_of(built[name])
    assert manifest.used.spill_bytes == 0 and manifest.used.local_bytes == 0
    assert manifest.used.smem_bytes == manifest.predicted.smem_bytes
    assert manifest.used.threads == manifest.predicted.threads
    (launch,) = manifest.launches
    assert launch.block == (128 * (1 + int(manifest.config["consumer_warpgroups"])), 1, 1)
    assert launch.pdl == KERNELS[name][1].get("pdl", False)


@pytest.mark.parametrize("name", KERNELS)
def test_it_contains_the_products_that_the_configuration_names(built: dict[str, BuildResult], name: str) -> None:
    manifest, text = manifest_of(built[name]), (folder(built[name]) / "kernel.ptx").read_text()
    head_dim, tile_n, columns = KERNELS[name][0], manifest.config["tile_n"], manifest.config["pv_n_tile"]
    products = re.findall(r"wgmma\.mma_async\.sync\.aligned\.m64n(\d+)k16\.f32\.bf16\.bf16", text)
    issues = 3 if KERNELS[name][1].get("causal") else 2  # the first (or last) tile, the loop, the loop with masks
    expected = [str(tile_n)] * (issues * head_dim // 16) + [str(columns)] * (issues * int(tile_n) // 16)
    assert sorted(products) == sorted(expected)
    assert text.count("cp.async.bulk.tensor.4d.shared") >= 3 and "cp.async.bulk.tensor.4d.global" in text
    assert "setmaxnreg.dec" in text and "setmaxnreg.inc" in text
    assert "cvt.rn.bf16x2.f32" in text and "cvt.rn.bf16.f32" not in text  # always two elements at a time
    assert set(re.findall(r"ex2\.\S+", text)) == {"ex2.approx.ftz.f32"}  # without the rescaling of subnormals


@pytest.mark.parametrize("name", KERNELS)
def test_dependent_launch_instructions_exist_only_in_that_variant(built: dict[str, BuildResult], name: str) -> None:
    text = (folder(built[name]) / "kernel.ptx").read_text()
    pdl = KERNELS[name][1].get("pdl", False)
    assert ("griddepcontrol.wait" in text) == pdl
    assert ("griddepcontrol.launch_dependents" in text) == pdl
    if pdl:
        assert "cp.async.bulk.tensor" not in text.split("griddepcontrol.wait")[0]


@pytest.mark.parametrize("name", ["128", "128 causal, sink, pdl", "64 in three warpgroups"])
def test_ptxas_keeps_the_products_asynchronous(name: str, tmp_path: Path) -> None:
    """ptxas serialises wgmma, with a remark only, when it cannot keep accumulators or operands in place."""
    made = make_plan(name)
    module = load_source(emit(made).text)
    remarks = tmp_path / "remarks.yaml"
    cute.compile(
        module.launch,
        *module.arguments(made.variant),
        options=f"--gpu-arch sm_90a --enable-tvm-ffi --opt-level 3 remarks{{ptx}} --remark-output {remarks}",
    )
    text = remarks.read_text()
    assert "0 bytes spill stores" in text
    assert "serialized" not in text and "injected" not in text and "ignored" not in text, text


def test_an_emitted_file_serves_all_variants_and_is_mostly_code() -> None:
    flags = [dict(zip(("causal", "has_sink", "pdl"), on, strict=True)) for on in product((False, True), repeat=3)]
    texts = {emit(plan("fmha", "sm_90a", dims={"D": 128}, variant=variant)).text for variant in flags}
    assert len(texts) == 1
    assert "{%" not in "".join(texts) and "{{" not in "".join(texts)
    template = Path(emit.__code__.co_filename).parent / "templates" / "attention" / "fmha_sm90.py.j2"
    lines = [line for line in template.read_text().splitlines() if line.strip()]
    assert sum("{%" in line for line in lines) < 0.1 * len(lines)


def test_default_kernels_are_both_head_dimensions_in_every_variant() -> None:
    made = default_plans("fmha", "sm_90a")
    assert {each.dims["D"] for each in made} == {64, 128}
    assert len({(each.dims["D"], tuple(sorted(each.variant.items()))) for each in made}) == 16


@pytest.mark.parametrize(
    ("head_dim", "config", "named"),
    [
        (128, {"tile_m": 192}, "consumer_warpgroups"),
        (128, {"kv_stage": 4}, "shared memory"),
        (256, {"tile_n": 112, "kv_stage": 1}, "smaller tile_n or pv_n_tile"),
        (64, {"tile_n": 144}, "smaller tile_n or pv_n_tile"),
        (256, {"tile_n": 112}, "shared memory"),
        (256, {"o_apart": True}, "shared memory"),
        (128, {"tile_m": 64, "consumer_warpgroups": 1}, "ping_pong false"),
        (256, {"pv_n_tile": 128}, "consumer_warpgroups"),
    ],
)
def test_what_cannot_work_is_refused_with_what_to_change(head_dim: int, config: dict[str, Any], named: str) -> None:
    with pytest.raises(Refused) as refusal:
        plan("fmha", "sm_90a", dims={"D": head_dim}, config=config)
    assert any(named in reason for reason in refusal.value.reasons), refusal.value.reasons


# ---------------------------------------------------------------------------------------------------------------------
# The schedule, run on the CPU by the compiler's host side


@cute.jit
def visit_query_tiles(
    visits: cute.Tensor, query_tiles: Int32, heads: Int32, ctas: Int32, causal: cutlass.Constexpr[bool]
):
    """visits[tile, head, cta] += 1 for every work item of every CTA."""
    paired = attention_tiles.is_paired(query_tiles, heads, ctas, causal)
    count = attention_tiles.work_count(query_tiles, heads, paired)
    for cta in cutlass.range(ctas, unroll=1):
        work = attention_tiles.first_work(cta, paired)
        while work < count:
            tile, head = attention_tiles.query_tile(work, query_tiles, heads, paired)
            visits[tile, head, cta] = visits[tile, head, cta] + 1
            work = attention_tiles.next_work(work, query_tiles, heads, ctas, paired)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "sizes",
    [(1, 1, 1), (1, 9, 2), (3, 5, 4), (3, 400, 132), (32, 12, 132), (7, 40, 132), (4, 3, 132), (5, 1, 2)],
    ids=str,
)
def test_every_query_tile_is_worked_on_once_and_the_work_is_even(sizes: tuple[int, int, int], causal: bool) -> None:
    query_tiles, heads, ctas = sizes
    visits = torch.zeros(query_tiles, heads, ctas, dtype=torch.int32)
    visit_query_tiles(from_dlpack(visits), query_tiles, heads, ctas, causal)
    assert bool((visits.sum(dim=2) == 1).all())
    lengths = torch.arange(1, query_tiles + 1) if causal else torch.ones(query_tiles, dtype=torch.int64)
    work = (visits * lengths[:, None, None]).sum(dim=(0, 1))
    assert int(work.max()) <= int(lengths.sum()) * heads / ctas + query_tiles + 1  # at most one pair above the mean


@cute.jit
def range_of(
    found: cute.Tensor,
    first_query: Int32,
    queries: Int32,
    keys: Int32,
    tile_m: cutlass.Constexpr[int],
    tile_n: cutlass.Constexpr[int],
    causal: cutlass.Constexpr[bool],
):
    tiles, unmasked = attention_tiles.key_tile_range(first_query, queries, keys, tile_m, tile_n, causal)
    found[0] = tiles
    found[1] = unmasked


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("sizes", [(300, 300), (5, 700), (333, 90), (130, 0), (257, 250), (64, 96)], ids=str)
def test_key_tiles_are_those_that_the_mask_lets_through(sizes: tuple[int, int], causal: bool) -> None:
    queries, keys, tile_m, tile_n = *sizes, 128, 48
    seen = torch.ones(queries, keys, dtype=torch.bool)
    if causal:
        seen = seen.tril(keys - queries)
    for first_query in range(0, queries, tile_m):
        rows = seen[first_query : first_query + tile_m]
        needed = [bool(rows[:, j : j + tile_n].any()) for j in range(0, keys, tile_n)]
        full = [bool(rows[:, j : j + tile_n].all()) and j + tile_n <= keys for j in range(0, keys, tile_n)]
        found = torch.zeros(2, dtype=torch.int32)
        range_of(from_dlpack(found), first_query, queries, keys, tile_m, tile_n, causal)
        tiles, unmasked = found.tolist()
        assert tiles >= sum(needed) and not any(needed[tiles:])
        assert tiles <= sum(needed) + tile_m // tile_n + 1  # rows beyond the last query may ask for a few more
        assert all(full[:unmasked]) and (unmasked == sum(full) or first_query + tile_m > queries)


# ---------------------------------------------------------------------------------------------------------------------
# The ladder: QK, identity softmax, online softmax

LADDER = [(128, 64, 2), (64, 80, 3), (256, 48, 1)]  # head dimension, tile_n, slots


@pytest.mark.parametrize(("head_dim", "tile_n", "slots"), LADDER)
@pytest.mark.parametrize("stage", stages.STAGES)
def test_each_stage_compiles(stage: str, head_dim: int, tile_n: int, slots: int, tmp_path: Path) -> None:
    text = stages.compile_stage(stage, head_dim, tile_n, slots, str(tmp_path)).__ptx__
    per_tile = head_dim // 16 + (0 if stage == "qk" else tile_n // 16)
    assert text.count("wgmma.mma_async") == per_tile
    assert ("ex2.approx" in text) == (stage == "online")


@pytest.mark.gpu
@pytest.mark.parametrize(("head_dim", "tile_n", "slots"), LADDER)
@pytest.mark.parametrize("stage", stages.STAGES)
def test_values_of_each_stage(stage: str, head_dim: int, tile_n: int, slots: int, tmp_path: Path) -> None:
    kernel = stages.compile_stage(stage, head_dim, tile_n, slots, str(tmp_path))
    for queries, tiles in ((64, 1), (131, 2), (70, 3), (64, 5), (131, 7)):
        keys, scale = tiles * tile_n - (3 if tiles % 2 else 0), head_dim**-0.5
        q, k, v = (torch.randn(1, n, 3, head_dim, device="cuda").bfloat16() for n in (queries, keys, keys))
        scores = torch.einsum("bqhd,bkhd->hqk", q.double(), k.double())
        weights = {"qk": scores, "identity": scores.bfloat16().double(), "online": torch.softmax(scores * scale, -1)}
        expected = scores * scale if stage == "qk" else torch.einsum("hqk,bkhd->hqd", weights[stage], v.double())
        if stage == "identity":
            expected = expected * scale
        out = torch.full(expected.shape, float("nan"), device="cuda")
        kernel(q, k, v, out, scale)
        error = ((out.double() - expected).norm(dim=-1) / expected.norm(dim=-1)).max()
        # identity: S is rounded to bf16 from float32 here and from float64 there, now and then to the other neighbour
        assert float(error) < {"qk": 1e-5, "identity": 2**-8, "online": 6e-3}[stage], (queries, keys)


@pytest.mark.gpu
@pytest.mark.parametrize("name", KERNELS)
def test_values_on_the_gpu(built: dict[str, BuildResult], name: str) -> None:
    artifact = Artifact.read(folder(built[name]))
    kernel = load(artifact, torch.cuda.get_device_capability())
    manifest = artifact.manifest
    for case in cases("fmha", manifest.dims, manifest.variant, config=manifest.config, device="cuda"):
        verdict = run_case(kernel, manifest.contract, case)
        assert verdict.ok, f"{case.name}: {verdict.findings}"
