"""Findings as text: source lines, roles, hints, the table of a hang; and that every kind of finding has its hint."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from dsv4.emulator import report
from dsv4.emulator.hints import HINTS, hint_of
from dsv4.emulator.outcome import Finding
from dsv4.emulator.sources import Sources
from tests.emulator.copy_kernel import LATE, Kernel, aligned, barrier_init, expect, wait
from tests.emulator.test_tma_ops import LOAD, TILE, load, numbers, plain_map

SOURCE = """import cutlass.cute as cute

LOAD_WARP, MATH_WARP = 0, 1


@cute.jit
def load_tiles(ring, full):
    cute.copy(ring, full)
    full.expect(512)


@cute.kernel
def kernel(x, full):
    warp = cute.arch.warp_idx()
    if warp == LOAD_WARP:
        load_tiles(x, full)
    elif warp == self.math_warp_id:
        full.wait(0)
        y = x[0]
    elif warp < 4:
        full.wait(1)
        if x and self.store_warp == warp:
            full.wait(0)
        if x and warp == STORE_WARP:
            full.wait(0)
    z = x[1]
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "pipeline.py"
    path.write_text(SOURCE)
    return path


def loc(line: int) -> str:
    return f".loc 1 {line} 5\n"


def found_by(kernel: Kernel) -> list[Finding]:
    program = kernel.program()
    regions = ["parameters", *kernel.arrays]
    return [report.of_core(raw, program, schedule="late", regions=regions) for raw in kernel.run(LATE)[0].findings]


def test_the_role_of_a_warp_is_its_function_or_the_branch_of_the_kernel(source: Path) -> None:
    sources = Sources()
    roles = {line: sources.role(str(source), line) for line in range(1, 27)}
    assert roles[8] == roles[9] == "load_tiles"
    assert roles[16] == "load" and roles[18] == roles[19] == "math" and roles[21] == "warp < 4"
    assert roles[23] == roles[25] == "store"
    assert roles[14] == roles[26] == roles[1] == ""
    assert sources.function(str(source), 18) == "kernel" and sources.text(str(source), 18) == "full.wait(0)"
    assert Sources([source.parent]).text("pipeline.py", 9) == "full.expect(512)"
    assert Sources().text("no such file.py", 1) == Sources().role("", 3) == ""


def test_a_source_of_the_package_is_found_by_the_name_that_ptx_gives_it() -> None:
    assert Sources().path("dsv4/emulator/report.py") is not None


def race(source: Path) -> Kernel:
    memory, out = numbers(), aligned(np.zeros(1024, np.uint8))
    body = barrier_init() + loc(9) + expect(1024) + loc(8) + load("t", (0, 0))
    body += loc(19) + f"ld.shared.b32 %r1, [%smem+{TILE}]; st.global.b32 [%a_out], %r1;\n" + loc(18) + wait("%smem")
    return Kernel(body, {"t": plain_map(memory)}, {"memory": memory, "out": out}, source=str(source))


def test_a_race_names_both_source_lines_and_what_to_do(source: Path) -> None:
    (finding,) = [each for each in found_by(race(source)) if each.kind == "race"]
    assert finding.source == f"{source}:19" and finding.other_source == f"{source}:8"
    said = report.text([finding], configuration="d=64", command=lambda each: f"verify --schedule {each.schedule}")
    lines = said.splitlines()
    assert lines[0] == "race: kernel (d=64, schedule late)"
    assert f"  here   {source}:19  y = x[0]" in lines
    assert re.fullmatch(r"         PTX \d+: ld\.shared\.b32", lines[lines.index(f"  here   {source}:19  y = x[0]") + 1])
    assert f"  there  {source}:8  cute.copy(ring, full)" in lines
    assert re.search(r"PTX \d+: " + re.escape(LOAD.format(rank=2)), said)
    assert "  where  CTA 0,0,0, warp 0 (math)" in said
    assert "  hint   Wait for the mbarrier that the copy signals, with the parity of this turn" in said
    assert lines[-1] == "  again  verify --schedule late"
    assert max(map(len, lines)) < 200


def test_the_same_as_plain_data(source: Path) -> None:
    (each,) = [each for each in report.explain(found_by(race(source))) if each.finding.kind == "race"]
    raw = json.loads(json.dumps(each.as_json()))
    assert raw["source_text"] == "y = x[0]" and raw["other_source_text"] == "cute.copy(ring, full)"
    assert raw["kind"] == "race" and raw["role"] == "math" and raw["waits_for"] == "" and raw["hint"]
    assert Finding.from_json({key: raw[key] for key in Finding.__dataclass_fields__}) == each.finding


def test_a_region_is_named_and_not_numbered(source: Path) -> None:
    memory = numbers()
    body = loc(19) + "ld.global.b32 %r1, [%a_memory+6000];\n"
    (finding,) = found_by(Kernel(body, {}, {"memory": memory}, source=str(source)))
    assert finding.kind == "out_of_bounds" and "of argument memory" in finding.message


def test_a_hang_is_one_table_of_who_waits_for_what(source: Path) -> None:
    memory = numbers()
    body = barrier_init(2) + "setp.lt.u32 %p0, %thread, 32;\n@!%p0 bra MATH;\n"
    body += loc(9) + expect(2048) + loc(8) + load("t", (0, 0)) + loc(16) + wait("%smem") + "bra END;\n"
    body += "MATH:\n" + loc(26) + "bar.sync 1, 64;\nEND:\n"
    kernel = Kernel(body, {"t": plain_map(memory)}, {"memory": memory}, source=str(source), block=64)
    findings = found_by(kernel)
    assert {finding.kind for finding in findings} == {"hang"}
    said = report.text(findings, command="dsv4-gen verify")
    assert said.count("nobody can go on") == said.count("dsv4-gen verify") == 1
    rows = [line for line in said.splitlines() if line.startswith("  0,0,0")]
    assert len(rows) == 2
    barrier = "mbarrier 0x400, parity 0: phase 0 is open, 1 of 2 arrivals missing, 1024 bytes missing"
    assert re.fullmatch(rf"  0,0,0  0 load  +{re.escape(str(source))}:16  load_tiles\(x, full\)  {barrier}", rows[0])
    assert rows[1].endswith(":26  z = x[1]             named barrier 1: 32 of 64 threads have arrived")
    assert f"the last arrival on mbarrier 0x400: {source}:9 full.expect(512)" in " ".join(said.split())
    kinds = [each.as_json()["waits_for"] for each in report.explain(findings)]
    assert kinds == ["mbarrier", "named barrier"]


def test_hangs_of_different_launches_are_different_tables() -> None:
    one = Finding("hang", "waits for bulk stores that never complete", "k", cta=(0, 0, 0), warp=2, wait_kind=4)
    said = report.text([one, replace(one, launch=1)])
    assert said.count("nobody can go on") == 2 and "launch 1" in said and "bulk stores that never complete" in said


def test_too_many_bytes_are_said_to_be_too_many() -> None:
    finding = Finding("hang", "", wait_kind=1, wait=(0x408, 1, 3, 1, 0, -512))
    assert report.waited_for(finding) == (
        "mbarrier 0x408, parity 1: phase 3 is open, all 1 arrivals there, 512 bytes too many"
    )


def test_a_finding_without_source_or_cta_still_has_a_block() -> None:
    said = report.text([Finding("launch", "248000 bytes of shared memory are asked for", "k")])
    assert said.splitlines()[:2] == ["launch: k", "  248000 bytes of shared memory are asked for"]
    assert report.text([]) == ""


def test_every_kind_that_the_emulator_reports_has_a_hint() -> None:
    root = Path(str(files("dsv4.emulator")))
    kinds: set[str] = set()
    call = re.compile(r'\b(?:finding|stop|machine_finding|machine_finding_at)\([^"\\;{]*?"([a-z_]+)",\s*"')
    for path in sorted((root / "core").glob("*.c")):
        kinds |= set(call.findall(path.read_text()))
    assert {"race", "hang", "tensor_map", "wgmma_fence", "tmem_access"} <= kinds
    for path in root.glob("*.py"):
        kinds |= set(re.findall(r'\bFinding\(\s*"([a-z_]+)"', path.read_text()))
    assert kinds <= set(HINTS), sorted(kinds - set(HINTS))


@pytest.mark.parametrize(
    ("later", "earlier", "said"),
    [
        (LOAD, "ld.shared.v4.b32", "wait for the barrier that its users arrive on"),
        ("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16", LOAD, "Wait for the mbarrier that the copy signals"),
        ("st.shared.b32", "cp.async.bulk.global.shared::cta.bulk_group", "wait_group.read before its source"),
        ("st.shared.b32", "tcgen05.mma.cta_group::1.kind::f16", "tcgen05.commit and its mbarrier"),
        ("ld.shared.b32", "cp.async.cg.shared.global", "cp.async.wait_group"),
        ("tcgen05.mma.cta_group::1.kind::f16", "tcgen05.ld.sync.aligned.32x32b.x8.b32", "tcgen05.wait::ld"),
        ("ld.shared.b32", "st.shared.b32", HINTS["race"]),
        ("mbarrier.arrive.shared.b64", "mbarrier.init.shared.b64", "use them only after it"),
    ],
)
def test_the_hint_of_a_race_knows_the_two_instructions(later: str, earlier: str, said: str) -> None:
    assert said in hint_of("race", later, earlier)
