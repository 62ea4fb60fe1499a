"""The emulating process: takes requests one after the other and runs kernels through their real host code.

Started by :mod:`dsv4.emulator.client` with the descriptor of the shared arena as its argument. A request is a line of
JSON on standard input, the answer a line on standard output. It imports neither torch nor the compiler, whose CUDA
runtime would answer in the shim's place.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dsv4.emulator import library, shim
from dsv4.emulator.c_interface import CModule, TensorView
from dsv4.emulator.device import BlockMemory, EmulatedDevice, LaunchRefused, Pass
from dsv4.emulator.errors import ArgumentRefused, EmulatorError, KernelEndless, ObjectRefused, described
from dsv4.emulator.kernels import Library
from dsv4.emulator.memory import Mapping as Memory
from dsv4.emulator.outcome import Finding
from dsv4.emulator.policy import by_name
from dsv4.emulator.tma_descriptor import DescriptorError
from dsv4.runtime.dlpack import DeviceTensor

_PR_SET_PDEATHSIG = 1
ENDLESS = "endless"
"""The core's kind of finding for a cluster that has used up its instructions."""
HANG = "hang"
"""Its kind for a warp that waits when nothing can go on any more."""


class Worker:
    """What a process keeps between requests: opened objects, read PTX, the device."""

    def __init__(self, descriptor: int) -> None:
        sys.modules.setdefault("torch", None)  # type: ignore[arg-type]  # tvm-ffi imports torch where it finds it
        self._ffi: Any = importlib.import_module("tvm_ffi")
        self._memory = Memory(descriptor)
        self._library = Library(library.load().handlers)
        self._device = EmulatedDevice(self._library)
        self._shim = shim.Shim(shim.library(), self._device)
        self._modules: dict[str, Any] = {}

    def serve(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Answer one request (see :meth:`client.Client.request`). Raises EmulatorError."""
        self._memory.follow()
        for key, text in request["texts"].items():
            self._library.add_text(key, text["ptx"], text["image"])
        for key, known in request["objects"].items():
            self._open(key, known)
        blocks = [BlockMemory(raw, self._memory.base) for raw in request["blocks"]]
        passes: list[Pass] = []
        first: list[Any] = []  # contents of the writable blocks after the first schedule
        for number, name in enumerate(request["schedules"]):
            policy = replace(by_name(name), max_instructions=request["max_instructions"])
            trace = request["timeline"] if number == 0 else None
            policy = replace(policy, trace=trace is not None)
            self._device.begin(blocks, policy, request["threads"], first=number == 0, timeline=trace)
            self._call_all(request["calls"])
            done = self._device.end()
            passes.append(done)
            if number == 0:
                first = [block.bytes.copy() if block.writable else None for block in blocks]
            else:
                done.differs = [
                    block.name
                    for block, earlier in zip(blocks, first, strict=True)
                    if earlier is not None and not (block.bytes == earlier).all()
                ]
            if any(finding.kind == ENDLESS for finding in done.findings):
                break  # the other schedules would take as long
        for block, earlier in zip(blocks, first, strict=True):
            if earlier is not None:
                block.bytes[:] = earlier
        return {
            "launches": [asdict(launch) for launch in self._device.launches],
            "schedules": [each.as_json() for each in passes],
            "findings": [asdict(finding) for finding in _once(passes)],
            "writers": [self._device.writer(name, index) for name, index in request["probes"]],
        }

    def _open(self, key: str, known: Mapping[str, Any]) -> None:
        self._library.object_texts[key] = known["texts"]
        self._library.object_registers[key] = known["registers"]
        if key in self._modules:
            return
        path = known["path"]
        try:
            opened = ctypes.CDLL(path, mode=os.RTLD_NOW | os.RTLD_LOCAL)  # a symbol that nobody has fails here, by name
            self._modules[key] = CModule(opened, known["header"]) if known["header"] else self._ffi.load_module(path)
        except EmulatorError:
            raise
        except Exception as error:  # OSError of dlopen, or whatever tvm-ffi makes of it
            reason = " ".join(str(error).replace(path, known["shown"]).split())
            raise ObjectRefused(f"{known['shown']}: cannot be opened: {reason}") from None

    def _call_all(self, calls: list[Mapping[str, Any]]) -> None:
        for call in calls:
            module = self._modules[call["object"]]
            self._library.current = call["object"]
            self._shim.present(self._library.arch(call["object"]))
            try:
                function = module.get_function(call["function"])
            except EmulatorError:
                raise
            except Exception:  # tvm-ffi's own error says no more than that
                raise ObjectRefused(f"the object has no function {call['function']!r}") from None
            owners: list[DeviceTensor] = []
            plain = isinstance(module, CModule)
            values = [self._view(raw) if plain else self._value(raw, owners) for raw in call["arguments"]]
            try:
                self._shim.call(function, values)
            except LaunchRefused:
                return
            except (EmulatorError, KeyboardInterrupt):
                raise
            except DescriptorError as error:
                raise ArgumentRefused(str(error)) from None
            except (TypeError, ValueError, RuntimeError, AttributeError) as error:  # the host code's own refusals
                raise ArgumentRefused(f"the host code refuses its arguments: {' '.join(str(error).split())}") from None
            finally:
                values.clear()  # before their owners

    def _view(self, raw: Mapping[str, Any]) -> Any:
        if "tensor" not in raw:
            return self._value(raw, [])
        taken = raw.get("dynamic") or [None, None]
        return TensorView(self._memory.base + raw["tensor"], raw["shape"], raw["strides"], *taken)

    def _value(self, raw: Mapping[str, Any], owners: list[DeviceTensor]) -> Any:
        if "scalar" in raw:
            return raw["scalar"]
        if "items" in raw:
            return tuple(self._value(item, owners) for item in raw["items"])
        if "pointer" in raw:
            return ctypes.c_void_p(self._memory.base + raw["pointer"])
        owner = DeviceTensor(self._memory.base + raw["tensor"], raw["dtype"], raw["shape"], raw["strides"])
        owners.append(owner)
        return self._ffi.from_dlpack(owner)


def _once(passes: list[Pass]) -> list[Finding]:
    """Findings of all schedules; what several schedules show is kept from the first. Raises KernelEndless.

    A hang has a finding for each warp that waits: those of one schedule belong together, and the first's are kept.
    """
    kept: dict[tuple[Any, ...], Finding] = {}
    hanging = next((each.name for each in passes for finding in each.findings if finding.kind == HANG), None)
    for each in passes:
        for finding in each.findings:
            if finding.kind == ENDLESS:
                raise KernelEndless(finding.line())
            place: tuple[Any, ...] = (finding.kind, finding.launch, finding.ptx_line, finding.other_ptx_line)
            if finding.kind == HANG:
                if each.name != hanging:
                    continue
                place = (*place, finding.cta, finding.warp)
            kept.setdefault((*place, "" if finding.ptx_line else finding.message), finding)
    return list(kept.values())


def answered(serve: Callable[[Mapping[str, Any]], dict[str, Any]], line: str) -> dict[str, Any]:
    """The answer to a line; never raises. An error is an answer of its own."""
    started = time.monotonic()
    try:
        answer = serve(json.loads(line))
    except Exception as error:
        return {"error": described(error)}
    return {**answer, "seconds": time.monotonic() - started}


def main() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # a killed parent leaves no emulator behind
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints goes to the log
    try:
        worker = Worker(int(sys.argv[1]))
    except Exception as error:
        answers.write(json.dumps({"error": described(error)}) + "\n")
        return
    answers.write(json.dumps({"ready": os.getpid(), "folder": str(Path.cwd())}) + "\n")
    for line in sys.stdin:
        answers.write(json.dumps(answered(worker.serve, line)) + "\n")


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # no teardown: the objects' destructors would call the shim again
