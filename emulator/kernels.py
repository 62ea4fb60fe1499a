"""Which PTX belongs to which loaded image, and the bytecode of its kernels.

An object holds its kernels as a cubin, which the emulator does not read: the PTX is given beside it, and the pair is
recognised by the cubin's bytes. Names are no key: two configurations of a kernel may have the same.
"""

from __future__ import annotations

import ctypes
import hashlib
import struct
from dataclasses import dataclass, field

from dsv4.emulator import ptx
from dsv4.emulator.errors import KernelUnsupported, ObjectRefused, TargetRefused
from dsv4.emulator.lower import lower
from dsv4.emulator.program import Program

TARGETS = {"sm_90a": "sm_90a", "sm_100a": "sm_100a", "sm_100f": "sm_100a"}
"""``.target`` of the PTX -> the architecture that it is run as."""

_HEADER_BYTES = 64
_FAT_MAGIC, _FAT_HEADER = 0xBA55ED50, struct.Struct("<IHHQ")  # magic, version, bytes of this header, of the rest
_FAT_ENTRY, _FAT_CUBIN = struct.Struct("<HHIQ"), 2  # kind, version, bytes of this header, of what follows it


def image_bytes(header: bytes) -> int:
    """How long the ELF image is that begins with ``header`` (64 bytes), by its tables: loaders are given no size."""
    if len(header) < _HEADER_BYTES or header[:6] != b"\x7fELF\x02\x01":
        raise ObjectRefused("the object's image is no 64-bit ELF file; valid: a cubin")
    programs, sections = struct.unpack_from("<QQ", header, 32)
    program_bytes, program_count, section_bytes, section_count = struct.unpack_from("<HHHH", header, 54)
    return max(_HEADER_BYTES, programs + program_bytes * program_count, sections + section_bytes * section_count)


def image_key(cubin: bytes) -> str:
    """The sha256 by which an image is recognised."""
    return hashlib.sha256(cubin[: image_bytes(cubin)]).hexdigest()


def loaded_image(address: int) -> bytes:
    """The cubin at ``address``, bare or as the only one in a container. Raises ObjectRefused for anything else."""
    magic, _, header_bytes, rest_bytes = _FAT_HEADER.unpack(ctypes.string_at(address, _FAT_HEADER.size))
    if magic != _FAT_MAGIC:
        return ctypes.string_at(address, image_bytes(ctypes.string_at(address, _HEADER_BYTES)))
    found, at, end = [], address + header_bytes, address + header_bytes + rest_bytes
    while at < end:
        kind, _, header_bytes, body_bytes = _FAT_ENTRY.unpack(ctypes.string_at(at, _FAT_ENTRY.size))
        if kind == _FAT_CUBIN:
            found.append(ctypes.string_at(at + header_bytes, body_bytes))
        at += max(header_bytes + body_bytes, 1)
    if len(found) != 1:
        raise ObjectRefused(f"the object's image holds {len(found)} cubins; valid: one, for one architecture")
    return found[0]


@dataclass(frozen=True)
class Kernel:
    """One kernel, ready to run. ``module`` is the PTX file that it came from."""

    name: str
    arch: str
    module: ptx.Module
    entry: ptx.Entry
    program: Program


@dataclass
class Text:
    """One PTX file. ``image`` is the key of its cubin, or empty when it is not known."""

    key: str
    image: str
    module: ptx.Module
    kernels: dict[str, Kernel] = field(default_factory=dict)

    @property
    def arch(self) -> str:
        """Raises TargetRefused for a target that is not emulated."""
        target = self.module.target.split(",")[0].strip()
        if target not in TARGETS:
            raise TargetRefused(f"target: found {target}; valid: {', '.join(TARGETS)}")
        return TARGETS[target]


class Library:
    """All texts and images that the process has met. ``object_texts`` names the texts of each object."""

    def __init__(self, handlers: dict[str, int]) -> None:
        self._handlers = handlers
        self._texts: dict[str, Text] = {}
        self._images: list[tuple[str, str]] = []  # (object, image key), numbered from 1
        self.object_texts: dict[str, list[str]] = {}
        self.object_registers: dict[str, int] = {}
        self.current = ""  # the object that is being called

    def add_text(self, key: str, text: str, image: str) -> None:
        """Read a PTX file. Raises ObjectRefused where it is none, TargetRefused for a foreign target."""
        try:
            module = ptx.parse(text)
        except ptx.PtxError as error:
            raise ObjectRefused(f"the PTX cannot be read: {error}") from None
        if not module.entries:
            raise ObjectRefused("the PTX holds no kernel")
        found = Text(key, image, module)
        _ = found.arch
        self._texts[key] = found

    def texts(self, object_key: str) -> list[Text]:
        return [self._texts[key] for key in self.object_texts[object_key]]

    def arch(self, object_key: str) -> str:
        """The architecture of an object's kernels. Raises ObjectRefused where they differ."""
        archs = sorted({text.arch for text in self.texts(object_key)})
        if len(archs) != 1:
            raise ObjectRefused(
                f"target: found {' and '.join(archs) or 'none'}; valid: one for all kernels of an object"
            )
        return archs[0]

    def load(self, address: int) -> int:
        """An image that the current object loads; its number. Raises ObjectRefused where no PTX belongs to it."""
        image = image_key(loaded_image(address))
        if not any(text.image in ("", image) for text in self.texts(self.current)):
            raise ObjectRefused(
                "the object's image is not the cubin given with the PTX; valid: files of one compilation"
            )
        self._images.append((self.current, image))
        return len(self._images)

    def registers(self, number: int) -> int:
        """Registers that the compiler allotted to a thread of image ``number``; 0 where that is not known."""
        return self.object_registers.get(self._images[number - 1][0], 0)

    def text_of(self, number: int, name: str) -> Text:
        """The text that holds kernel ``name`` of image ``number``. Raises ObjectRefused where there is none."""
        for text in self._fitting(*self._images[number - 1]):
            if name in text.module.entries:
                return text
        raise ObjectRefused(f"the PTX has no kernel {name:.120}; valid: the PTX of the same compilation")

    def _fitting(self, object_key: str, image: str) -> list[Text]:
        """The texts that may belong to an image, those that surely do first. Raises ObjectRefused for none."""
        fitting = [text for text in self.texts(object_key) if text.image in ("", image)]
        if not fitting:
            raise ObjectRefused(
                "the object's image is not the cubin given with the PTX; valid: files of one compilation"
            )
        return sorted(fitting, key=lambda each: each.image != image)

    def kernel(self, number: int, name: str) -> Kernel:
        """The kernel as bytecode, made once. Raises KernelUnsupported for an instruction that is not emulated."""
        text = self.text_of(number, name)
        if name not in text.kernels:
            entry = text.module.entries[name]
            try:
                program = lower(text.module, entry, self._handlers)
            except ptx.PtxError as error:
                raise KernelUnsupported(str(error)) from None
            text.kernels[name] = Kernel(name, text.arch, text.module, entry, program)
        return text.kernels[name]
