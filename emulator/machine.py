"""Running a program on the C core: memory regions, launches, and what comes back."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from dsv4.emulator import library
from dsv4.emulator.policy import Policy
from dsv4.emulator.program import Program

READ_ONLY, TRACK, PARAMETERS, PRIOR = 2, 1, 4, 16  # flags of struct Range

FINDING = np.dtype(
    [
        ("kind", "S32"),
        ("cta", "<i4"),
        ("warp", "<i4"),
        ("ctaid", "<u4", (3,)),
        ("instruction", "<i4"),
        ("other", "<i4"),
        ("lanes", "<u4"),
        ("count", "<u4"),
        ("wait_kind", "<i4"),
        ("wait_id", "<i4"),
        ("padding", "<u4"),
        ("wait", "<i8", (6,)),
        ("message", "S360"),
    ]
)
EVENT = np.dtype(
    [
        ("time", "<u8"),
        ("until", "<u8"),
        ("kind", "<i4"),
        ("cta", "<i4"),
        ("warp", "<i4"),
        ("instruction", "<i4"),
        ("detail", "<i4"),
        ("padding", "<u4"),
        ("serial", "<u8"),
    ]
)
STATS = ("instructions", "async_ops", "barrier_phases", "races_checked", "switches", "hasty_ctas")


class _Range(ctypes.Structure):
    _fields_ = (
        ("low", ctypes.c_uint64),
        ("high", ctypes.c_uint64),
        ("shadow", ctypes.c_void_p),
        ("owner", ctypes.c_void_p),
        ("writer", ctypes.c_void_p),
        ("flags", ctypes.c_int32),
        ("name", ctypes.c_int32),
    )


class _Launch(ctypes.Structure):
    _fields_ = (
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("cluster", ctypes.c_uint32 * 3),
        ("dynamic_smem_bytes", ctypes.c_uint32),
        ("static_smem_bytes", ctypes.c_uint32),
        ("param_address", ctypes.c_uint64),
        ("param_bytes", ctypes.c_uint32),
        ("registers_per_thread", ctypes.c_uint32),
        ("n_sms", ctypes.c_uint32),
    )


class _Outcome(ctypes.Structure):
    _fields_ = (
        ("findings", ctypes.c_void_p),
        ("n_findings", ctypes.c_int64),
        ("events", ctypes.c_void_p),
        ("n_events", ctypes.c_int64),
        ("stats", ctypes.c_uint64 * 8),
        ("stopped", ctypes.c_int32),
        ("clusters_run", ctypes.c_int32),
    )


@dataclass
class Region:
    """Memory that a kernel may touch: bytes [address, address + size_bytes).

    `prior` says that the previous launch may still be writing it: only after griddepcontrol.wait. `shadow` is one byte
    a byte, 1 where it was never written (None: all is defined), and is updated; `writer` is filled with 1 + the
    bytecode instruction that wrote each byte last. `parameters` marks the kernel's parameter block.
    """

    name: str
    address: int
    size_bytes: int
    writable: bool = True
    prior: bool = False
    parameters: bool = False
    shadow: np.ndarray | None = None
    writer: np.ndarray | None = None


@dataclass(frozen=True)
class Launch:
    """What the host code asked for. Sizes in threads, CTAs and bytes."""

    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    cluster: tuple[int, int, int] = (1, 1, 1)
    dynamic_smem_bytes: int = 0
    static_smem_bytes: int = 0
    param_address: int = 0
    param_bytes: int = 0
    registers_per_thread: int = 0  # 0: not known, setmaxnreg is then not held to a budget
    n_sms: int = 132

    @property
    def clusters(self) -> int:
        """Clusters of the grid."""
        grid = self.grid[0] * self.grid[1] * self.grid[2]
        return grid // (self.cluster[0] * self.cluster[1] * self.cluster[2])


@dataclass(frozen=True)
class RawFinding:
    """A finding as the core sees it. Instructions are indices into the program's bytecode, -1 where there is none.

    `argument` texts in `message` are numbers of regions. `wait` is described at struct Finding in core/emu.h.
    """

    kind: str
    message: str
    cta: int
    warp: int
    ctaid: tuple[int, int, int]
    instruction: int
    other: int
    lanes: int
    count: int
    wait_kind: int = 0
    wait_id: int = 0
    wait: tuple[int, ...] = ()


@dataclass
class Result:
    """What a run left behind. `stopped`: something was found that nothing can follow, and the rest was not run."""

    findings: list[RawFinding]
    stats: dict[str, int]
    events: np.ndarray = field(default_factory=lambda: np.zeros(0, EVENT))
    stopped: bool = False


def _handle(program: Program) -> ctypes.c_void_p:
    """The program inside the core, made on first use and freed with the Python object."""
    made: ctypes.c_void_p | None = getattr(program, "_core_handle", None)
    if made is None:
        core = library.load().c
        made = ctypes.c_void_p(
            core.emu_program(
                library.pointer(program.instructions),
                len(program.instructions),
                library.pointer(program.slots),
                len(program.slots),
                library.pointer(program.constants),
                len(program.constants),
                program.registers + 1,  # a 64-bit look at the last slot stays inside
                program.predicates,
                program.local_bytes,
            )
        )
        program._core_handle = made  # type: ignore[attr-defined]
        weakref.finalize(program, core.emu_program_free, made)
    return made


def _address(array: np.ndarray | None, dtype: type, size: int, name: str) -> int | None:
    if array is None:
        return None
    if array.dtype != dtype or array.size != size or not array.flags.c_contiguous:
        raise ValueError(f"{name}: found {array.dtype} × {array.size}; valid: {np.dtype(dtype)} × {size}, contiguous")
    return array.ctypes.data


def run_grid(
    program: Program,
    launch: Launch,
    policy: Policy,
    regions: Sequence[Region],
    *,
    threads: int = 1,
    clusters: range | None = None,
) -> Result:
    """Runs the clusters of a grid (all, or those of a range with step 1), several at a time in `threads` threads.

    The memory of `regions` is read and written in place. The interpreter lock is not held meanwhile. The same
    arguments give the same result, whatever `threads` is, for kernels whose CTAs do not race with each other.
    """
    several = launch.clusters > 1
    ranges = (_Range * max(len(regions), 1))()
    owners = []  # keeps the arrays alive
    for number, region in enumerate(regions):
        owner = None
        if several and region.writable and not region.parameters:
            owner = np.zeros(region.size_bytes, np.uint16)
            owners.append(owner)
        flags = 0 if region.parameters else TRACK
        flags |= (0 if region.writable else READ_ONLY) | (PARAMETERS if region.parameters else 0)
        flags |= PRIOR if region.prior else 0
        ranges[number] = _Range(
            region.address,
            region.address + region.size_bytes,
            _address(region.shadow, np.uint8, region.size_bytes, f"{region.name}: shadow"),
            None if owner is None else owner.ctypes.data,
            _address(region.writer, np.int32, region.size_bytes, f"{region.name}: writer"),
            flags,
            number,
        )
    three = ctypes.c_uint32 * 3
    c_launch = _Launch(
        three(*launch.grid),
        three(*launch.block),
        three(*launch.cluster),
        launch.dynamic_smem_bytes,
        launch.static_smem_bytes,
        launch.param_address,
        launch.param_bytes,
        launch.registers_per_thread,
        launch.n_sms,
    )
    chosen = clusters if clusters is not None else range(launch.clusters)
    outcome = _Outcome()
    core = library.load().c
    c_policy = policy.to_c()
    core.emu_run(
        _handle(program),
        ctypes.byref(c_launch),
        ctypes.byref(c_policy),
        ctypes.byref(ranges),
        len(regions),
        chosen.start,
        len(chosen),
        threads,
        ctypes.byref(outcome),
    )
    try:
        return _result(outcome)
    finally:
        core.emu_outcome_free(ctypes.byref(outcome))


def _array(address: int | None, count: int, dtype: np.dtype) -> np.ndarray:
    if not count or address is None:
        return np.zeros(0, dtype)
    held = ctypes.cast(address, ctypes.POINTER(ctypes.c_uint8))
    return np.ctypeslib.as_array(held, (count * dtype.itemsize,)).view(dtype).copy()


def _result(outcome: _Outcome) -> Result:
    findings = [
        RawFinding(
            row["kind"].decode(),
            row["message"].decode(errors="replace"),
            int(row["cta"]),
            int(row["warp"]),
            (int(row["ctaid"][0]), int(row["ctaid"][1]), int(row["ctaid"][2])),
            int(row["instruction"]),
            int(row["other"]),
            int(row["lanes"]),
            int(row["count"]),
            int(row["wait_kind"]),
            int(row["wait_id"]),
            tuple(int(value) for value in row["wait"]),
        )
        for row in _array(outcome.findings, outcome.n_findings, FINDING)
    ]
    stats = dict(zip(STATS, outcome.stats, strict=False))
    stats["clusters"] = outcome.clusters_run
    return Result(findings, stats, _array(outcome.events, outcome.n_events, EVENT), bool(outcome.stopped))
