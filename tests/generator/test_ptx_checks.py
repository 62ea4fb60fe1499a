"""The static checks find nothing in a kernel as it was compiled, and find each mistake that is planted in its text."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from dsv4.generator.build import build
from dsv4.generator.ptx_checks import (
    Finding,
    Listing,
    check_counts,
    check_ptx,
    constant,
    describe,
    parse,
    products,
    split_operands,
)
from dsv4.generator.spec import plan

TMEM_COLUMNS = 512
TMEM_MMA = re.compile(r"tcgen05\.mma\S+ \[%r\d+\], \[%r\d+\],.*?(%p\d+);")


@pytest.fixture(scope="module")
def ptx(tmp_path_factory) -> str:
    """The PTX of the D = 64 attention kernel: TMA, tensor memory, all kinds of barriers."""
    kernel = plan("fmha", "sm_100a", dims={"D": 64}, variant={"has_sink": True})
    (result,) = build([kernel], cache_root=tmp_path_factory.mktemp("cache"), jobs=1)
    assert result.artifact is not None, result.error
    return (result.artifact / "kernel.ptx").read_text()


def without(pattern: str, count: int = 0) -> Callable[[str], str]:
    """Leave out the statements that match."""

    def edit(text: str) -> str:
        edited, times = re.subn(pattern, "", text, count=count, flags=re.MULTILINE)
        assert times, pattern
        return edited

    return edit


def alloc_operand(text: str) -> str:
    match = re.search(r"tcgen05\.alloc\S+\s+\[[^\]]*\],\s*([^;]+);", text)
    assert match
    return match.group(1)


def other_allocation(text: str) -> str:
    return re.sub(rf"(mov\.b32\s+{re.escape(alloc_operand(text))}, )512;", r"\g<1>384;", text)


def first_product_accumulates(text: str) -> str:
    match = TMEM_MMA.search(text)
    assert match
    return re.sub(rf"setp\S+\s+{re.escape(match.group(1))}, [^;]*;", f"mov.pred {match.group(1)}, -1;", text)


def later_block_overwrites(text: str) -> str:
    predicate = TMEM_MMA.findall(text)[1]
    edited = text.replace(f"mov.pred \t{predicate}, -1;", f"mov.pred \t{predicate}, 0;")
    assert edited != text
    return edited


def packing_store(text: str) -> str:
    return re.sub(r"(tcgen05\.st\.sync\.aligned\.32x32b\.x\d+)\.b32", r"\1.unpack::16b.b32", text, count=1)


def no_arrivals(text: str) -> str:
    match = re.search(r"mbarrier\.init\S+\s+\[[^\]]*\],\s*([^;]+);", text)
    assert match
    return text.replace(match.group(0), match.group(0).replace(match.group(1), "0"), 1)


def unelected(opcode: str) -> Callable[[str], str]:
    """Take away the branch on the election before the first ``opcode``."""

    def edit(text: str) -> str:
        place = re.search(rf"^\s*{opcode}", text, re.MULTILINE)
        assert place, opcode
        branches = list(re.finditer(r"^\s*@%p\d+ bra[^;]*;$", text[: place.start()], re.MULTILINE))
        last = branches[-1]
        return text[: last.start()] + text[last.end() :]

    return edit


def local_array(text: str) -> str:
    return text.replace("\t.reg .pred", "\t.local .align 8 .b8 __local_depot0[16];\n\t.reg .pred", 1)


def test_a_compiled_kernel_has_no_findings(ptx):
    assert check_ptx(ptx, TMEM_COLUMNS) == []


@pytest.mark.parametrize(
    ("check", "edit"),
    [
        ("allocation", other_allocation),
        ("allocation", without(r"^\s*tcgen05\.dealloc[^;]*;")),
        ("allocation", without(r"^\s*tcgen05\.relinquish[^;]*;")),
        ("store_waits", without(r"^\s*tcgen05\.wait::st[^;]*;")),
        ("store_waits", without(r"^\s*tcgen05\.wait::st[^;]*;", 1)),
        ("load_waits", without(r"^\s*tcgen05\.wait::ld[^;]*;", 1)),
        ("thread_fences", without(r"^\s*tcgen05\.fence::before_thread_sync;", 1)),
        ("thread_fences", without(r"^\s*tcgen05\.fence::after_thread_sync;", 1)),
        ("first_product", first_product_accumulates),
        ("first_product", later_block_overwrites),
        ("store_types", packing_store),
        ("proxy_fences", without(r"^\s*fence\.proxy\.async[^;]*;", 1)),
        ("barrier_init", no_arrivals),
        ("barrier_init", without(r"^\s*fence\.mbarrier_init[^;]*;")),
        ("single_issue", unelected(r"cp\.async\.bulk\.tensor\.4d\.global")),
        ("single_issue", unelected(r"tcgen05\.commit")),
        ("single_issue", unelected(r"mbarrier\.arrive\.expect_tx")),
        ("local_memory", local_array),
    ],
)
def test_a_planted_mistake_is_found(ptx, check, edit):
    edited = edit(ptx)
    assert edited != ptx
    findings = check_ptx(edited, TMEM_COLUMNS)
    assert check in {finding.check for finding in findings}, describe(findings)
    assert all(finding.line <= edited.count("\n") + 1 for finding in findings)


def test_the_budget_is_held_to_the_allocation(ptx):
    (finding,) = check_ptx(ptx, 256)
    assert finding.check == "allocation"
    assert "512 columns allocated, the budget has 256" in finding.message
    assert ptx.splitlines()[finding.line - 1].strip().startswith("tcgen05.alloc")


def test_static_instructions_are_counted(ptx):
    (kernel,) = parse(ptx)
    assert check_counts(kernel, {"tcgen05.alloc": 1, "cp.async.bulk.wait_group": 1}) == []
    (finding,) = check_counts(kernel, {"tcgen05.mma": 1})
    assert finding.check == "counts"
    assert finding.line > 0


def test_products_are_runs_of_one_accumulator(ptx):
    (kernel,) = parse(ptx)
    runs = products(kernel)
    assert {len(run) for run in runs} == {4, 8}  # D / 16 blocks of Q·Kᵀ, tile_n / 16 blocks of P·V
    assert all(len({item.operands[0] for item in run}) == 1 for run in runs)


SMALL = """
.visible .entry small(.param .u64 small_0)
.reqntid 32, 1, 1
{
\t.reg .pred %p<3>;
\t.reg .b32 %r<9>;
\tmov.b32 %r1, 64;
\t@%p1 bra $L__BB0_2;
\ttcgen05.st.sync.aligned.32x32b.x2.b32 [%r2], {%r3, %r4};
\tbra.uni $L__BB0_3;
$L__BB0_2:
\ttcgen05.st.sync.aligned.32x32b.x2.b32 [%r2], {%r3,
\t\t%r4};
\ttcgen05.wait::st.sync.aligned;
$L__BB0_3:
\t{
\t.reg .pred P1;
\tLAB_WAIT:
\tmbarrier.try_wait.parity.shared.b64 P1, [%r5], %r6, 10000000;
\t@P1 bra.uni DONE;
\tbra.uni LAB_WAIT;
\tDONE:
\t}
\tmbarrier.arrive.shared.b64 %rd1, [%r5];
\tret;
}
"""


def test_paths_are_followed_and_inner_labels_are_local():
    (kernel,) = parse(SMALL)
    assert isinstance(kernel, Listing)
    assert set(kernel.labels) == {"$L__BB0_2", "$L__BB0_3"}
    waits = [finding for finding in check_ptx(SMALL, 0) if finding.check == "store_waits"]
    assert [finding.line for finding in waits] == [9]  # the other path waits
    assert str(waits[0]).startswith("store_waits, PTX line 9:")


def test_operands_and_constants_are_read():
    assert split_operands("[%r1+8], {%r2, %r3}, %p1") == ("[%r1+8]", "{%r2, %r3}", "%p1")
    (kernel,) = parse(SMALL)
    assert constant(kernel, "%r1") == 64
    assert constant(kernel, "0x20") == 32
    assert constant(kernel, "%r2") is None


def test_text_without_a_kernel_is_refused():
    with pytest.raises(ValueError, match=r"no \.entry"):
        parse("// nothing here")
    assert describe([Finding("counts", 3, "one"), Finding("counts", 4, "two")]).count("\n") == 1
