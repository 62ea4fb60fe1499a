"""What happened in a run, as a trace that Perfetto (ui.perfetto.dev) and chrome://tracing show.

One process for each CTA; in it a track for each warp (when it ran, what it waited for), tracks for each engine (each
asynchronous operation from its issue to its landing, with an arrow from the instruction that issued it), and a counter
for each mbarrier. Time is counted in executed warp-instructions of the cluster, one of them shown as a microsecond: the
picture shows order, overlap and waiting of this schedule, and says nothing about speed.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dsv4.emulator.machine import Launch, Result
from dsv4.emulator.program import Program
from dsv4.emulator.report import WAITS
from dsv4.emulator.sources import Sources

RUN, WAIT, ISSUE, LAND, ARRIVE, PHASE = range(6)  # enum TraceKind of core/emu.h
ENGINES = ("TMA load", "TMA store", "cp.async", "wgmma", "tcgen05.mma", "tcgen05.ld", "tcgen05.st", "arrival")
"""Names of the engines, in the order of enum Engine."""
TIME_UNIT = "1 us is 1 executed warp-instruction of the cluster; this is an order of events, not a measurement"
_ENGINE_TRACKS = 1000  # track numbers: warps from 0, engines from here, 100 for each
_TRACKS_PER_ENGINE = 100

Event = dict[str, Any]


def write_timeline(
    path: Path | str, program: Program, result: Result, *, launch: Launch, schedule: str = "",
    sources: Sources | None = None,
) -> int:  # fmt: skip
    """Write the events of a run (of a policy with ``trace``) to ``path`` as JSON; returns the number of trace events.

    Overwrites the file. Raises ValueError when the run recorded no events, OSError when the file can't be written.
    """
    if not len(result.events):
        raise ValueError("timeline: the run recorded no events; valid: a run under a policy with trace=True")
    trace = timeline(program, result, launch=launch, schedule=schedule, sources=sources)
    Path(path).write_text(json.dumps(trace))
    return len(trace["traceEvents"])


def timeline(
    program: Program, result: Result, *, launch: Launch, schedule: str = "", sources: Sources | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The trace as plain data (the JSON object format of Chrome's trace events)."""
    made = _Timeline(program, launch, sources or Sources())
    rows = [{name: int(row[name]) for name in row.dtype.names} for row in result.events]
    events = [*made.warps(rows), *made.engines(rows), *made.barriers(rows)]
    return {
        "traceEvents": [*made.names(), *events],
        "displayTimeUnit": "ms",
        "otherData": {"kernel": program.name, "schedule": schedule, "time unit": TIME_UNIT},
    }


class _Timeline:
    def __init__(self, program: Program, launch: Launch, sources: Sources) -> None:
        self._program, self._launch, self._sources = program, launch, sources
        self._roles: dict[tuple[int, int], Counter[str]] = defaultdict(Counter)
        self._tracks: dict[tuple[int, int], str] = {}
        self._ctas: set[int] = set()

    # ------------------------------------------------------------------------------------------------ what is shown

    def _place(self, index: int) -> tuple[str, int, str, int]:
        """Source file and line, opcode and PTX line of a bytecode instruction."""
        if not 0 <= index < len(self._program.instructions):
            return "", 0, "", 0
        number = int(self._program.instructions["line"][index])
        if number >= len(self._program.lines):
            return "", 0, "", 0
        instruction = self._program.lines[number]
        return instruction.location.file, instruction.location.line, instruction.opcode, instruction.ptx_line

    def _label(self, index: int) -> str:
        """The text of the source line, else the opcode."""
        file, line, opcode, _ = self._place(index)
        return self._sources.text(file, line) or opcode

    def _arguments(self, index: int) -> dict[str, Any]:
        file, line, opcode, ptx_line = self._place(index)
        if not ptx_line:
            return {}
        source = {"source": f"{self._sources.shown(file)}:{line}"} if file else {}
        return {**source, "PTX line": ptx_line, "opcode": opcode}

    def warps(self, rows: Sequence[Event]) -> Iterator[Event]:
        """When each warp ran, and what it waited for in between."""
        runs: dict[tuple[int, int], list[Event]] = defaultdict(list)
        for row in rows:
            if row["kind"] == RUN:
                runs[row["cta"], row["warp"]].append(row)
        end = max((row["until"] for row in rows), default=0)
        for (cta, warp), turns in runs.items():
            self._ctas.add(cta)
            began = 0  # where the run began: the first instruction, then where the last run ended
            for turn, following in zip(turns, [*turns[1:], None], strict=True):
                start, until = turn["time"], turn["until"]
                file, line, _, _ = self._place(began)
                if role := self._sources.role(file, line):
                    self._roles[cta, warp][role] += until - start
                if until > start:
                    arguments = {"from": self._arguments(began), "to": self._arguments(turn["instruction"])}
                    yield _slice(self._label(began) or "run", "run", cta, warp, start, until, arguments)
                began = turn["instruction"]
                resumed = following["time"] if following else end
                if turn["detail"] > 0 and resumed > until:
                    what = WAITS[turn["detail"]] if turn["detail"] < len(WAITS) else "?"
                    name = f"wait: {what}"
                    yield _slice(name, "wait", cta, warp, until, resumed, {**self._arguments(began), "for": what})

    def engines(self, rows: Sequence[Event]) -> Iterator[Event]:
        """Asynchronous operations from issue to landing, side by side where they overlap, with arrows."""
        ctas = self._launch.cluster[0] * self._launch.cluster[1] * self._launch.cluster[2]
        landed = {(row["cta"] // ctas, row["serial"]): row["until"] for row in rows if row["kind"] == LAND}
        end = max((row["until"] for row in rows), default=0)
        free: dict[tuple[int, int], list[int]] = defaultdict(list)  # when each track of an engine is free again
        for row in rows:
            if row["kind"] != ISSUE:
                continue
            cta, start = row["cta"], row["time"]
            self._ctas.add(cta)
            key = (cta // ctas, row["serial"])
            until = landed.get(key)
            stop = max(until if until is not None else end, start)
            tracks = free[cta, row["detail"]]
            number = next((n for n, busy in enumerate(tracks) if busy <= start), len(tracks))
            number = min(number, _TRACKS_PER_ENGINE - 1)
            if number == len(tracks):
                tracks.append(0)
            tracks[number] = stop + 1
            engine = ENGINES[row["detail"]]
            track = _ENGINE_TRACKS + row["detail"] * _TRACKS_PER_ENGINE + number
            self._tracks[cta, track] = engine + (f" {number + 1}" if number else "")
            arguments = {**self._arguments(row["instruction"]), "issued by warp": row["warp"], "serial": row["serial"]}
            if until is None:
                arguments["state"] = "never landed"
            name = self._label(row["instruction"]) or engine
            yield _slice(name, engine, cta, track, start, stop + 1, arguments)
            flow = {"name": "issued", "cat": "flow", "id": f"{key[0]}.{key[1]}", "pid": cta}
            yield {**flow, "ph": "s", "tid": row["warp"], "ts": max(start - 1, 0)}
            yield {**flow, "ph": "f", "bp": "e", "tid": track, "ts": stop}

    def barriers(self, rows: Sequence[Event]) -> Iterator[Event]:
        """Completed phases of each mbarrier as a counter, arrivals as marks on the arriving warp's track."""
        for row in rows:
            name = f"mbarrier +0x{row['detail']:x}"
            if row["kind"] == PHASE:
                self._ctas.add(row["cta"])
                completed = {"completed phases": row["serial"] + 1}
                yield {"ph": "C", "name": name, "pid": row["cta"], "ts": row["until"], "args": completed}
            elif row["kind"] == ARRIVE:
                arguments = {**self._arguments(row["instruction"]), "phase": row["serial"]}
                yield {
                    "ph": "i", "s": "t", "name": f"arrive {name}", "cat": "barrier", "pid": row["cta"],
                    "tid": row["warp"], "ts": row["until"], "args": arguments,
                }  # fmt: skip

    def names(self) -> Iterator[Event]:
        """Names of processes and tracks; to be asked for last."""
        for cta in sorted(self._ctas):
            yield _name("process_name", cta, 0, f"CTA {','.join(map(str, self._cta_id(cta)))}")
        for (cta, warp), roles in sorted(self._warp_roles().items()):
            yield _name("thread_name", cta, warp, f"warp {warp}" + (f" {roles}" if roles else ""))
        for (cta, track), name in sorted(self._tracks.items()):
            yield _name("thread_name", cta, track, name)

    def _warp_roles(self) -> dict[tuple[int, int], str]:
        """The role in which each warp executed most."""
        threads = self._launch.block[0] * self._launch.block[1] * self._launch.block[2]
        found = {}
        for cta in self._ctas:
            for warp in range(-(-threads // 32)):
                roles = self._roles.get((cta, warp))
                found[cta, warp] = roles.most_common(1)[0][0] if roles else ""
        return found

    def _cta_id(self, number: int) -> tuple[int, int, int]:
        """%ctaid of the CTA with this number: clusters in order of x, y, z, in each of them its CTAs likewise."""
        grid, size = self._launch.grid, self._launch.cluster
        cluster, rank = divmod(number, size[0] * size[1] * size[2])
        columns, rows = grid[0] // size[0], grid[1] // size[1]
        first = (cluster % columns, cluster // columns % rows, cluster // (columns * rows))
        inside = (rank % size[0], rank // size[0] % size[1], rank // (size[0] * size[1]))
        x, y, z = (first[axis] * size[axis] + inside[axis] for axis in range(3))
        return x, y, z


def _slice(name: str, category: str, pid: int, tid: int, start: int, until: int, arguments: dict[str, Any]) -> Event:
    return {
        "ph": "X", "name": name, "cat": category, "pid": pid, "tid": tid, "ts": start, "dur": until - start,
        "args": arguments,
    }  # fmt: skip


def _name(kind: str, pid: int, tid: int, name: str) -> Event:
    return {"ph": "M", "name": kind, "pid": pid, "tid": tid, "args": {"name": name}}
