"""The 128 bytes of a TMA descriptor (tensor map) in words: decode what a kernel got, encode what a host asks for.

The layout was established by compiling kernels that differ in one parameter; it is the same on sm_90a and sm_100a.
Host code writes bytes 0..63 only: the others are never read here. im2col is not supported.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Literal

DESCRIPTOR_BYTES = 128
MAX_RANK = 5
MAX_BOX = 256
SPAN_OF_FETCH_BYTES = 131072
"""From this span on the host sets the bit by which the hardware may fetch 128 KiB at once."""

ElementType = Literal[
    "u8", "u16", "u32", "s32", "u64", "s64", "f16", "f32", "f32.ftz", "f64", "bf16", "b4x16", "b4x16_p64", "b6x16_p32"
]  # fmt: skip
ELEMENT_TYPES: tuple[ElementType, ...] = (
    "u8", "u16", "u32", "s32", "u64", "s64", "f16", "f32", "f32.ftz", "f64", "bf16", "b4x16", "b4x16_p64", "b6x16_p32"
)  # fmt: skip
ELEMENT_BITS = dict(zip(ELEMENT_TYPES, (8, 16, 32, 32, 64, 64, 16, 32, 32, 64, 16, 4, 4, 6), strict=True))
FLOATS = ("f16", "bf16", "f32", "f32.ftz", "f64")
"""Types that out-of-bounds elements can be NaN of."""
SWIZZLES_BYTES = (0, 32, 64, 128)
ATOMS_BYTES = {0: 16, 1: 32, 3: 64}
"""What a swizzle keeps together, by the descriptor's number; 2 is 32 bytes with flipped halves, not supported."""

# CUtensorMapDataType of the driver's interface -> (element type, rounded to tf32)
_DRIVER_TYPES: tuple[tuple[ElementType, bool], ...] = (
    ("u8", False), ("u16", False), ("u32", False), ("s32", False), ("u64", False), ("s64", False), ("f16", False),
    ("f32", False), ("f64", False), ("bf16", False), ("f32.ftz", False), ("f32", True), ("f32.ftz", True),
    ("b4x16", False), ("b4x16_p64", False), ("b6x16_p32", False),
)  # fmt: skip


class DescriptorError(ValueError):
    """A tensor map that this emulator does not know, or that the driver would refuse. One line."""


@dataclass(frozen=True)
class TensorMap:
    """One tiled tensor map. Dimension 0 is the contiguous one.

    ``dims`` and ``box`` count elements (4-bit elements for the packed types), ``strides_bytes`` has one entry fewer
    than ``dims`` (dimension 0 has none), ``element_strides`` one entry a dimension.
    """

    address: int
    element_type: ElementType
    dims: tuple[int, ...]
    strides_bytes: tuple[int, ...]
    box: tuple[int, ...]
    element_strides: tuple[int, ...] = ()
    swizzle_bytes: int = 0
    atom_bytes: int = 16
    fill_nan: bool = False
    round_to_tf32: bool = False
    l2_promotion: int = 2
    spans_fetch: bool | None = None

    @property
    def rank(self) -> int:
        return len(self.dims)

    def span_bytes(self) -> int:
        """Bytes from the first to the last element, as the host computes it for the fetch bit."""
        inner = self.dims[0] * ELEMENT_BITS[self.element_type] // 8
        return max([inner, *(n * s for n, s in zip(self.dims[1:], self.strides_bytes, strict=True))])

    def encode(self) -> bytes:
        """The 128 bytes. Raises :class:`DescriptorError` naming the field, what was found and what would be valid."""
        self._check()
        steps = self.element_strides or (1,) * self.rank
        words = [0] * 32
        words[0], words[1] = self.address & 0xFFFFFFFF, self.address >> 32
        fetch = self.span_bytes() >= SPAN_OF_FETCH_BYTES if self.spans_fetch is None else self.spans_fetch
        words[2] = (
            2
            | (self.rank - 1) << 4
            | ELEMENT_TYPES.index(self.element_type) << 7
            | SWIZZLES_BYTES.index(self.swizzle_bytes) << 13
            | int(self.fill_nan) << 15
            | int(self.round_to_tf32) << 16
            | self.l2_promotion << 17
            | {atom: number for number, atom in ATOMS_BYTES.items()}[self.atom_bytes] << 19
            | int(fetch) << 21
        )
        for i, stride in enumerate(self.strides_bytes):
            words[3 + i] = stride // 16 & 0xFFFFFFFF
            words[7] |= (stride // 16 >> 32) << 4 * i
        for i, extent in enumerate(self.dims):
            words[8 + i] = extent - 1
        for i, step in enumerate(steps):
            words[13] |= (step - 1) << 3 * i
        words[13] |= (self.box[0] - 1) << 24
        for i, extent in enumerate(self.box[1:]):
            words[14] |= (extent - 1) << 8 * i
        return struct.pack("<32I", *words)

    def _check(self) -> None:
        steps = self.element_strides or (1,) * self.rank
        if not 1 <= self.rank <= MAX_RANK:
            raise DescriptorError(f"tensor map: rank: found {self.rank}; valid: 1 to {MAX_RANK}")
        for name, found, valid in (
            ("strides_bytes", len(self.strides_bytes), self.rank - 1),
            ("box", len(self.box), self.rank),
            ("element_strides", len(steps), self.rank),
        ):
            if found != valid:
                raise DescriptorError(f"tensor map: {name}: found {found} entries; valid: {valid}")
        if self.address % 16 or not 0 <= self.address < 1 << 64:
            raise DescriptorError(f"tensor map: address: found {self.address:#x}; valid: a multiple of 16 bytes")
        if self.swizzle_bytes not in SWIZZLES_BYTES:
            raise DescriptorError(f"tensor map: swizzle_bytes: found {self.swizzle_bytes}; valid: 0, 32, 64, 128")
        if self.atom_bytes != 16 and (self.swizzle_bytes != 128 or self.atom_bytes not in ATOMS_BYTES.values()):
            raise DescriptorError(
                f"tensor map: atom_bytes: found {self.atom_bytes} under a swizzle of {self.swizzle_bytes} bytes; "
                "valid: 16, and under the 128-byte swizzle 32 and 64"
            )
        for i, extent in enumerate(self.dims):
            if not 1 <= extent <= 1 << 32:
                raise DescriptorError(f"tensor map: dims[{i}]: found {extent}; valid: 1 to 2^32")
        for i, extent in enumerate(self.box):
            if not 1 <= extent <= MAX_BOX:
                raise DescriptorError(f"tensor map: box[{i}]: found {extent}; valid: 1 to {MAX_BOX}")
        for i, stride in enumerate(self.strides_bytes):
            if stride % 16 or not 0 <= stride < 1 << 40:
                raise DescriptorError(f"tensor map: strides_bytes[{i}]: found {stride}; valid: 16·n below 2^40")
        if self.fill_nan and self.element_type not in FLOATS:
            raise DescriptorError(f"tensor map: fill_nan: found NaN for {self.element_type}; valid: zero")
        for i, step in enumerate(steps):
            if not 1 <= step <= 8:
                raise DescriptorError(f"tensor map: element_strides[{i}]: found {step}; valid: 1 to 8")
        inner = self.box[0] * (8 if self.element_type.endswith(("_p64", "_p32")) else ELEMENT_BITS[self.element_type])
        if inner % 128:
            raise DescriptorError(f"tensor map: box[0]: found {inner / 8:g} bytes; valid: a multiple of 16 bytes")
        if self.swizzle_bytes and inner > 8 * self.swizzle_bytes:
            raise DescriptorError(
                f"tensor map: box[0]: found {inner // 8} bytes; valid: at most the swizzle's {self.swizzle_bytes}"
            )


def decode(raw: bytes) -> TensorMap:
    """The tensor map in the first 64 of ``raw``'s bytes. Raises :class:`DescriptorError` for what is not supported."""
    if len(raw) < 64:
        raise DescriptorError(f"tensor map: found {len(raw)} bytes; valid: {DESCRIPTOR_BYTES}")
    words = struct.unpack_from("<16I", raw)
    flags = words[2]
    rank, kind = (flags >> 4 & 7) + 1, flags >> 7 & 15
    if flags & 1:
        raise DescriptorError("tensor map: found im2col; valid: tiled")
    if flags >> 11 & 3:
        raise DescriptorError("tensor map: interleave: found 16 or 32 bytes; valid: none")
    if flags >> 19 & 3 not in ATOMS_BYTES:
        raise DescriptorError(
            "tensor map: swizzle atomicity: found 32 bytes with flipped halves; valid: 16, 32, 64 bytes"
        )
    if rank > MAX_RANK or kind >= len(ELEMENT_TYPES):
        raise DescriptorError(f"tensor map: found rank {rank} and element type {kind}; valid: ranks to 5, types to 13")
    return TensorMap(
        address=words[0] | words[1] << 32,
        element_type=ELEMENT_TYPES[kind],
        dims=tuple(words[8 + i] + 1 for i in range(rank)),
        strides_bytes=tuple((words[3 + i] | (words[7] >> 4 * i & 15) << 32) * 16 for i in range(rank - 1)),
        box=((words[13] >> 24) + 1, *((words[14] >> 8 * i & 255) + 1 for i in range(rank - 1))),
        element_strides=tuple((words[13] >> 3 * i & 7) + 1 for i in range(rank)),
        swizzle_bytes=SWIZZLES_BYTES[flags >> 13 & 3],
        atom_bytes=ATOMS_BYTES[flags >> 19 & 3],
        fill_nan=bool(flags >> 15 & 1),
        round_to_tf32=bool(flags >> 16 & 1),
        l2_promotion=flags >> 17 & 3,
        spans_fetch=bool(flags >> 21 & 1),
    )


def from_driver_call(
    data_type: int,
    address: int,
    dims: tuple[int, ...],
    strides_bytes: tuple[int, ...],
    box: tuple[int, ...],
    element_strides: tuple[int, ...],
    *,
    interleave: int,
    swizzle: int,
    l2_promotion: int,
    fill: int,
) -> TensorMap:
    """What ``cuTensorMapEncodeTiled`` is asked for, in the driver's numbers. Raises :class:`DescriptorError`."""
    if not 0 <= data_type < len(_DRIVER_TYPES):
        raise DescriptorError(f"tensor map: data type: found {data_type}; valid: 0 to {len(_DRIVER_TYPES) - 1}")
    if interleave:
        raise DescriptorError(f"tensor map: interleave: found {interleave}; valid: 0 (none)")
    modes = {**{number: (size, 16) for number, size in enumerate(SWIZZLES_BYTES)}, 4: (128, 32), 6: (128, 64)}
    for name, found, highest in (("l2_promotion", l2_promotion, 3), ("fill", fill, 1)):
        if not 0 <= found <= highest:
            raise DescriptorError(f"tensor map: {name}: found {found}; valid: 0 to {highest}")
    if swizzle not in modes:
        raise DescriptorError(f"tensor map: swizzle: found {swizzle}; valid: {', '.join(map(str, modes))}")
    element_type, rounds = _DRIVER_TYPES[data_type]
    return TensorMap(
        address,
        element_type,
        dims,
        strides_bytes,
        box,
        element_strides,
        swizzle_bytes=modes[swizzle][0],
        atom_bytes=modes[swizzle][1],
        fill_nan=bool(fill),
        round_to_tf32=rounds,
        l2_promotion=l2_promotion,
        spans_fetch=False,
    )
