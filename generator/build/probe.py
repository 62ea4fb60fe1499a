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

LOG_NAME = "launches.jsonl"
SECONDS_LIMIT = 60
_LARGEST_BYTES = 1 << 40
_MAP_NORESERVE = 0x4000  # Linux; the mmap module names it from Python 3.13 on
_KDLCUDA = 2
# dtype name -> (DLPack type code, bits, lanes)
_DLPACK = {
    "bf16": (4, 16, 1), "f16": (2, 16, 1), "f32": (2, 32, 1), "f64": (2, 64, 1),
    "i8": (0, 8, 1), "i32": (0, 32, 1), "i64": (0, 64, 1), "u8": (1, 8, 1), "bool": (6, 8, 1),
    "e4m3": (10, 8, 1), "e5m2": (12, 8, 1), "e8m0": (14, 8, 1), "e2m1x2": (17, 4, 2),
}  # fmt: skip


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


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _ManagedTensor(ctypes.Structure):
    _fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


class _CpuAsCuda:
    """CPU memory that says through DLPack that it lies on CUDA device 0."""

    def __init__(self, data: int, dtype: str, shape: list[int], strides: list[int]) -> None:
        extents = ctypes.c_int64 * len(shape)
        self._arrays = (extents(*shape), extents(*strides))
        pointers = [ctypes.cast(array, ctypes.POINTER(ctypes.c_int64)) for array in self._arrays]
        code, bits, lanes = _DLPACK[dtype]
        tensor = _Tensor(data, _KDLCUDA, 0, len(shape), code, bits, lanes, pointers[0], pointers[1], 0)
        self._managed = _ManagedTensor(tensor, None, None)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (_KDLCUDA, 0)

    def __dlpack__(self, **_: Any) -> Any:
        make = ctypes.pythonapi.PyCapsule_New
        make.restype, make.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
        return make(ctypes.addressof(self._managed), b"dltensor", None)


def _bytes(item: Mapping[str, Any]) -> int:
    _, bits, lanes = _DLPACK[item["dtype"]]
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
        owners = [_CpuAsCuda(address, **item) if "dtype" in item else None for item in arguments]
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
