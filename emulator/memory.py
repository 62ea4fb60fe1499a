"""The memory that the emulated device and its caller share: one anonymous file, mapped by both processes.

It has no name in the file system, so nothing is left behind however the processes end. Blocks are apart from each
other, and what lies between them belongs to nobody: an access there is out of bounds.
"""

from __future__ import annotations

import ctypes
import mmap
import os

GAP_BYTES = 4 << 20
"""Least distance between two blocks; it costs address space only, as nothing is ever written there."""
ALIGN_BYTES = 1024
"""Alignment of a block, which stands for the start of an allocation on the device (that gives at least 256)."""
KEEP_BYTES = 64 << 20
"""When more than this has been used, it is given back to the system before the next request."""
LARGEST_BYTES = 16 << 30
PIECE_BYTES = 16 << 20
"""What is compared at once when memory is copied back."""


class Arena:
    """The caller's side. ``place`` gives offsets that hold until ``clear``; ``write`` and ``read`` need ``commit``."""

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("dsv4-emulator", os.MFD_CLOEXEC)
        self.size_bytes = 0
        self._cursor = GAP_BYTES
        self._used_bytes = 0
        self._map: mmap.mmap | None = None
        self._base = 0

    def place(self, size_bytes: int, phase_bytes: int = 0) -> int:
        """Offset of a new block, ``phase_bytes`` behind a multiple of 1024. Raises MemoryError beyond 16 GiB."""
        start = -(-self._cursor // ALIGN_BYTES) * ALIGN_BYTES + phase_bytes % ALIGN_BYTES
        self._cursor = start + size_bytes + GAP_BYTES
        self._used_bytes += size_bytes
        if self._cursor > LARGEST_BYTES:
            raise MemoryError(f"the tensors span more than {LARGEST_BYTES >> 30} GiB")
        return start

    def commit(self) -> None:
        """Make the file as long as what was placed, and map it."""
        wanted = -(-self._cursor // mmap.PAGESIZE) * mmap.PAGESIZE
        if wanted <= self.size_bytes:
            return
        os.ftruncate(self.descriptor, wanted)
        self.size_bytes = wanted
        self._map = mmap.mmap(self.descriptor, wanted)
        self._base = ctypes.addressof(ctypes.c_char.from_buffer(self._map))

    def write(self, offset: int, address: int, size_bytes: int) -> None:
        """Copy ``size_bytes`` at ``address`` of this process into the arena."""
        ctypes.memmove(self._base + offset, address, size_bytes)

    def read(self, offset: int, address: int, size_bytes: int) -> None:
        """Copy back; memory that already holds these bytes is not written (it may be read-only, or never touched)."""
        for first in range(0, size_bytes, PIECE_BYTES):
            there, here, size = self._base + offset + first, address + first, min(PIECE_BYTES, size_bytes - first)
            if ctypes.string_at(there, size) != ctypes.string_at(here, size):
                ctypes.memmove(here, there, size)

    def clear(self) -> None:
        """Forget all blocks; much memory is given back."""
        self._cursor = GAP_BYTES
        if self._used_bytes > KEEP_BYTES:
            self._used_bytes = 0
            self._map, self._base = None, 0
            os.ftruncate(self.descriptor, 0)
            self.size_bytes = 0

    def close(self) -> None:
        self._map = None
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


class Mapping:
    """The emulating process's side of an inherited descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._map: mmap.mmap | None = None
        self.base = 0

    def follow(self) -> None:
        """Map the file anew if it has another length than at the last request. Offsets are from ``base``."""
        size = os.fstat(self._descriptor).st_size
        if size and (self._map is None or len(self._map) != size):
            self._map = mmap.mmap(self._descriptor, size)
            self.base = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
