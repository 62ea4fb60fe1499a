"""What one run of a compiled kernel in the emulator found out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from dsv4.emulator.errors import FindingsError


@dataclass(frozen=True)
class Finding:
    """One thing that a kernel does wrong.

    ``kind`` is one word in snake case (``race``, ``deadlock``, ``out_of_bounds`` …). ``cta`` is the index of the CTA in
    the grid, ``warp`` the warp in it; both are ``None`` for what concerns a whole launch. ``source`` is ``file:line``
    of the kernel's source, ``ptx_line`` the line of its PTX (0 unknown); ``other_*`` say the same of the second access
    of a race. ``lanes`` is a mask, ``count`` how often the same was seen, ``schedule`` the schedule that showed it.
    ``wait_kind``, ``wait_id`` and ``wait`` are what a warp of a
    hang waits for, as struct Finding of core/emu.h gives it (:func:`dsv4.emulator.report.waited_for` reads it).
    """

    kind: str
    message: str
    kernel: str = ""
    launch: int = 0
    schedule: str = ""
    cta: tuple[int, int, int] | None = None
    warp: int | None = None
    lanes: int = 0
    count: int = 1
    opcode: str = ""
    source: str = ""
    ptx_line: int = 0
    other_opcode: str = ""
    other_source: str = ""
    other_ptx_line: int = 0
    wait_kind: int = 0
    wait_id: int = 0
    wait: tuple[int, ...] = ()

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Finding:
        known = dict(raw)
        known["wait"] = tuple(known.get("wait") or ())
        known["cta"] = tuple(known["cta"]) if known.get("cta") is not None else None
        return cls(**known)

    def line(self) -> str:
        """The finding in one line: what, where in the source, where in the grid, under which schedule."""
        place = [self.source or f"launch {self.launch}"]
        if self.other_source:
            place.append(f"and {self.other_source}")
        if self.cta is not None:
            place.append(f"CTA {','.join(map(str, self.cta))}" + ("" if self.warp is None else f" warp {self.warp}"))
        if self.ptx_line:
            place.append(f"PTX line {self.ptx_line}" + (f" {self.opcode}" if self.opcode else ""))
        if self.schedule:
            place.append(f"schedule {self.schedule}")
        return f"{self.kind}: {' '.join(self.message.split())} [{'; '.join(place)}]"


@dataclass(frozen=True)
class LaunchRecord:
    """One launch as the host code asked for it. ``kernel`` is the name in the PTX."""

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    cluster: tuple[int, int, int]
    dynamic_smem_bytes: int
    pdl: bool
    stream: int

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> LaunchRecord:
        known: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in raw.items()}
        return cls(**known)


@dataclass(frozen=True)
class ScheduleRecord:
    """One pass under one schedule. ``differs`` names tensors whose bytes are not those of the first schedule."""

    name: str
    findings: int
    differs: tuple[str, ...]
    stats: dict[str, int]
    seconds: float


@dataclass(frozen=True)
class Written:
    """The instruction that wrote an element last, in the last launch."""

    opcode: str
    source: str
    ptx_line: int


@dataclass(frozen=True)
class Report:
    """The outcome of a run: every launch, every schedule, every finding (the same one is kept once).

    ``writers`` answers the request's ``probes``; None for an element that the last launch did not write.
    """

    launches: tuple[LaunchRecord, ...]
    schedules: tuple[ScheduleRecord, ...]
    findings: tuple[Finding, ...]
    seconds: float
    stats: dict[str, int] = field(default_factory=dict)
    writers: tuple[Written | None, ...] = ()

    @classmethod
    def from_json(cls, raw: Mapping[str, Any], seconds: float) -> Report:
        launches = tuple(map(LaunchRecord.from_json, raw["launches"]))
        schedules = tuple(ScheduleRecord(**{**each, "differs": tuple(each["differs"])}) for each in raw["schedules"])
        stats: dict[str, int] = {}
        for each in schedules:
            for name, value in each.stats.items():
                stats[name] = stats.get(name, 0) + value
        findings = tuple(map(Finding.from_json, raw["findings"]))
        writers = tuple(None if each is None else Written(**each) for each in raw.get("writers", ()))
        return cls(launches, schedules, findings, seconds, stats, writers)

    @property
    def ok(self) -> bool:
        return not self.findings

    @property
    def differs(self) -> tuple[str, ...]:
        """Tensors whose contents depended on the schedule. No finding: floating-point atomics make that legal."""
        return tuple(dict.fromkeys(name for each in self.schedules for name in each.differs))

    def check(self) -> Report:
        """The report itself. Raises FindingsError where there are findings."""
        if self.findings:
            raise FindingsError("\n".join(finding.line() for finding in self.findings))
        return self

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "ok": self.ok}

    def __str__(self) -> str:
        names = ", ".join(dict.fromkeys(each.kernel for each in self.launches)) or "no launch"
        head = f"{names}: {len(self.schedules)} schedules, {len(self.findings)} findings, {self.seconds:.2f} s"
        from dsv4.emulator import report  # which reads findings, and so imports this module

        return "\n\n".join([head, *report.blocks(report.explain(self.findings))])
