"""Tensor maps that the driver encodes, or refuses, beside those of ``dsv4.emulator.tma_descriptor``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dsv4.emulator.tma_descriptor import DescriptorError, from_driver_call

ADDRESS = 0x7F12_3456_7000
ELEMENT_BYTES = (1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4)
"""By CUtensorMapDataType, of which tf32 and tf32 with flushing are 11 and 12."""


@dataclass(frozen=True)
class Request:
    """One call of cuTensorMapEncodeTiled. ``asked`` holds its arguments in the driver's numbers."""

    name: str
    address: int
    asked: dict[str, Any]


def _plain(data_type: int = 9, rank: int = 2, **changes: Any) -> dict[str, Any]:
    size = ELEMENT_BYTES[data_type]
    dims = (256, 100, 7, 5, 3)[:rank]
    strides, reach = [], dims[0] * size
    for extent in dims[1:]:
        strides.append(reach)
        reach = reach * extent + 16 * (extent % 2)
    box = (32 // size, 64, 2, 1, 3)[:rank]
    found = {
        "data_type": data_type, "dims": dims, "strides_bytes": tuple(-(-s // 16) * 16 for s in strides), "box": box,
        "element_strides": (1,) * rank, "interleave": 0, "swizzle": 0, "l2_promotion": 0, "fill": 0,
    }  # fmt: skip
    return {**found, **changes}


def requests() -> Iterator[Request]:
    """Every field varied by itself, then requests that the driver may refuse."""

    def one(name: str, asked: dict[str, Any], address: int = ADDRESS) -> Request:
        return Request(name, address, asked)

    for data_type in range(13):
        yield one(f"type {data_type}", _plain(data_type))
        yield one(f"type {data_type} rank 3 NaN fill", _plain(data_type, 3, fill=1))
    for rank in range(1, 6):
        yield one(f"rank {rank}", _plain(9, rank))
        yield one(f"rank {rank} swizzle 3", _plain(9, rank, swizzle=3, box=(64, 8, 1, 2, 4)[:rank]))
    for swizzle in range(4):
        yield one(f"swizzle {swizzle}", _plain(swizzle=swizzle))
        yield one(f"swizzle {swizzle} box of 32 bytes", _plain(swizzle=swizzle, box=(16, 8)))
        yield one(f"swizzle {swizzle} box of 64 bytes", _plain(swizzle=swizzle, box=(32, 8)))
        yield one(f"swizzle {swizzle} box of 128 bytes", _plain(swizzle=swizzle, box=(64, 8)))
        yield one(f"swizzle {swizzle} box of 256 bytes", _plain(swizzle=swizzle, box=(128, 8)))
    for swizzle in range(4, 8):  # the modes of newer chips
        yield one(f"swizzle {swizzle}", _plain(swizzle=swizzle, box=(64, 8)))
    for promotion in range(5):
        yield one(f"L2 promotion {promotion}", _plain(l2_promotion=promotion))
    for interleave in (1, 2):
        yield one(f"interleave {interleave}", _plain(9, 3, interleave=interleave, swizzle=0 if interleave == 1 else 1))
    for steps in ((1, 2), (1, 3), (1, 8), (2, 1), (4, 4), (8, 8), (1, 9), (1, 0), (0, 1)):
        yield one(f"element strides {steps}", _plain(element_strides=steps))
    yield one("element strides, rank 5", _plain(9, 5, element_strides=(1, 2, 3, 4, 5)))
    for rows in (1, 2, 255, 256, 257, 0):
        yield one(f"box of {rows} rows", _plain(box=(16, rows)))
    for columns in (8, 12, 4, 128, 256, 264):
        yield one(f"box of {columns} columns", _plain(box=(columns, 2), dims=(512, 100), strides_bytes=(1024,)))
    for dims in ((1, 1), (2**32, 1), (2**32 - 1, 2), (2**32 + 1, 1), (0, 4), (8, 2**32), (5, 3)):
        yield one(f"dims {dims}", _plain(dims=dims, strides_bytes=(2**34,)))
    for stride in (16, 512, 528, 520, 504, 0, 2**34 + 16, 2**36, 2**39, 2**40 - 16, 2**40):
        yield one(f"stride {stride}", _plain(strides_bytes=(stride,)))
    yield one("stride high bits, rank 5", _plain(9, 5, strides_bytes=(2**36 + 16, 2**37 + 32, 2**38 + 48, 2**39 + 64)))
    for bytes_ in (65536, 131056, 131072, 131088, 1 << 20):  # where the fetch bit begins
        yield one(f"span {bytes_}, rank 1", _plain(0, 1, dims=(bytes_,)))
        yield one(f"span {bytes_}, rank 2", _plain(0, 2, dims=(512, bytes_ // 512), strides_bytes=(512,), box=(16, 8)))
        rows = bytes_ // 1024
        yield one(f"span {bytes_}, gaps", _plain(0, 2, dims=(16, rows), strides_bytes=(1024,), box=(16, 8)))
        yield one(f"span {bytes_}, rank 3", _plain(0, 3, dims=(16, 4, rows), strides_bytes=(16, 1024), box=(16, 2, 2)))
        yield one(
            f"span {bytes_}, strided rows",
            _plain(0, 2, dims=(512, bytes_ // 512), strides_bytes=(512,), box=(16, 8), element_strides=(1, 2)),
        )
    for address in (16, 8, 32, ADDRESS + 16, ADDRESS + 4, 2**48, 2**57 - 16, 0):
        yield one(f"address {address:#x}", _plain(), address)
    for fill in (0, 1, 2):
        for data_type in (2, 9):
            yield one(f"fill {fill}, type {data_type}", _plain(data_type, fill=fill))
    yield one("small tensor, large box", _plain(dims=(8, 3), strides_bytes=(16,), box=(64, 64)))
    yield one("stride below the row", _plain(dims=(256, 8), strides_bytes=(256,)))
    yield one("rank 1 with swizzle", _plain(9, 1, swizzle=3, box=(64,)))
    yield one("box beyond shared memory", _plain(box=(256, 256), dims=(512, 512), strides_bytes=(1024,)))


def ours(request: Request) -> str:
    """What the emulator encodes, in hexadecimal, or why it refuses."""
    try:
        tensor_map = from_driver_call(
            request.asked["data_type"],
            request.address,
            request.asked["dims"],
            request.asked["strides_bytes"],
            request.asked["box"],
            request.asked["element_strides"],
            interleave=request.asked["interleave"],
            swizzle=request.asked["swizzle"],
            l2_promotion=request.asked["l2_promotion"],
            fill=request.asked["fill"],
        )
        return tensor_map.encode().hex()
    except DescriptorError as error:
        return f"refused: {error}"


def meaning(encoded: str) -> str:
    """The first 64 bytes of a tensor map, without bit 65, which CuTe sets and the driver does not.

    Of the others the driver writes two words: the bytes of a box (word 16), and the alignment that the tile needs (18).
    """
    if len(encoded) != 256:
        return encoded
    raw = bytearray.fromhex(encoded[:128])
    raw[8] &= ~2
    return raw.hex()


def compare(theirs: dict[str, str]) -> list[dict[str, str]]:
    """Requests whose tensor maps differ in what is known to mean something, or that only one side refuses."""
    found = []
    for request in requests():
        here, there = meaning(ours(request)), meaning(theirs.get(request.name, "not collected"))
        if (here.startswith("refused") and there.startswith("error")) or here == there:
            continue
        found.append({"request": request.name, "driver": there, "emulator": here})
    return found
