"""fmha_varlen: the walk over sequences, what the code contains, values in the emulator, what is refused."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import cutlass
import cutlass.cute as cute
import pytest
import torch
from cutlass import Int32
from cutlass.cute.runtime import from_dlpack

from dsv4.generator.build import BuildResult
from dsv4.generator.device import attention_tiles, sequence_tiles
from dsv4.generator.kernel import KernelPlan
from dsv4.generator.spec import Refused, plan
from dsv4.generator.verify import cases, judge
from dsv4.generator.verify.case import Case
from dsv4.generator.verify.emulator import EmulatedKernel
from dsv4.generator.verify.run import bind
from dsv4.runtime.cache import Artifact
from tests.ops import builds as builds

OP = "fmha_varlen"
SMALL = {"tile_m": 64, "tile_n": 48, "pv_n_tile": 64, "consumer_warpgroups": 1, "ping_pong": False}
# name: (arch, head dimension, rows of a page, flags, configuration where it is not the default)
Described = tuple[str, int, int, dict[str, bool], dict[str, Any]]
KERNELS: dict[str, Described] = {
    "rows": ("sm_90a", 64, 0, {"causal": True, "has_sink": True, "pdl": True}, SMALL),
    "pages": ("sm_90a", 64, 16, {}, SMALL),
    "Blackwell": ("sm_100a", 64, 16, {"causal": True}, {"q_tiles": 1, "tile_n": 64}),
}
SWEEP: dict[str, Described] = {
    f"{arch} {width} {rows} {'causal' if causal else 'full'}": (
        arch,
        width,
        rows,
        {"causal": causal, "has_sink": causal},
        {},
    )
    for arch in ("sm_90a", "sm_100a")
    for width in (64, 128, 256, 512)
    for rows in (0, 64, 16)
    for causal in (False, True)
} | {
    "one CTA a tile": (
        "sm_90a",
        128,
        64,
        {"causal": True},
        {"persistent_ctas": 0, "kv_stage": 1, "tile_m": 64, "consumer_warpgroups": 1, "ping_pong": False},
    ),
    "short tiles": ("sm_90a", 128, 16, {"causal": True}, {"tile_n": 80}),
    "one query tile": ("sm_100a", 128, 64, {"causal": True}, {"q_tiles": 1, "kv_stage": 1}),
}


def make_plan(described: Described) -> KernelPlan:
    arch, width, rows, flags, config = described
    return plan(OP, arch, dims={"D": width}, variant={"page_rows": rows, **flags}, config=config)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, BuildResult]:
    results = builds.build_all([make_plan(each) for each in KERNELS.values()], tmp_path_factory.mktemp(OP))
    return dict(zip(KERNELS, results, strict=True))


# ---------------------------------------------------------------------------------------------------------------------
# The walk, run on the CPU by the compiler's host side


@cute.jit
def visit_query_tiles(
    visits: cute.Tensor,
    starts: cute.Tensor,
    rows: Int32,
    heads: Int32,
    ctas: Int32,
    tile_m: cutlass.Constexpr[int],
    causal: cutlass.Constexpr[bool],
):
    """visits[sequence, head, tile, cta] += 1 for every work item of every CTA."""
    sequences = starts.shape[0] - 1
    paired = sequence_tiles.are_paired(rows, heads, ctas, tile_m, causal)
    for cta in cutlass.range(ctas, unroll=1):
        work = attention_tiles.first_work(cta, paired)
        sequence, first_unit = sequence_tiles.find(
            work, Int32(0), Int32(0), starts, sequences, rows, heads, tile_m, paired
        )
        while sequence < sequences:
            _, queries = sequence_tiles.span(starts, sequence, rows)
            tiles = (queries + (tile_m - 1)) // tile_m
            tile, head, has_partner = sequence_tiles.query_tile(work, first_unit, tiles, paired)
            visits[sequence, head, tile, cta] = visits[sequence, head, tile, cta] + 1
            work = sequence_tiles.next_work(work, has_partner, ctas, paired)
            sequence, first_unit = sequence_tiles.find(
                work, sequence, first_unit, starts, sequences, rows, heads, tile_m, paired
            )


LENGTHS = [
    ([0, 0, 31], 2, 4),
    ([64, 0, 33, 1, 0, 0], 5, 132),
    ([9] * 40, 3, 7),
    ([800, 3, 0, 450, 16, 17, 15], 8, 13),
]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("lengths", "heads", "ctas"), LENGTHS, ids=str)
def test_every_query_tile_is_worked_on_once(lengths: list[int], heads: int, ctas: int, causal: bool) -> None:
    tile_m, rows = 16, sum(lengths)
    starts = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    tiles = [-(-length // tile_m) for length in lengths]
    visits = torch.zeros(len(lengths), heads, max(tiles) + 1, ctas, dtype=torch.int32)
    visit_query_tiles(from_dlpack(visits), from_dlpack(starts), rows, heads, ctas, tile_m, causal)
    total = visits.sum(dim=3)
    for sequence, count in enumerate(tiles):
        assert bool((total[sequence, :, :count] == 1).all()) and bool((total[sequence, :, count:] == 0).all())
    length = torch.arange(1, max(tiles) + 2) if causal else torch.ones(max(tiles) + 1, dtype=torch.int64)
    work = (visits.sum(dim=(0, 1)) * length[:, None]).sum(dim=0)
    assert int(work.max()) <= int(work.sum()) / ctas + 2 * max(tiles) + 1  # at most one pair above the mean


# ---------------------------------------------------------------------------------------------------------------------
# The compiled code


@pytest.mark.parametrize("name", KERNELS)
def test_it_compiles_to_what_was_predicted(built: dict[str, BuildResult], name: str) -> None:
    builds.takes_what_was_predicted(built[name])
    text = builds.ptx(built[name])
    assert builds.widths(text, "st.global") <= {"b32", "v4.b32", "v2.b64"}
    assert ("griddepcontrol.wait" in text) == KERNELS[name][3].get("pdl", False)
    if KERNELS[name][3].get("pdl"):  # no length is read before the launches before this one have ended
        assert "ld.global" not in text.split("griddepcontrol.wait")[0]


@pytest.mark.parametrize("name", ["rows", "pages"])
def test_it_contains_the_products_and_the_copies_of_the_configuration(built: dict[str, BuildResult], name: str) -> None:
    text = builds.ptx(built[name])
    _, width, rows, flags, config = KERNELS[name]
    products = re.findall(r"wgmma\.mma_async\.sync\.aligned\.m64n(\d+)k16\.f32\.bf16\.bf16", text)
    issues = 3 if flags.get("causal") else 2  # the last tile, the loop, the loop with masks
    tile_n = config["tile_n"]
    assert sorted(products) == sorted([str(tile_n)] * (issues * width // 16) + ["64"] * (issues * tile_n // 16))
    # No store of the copy engine, which would not end where a sequence ends.
    assert not re.search(r"cp\.async\.bulk\.tensor\.\dd\.global", text)
    assert text.count("cp.async.bulk.tensor.3d.shared") == 1  # Q
    boxes = tile_n // rows if rows else 1
    assert text.count("cp.async.bulk.tensor.4d.shared") == 3 * boxes  # K before the loop and in it, V


def test_what_cannot_work_is_refused_with_what_to_change() -> None:
    for width, rows, config, named in [
        (128, 64, {"tile_n": 80}, "a multiple of page_rows"),
        (128, 0, {"kv_stage": 4}, "shared memory"),
        (256, 0, {"tile_n": 112, "kv_stage": 1}, "smaller tile_n or pv_n_tile"),
    ]:
        with pytest.raises(Refused) as refusal:
            make_plan(("sm_90a", width, rows, {}, config))
        assert any(named in reason for reason in refusal.value.reasons), refusal.value.reasons


# ---------------------------------------------------------------------------------------------------------------------
# Values


@pytest.mark.parametrize("name", KERNELS)
def test_values_in_the_emulator(built: dict[str, BuildResult], name: str) -> None:
    """Empty sequences, single rows, tiles ± 1, 17 tiles, pairs of tiles; NaN in everything that nobody may read."""
    made = builds.manifest(built[name])
    count = len(cases(OP, made.dims, made.variant, config=made.config))
    assert count == 7  # the last one is there for pairs of tiles, and long
    assert builds.findings(built[name], range(count if made.arch == "sm_90a" else count - 1)) == []


def outputs_of(kernel: EmulatedKernel, built: BuildResult, case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """O and LSE into a larger tensor of sevens, of which the rows beside the case's are returned too."""
    rows, heads, columns = case.outputs["o"].shape
    whole_o = torch.full((rows + 70, heads, columns), 7.0, dtype=torch.bfloat16)
    whole_lse = torch.full((heads, rows + 70), 7.0)
    o, lse = whole_o[3 : 3 + rows], whole_lse[:, 3 : 3 + rows]
    kernel(*bind(builds.manifest(built).contract, {**case.inputs, "o": o, "lse": lse}))
    assert kernel.report is not None and not kernel.report.findings
    for beside in (whole_o[:3], whole_o[3 + rows :], whole_lse[:, :3], whole_lse[:, 3 + rows :]):
        assert bool((beside == 7).all())
    return o, lse


@pytest.mark.parametrize("name", KERNELS)
def test_a_sequence_of_nan_stays_in_its_rows(built: dict[str, BuildResult], name: str) -> None:
    made = builds.manifest(built[name])
    case = cases(OP, made.dims, made.variant, config=made.config)[3]
    kernel = EmulatedKernel(Artifact.read(builds.folder(built[name])))
    clean, clean_lse = outputs_of(kernel, built[name], case)
    starts = case.inputs["cu_seqlens_q"]
    k, v, q = (case.inputs[each] for each in "kvq")
    assert all(isinstance(each, torch.Tensor) for each in (starts, k, v, q))
    first, last = int(starts[1]), int(starts[2])  # type: ignore[index]
    q, k, v = q.clone(), k.clone(), v.clone()  # type: ignore[union-attr]
    q[first:last] = torch.nan
    for pool in (k, v):
        if made.variant["page_rows"]:
            pages = case.inputs["block_table"][1]  # type: ignore[index]
            pool[pages[pages < pool.shape[0]].long()] = torch.nan
        else:
            of_keys = case.inputs["cu_seqlens_k"]
            pool[0, int(of_keys[1]) : int(of_keys[2])] = torch.nan  # type: ignore[index]
    poisoned = replace(case, inputs={**case.inputs, "q": q, "k": k, "v": v})
    out, lse = outputs_of(kernel, built[name], poisoned)
    assert bool(out[first:last].isnan().any())
    for got, expected in ((out, clean), (lse.T, clean_lse.T)):
        assert torch.equal(got[:first], expected[:first]) and torch.equal(got[last:], expected[last:])


@pytest.mark.sweep  # minutes of emulator; the cases above are some of these
@pytest.mark.parametrize("name", SWEEP)
def test_values_of_every_head_dimension(name: str, tmp_path: Any) -> None:
    (result,) = builds.build_all([make_plan(SWEEP[name])], tmp_path)
    builds.takes_what_was_predicted(result)
    made = builds.manifest(result)
    for schedule in ("late", "early", "mixed:0"):
        count = len(cases(OP, made.dims, made.variant, config=made.config))
        assert builds.findings(result, range(count), schedule) == []


# ---------------------------------------------------------------------------------------------------------------------
# The judge


@pytest.mark.parametrize("page_rows", [0, 16])
def test_the_judge(page_rows: int) -> None:
    case = cases(OP, {"D": 64}, {"page_rows": page_rows, "causal": True}, config={"tile_m": 64, "tile_n": 48})[1]
    right = builds.right_outputs(case)
    assert judge(OP, right, case).ok
    moved = {**right, "o": torch.roll(right["o"], 1, dims=0)}
    assert "o: " in " ".join(judge(OP, moved, case).findings)
    late = {**right, "lse": torch.roll(right["lse"], 1, dims=1)}
    assert "lse: " in " ".join(judge(OP, late, case).findings)
