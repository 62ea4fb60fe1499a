"""One safetensors file: its header, read and checked before any data is touched, and its bytes.

The header is parsed here and not by the library, so that what is wrong is said in full, and because a checkpoint's
dtypes (F8_E8M0 among them) are not known to every version of it. Bytes come in two ways. ``read_into`` reads straight
into the memory that is to hold them, which is what loading does: measured on one core and a warm page cache it moves
as much as ``cat``, 1.5 to 4 times what copying out of a mapping does, whose pages fault one by one. ``mapped`` gives a
view of the mapped file, for looking at single tensors without reading the others.
"""

from __future__ import annotations

import ctypes
import json
import math
import mmap
import os
import stat
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dsv4.runtime.errors import CheckpointError

HEADER_BYTES_MAX = 100_000_000
"""The format's own limit."""

DTYPE_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E5M2": 1,
    "F8_E4M3": 1,
    "F8_E8M0": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "C64": 8,
    "F64": 8,
    "I64": 8,
    "U64": 8,
}
"""The format's dtypes and the bytes of an element. Those of less than a byte (F4, F6_*) are in no layout."""

TORCH_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "F32": torch.float32,
    "F64": torch.float64,
    "I64": torch.int64,
}

BUFFERS_MAX = 512
"""Of one read; the system's limit is 1024."""

_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a tensor lies: ``start`` is in bytes from the file's beginning."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    nbytes: int


class SafetensorsFile:
    """An open file; ``entries`` by tensor name, ``nbytes`` of data. Close it, or use it as a context."""

    def __init__(self, path: Path) -> None:
        """Opens ``path`` and checks its header. Raises ``CheckpointError`` with everything that is wrong in it."""
        self.path = path
        self._map: mmap.mmap | None = None
        try:
            self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be opened: {error.strerror}") from None
        try:
            state = os.fstat(self._descriptor)
            if not stat.S_ISREG(state.st_mode):
                raise CheckpointError(f"{path}: found no regular file; valid: a safetensors file")
            self.file_bytes = state.st_size
            self.entries, self.metadata = _header(path, self._descriptor, self.file_bytes)
        except OSError as error:
            self.close()
            raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
        except BaseException:
            self.close()
            raise

    @property
    def nbytes(self) -> int:
        return sum(entry.nbytes for entry in self.entries.values())

    def read_into(self, start: int, targets: Sequence[tuple[int, int]]) -> None:
        """Read from byte ``start`` of the file on into ``targets``, (address, bytes) each, one after another.

        May run in several threads. Raises ``CheckpointError`` where the file ends before that.
        """
        buffers = [memoryview((ctypes.c_char * nbytes).from_address(address)).cast("B") for address, nbytes in targets]
        while buffers:
            try:
                got = os.preadv(self._descriptor, buffers[:BUFFERS_MAX], start)
            except OSError as error:
                raise CheckpointError(f"{self.path}: cannot be read: {error.strerror}") from None
            if got == 0 and len(buffers[0]):
                raise CheckpointError(f"{self.path}: ends at byte {start}; it was shortened after it was opened")
            start += got
            while buffers and got >= len(buffers[0]):
                got -= len(buffers.pop(0))
            if got:
                buffers[0] = buffers[0][got:]

    def mapped(self, name: str) -> torch.Tensor:
        """The tensor ``name`` as a view of the mapped file: nothing is read until it is looked at.

        Valid as long as the file is not shortened. Writes stay in this process.
        """
        entry = self.entries[name]
        dtype = TORCH_DTYPES.get(entry.dtype)
        if dtype is None:
            raise CheckpointError(f"{self.path}: {name}: torch has no dtype {entry.dtype}")
        if entry.nbytes == 0:
            return torch.empty(entry.shape, dtype=dtype)
        if self._map is None:
            protection = mmap.PROT_READ | mmap.PROT_WRITE  # private: torch warns of memory that cannot be written
            self._map = mmap.mmap(
                self._descriptor, self.file_bytes, flags=mmap.MAP_PRIVATE | _NO_RESERVE, prot=protection
            )
        raw = torch.frombuffer(self._map, dtype=torch.uint8, count=entry.nbytes, offset=entry.start)
        if entry.start % dtype.itemsize:
            raw = raw.clone()  # a view of another dtype needs its alignment
        return raw.view(dtype).view(entry.shape)

    def close(self) -> None:
        """Close the file; views of ``mapped`` keep the mapping alive."""
        self._map = None
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> SafetensorsFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _header(path: Path, descriptor: int, file_bytes: int) -> tuple[dict[str, Entry], dict[str, str]]:
    if file_bytes < 8:
        raise CheckpointError(f"{path}: found {file_bytes} bytes; valid: a safetensors file, which has 8 and more")
    (length,) = struct.unpack("<Q", os.pread(descriptor, 8, 0))
    if length > HEADER_BYTES_MAX:
        found = f"a header of {length} bytes"
        raise CheckpointError(f"{path}: found {found}; valid: at most {HEADER_BYTES_MAX} (is it a safetensors file?)")
    if 8 + length > file_bytes:
        raise CheckpointError(f"{path}: truncated: its header ends at byte {8 + length}, the file at {file_bytes}")
    try:
        values = json.loads(os.pread(descriptor, length, 8).decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its header is not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: header: found {type(values).__name__}; valid: an object")
    metadata = values.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{path}: header: __metadata__: valid: an object of strings")
    problems: list[str] = []
    entries = {}
    for name, value in values.items():
        entry = _entry(name, value, 8 + length, problems)
        if entry is not None:
            entries[name] = entry
    if not problems:
        problems = list(_of_the_whole(entries, 8 + length, file_bytes))
    if problems:
        raise CheckpointError(f"{path}: {listed(problems)}")
    return entries, metadata


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"{key!r} twice")
        values[key] = value
    return values


def _entry(name: str, value: Any, data_start: int, problems: list[str]) -> Entry | None:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        problems.append(f"{name}: valid: an object with dtype, shape and data_offsets")
        return None
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        problems.append(f"{name}: dtype: found {dtype!r}; valid: {', '.join(DTYPE_BYTES)}")
        return None
    if not _whole_numbers(shape):
        problems.append(f"{name}: shape: found {shape!r}; valid: a list of whole numbers ≥ 0")
        return None
    if not _whole_numbers(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        problems.append(f"{name}: data_offsets: found {offsets!r}; valid: [begin, end] with begin ≤ end")
        return None
    expected = math.prod(shape) * DTYPE_BYTES[dtype]
    if offsets[1] - offsets[0] != expected:
        found = f"{offsets[1] - offsets[0]} bytes"
        problems.append(f"{name}: data_offsets: found {found}; valid: {expected}, as many as {dtype} {shape} has")
        return None
    return Entry(dtype, tuple(shape), data_start + offsets[0], expected)


def _whole_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(number) is int and number >= 0 for number in value)


def _of_the_whole(entries: dict[str, Entry], data_start: int, file_bytes: int) -> Iterable[str]:
    """The data must be covered without gaps and overlaps, and end where the file does."""
    end, last = data_start, "the header"
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].nbytes)):
        if entry.start != end:
            how = "overlaps" if entry.start < end else "leaves a gap after"
            yield f"{name}: begins at byte {entry.start} and {how} {last}, which ends at {end}"
        end, last = max(end, entry.start + entry.nbytes), name
    if end > file_bytes:
        yield f"truncated: its tensors end at byte {end}, the file at {file_bytes}"
    elif end < file_bytes:
        yield f"{file_bytes - end} bytes after the last tensor"


def listed(problems: list[str], most: int = 20) -> str:
    """``problems`` in one message, the first ``most`` of them."""
    if len(problems) == 1:
        return problems[0]
    more = f"\n  … and {len(problems) - most} more" if len(problems) > most else ""
    return f"{len(problems)} problems\n" + "\n".join(f"  {problem}" for problem in problems[:most]) + more
