"""Ask a compiled kernel what it would launch: its real host code, run against a CUDA runtime that only takes notes.

The child process never imports the compiler (whose own runtime library would answer instead of the stub). Tensors are
CPU memory that DLPack calls CUDA memory; nothing is read or written, so the pages are never touched.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import resource
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsv4.generator.build.messages import CompileFailed
from dsv4.runtime.dlpack import DTYPES, DeviceTensor

LOG_NAME = "launches.jsonl"
SECONDS_LIMIT = 60
_LARGEST_BYTES = 1 << 40
_MAP_NORESERVE = 0x4000  # Linux; the mmap module names it from Python 3.13 on


class ProbeFailed(CompileFailed):
    """The host code refused every set of arguments that its contract allows, or launched nothing. One line."""


# ---------------------------------------------------------------------------------------------------------------------
# The parent's side


def run(folder: Path, request: Mapping[str, Any], stub: Path) -> list[dict[str, Any]]:
    """The launches of one call of the ``kernel.so`` in ``folder``, in order, as :mod:`stub_cudart.c` noted them.

    ``request`` holds ``function`` and the ``candidates`` (:mod:`.arguments`). Raises :class:`ProbeFailed`.
    """
    task = folder / "probe.json"
    task.write_text(json.dumps({"function": request["function"], "candidates": request["candidates"]}))
    environment = {**os.environ, "DSV4_PROBE_LOG": str(folder / LOG_NAME), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-P", "-m", "dsv4.generator.build.probe", str(folder), str(stub)]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=SECONDS_LIMIT, check=False
        )
    except subprocess.TimeoutExpired:
        raise ProbeFailed(f"the host code did not return within {SECONDS_LIMIT} s") from None
    if done.returncode != 0:
        last = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise ProbeFailed(f"the host code refuses its own contract: {last[:300]}")
    launches = [json.loads(line) for line in (folder / LOG_NAME).read_text().splitlines()]
    if not launches:
        raise ProbeFailed("the host code launched nothing")
    return launches


# ---------------------------------------------------------------------------------------------------------------------
# The child's side


def _bytes(item: Mapping[str, Any]) -> int:
    _, bits, lanes = DTYPES[item["dtype"]]
    reach = 1 + sum((n - 1) * stride for n, stride in zip(item["shape"], item["strides"], strict=True))
    return reach * bits * lanes // 8 + 1


def main(folder: Path, stub: Path) -> int:
    """Call the kernel with the first candidate that it takes. Returns the exit code."""
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
    import tvm_ffi

    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))  # the worker's own limit is for the compiler
    task = json.loads((folder / "probe.json").read_text())
    log = folder / LOG_NAME
    ctypes.CDLL(str(stub), mode=ctypes.RTLD_GLOBAL)
    ctypes.CDLL(str(folder / "kernel.so"), mode=os.RTLD_NOW | os.RTLD_LOCAL)  # a symbol that nobody has fails here
    function = tvm_ffi.load_module(str(folder / "kernel.so")).get_function(task["function"])
    reasons: list[str] = []
    for arguments in task["candidates"]:
        tensors = [item for item in arguments if "dtype" in item]
        size = max((_bytes(item) for item in tensors), default=1)
        if size > _LARGEST_BYTES:
            continue
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        owners = [DeviceTensor(address, **item) if "dtype" in item else None for item in arguments]
        values = [
            tvm_ffi.from_dlpack(owner) if owner else item.get("scalar")
            for owner, item in zip(owners, arguments, strict=True)
        ]
        log.write_text("")
        try:
            function(*values)
        except Exception as error:  # tvm-ffi raises what the host code names: TypeError, ValueError, RuntimeError
            reasons.append(" ".join(str(error).split()))
            continue
        return 0
    print(reasons[0] if reasons else "no set of arguments is small enough to try", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.stdout.flush()
    os._exit(main(Path(sys.argv[1]), Path(sys.argv[2])))  # no teardown: the borrowed tensors have no deleter
