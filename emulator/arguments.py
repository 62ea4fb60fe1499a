"""What a caller passes to a kernel, as blocks of the arena and as plain data for the emulating process.

A tensor's bytes lie on the device as they lie in its torch storage, which counts as one allocation: a view that starts
4 bytes into its storage is as misaligned there as it would be on a GPU. Tensors that share bytes share a block.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from dsv4.emulator.errors import ArgumentRefused
from dsv4.emulator.memory import Arena
from dsv4.runtime.dlpack import DTYPES, element_bytes

Role = Literal["input", "output", "inout", "workspace"]
ROLES: tuple[Role, ...] = ("input", "output", "inout", "workspace")

DTYPE_NAMES: dict[torch.dtype, str] = {
    torch.bfloat16: "bf16", torch.float16: "f16", torch.float32: "f32", torch.float64: "f64",
    torch.int8: "i8", torch.int16: "i16", torch.int32: "i32", torch.int64: "i64",
    torch.uint8: "u8", torch.uint16: "u16", torch.uint32: "u32", torch.uint64: "u64", torch.bool: "bool",
    torch.float8_e4m3fn: "e4m3", torch.float8_e5m2: "e5m2", torch.float8_e8m0fnu: "e8m0",
    torch.float4_e2m1fn_x2: "e2m1x2",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Argument:
    """A tensor with what the emulator may know about it; see ``output``, ``inout``, ``workspace``, ``reads``."""

    tensor: torch.Tensor
    role: Role = "inout"
    name: str = ""
    dtype: str = ""
    prior: bool = False
    as_pointer: bool = False
    dynamic: tuple[tuple[int, ...] | None, tuple[int, ...] | None] | None = None


def reads(tensor: torch.Tensor | Argument, **known: Any) -> Argument:
    """The kernel reads it only: a write to it is a finding. ``prior``: the launch before wrote it (see PDL)."""
    return _marked(tensor, role="input", **known)


def output(tensor: torch.Tensor | Argument, **known: Any) -> Argument:
    """The kernel writes every element: reading one first and leaving one out are findings."""
    return _marked(tensor, role="output", **known)


def inout(tensor: torch.Tensor | Argument, **known: Any) -> Argument:
    """The kernel may read and write it; what a tensor without a mark is."""
    return _marked(tensor, role="inout", **known)


def workspace(tensor: torch.Tensor | Argument, **known: Any) -> Argument:
    """Memory without contents: reading what was not written is a finding, leaving it unwritten is none."""
    return _marked(tensor, role="workspace", **known)


def as_dtype(tensor: torch.Tensor | Argument, dtype: str) -> Argument:
    """Pass the elements under another dtype name of the same size: ``e2m1x2`` or ``e8m0`` for ``torch.uint8``."""
    return _marked(tensor, dtype=dtype)


def pointer(tensor: torch.Tensor | Argument) -> Argument:
    """Pass the address of the first element (a ``cute.Pointer`` parameter) instead of the tensor."""
    return _marked(tensor, as_pointer=True)


def dynamic(
    tensor: torch.Tensor | Argument, *, shapes: Sequence[int] | None = None, strides: Sequence[int] | None = None
) -> Argument:
    """Which dimensions' extents and strides a function with the plain C interface takes, where that is not plain."""
    return _marked(tensor, dynamic=(shapes and tuple(shapes), strides and tuple(strides)))


def _marked(tensor: torch.Tensor | Argument, **known: Any) -> Argument:
    return replace(tensor, **known) if isinstance(tensor, Argument) else Argument(tensor, **known)


@dataclass
class Block:
    """A range of bytes of the arena; ``address`` is where it comes from in this process."""

    address: int
    size_bytes: int
    phase_bytes: int
    name: str = ""
    offset: int = 0
    writable: bool = False
    prior: bool = False
    tensors: list[dict[str, Any]] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name, "offset": self.offset, "size_bytes": self.size_bytes, "writable": self.writable,
            "prior": self.prior, "tensors": self.tensors,
        }  # fmt: skip


@dataclass
class _Placed:
    """One tensor on its way: where its bytes are, and the block that they belong to."""

    argument: Argument
    name: str
    start: int
    size_bytes: int
    block: Block | None = None


class Packed:
    """All arguments of all calls of a request, packed into the arena. ``calls`` are lists of plain data."""

    def __init__(self, calls: Sequence[Sequence[Any]], arena: Arena) -> None:
        """Raises ArgumentRefused for what cannot be passed, naming the argument."""
        self._arena = arena
        self._placed: dict[int, _Placed] = {}
        for number, arguments in enumerate(calls):
            for index, value in enumerate(arguments):
                self._collect(value, f"#{index}" if len(calls) == 1 else f"call {number} #{index}")
        self.blocks = _blocks(self._placed.values())
        arena.clear()
        try:
            for block in self.blocks:
                block.offset = arena.place(block.size_bytes, block.phase_bytes)
            arena.commit()
        except (MemoryError, OSError) as error:
            raise ArgumentRefused(f"arguments: {error}; valid: smaller tensors") from None
        for block in self.blocks:
            arena.write(block.offset, block.address, block.size_bytes)
            block.tensors = [self._described(each, block) for each in self._placed.values() if each.block is block]
        self.calls = [[self._plain(value) for value in arguments] for arguments in calls]

    def results(self) -> None:
        """Copy what was written back into the caller's tensors."""
        for block in self.blocks:
            if block.writable:
                self._arena.read(block.offset, block.address, block.size_bytes)

    def _collect(self, value: Any, place: str) -> None:
        if isinstance(value, (tuple, list)):
            for index, item in enumerate(value):
                self._collect(item, f"{place}[{index}]")
            return
        if isinstance(value, torch.Tensor):
            value = Argument(value)
        if not isinstance(value, Argument):
            return
        tensor, name = value.tensor, value.name or place
        if value.role not in ROLES:
            raise ArgumentRefused(f"argument {name}: role: found {value.role!r}; valid: {', '.join(ROLES)}")
        if tensor.device.type != "cpu" or tensor.layout != torch.strided:
            raise ArgumentRefused(f"argument {name}: found a tensor on {tensor.device}; valid: dense, on the CPU")
        dtype = value.dtype or DTYPE_NAMES.get(tensor.dtype, "")
        if dtype not in DTYPES:
            raise ArgumentRefused(f"argument {name}: dtype: found {dtype or tensor.dtype}; valid: {', '.join(DTYPES)}")
        if element_bytes(dtype) != tensor.element_size():
            raise ArgumentRefused(
                f"argument {name}: dtype {dtype} has {element_bytes(dtype)} bytes; found {tensor.dtype} with "
                f"{tensor.element_size()}"
            )
        reach = 0
        if tensor.numel():
            reach = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
        known = self._placed.get(id(tensor))
        if known is None:
            argument = replace(value, dtype=dtype)
            self._placed[id(tensor)] = _Placed(argument, name, tensor.data_ptr(), reach * element_bytes(dtype))
        elif known.argument.role != value.role:
            known.argument = replace(known.argument, role="inout")

    def _plain(self, value: Any) -> Any:
        if isinstance(value, (tuple, list)):
            return {"items": [self._plain(item) for item in value]}
        if isinstance(value, (torch.Tensor, Argument)):
            argument = value if isinstance(value, Argument) else Argument(value)
            placed = self._placed[id(argument.tensor)]
            offset = placed.block.offset + placed.start - placed.block.address if placed.block else 0
            if argument.as_pointer:
                return {"pointer": offset}
            return {
                "tensor": offset,
                "dtype": argument.dtype or placed.argument.dtype,
                "shape": list(argument.tensor.shape),
                "strides": list(argument.tensor.stride()),
                "dynamic": argument.dynamic,
            }
        if value is None or isinstance(value, (bool, int, float, str)):
            return {"scalar": value}
        raise ArgumentRefused(
            f"found an argument of type {type(value).__name__}; valid: torch.Tensor, a mark such as output(tensor), "
            f"None, bool, int, float, str, or a tuple of them"
        )

    @staticmethod
    def _described(placed: _Placed, block: Block) -> dict[str, Any]:
        tensor = placed.argument.tensor
        size = element_bytes(placed.argument.dtype)
        return {
            "name": placed.name,
            "role": placed.argument.role,
            "offset": placed.start - block.address,
            "shape": list(tensor.shape),
            "strides_bytes": [stride * size for stride in tensor.stride()],
            "element_bytes": size,
        }


def _blocks(placed: Iterable[_Placed]) -> list[Block]:
    """One block for each run of overlapping tensors; tensors without elements have a block of no bytes."""
    blocks: list[Block] = []
    for each in sorted(placed, key=lambda item: (item.size_bytes > 0, item.start)):
        argument = each.argument
        last = blocks[-1] if blocks else None
        if last is None or not each.size_bytes or each.start >= last.address + last.size_bytes:
            phase = each.start - argument.tensor.untyped_storage().data_ptr() if each.size_bytes else 0
            last = Block(each.start, each.size_bytes, phase)
            blocks.append(last)
        last.size_bytes = max(last.size_bytes, each.start + each.size_bytes - last.address)
        last.writable |= argument.role != "input"
        last.prior |= argument.prior
        last.name = f"{last.name}, {each.name}" if last.name else each.name
        each.block = last
    return blocks
