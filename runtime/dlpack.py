"""CPU memory that says through DLPack that it lies on a CUDA device: what the host code of a kernel accepts."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

_KDLCUDA = 2

DTYPES: dict[str, tuple[int, int, int]] = {
    "bf16": (4, 16, 1), "f16": (2, 16, 1), "f32": (2, 32, 1), "f64": (2, 64, 1),
    "i8": (0, 8, 1), "i16": (0, 16, 1), "i32": (0, 32, 1), "i64": (0, 64, 1),
    "u8": (1, 8, 1), "u16": (1, 16, 1), "u32": (1, 32, 1), "u64": (1, 64, 1), "bool": (6, 8, 1),
    "e4m3": (10, 8, 1), "e5m2": (12, 8, 1), "e8m0": (14, 8, 1), "e2m1x2": (17, 4, 2),
}  # fmt: skip
"""dtype name -> DLPack type code, bits and lanes."""


def element_bytes(dtype: str) -> int:
    """Bytes of one element; two 4-bit numbers (``e2m1x2``) count as one element."""
    _, bits, lanes = DTYPES[dtype]
    return bits * lanes // 8


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


class DeviceTensor:
    """A borrowed view: it must live longer than whatever was made from it, since it has no deleter."""

    def __init__(self, data: int, dtype: str, shape: Sequence[int], strides: Sequence[int]) -> None:
        """``data`` is an address, ``strides`` count elements. Raises KeyError for an unknown dtype."""
        extents = ctypes.c_int64 * max(len(shape), 1)
        self._arrays = (extents(*shape), extents(*strides))
        pointers = [ctypes.cast(array, ctypes.POINTER(ctypes.c_int64)) for array in self._arrays]
        code, bits, lanes = DTYPES[dtype]
        tensor = _Tensor(data, _KDLCUDA, 0, len(shape), code, bits, lanes, pointers[0], pointers[1], 0)
        self._managed = _ManagedTensor(tensor, None, None)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (_KDLCUDA, 0)

    def __dlpack__(self, **_: Any) -> Any:
        make = ctypes.pythonapi.PyCapsule_New
        make.restype, make.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
        return make(ctypes.addressof(self._managed), b"dltensor", None)
