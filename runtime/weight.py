"""The weight of a linear in any of the checkpoint's formats, and an activation quantised to meet it.

The codes stay as they were loaded; the references and the kernels read them through these two records. All are plain
tensors on one device (dsv4-reference §4.2, §9.3, §9.4).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import NamedTuple

import torch
from torch.compiler import is_compiling

from dsv4.runtime.reference import codes

FP8_BLOCK = 128
"""Rows and columns of the blocks that share a scale in ``Format.FP8_BLOCK``."""
MXFP4_BLOCK = 32
NVFP4_BLOCK = 16


class Format(Enum):
    """How a weight is stored. It decides too how the activations that meet it are quantised."""

    PLAIN = "plain"
    FP8_BLOCK = "fp8_block"
    MXFP4 = "mxfp4"
    NVFP4 = "nvfp4"


@dataclass(frozen=True)
class Weight:
    """W [out, in], or [E, out, in] where a leading dimension stacks experts.

    ======================  =======================  ===================================  ==============
    ``format``              ``codes``                ``scale``                            ``scale_2``
    ======================  =======================  ===================================  ==============
    ``PLAIN``               bf16/f32/f64 [out, in]   None                                 None
    ``FP8_BLOCK``           e4m3 [out, in]           e8m0 [⌈out/128⌉, ⌈in/128⌉]           None
    ``MXFP4``               u8 [out, in/2]           e8m0 [out, in/32]                    None
    ``NVFP4``               u8 [out, in/2]           e4m3 [out, in/16]                    f32 [] or [E]
    ======================  =======================  ===================================  ==============

    In FP4 codes the low nibble is the even column. ``input_scale`` (f32 [] or [E], NVFP4 only) quantises activations.
    ``expanded`` marks codes that are the dequantised values already: the format still says how activations are
    quantised. Raises ``ValueError`` where shapes or dtypes do not fit the table.
    """

    format: Format
    codes: torch.Tensor
    scale: torch.Tensor | None = None
    scale_2: torch.Tensor | None = None
    input_scale: torch.Tensor | None = None
    expanded: bool = False

    def __post_init__(self) -> None:
        if problem := self._problem():
            raise ValueError(f"weight {self.format.value}: {problem}")

    @classmethod
    def plain(cls, values: torch.Tensor) -> Weight:
        return cls(Format.PLAIN, values)

    @property
    def shape(self) -> tuple[int, ...]:
        """[out, in] or [E, out, in], whatever the packing."""
        *lead, columns = self.codes.shape
        return (*lead, columns if self.expanded or self.format in (Format.PLAIN, Format.FP8_BLOCK) else columns * 2)

    @property
    def device(self) -> torch.device:
        return self.codes.device

    @property
    def nbytes(self) -> int:
        parts = (self.codes, self.scale, self.scale_2, self.input_scale)
        return sum(part.nbytes for part in parts if part is not None)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors that this weight consists of, by field."""
        parts = {"codes": self.codes, "scale": self.scale, "scale_2": self.scale_2, "input_scale": self.input_scale}
        return {name: part for name, part in parts.items() if part is not None}

    def to(self, device: torch.device | str) -> Weight:
        return self._with({name: part.to(device) for name, part in self.tensors().items()})

    def __getitem__(self, expert: int | torch.Tensor) -> Weight:
        """Expert ``expert`` of a stack; with an index tensor [R], the stack of these R experts."""
        parts = {
            name: part if name in ("scale_2", "input_scale") and part.ndim == 0 else part[expert]
            for name, part in self.tensors().items()
        }
        return self._with(parts)

    def _with(self, parts: dict[str, torch.Tensor]) -> Weight:
        """The same with other tensors, unchecked: this one was, and a step asks for many experts."""
        if is_compiling():  # which does not follow what is done below
            return Weight(self.format, expanded=self.expanded, **parts)
        other = object.__new__(Weight)
        other.__dict__.update(self.__dict__, **parts)
        return other

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """W [.., out, in] in ``dtype``. Exact in float32 for every format but NVFP4, which rounds once there."""
        if self.expanded or self.format is Format.PLAIN:
            return self.codes.to(dtype)
        assert self.scale is not None
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        if self.format is Format.FP8_BLOCK:
            values = self.codes.to(wide) * _spread(self.scale.to(wide), self.codes.shape)
        else:
            block = MXFP4_BLOCK if self.format is Format.MXFP4 else NVFP4_BLOCK
            values = codes.unpack_e2m1(self.codes, dtype=wide) * self.scale.to(wide).repeat_interleave(block, dim=-1)
            if self.scale_2 is not None:
                values = values * self.scale_2.to(wide).reshape((*self.scale_2.shape, 1, 1))
        return values.to(dtype)

    def expand(self, dtype: torch.dtype = torch.float32) -> Weight:
        """The same weight with its values instead of its codes: faster for the references, several times the bytes."""
        if self.expanded and self.codes.dtype == dtype:
            return self
        return replace(self, codes=self.dequantize(dtype), scale=None, scale_2=None, expanded=True)

    def _problem(self) -> str | None:
        shape, format = self.codes.shape, self.format
        if self.codes.ndim not in (2, 3):
            return f"found codes of shape {list(shape)}; valid: [out, in] or [E, out, in]"
        if self.expanded or format is Format.PLAIN:
            if self.codes.dtype not in (torch.bfloat16, torch.float32, torch.float64):
                return f"found codes in {self.codes.dtype}; valid: bfloat16, float32 or float64"
            return "found a scale; valid: none beside plain values" if self.scale is not None else None
        expected = {Format.FP8_BLOCK: torch.float8_e4m3fn}.get(format, torch.uint8)
        if self.codes.dtype != expected:
            return f"found codes in {self.codes.dtype}; valid: {expected}"
        scale_dtype = torch.float8_e4m3fn if format is Format.NVFP4 else torch.float8_e8m0fnu
        if self.scale is None or self.scale.dtype != scale_dtype:
            return (
                f"found {'no scale' if self.scale is None else f'a scale in {self.scale.dtype}'}; valid: {scale_dtype}"
            )
        *lead, rows, columns = self.shape
        if format is Format.FP8_BLOCK:
            scales = [*lead, -(-rows // FP8_BLOCK), -(-columns // FP8_BLOCK)]
        else:
            scales = [*lead, rows, columns // (MXFP4_BLOCK if format is Format.MXFP4 else NVFP4_BLOCK)]
        if list(self.scale.shape) != scales:
            return f"found a scale of shape {list(self.scale.shape)}; valid: {scales}"
        return self._problem_of_scalars(lead)

    def _problem_of_scalars(self, lead: list[int]) -> str | None:
        if self.format is not Format.NVFP4:
            return "found a scale_2 or input_scale; valid: with nvfp4 only" if self.scale_2 is not None else None
        for name, scalar in (("scale_2", self.scale_2), ("input_scale", self.input_scale)):
            if scalar is None and name == "input_scale":
                continue
            if scalar is None or scalar.dtype != torch.float32 or list(scalar.shape) not in (lead, []):
                found = "none" if scalar is None else f"{scalar.dtype} {list(scalar.shape)}"
                return f"{name}: found {found}; valid: float32 of shape {lead}"
        return None


def _spread(scale: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """One scale an element from one a block of 128 × 128; the last block of a row or column may be cut."""
    rows, columns = shape[-2:]
    wide = scale.repeat_interleave(FP8_BLOCK, dim=-2)[..., :rows, :]
    return wide.repeat_interleave(FP8_BLOCK, dim=-1)[..., :columns]


class Quantized(NamedTuple):
    """An activation as codes and scales: what a quantising operator gives and ``linear`` takes.

    ``codes``: e4m3 [.., K] with e8m0 ``scale`` [.., ⌈K/block⌉], or u8 [.., K/2] (E2M1, low nibble even) with e4m3
    ``scale`` [.., K/16] and the f32 ``scale_2`` [].
    """

    codes: torch.Tensor
    scale: torch.Tensor
    block: int
    scale_2: torch.Tensor | None = None

    @property
    def width(self) -> int:
        return self.codes.shape[-1] * (2 if self.codes.dtype == torch.uint8 else 1)

    def view_rows(self, *lead: int) -> Quantized:
        """The same with its leading dimensions replaced by ``lead``."""
        codes_view = self.codes.reshape(*lead, self.codes.shape[-1])
        return self._replace(codes=codes_view, scale=self.scale.reshape(*lead, self.scale.shape[-1]))

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """[.., K] in ``dtype``."""
        packed = self.codes.dtype == torch.uint8
        values = codes.unpack_e2m1(self.codes, dtype=dtype) if packed else self.codes.to(dtype)
        scales = self.scale.to(dtype).repeat_interleave(self.block, dim=-1)[..., : values.shape[-1]]
        if self.scale_2 is not None:
            scales = scales * self.scale_2.to(dtype)
        return values * scales
