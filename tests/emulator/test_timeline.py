"""The trace of a run: it loads, slices of a track do not overlap, every issue has its landing, names are right."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsv4.emulator import timeline
from dsv4.emulator.machine import Launch
from dsv4.emulator.policy import Policy
from tests.emulator.copy_kernel import EARLY, LATE, POLICIES, Kernel, aligned, barrier_init, expect, wait
from tests.emulator.test_report import SOURCE, loc
from tests.emulator.test_tma_ops import LOAD, TILE, numbers, plain_map

TILES = 4


def pipeline(tmp_path: Path, *, cluster: int = 1, grid: int = 1, dropped: bool = False) -> Kernel:
    """Warp 0 loads tiles into one buffer, warp 1 reads each and arrives on a second barrier when it has."""
    source = tmp_path / "pipeline.py"
    source.write_text(SOURCE)
    memory, out = numbers(), aligned(np.zeros((cluster * grid, 32), np.uint32))
    body = "@%lead mbarrier.init.shared.b64 [%smem+8], 32;\n" + barrier_init()
    body += "setp.ge.u32 %p0, %thread, 32; mov.u32 %r9, 0; mov.u32 %r4, %ctaid.x; mul.wide.u32 %d0, %r4, 128;\n"
    body += "add.u64 %a_out, %a_out, %d0; and.b32 %r5, %thread, 31; shl.b32 %r6, %r5, 2; add.u32 %r7, %r6, %smem;\n"
    body += "cvt.u64.u32 %d1, %r6; add.u64 %a_out, %a_out, %d1;\n@%p0 bra MATH;\n"
    for tile in range(TILES):
        if tile:
            body += loc(16) + wait("%smem+8", (tile - 1) & 1)
        body += loc(9) + expect(2048 if dropped and tile == 2 else 1024)
        body += loc(8) + f"@%lead {LOAD.format(rank=2)} [%smem+{TILE}], [%m_t, {{0, {8 * tile}}}], [%smem];\n"
    body += "bra END;\nMATH:\n"
    for tile in range(TILES):
        body += loc(18) + wait("%smem", tile & 1)
        body += loc(19) + f"ld.shared.b32 %r8, [%r7+{TILE}]; add.u32 %r9, %r9, %r8;\n"
        body += loc(18) + "mbarrier.arrive.shared.b64 _, [%smem+8];\n"
    body += loc(19) + "st.global.b32 [%a_out], %r9;\nEND:\n"
    arrays = {"memory": memory, "out": out}
    return Kernel(body, {"t": plain_map(memory)}, arrays, block=64, cluster=cluster, grid=grid, source=str(source))


def traced(kernel: Kernel, policy: Policy) -> tuple[dict[str, Any], list[str]]:
    """The trace, through a round of JSON, and the kinds of findings."""
    result, _ = kernel.run(replace(policy, trace=True))
    launch = Launch((kernel.grid * kernel.cluster, 1, 1), (kernel.block, 1, 1), (kernel.cluster, 1, 1))
    trace = timeline.timeline(kernel.program(), result, launch=launch, schedule=policy.name)
    return json.loads(json.dumps(trace)), [finding.kind for finding in result.findings]


def slices(trace: dict[str, Any], category: str = "") -> list[dict[str, Any]]:
    return [each for each in trace["traceEvents"] if each["ph"] == "X" and category in ("", each["cat"])]


@pytest.mark.parametrize("policy", POLICIES)
def test_slices_of_a_track_do_not_overlap_and_times_are_whole(tmp_path: Path, policy: Policy) -> None:
    trace, kinds = traced(pipeline(tmp_path), policy)
    assert kinds == []
    tracks = defaultdict(list)
    for each in slices(trace):
        assert each["dur"] > 0 and each["ts"] >= 0
        tracks[each["pid"], each["tid"]].append((each["ts"], each["ts"] + each["dur"]))
    assert {(0, 0), (0, 1), (0, 1000)} <= set(tracks)
    for spans in tracks.values():
        spans.sort()
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))


@pytest.mark.parametrize("policy", POLICIES)
def test_every_issue_has_its_landing_and_an_arrow_between_the_tracks(tmp_path: Path, policy: Policy) -> None:
    trace, _ = traced(pipeline(tmp_path), policy)
    loads = slices(trace, "TMA load")
    assert len(loads) == TILES and not any("state" in each["args"] for each in loads)
    assert [each["name"] for each in loads] == ["cute.copy(ring, full)"] * TILES
    assert all(each["args"]["source"].endswith("pipeline.py:8") for each in loads)
    arrows: dict[str, dict[str, Any]] = defaultdict(dict)
    for each in trace["traceEvents"]:
        if each["ph"] in "sf":
            arrows[each["id"]][each["ph"]] = each
    assert len(arrows) == TILES
    for pair in arrows.values():
        assert pair["s"]["tid"] == 0 and pair["f"]["tid"] >= 1000 and pair["s"]["ts"] <= pair["f"]["ts"]
        inside = [s for s in slices(trace, "run") if s["tid"] == 0 and s["ts"] <= pair["s"]["ts"] < s["ts"] + s["dur"]]
        assert len(inside) == 1


def test_late_operations_are_long_and_early_ones_short(tmp_path: Path) -> None:
    late, early = (sum(e["dur"] for e in slices(traced(pipeline(tmp_path), p)[0], "TMA load")) for p in (LATE, EARLY))
    assert early == TILES and late > 2 * early


def test_tracks_are_named_by_role_and_waits_by_what_they_are_for(tmp_path: Path) -> None:
    trace, _ = traced(pipeline(tmp_path), LATE)
    names = {(e["pid"], e["tid"], e["name"]): e["args"]["name"] for e in trace["traceEvents"] if e["ph"] == "M"}
    assert names[0, 0, "process_name"] == "CTA 0,0,0"
    assert names[0, 0, "thread_name"] == "warp 0 load" and names[0, 1, "thread_name"] == "warp 1 math"
    assert names[0, 1000, "thread_name"] == "TMA load"
    waits = [each for each in slices(trace, "wait") if each["tid"] == 1 and each["name"] == "wait: mbarrier"]
    assert waits and all(each["args"]["source"].endswith("pipeline.py:18") for each in waits)


def test_phases_count_up_and_arrivals_are_marked(tmp_path: Path) -> None:
    trace, _ = traced(pipeline(tmp_path), LATE)
    counters = defaultdict(list)
    for each in trace["traceEvents"]:
        if each["ph"] == "C":
            counters[each["name"]].append((each["ts"], each["args"]["completed phases"]))
    assert set(counters) == {"mbarrier +0x0", "mbarrier +0x8"}
    for steps in counters.values():
        assert steps == sorted(steps) and [phase for _, phase in steps] == list(range(1, TILES + 1))
    arrivals = [each for each in trace["traceEvents"] if each["ph"] == "i"]
    assert {each["name"] for each in arrivals} == {"arrive mbarrier +0x0", "arrive mbarrier +0x8"}


def test_ctas_of_several_clusters_are_processes_of_their_own(tmp_path: Path) -> None:
    kernel = pipeline(tmp_path, cluster=2, grid=2)
    trace, kinds = traced(kernel, LATE)
    assert kinds == []
    names = {e["pid"]: e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "process_name"}
    assert names == {number: f"CTA {number},0,0" for number in range(4)}
    loads = slices(trace, "TMA load")
    assert sorted(each["pid"] for each in loads) == sorted(TILES * list(range(4)))
    assert not any("state" in each["args"] for each in loads)


def test_a_hang_shows_the_wait_to_the_end(tmp_path: Path) -> None:
    trace, kinds = traced(pipeline(tmp_path, dropped=True), LATE)
    assert "hang" in kinds
    end = max(each["ts"] + each["dur"] for each in slices(trace))
    waits = [each for each in slices(trace, "wait") if each["ts"] + each["dur"] >= end - 1]
    assert any(each["tid"] == 1 and each["name"] == "wait: mbarrier" for each in waits)


def test_the_file_says_what_its_time_is(tmp_path: Path) -> None:
    kernel = pipeline(tmp_path)
    launch = Launch((1, 1, 1), (64, 1, 1))
    result, _ = kernel.run(replace(EARLY, trace=True))
    count = timeline.write_timeline(tmp_path / "t.json", kernel.program(), result, launch=launch, schedule="early")
    trace = json.loads((tmp_path / "t.json").read_text())
    assert len(trace["traceEvents"]) == count
    assert trace["otherData"]["time unit"] == timeline.TIME_UNIT and trace["otherData"]["schedule"] == "early"
    with pytest.raises(ValueError, match="recorded no events; valid: a run under a policy with trace=True"):
        timeline.write_timeline(tmp_path / "u.json", kernel.program(), kernel.run(EARLY)[0], launch=launch)
