"""The device behind the shim: memory with its shadow, launches run one after the other under one schedule."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dsv4.emulator import launch_checks, machine
from dsv4.emulator.errors import ObjectRefused
from dsv4.emulator.kernels import Kernel, Library
from dsv4.emulator.outcome import Finding, LaunchRecord
from dsv4.emulator.policy import FIXED, Policy
from dsv4.emulator.report import of_core
from dsv4.emulator.shim import SM_COUNT, ShimLaunch
from dsv4.emulator.sources import Sources
from dsv4.emulator.timeline import write_timeline

PARAMETER_ALIGN_BYTES = 128
UNDEFINED = 1
"""Shadow of a byte that was never written, or was written with an undefined value."""


class LaunchRefused(Exception):
    """A launch was not carried out because of findings; what follows it has no meaning."""


def _bytes_at(address: int, size_bytes: int) -> np.ndarray:
    if not size_bytes:
        return np.zeros(0, np.uint8)
    return np.ctypeslib.as_array((ctypes.c_uint8 * size_bytes).from_address(address))


def _elements(values: np.ndarray, tensor: Mapping[str, Any]) -> np.ndarray:
    """Those of ``values`` (one a byte of the block) that belong to the tensor's elements; the last axis is bytes."""
    return np.lib.stride_tricks.as_strided(
        values[tensor["offset"] :],
        (*tensor["shape"], tensor["element_bytes"]),
        tuple(stride * values.itemsize for stride in (*tensor["strides_bytes"], 1)),
    )


class BlockMemory:
    """A block of the arena during a request: its bytes, its first contents and what is known of each byte."""

    def __init__(self, raw: Mapping[str, Any], base: int) -> None:
        self.name: str = raw["name"]
        self.address = base + raw["offset"]
        self.writable: bool = raw["writable"]
        self.prior: bool = raw["prior"]
        self.tensors = [each for each in raw["tensors"] if 0 not in each["shape"]]
        self.bytes = _bytes_at(self.address, raw["size_bytes"])
        self.initial = self.bytes.copy() if self.writable else None
        self.shadow = np.empty(0, np.uint8)
        self.writer = np.zeros(len(self.bytes) if self.writable else 0, np.int32)
        between = np.ones(len(self.writer), bool)
        for tensor in self.tensors if self.writable else []:
            _elements(between, tensor)[...] = False
        self._between = between if between.any() else None

    def reset(self, first: bool) -> None:
        """Back to the contents and the shadow before any launch."""
        if self.initial is not None and not first:
            self.bytes[:] = self.initial
        self.shadow = np.full(len(self.bytes), UNDEFINED, np.uint8)
        for tensor in self.tensors:
            if tensor["role"] in ("input", "inout"):
                _elements(self.shadow, tensor)[...] = 0

    def region(self, prior: bool) -> machine.Region:
        self.writer[:] = 0
        return machine.Region(
            self.name, self.address, len(self.bytes), writable=self.writable, prior=prior, shadow=self.shadow,
            writer=self.writer if self.writable else None,
        )  # fmt: skip

    def written_between(self) -> tuple[str, int] | None:
        """Whether the last launch wrote bytes between the elements of the tensors: message and who wrote the first."""
        if self._between is None:
            return None
        places = np.flatnonzero((self.writer != 0) & self._between)
        if not len(places):
            return None
        message = f"{self.name}: {len(places)} bytes between the elements were written, the first is byte {places[0]}"
        return message, int(self.writer[places[0]]) - 1

    def writer_of(self, tensor: str, index: Sequence[int]) -> int | None:
        """The instruction that wrote an element of a tensor of this block last, -1 for none; None: no such element."""
        for each in self.tensors if self.writable else []:
            inside = len(index) == len(each["shape"]) and all(
                0 <= i < n for i, n in zip(index, each["shape"], strict=True)
            )
            if each["name"] == tensor and inside:
                return int(_elements(self.writer, each)[tuple(index)].max()) - 1
        return None

    def unwritten(self) -> Iterator[tuple[str, int]]:
        """For each output with elements that have no defined value: message and who wrote the first, -1 nobody."""
        for tensor in self.tensors:
            if tensor["role"] != "output":
                continue
            missing = _elements(self.shadow, tensor).any(axis=-1)
            if not missing.any():
                continue
            first = tuple(int(index) for index in np.argwhere(missing)[0])
            writer = int(_elements(self.writer, tensor)[first].max()) - 1
            why = "were never written" if writer < 0 else "hold undefined values"
            yield (
                f"{tensor['name']}: {int(missing.sum())} of {missing.size} elements {why}, the first is {list(first)}",
                writer,
            )


@dataclass
class Pass:
    """What one schedule gave."""

    name: str
    findings: list[Finding]
    stats: dict[str, int]
    differs: list[str]
    seconds: float

    def as_json(self) -> dict[str, Any]:
        raw = asdict(self)
        raw["findings"] = len(self.findings)
        return raw


class EmulatedDevice:
    """Answers the shim. ``begin`` opens a schedule, the host code's launches follow, ``end`` closes it."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._kernel: Kernel | None = None  # of the last launch
        self._blocks: list[BlockMemory] = []
        self._policy = FIXED[0]
        self._threads = 1
        self._timeline: Mapping[str, Any] | None = None
        self._started = 0.0
        self._unfinished: set[int] = set()  # blocks written by launches that the next PDL launch may overlap with
        self.launches: list[LaunchRecord] = []
        self._findings: list[Finding] = []
        self._stats: dict[str, int] = {}
        self._stopped = False

    # ------------------------------------------------------------------------------------------------ one schedule

    def begin(
        self,
        blocks: Sequence[BlockMemory],
        policy: Policy,
        threads: int,
        *,
        first: bool = True,
        timeline: Mapping[str, Any] | None = None,
    ) -> None:
        """Set the memory up. ``timeline`` has the ``path`` that launch 0 is drawn to, and ``roots`` of its sources."""
        self._blocks, self._policy, self._threads, self._timeline = list(blocks), policy, threads, timeline
        self.launches, self._findings, self._stats, self._stopped = [], [], {}, False
        self._unfinished = {index for index, block in enumerate(blocks) if block.prior}
        for block in blocks:
            block.reset(first)
        self._kernel = None
        self._started = time.monotonic()

    def end(self) -> Pass:
        """Look at the outputs and give what was found. After a finding that stopped a launch they mean nothing."""
        if not self._stopped:
            stored = {finding.ptx_line for finding in self._findings if finding.kind == "undefined_value"}
            for block in self._blocks:
                for message, writer in block.unwritten():
                    found = self._in_memory("unwritten_output" if writer < 0 else "undefined_output", message, writer)
                    if found.ptx_line not in stored or not found.ptx_line:  # else the store itself is a finding
                        self._findings.append(found)
        return Pass(self._policy.name, self._findings, self._stats, [], time.monotonic() - self._started)

    def writer(self, tensor: str, index: Sequence[int]) -> dict[str, Any] | None:
        """What wrote an element of the named tensor last, as plain data (see ``Written``), if the last launch did."""
        for block in self._blocks if self._kernel else []:
            writer = block.writer_of(tensor, index)
            if writer is not None and writer >= 0:
                found = self._in_memory("", "", writer)
                return {"opcode": found.opcode, "source": found.source, "ptx_line": found.ptx_line}
        return None

    def _in_memory(self, kind: str, message: str, writer: int) -> Finding:
        """A finding about memory after the last launch; ``writer`` is the bytecode instruction that wrote there."""
        launch = len(self.launches) - 1
        if self._kernel is None:
            return Finding(kind, message, launch=launch, schedule=self._policy.name)
        raw = machine.RawFinding(kind, message, -1, -1, (0, 0, 0), writer, -1, 0, 1)
        program, name = self._kernel.program, self._kernel.name
        return of_core(raw, program, kernel=name, launch=launch, schedule=self._policy.name)

    # ---------------------------------------------------------------------------------------------- shim's questions

    def load(self, address: int) -> int:
        return self._library.load(address)

    def static_smem(self, library: int, name: str) -> int:
        return self._library.text_of(library, name).module.static_shared_bytes

    def launch(self, launch: ShimLaunch) -> None:
        """Run one launch to its end. Raises LaunchRefused after a finding that nothing can follow."""
        kernel = self._library.kernel(launch.library, launch.name.decode())
        record = LaunchRecord(
            kernel.name, tuple(launch.grid), tuple(launch.block), tuple(launch.cluster), launch.dynamic_smem_bytes,
            bool(launch.pdl), launch.stream,
        )  # fmt: skip
        number, self._kernel = len(self.launches), kernel
        self.launches.append(record)
        refused = list(launch_checks.refusals(record, kernel, launch.max_dynamic_smem_bytes))
        for message in refused:
            self._findings.append(Finding("launch", message, kernel.name, number, self._policy.name))
        if refused:
            self._stopped = True
            raise LaunchRefused
        parameters = _Parameters(kernel, launch.arguments)
        prior = self._unfinished if record.pdl else set()
        regions = [block.region(index in prior) for index, block in enumerate(self._blocks) if len(block.bytes)]
        regions.append(parameters.region())
        asked = machine.Launch(
            record.grid,
            record.block,
            record.cluster,
            record.dynamic_smem_bytes,
            kernel.module.static_shared_bytes,
            parameters.address,
            parameters.size_bytes,
            self._library.registers(launch.library),
            SM_COUNT[kernel.arch],
        )
        result = machine.run_grid(kernel.program, asked, self._policy, regions, threads=self._threads)
        if self._timeline is not None and len(result.events):
            self._draw(self._timeline, kernel, result, asked, number)
        # A grid that comes behind this one begins when every CTA has let it, or has ended: where all had waited by
        # then, whatever was launched before this one has ended.
        if not record.pdl or not result.stats["hasty_ctas"]:
            self._unfinished = set()
        self._unfinished |= {index for index, block in enumerate(self._blocks) if block.writer.any()}
        for name, value in result.stats.items():
            self._stats[name] = self._stats.get(name, 0) + int(value)
        for raw in result.findings:
            named = [each.name for each in regions]
            self._findings.append(
                of_core(
                    raw,
                    kernel.program,
                    kernel=kernel.name,
                    launch=number,
                    schedule=self._policy.name,
                    regions=named,
                )
            )
        for block in self._blocks:
            if between := block.written_between():
                self._findings.append(self._in_memory("between_elements", *between))
        if result.stopped:
            self._stopped = True
            raise LaunchRefused

    def _draw(
        self, wanted: Mapping[str, Any], kernel: Kernel, result: machine.Result, launch: machine.Launch, number: int
    ) -> None:
        path = Path(wanted["path"])
        if number:
            path = path.with_name(f"{path.stem}.{number}{path.suffix}")
        sources = Sources(wanted["roots"])
        write_timeline(path, kernel.program, result, launch=launch, schedule=self._policy.name, sources=sources)


class _Parameters:
    """The parameter block of a launch: what the host code's pointers point to, in the places that the PTX gives."""

    def __init__(self, kernel: Kernel, arguments: Any) -> None:
        self.size_bytes = max(kernel.entry.parameter_bytes, 1)
        self._memory = np.zeros(self.size_bytes + PARAMETER_ALIGN_BYTES, np.uint8)
        start = self._memory.ctypes.data
        self.address = -(-start // PARAMETER_ALIGN_BYTES) * PARAMETER_ALIGN_BYTES
        for index, parameter in enumerate(kernel.entry.parameters):
            source = arguments[index]
            if not source:
                raise ObjectRefused(
                    f"{kernel.name}: the host code passes no parameter {index}; is the PTX the object's?"
                )
            ctypes.memmove(self.address + parameter.offset_bytes, source, parameter.size_bytes)

    def region(self) -> machine.Region:
        return machine.Region("parameters", self.address, self.size_bytes, writable=False, parameters=True)
