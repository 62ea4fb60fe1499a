"""A GPU that is not there: quack's functions take CPU tensors, and every kernel that they launch runs in the emulator.

quack is not edited. ``prepare`` answers what it asks of the machine (capability, processors, clusters that fit), stands
in for triton, which it imports for timing only, and replaces ``cute.compile`` by one that returns an emulated kernel.
It has to run before anything imports the compiler: the compiler reads its architecture once.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
import types
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef

CAPABILITY = {"sm_90a": (9, 0), "sm_100a": (10, 0)}
PROCESSORS = 4
"""Few, so that persistent kernels have several tiles for each CTA even where a problem is small."""
SCHEDULES = ("late", "early", "late-mma", "late-copies", "mixed:7")
OPTIONS = "--keep-ptx --keep-cubin --generate-line-info"


@dataclass
class Record:
    """What the kernels of one case did: launches, findings (one line each), seconds."""

    launches: list[dict[str, Any]] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    differs: list[str] = field(default_factory=list)
    instructions: int = 0
    compile_s: float = 0.0
    emulate_s: float = 0.0


RECORD = Record()
_fresh: dict[int, StorageWeakRef] = {}  # by address: storages that torch.empty made and no kernel has seen yet
_addressed: dict[int, torch.Tensor] = {}


def addressed(tensor: torch.Tensor) -> torch.Tensor:
    """Make a tensor known whose plain address quack will pass to a kernel."""
    _addressed[tensor.data_ptr()] = tensor
    return tensor


class Emulated:
    """A compiled kernel, called as on a GPU."""

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled

    def __call__(self, *arguments: Any) -> None:
        from dsv4 import emulator

        report = emulator.run(self._compiled, *map(_plain, arguments), schedules=SCHEDULES)
        RECORD.findings += [finding.line() for finding in report.findings]
        RECORD.differs += report.differs
        RECORD.instructions += report.stats["instructions"]
        RECORD.emulate_s += sum(schedule.seconds for schedule in report.schedules)
        RECORD.launches += [
            {"grid": each.grid, "block": each.block, "cluster": each.cluster, "smem_bytes": each.dynamic_smem_bytes}
            for each in report.launches
        ]


def _plain(value: Any) -> Any:
    from dsv4 import emulator

    if isinstance(value, torch.Tensor):
        made = _fresh.pop(value.untyped_storage().data_ptr(), None)
        fresh = made is not None and not made.expired()  # else another tensor got the memory of one that is gone
        return emulator.workspace(value.detach()) if fresh else value.detach()
    if isinstance(value, (tuple, list)):
        return tuple(map(_plain, value))
    if type(value) is int and value in _addressed:
        return emulator.pointer(_addressed[value])
    return getattr(value, "value", value)  # a number of the compiler's


def prepare(arch: str, folder: str) -> None:
    """Make this process one that compiles for ``arch`` and emulates. Once, before quack or the compiler is imported.

    The compiler's files go to ``folder``, which the caller removes.
    """
    os.environ.update(CUTE_DSL_ARCH=arch, QUACK_ARCH=arch, QUACK_CACHE_ENABLED="0")
    _answer_for_the_device(arch)
    _emulate_what_is_compiled(folder)
    sys.modules["triton"] = _no_triton()
    try:
        importlib.import_module("quack.autotuner")
    finally:
        del sys.modules["triton"]  # torch looks for it too, and would take this for the real one
    _mark_what_is_empty()


def _answer_for_the_device(arch: str) -> None:
    import cutlass.utils

    major, minor = CAPABILITY[arch]
    properties = types.SimpleNamespace(major=major, minor=minor, multi_processor_count=PROCESSORS, name=arch)

    class Hardware:
        def __init__(self, *_: Any) -> None: ...

        def get_max_active_clusters(self, cluster_size: int) -> int:
            return max(1, PROCESSORS // cluster_size)

        def get_device_multiprocessor_count(self) -> int:
            return PROCESSORS

    cutlass.utils.HardwareInfo = Hardware
    torch.cuda.get_device_capability = lambda *_: (major, minor)
    torch.cuda.get_device_properties = lambda *_: properties  # type: ignore[assignment]
    torch.cuda.current_device = lambda: 0
    custom_op = torch.library.custom_op
    torch.library.custom_op = lambda name, fn=None, **options: custom_op(name, fn, **{**options, "device_types": None})


def _emulate_what_is_compiled(folder: str) -> None:
    import cutlass.cute as cute

    compile_kernel = cute.compile

    def compile_and_emulate(function: Any, *arguments: Any, options: str = "", **more: Any) -> Emulated:
        started = time.monotonic()
        made = compile_kernel(function, *arguments, options=f"{options} {OPTIONS} --dump-dir {folder}", **more)
        RECORD.compile_s += time.monotonic() - started
        return Emulated(made)

    cute.compile = compile_and_emulate


def _no_triton() -> types.ModuleType:
    import torch._dynamo  # noqa: F401 — it asks whether triton is there, and must not find this one

    module: Any = types.ModuleType("triton")
    cache = types.SimpleNamespace(FileCacheManager=object)
    module.runtime, module.testing = types.SimpleNamespace(cache=cache), types.SimpleNamespace()
    made: types.ModuleType = module
    return made


def _mark_what_is_empty() -> None:
    """What torch.empty gives has no contents: a kernel that reads it first is wrong, and the emulator shall say so."""
    for name in ("empty", "empty_like"):
        original = getattr(torch, name)

        def marked(*arguments: Any, _original: Any = original, **options: Any) -> torch.Tensor:
            made: torch.Tensor = _original(*arguments, **options)
            storage = made.untyped_storage()
            _fresh[storage.data_ptr()] = StorageWeakRef(storage)
            return made

        setattr(torch, name, marked)
