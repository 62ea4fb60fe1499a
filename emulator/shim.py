"""Opens the stand-in for the CUDA runtime (shim.c) and answers what the host code of a kernel asks of it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

from dsv4.emulator.library import build_shared
from dsv4.emulator.tma_descriptor import DESCRIPTOR_BYTES, DescriptorError, from_driver_call

OPTIN_SMEM_BYTES = 232448
"""Most shared memory of a CTA, static and dynamic together, on sm_90 and sm_100."""

_INVALID_VALUE, _LAUNCH_FAILED = 1, 719

# cudaDeviceAttr -> value, equal on both architectures
_ATTRIBUTES = {
    1: 1024,  # threads a block
    2: 1024, 3: 1024, 4: 64,  # block
    5: (1 << 31) - 1, 6: 65535, 7: 65535,  # grid
    8: 49152,  # shared memory of a block without opting in
    9: 65536,  # constant memory
    10: 32,  # warp
    12: 65536,  # registers of a block
    13: 1980000,  # clock, kHz
    31: 1,  # concurrent kernels
    38: 50 << 20,  # L2
    39: 2048,  # threads of an SM
    81: 233472,  # shared memory of an SM
    82: 65536,  # registers of an SM
    95: 1,  # cooperative launch
    97: OPTIN_SMEM_BYTES,
    106: 32,  # blocks of an SM
    111: 1024,  # shared memory that the system keeps of a block
    120: 1,  # cluster launch
}  # fmt: skip
SM_COUNT = {"sm_90a": 132, "sm_100a": 148}
_BY_ARCH = {"sm_90a": {75: 9, 76: 0}, "sm_100a": {75: 10, 76: 0, 38: 126 << 20}}


class ShimLaunch(ctypes.Structure):
    """``Launch`` of shim.c."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("library", ctypes.c_int64),
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("cluster", ctypes.c_uint32 * 3),
        ("max_dynamic_smem_bytes", ctypes.c_int32),
        ("pdl", ctypes.c_int32),
        ("cooperative", ctypes.c_int32),
        ("dynamic_smem_bytes", ctypes.c_uint64),
        ("stream", ctypes.c_uint64),
        ("arguments", ctypes.POINTER(ctypes.c_void_p)),
    )


class _ShimTensorMap(ctypes.Structure):
    _fields_ = (
        ("map", ctypes.c_void_p),
        ("data_type", ctypes.c_int32),
        ("rank", ctypes.c_uint32),
        ("address", ctypes.c_uint64),
        ("dims", ctypes.POINTER(ctypes.c_uint64)),
        ("strides", ctypes.POINTER(ctypes.c_uint64)),
        ("box", ctypes.POINTER(ctypes.c_uint32)),
        ("element_strides", ctypes.POINTER(ctypes.c_uint32)),
        ("interleave", ctypes.c_int32),
        ("swizzle", ctypes.c_int32),
        ("l2_promotion", ctypes.c_int32),
        ("fill", ctypes.c_int32),
    )


_LOAD = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p)
_STATIC_SMEM = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_int64, ctypes.c_char_p)
_LAUNCH = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.POINTER(ShimLaunch))
_ENCODE = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.POINTER(_ShimTensorMap))


class _Callbacks(ctypes.Structure):
    _fields_ = (("load", _LOAD), ("static_smem", _STATIC_SMEM), ("launch", _LAUNCH), ("encode", _ENCODE))


def library() -> Path:
    """The compiled shim, built on first use. Raises CoreError."""
    return build_shared([Path(str(files("dsv4.emulator"))) / "shim.c"], "shim")


class Device(Protocol):
    """Who answers. Whatever is raised ends the host call; ``Shim.call`` raises it again behind the host code."""

    def load(self, address: int) -> int: ...

    def static_smem(self, library: int, name: str) -> int: ...

    def launch(self, launch: ShimLaunch) -> None: ...


class Shim:
    """Open it before any kernel's object. There can be one in a process."""

    def __init__(self, path: Path, device: Device) -> None:
        self._library = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
        self._library.dsv4_shim_take_error.restype = ctypes.c_int32
        self._device = device
        self._error: BaseException | None = None
        self._callbacks = _Callbacks(
            _LOAD(self._guarded(device.load, 0)),
            _STATIC_SMEM(self._guarded(lambda library, name: device.static_smem(library, name.decode()), -1)),
            _LAUNCH(self._guarded(self._launch, _LAUNCH_FAILED)),
            _ENCODE(self._guarded(self._encode, _INVALID_VALUE)),
        )
        self._library.dsv4_shim_install(ctypes.byref(self._callbacks))

    def present(self, arch: str) -> None:
        """Answer from now on as a device of ``arch`` does."""
        attributes = {**_ATTRIBUTES, 16: SM_COUNT[arch], **_BY_ARCH[arch]}
        for number, value in attributes.items():
            self._library.dsv4_shim_attribute(number, value)

    def call(self, function: Callable[..., Any], arguments: list[Any]) -> None:
        """Call host code. Raises what a callback raised, else what the host code itself raises."""
        self._error = None
        self._library.dsv4_shim_take_error()
        try:
            function(*arguments)
        except Exception:
            if self._error is None:
                raise
        if self._error is not None:
            raise self._error

    def _guarded(self, answer: Callable[..., Any], failed: int) -> Callable[..., int]:
        def guarded(*arguments: Any) -> int:
            if self._error is not None:
                return failed
            try:
                return int(answer(*arguments) or 0)
            except BaseException as error:  # an exception cannot pass through the host code; `call` raises it behind
                self._error = error
                return failed

        return guarded

    def _launch(self, launch: Any) -> None:
        self._device.launch(launch.contents)

    @staticmethod
    def _encode(pointer: Any) -> None:
        asked = pointer.contents
        rank = asked.rank
        if not 1 <= rank <= 5:
            raise DescriptorError(f"tensor map: rank: found {rank}; valid: 1 to 5")
        made = from_driver_call(
            asked.data_type,
            asked.address,
            tuple(asked.dims[:rank]),
            tuple(asked.strides[: rank - 1]),
            tuple(asked.box[:rank]),
            tuple(asked.element_strides[:rank]),
            interleave=asked.interleave,
            swizzle=asked.swizzle,
            l2_promotion=asked.l2_promotion,
            fill=asked.fill,
        )
        ctypes.memmove(asked.map, made.encode(), DESCRIPTOR_BYTES)
