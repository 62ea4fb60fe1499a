"""Every lesson of the earlier, hand-written kernels: the mistake is planted, and its catcher finds it.

The table of the lessons is docs/lessons.md; the numbers are the same. A right kernel of the same kind is run beside
every wrong one, so that a catcher that always cries is no catcher.
"""

from __future__ import annotations

import re

import pytest
import torch

from dsv4.emulator import launcher
from dsv4.emulator.arguments import output, reads
from dsv4.emulator.errors import ArgumentRefused
from dsv4.emulator.report import text as report_text
from dsv4.emulator.sources import Sources
from dsv4.generator.build.ptx import untaken_lines
from dsv4.generator.lint import lint_source
from dsv4.generator.ptx_checks import check_ptx
from dsv4.generator.resources import KernelRequest, Refused, RoleRequest, TmemRequest, place
from dsv4.generator.spec import default_plans, list_ops, load_arch, load_op
from dsv4.generator.verify import cases, operators
from dsv4.generator.verify.emulator import EmulatedObject
from dsv4.generator.verify.run import bind
from tests.lessons.jobs import HEAD_DIMS, JOBS, STAGE_COUNTS
from tests.lessons.planting import Bench, Compiled, Found
from tests.lessons.shapes import attention, square_case, squares

SM100_TILE_N = 64
FMHA = {"D": 64}


@pytest.fixture(scope="module", autouse=True)
def compiling(bench: Bench, request: pytest.FixtureRequest) -> None:
    """Begin all compiles that the chosen tests need, before the first of them waits."""
    if len(request.session.items) > 10:
        bench.ask(list(JOBS))


def wrong_values(found: Found, kernel: Compiled, output_name: str, store: str) -> str:
    """Asserts that the judge found it, and that the first wrong element is named with its tile and its store's line."""
    assert found.kinds == {"wrong values"} and found.wrong is not None
    written = found.wrong.written
    assert found.wrong.output == output_name and written is not None
    file, _, line = written.source.rpartition(":")
    assert store in Sources([kernel.folder]).text(file, int(line)), written
    assert "query tile" in found.wrong.tile and str(list(found.wrong.index)) in str(found.wrong)
    return str(found.wrong)


O_STORE = "cute.copy(atom, source, target)"


def test_1_a_slice_that_pins_the_tile_mode_to_0(bench: Bench) -> None:
    right, planted = bench.compiled("right"), bench.compiled("pinned tile")
    assert bench.look(planted, attention(1)).nothing, "one tile proves nothing"
    for tiles in (2, 3):
        case = attention(tiles)
        assert bench.look(right, case).nothing
        said = wrong_values(bench.look(planted, case), planted, "o", O_STORE)
        assert "query tile 0 (64 queries) of head 0, batch 0, row 0 of it" in said


@pytest.mark.parametrize("stages", STAGE_COUNTS)
def test_2_a_pipeline_state_that_does_not_go_round(bench: Bench, stages: int) -> None:
    right, planted = bench.compiled(f"stages {stages}"), bench.compiled(f"phase stays {stages}")
    for tiles in (1, 2, 3, 5):
        case = attention(tiles)
        assert bench.look(right, case, schedules=4).nothing, tiles
        found = bench.look(planted, case, schedules=4)
        assert found.nothing == (tiles <= stages), (tiles, found.kinds)


def test_3_an_output_that_is_not_rescaled_between_tiles(bench: Bench) -> None:
    right, planted = bench.compiled("right"), bench.compiled("no rescale")
    assert bench.look(planted, attention(1)).nothing
    for tiles in (2, 5):
        case = attention(tiles)
        assert bench.look(right, case).nothing
        wrong_values(bench.look(planted, case), planted, "o", O_STORE)


def test_4_o_on_the_columns_of_s(bench: Bench) -> None:
    right, planted = bench.compiled("right sm_100a"), bench.compiled("O on S")
    case = attention(3, tile_n=SM100_TILE_N)
    assert bench.look(right, case, schedules=4).nothing
    assert "race" in bench.look(planted, case, schedules=4).kinds
    limits = load_arch("sm_100a").limits
    scores, out = (TmemRequest(name, 64, 128, 0, 4, "f32", field=f"tmem.{name}") for name in ("s", "o"))
    budget = place(_tmem(scores, out), limits, "sm_100a")
    assert budget.tmem["o"].first_column == budget.tmem["s"].end_column
    over = TmemRequest("o", 64, 128, 0, 4, "f32", field="tmem.o", overlaps="s")
    other = TmemRequest("p", 64, 128, 0, 4, "f32", field="tmem.p", overlaps="s")
    with pytest.raises(Refused, match="shares cells"):
        place(_tmem(scores, over, other), limits, "sm_100a")


def _tmem(*regions: TmemRequest) -> KernelRequest:
    return KernelRequest("kernel", (), tuple(regions), (RoleRequest("all", 4, None, field="roles.all"),), ())


@pytest.mark.parametrize("columns", [96, 1024])
def test_5_columns_that_are_no_power_of_two_or_too_many(bench: Bench, columns: int) -> None:
    right = bench.compiled("right sm_100a")
    alloc = re.search(r"tcgen05\.alloc\S+\s+\[[^\]]*\], (%r\d+);", right.ptx)
    assert alloc is not None
    planted = right.edited(alloc[0], alloc[0].replace(alloc[1], str(columns)))
    assert check_ptx(right.ptx, 128) == []
    assert "allocation" in {finding.check for finding in check_ptx(planted.ptx, 128)}
    assert "tmem_allocation" in bench.look(planted, attention(1, tile_n=SM100_TILE_N)).kinds
    with pytest.raises(Refused, match=r"512|valid: "):
        place(_tmem(TmemRequest("s", 516, 128, 0, 4, "f32", field="tmem.s")), load_arch("sm_100a").limits, "sm_100a")
    for used in (33, 100, 300):
        budget = place(_tmem(TmemRequest("s", used, 128, 0, 4, "f32", field="tmem.s")), load_arch("sm_100a").limits, "")
        assert budget.tmem_columns >= used and budget.tmem_columns & (budget.tmem_columns - 1) == 0


@pytest.mark.parametrize(("name", "columns"), [("round trip 32", 32), ("round trip 16", 16)])
def test_6_what_is_stored_to_tmem_comes_back(bench: Bench, name: str, columns: int) -> None:
    x, y = _round_trip(bench, name, columns)
    assert torch.equal(x, y)


def test_6_atoms_that_were_built_apart_do_not_give_it_back(bench: Bench) -> None:
    x, y = _round_trip(bench, "round trip, other atom", 32)
    assert not torch.equal(x, y) and set(y.flatten().tolist()) <= set(x.flatten().tolist())


def _round_trip(bench: Bench, name: str, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = torch.randn(128, columns), torch.empty(128, columns)
    made = bench.compiled(name).made
    launcher.run(made, reads(x), output(y), schedules=3, client=bench.client).check()
    return x, y


def test_7_a_first_product_that_accumulates(bench: Bench) -> None:
    right = bench.compiled("right sm_100a")
    product = re.search(r"tcgen05\.mma\S+ \[%r\d+\], \[%r\d+\],.*?(%p\d+);", right.ptx)
    assert product is not None
    accumulate = re.search(rf"setp\S+\s+{re.escape(product[1])}, [^;]*;", right.ptx)
    assert accumulate is not None
    planted = right.edited(accumulate[0], f"mov.pred {product[1]}, -1;")
    found = bench.look(planted, attention(2, tile_n=SM100_TILE_N), schedules=2)
    assert "undefined_value" in found.kinds
    assert any(each.opcode.startswith("tcgen05.mma") and each.source for each in found.report.findings)


@pytest.mark.parametrize(
    ("mutation", "kinds"),
    [
        ("drop-fence/sm100_tmem.wait_stores#0", {"race"}),
        ("drop-fence/sm100_attention_correction.publish_staged#0", {"missing_proxy_fence"}),
    ],
)
def test_8_a_missing_fence(bench: Bench, mutation: str, kinds: set[str]) -> None:
    right = bench.compiled("right sm_100a")
    case = attention(3, tile_n=SM100_TILE_N)
    assert bench.look(right, case, schedules=4).nothing
    found = bench.look(right.mutated(mutation), case, schedules=4)
    assert kinds <= found.kinds
    assert all(finding.source and finding.other_source for finding in found.report.findings if finding.kind in kinds)


def test_9_a_tmem_store_of_16_bit_elements() -> None:
    text = "op = tcgen05.St32x32bOp(tcgen05.Repetition(32))\nstore = cute.make_copy_atom(op, {})\n"
    assert lint_source(text.format("cutlass.Float32")) == []
    (finding,) = lint_source(text.format("cutlass.BFloat16"))
    assert (finding.rule, finding.line) == ("tmem-store-type", 2)


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_10_a_product_over_one_k_block_of_the_head_dimension(bench: Bench, head_dim: int) -> None:
    right, planted = bench.compiled(f"head {head_dim}"), bench.compiled(f"one block {head_dim}")
    case = attention(2, head_dim=head_dim, queries=19)
    assert bench.look(right, case).nothing
    wrong_values(bench.look(planted, case), planted, "o", O_STORE)


def test_11_one_maximum_for_all_rows(bench: Bench) -> None:
    right, planted = bench.compiled("right"), bench.compiled("one maximum")
    assert bench.look(planted, attention(3, pattern="random")).nothing, "rows that are alike prove nothing"
    case = attention(3, pattern="random", stretch=64.0)
    assert bench.look(right, case).nothing
    wrong_values(bench.look(planted, case), planted, "o", O_STORE)


@pytest.mark.parametrize(
    ("mutation", "missing"),
    [
        ("arrivals+1/sm90_ring.init_ring#3", "1 of 5 arrivals missing"),
        ("bytes+16/sm90_ring.acquire#0", "16 bytes missing"),
        ("drop-arrive/sm90_ring.release#0", "4 of 4 arrivals missing"),
    ],
)
def test_12_a_wrong_count_is_a_hang_that_says_who_waits_for_what(bench: Bench, mutation: str, missing: str) -> None:
    kernel = bench.compiled("right").mutated(mutation)
    findings = bench.look(kernel, attention(3)).report.findings
    assert {finding.kind for finding in findings} == {"hang"} and len(findings) > 1
    text = report_text(findings, sources=Sources([kernel.folder]))
    assert missing in text and "parity" in text and "nobody can go on" in text
    assert re.search(r"sm90_ring\.py:\d+  cute\.arch\.mbarrier_wait", text), text


def test_13_cases_are_never_square() -> None:
    assert squares([square_case()]), "the rule finds nothing in a square case"
    made = [
        case
        for op in operators()
        for kernel in default_plans(op, "sm_90a")
        for case in cases(op, kernel.dims, kernel.variant, config=kernel.config)
    ]
    assert len(made) > 20 and squares(made) == []


def test_14_a_pipeline_loop_that_python_unrolls_and_a_budget_for_the_compile() -> None:
    text = "@cute.kernel\ndef kernel(n):\n    for tile in {}(64):\n        cute.arch.mbarrier_wait(full, tile)\n"
    assert lint_source(text.format("cutlass.range")) == []
    assert [finding.rule for finding in lint_source(text.format("cutlass.range_constexpr"))] == ["unrolled-pipeline"]
    # A compile that takes longer is killed: tests/generator/test_build.py, test_a_compile_that_hangs_is_killed_…
    limits = [load_op(op).compile_seconds_limit for op in list_ops() if load_op(op).status == "ready"]
    assert len(limits) > 20 and all(0 < limit <= 60 for limit in limits)


def test_15_a_branch_that_is_not_taken_leaves_no_code(bench: Bench) -> None:
    kernel, flags = bench.compiled("right"), {"causal": False, "has_sink": False, "pdl": False}
    assert untaken_lines(kernel.source, kernel.ptx, flags) == []
    planted = bench.compiled("taken branch")  # compiled with the branch of pdl, which this variant does not have
    (line,) = untaken_lines(kernel.source, planted.ptx, flags)
    assert kernel.source.splitlines()[line - 1].strip() == "cute.arch.griddepcontrol_wait()"


def test_16_a_layout_of_v_that_the_contract_does_not_have(bench: Bench) -> None:
    kernel, case = bench.compiled("right"), attention(2)
    assert kernel.contract is not None
    called = EmulatedObject(kernel.made, kernel.contract, client=bench.client)
    v = case.inputs["v"]
    assert isinstance(v, torch.Tensor)
    out = {name: torch.empty(layout.shape, dtype=layout.dtype) for name, layout in case.outputs.items()}
    called(*bind(kernel.contract, {**case.inputs, **out}))
    columns_first = v.permute(0, 3, 2, 1).contiguous().permute(0, 3, 2, 1)  # the same values, the keys contiguous
    assert torch.equal(v, columns_first)
    with pytest.raises(ArgumentRefused, match=r"(?i)v.*stride|stride.*v"):
        called(*bind(kernel.contract, {**case.inputs, "v": columns_first, **out}))


@pytest.mark.parametrize(
    ("lesson", "mistake"),
    [(17, "slices"), (18, "no lse"), (19, "sink in logits"), (19, "sink in segments")],
)
def test_17_18_19_merging_that_is_mathematically_wrong(bench: Bench, lesson: int, mistake: str) -> None:
    case = attention(3, head_dim=16, has_sink=True, pattern="rising", queries=70)
    assert bench.look(bench.compiled("threads none"), case).nothing
    planted = bench.compiled(f"threads {mistake}")
    said = wrong_values(bench.look(planted, case), planted, "o", "o[batch, row, head, column] = ")
    assert "tests/lessons/attention_by_threads.py" in said


def test_19_the_sink_in_the_logits_of_the_kernel_itself(bench: Bench) -> None:
    case = attention(3, has_sink=True)
    assert bench.look(bench.compiled("right sink"), case).nothing
    planted = bench.compiled("sink in logits")
    wrong_values(bench.look(planted, case), planted, "o", O_STORE)


def test_every_lesson_has_its_test() -> None:
    numbers = {int(n) for name in globals() for n in re.findall(r"(?<=_)\d+(?=_)", name) if name.startswith("test_")}
    assert set(range(1, 20)) <= numbers
