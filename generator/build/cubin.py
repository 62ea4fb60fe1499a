"""Registers, stack, local memory and spills of compiled kernels, as the CUDA tools report them."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

_FUNCTION = re.compile(r"Function ([\w$]+):\s*\n\s*(.*)")
_FIELD = re.compile(r"(\w+):(\d+)")
_SPILL = re.compile(
    r"Function properties for ([\w$]+)\s+ptxas[\s.]*"
    r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
)


class ToolError(RuntimeError):
    """A tool of the toolchain is missing or failed. One line."""


@dataclass(frozen=True)
class KernelUsage:
    """What ptxas gave one kernel: registers and stack bytes per thread, static shared bytes per CTA."""

    registers: int
    stack_bytes: int
    static_smem_bytes: int
    local_bytes: int


def kernel_usage(cubin: Path) -> dict[str, KernelUsage]:
    """Resources of every kernel in ``cubin``, by name. Raises :class:`ToolError` if cuobjdump cannot read it."""
    done = subprocess.run([_cuobjdump(), "-res-usage", str(cubin)], capture_output=True, text=True, check=False)
    found = {}
    for name, text in _FUNCTION.findall(done.stdout):
        fields = {key: int(value) for key, value in _FIELD.findall(text)}
        found[name] = KernelUsage(fields["REG"], fields["STACK"], fields["SHARED"], fields["LOCAL"])
    if done.returncode != 0 or not found:
        raise ToolError(f"cuobjdump reads no kernel from {cubin.name}: {' '.join(done.stderr.split())[:200]}")
    return found


def spill_bytes(remarks: str) -> int | None:
    """Bytes of spill stores and loads in ptxas' remarks, over all kernels; None if the remarks name no kernel."""
    kernels = {name: int(stores) + int(loads) for name, _, stores, loads in _SPILL.findall(remarks)}
    return sum(kernels.values()) if kernels else None


@functools.cache
def _cuobjdump() -> str:
    """The cuobjdump of the pinned wheel, else the one on the path."""
    try:
        for file in metadata.distribution("nvidia-cuda-cuobjdump").files or ():
            if file.name == "cuobjdump":
                return str(file.locate())
    except metadata.PackageNotFoundError:
        pass
    found = shutil.which("cuobjdump")
    if found is None:
        raise ToolError("cuobjdump is missing: install the package nvidia-cuda-cuobjdump")
    return found
