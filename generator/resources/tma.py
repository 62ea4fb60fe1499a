"""TMA boxes: what ``cuTensorMapEncodeTiled`` would refuse, refused before anything is compiled.

CuTeDSL builds descriptors inline and checks none of this (CUDA driver API, cuTensorMapEncodeTiled: rank ≤ 5, box ≤
256 elements a dimension, global strides multiples of 16 bytes below 2^40, inner box bytes a multiple of 16 and, with a
swizzle, at most the swizzle's span).
"""

from __future__ import annotations

from math import prod

from dsv4.generator.resources.budget import TmaBox
from dsv4.generator.resources.limits import Limits
from dsv4.generator.resources.request import KernelRequest, TmaRequest

SWIZZLES_BYTES = (0, 32, 64, 128)
_ATOM_BYTES = {0: 128, 32: 256, 64: 512, 128: 1024}  # alignment of the shared-memory side: the swizzle's period


def place(request: KernelRequest, limits: Limits, reasons: list[str]) -> dict[str, TmaBox]:
    """Boxes by name. Appends to ``reasons`` what the hardware would refuse."""
    aligned = {item.name: item.align_bytes for item in request.smem}
    boxes: dict[str, TmaBox] = {}
    for item in request.tma:
        _check_box(item, limits, reasons)
        _check_strides(item, limits, reasons)
        _check_target(item, aligned, reasons)
        bits = prod(item.box) * item.element_bits
        boxes[item.name] = TmaBox(item.name, item.tensor, item.box, item.swizzle_bytes, bits // 8)
    return boxes


def _check_box(item: TmaRequest, limits: Limits, reasons: list[str]) -> None:
    if not 1 <= len(item.box) <= limits.tma_rank:
        reasons.append(f"{item.field}.box: rank {len(item.box)}; valid: 1 to {limits.tma_rank} dimensions")
    for axis, extent in enumerate(item.box):
        if not 1 <= extent <= limits.tma_box_elements:
            reasons.append(
                f"{item.field}.box[{axis}]: {extent} elements of {item.tensor}; valid: 1 to {limits.tma_box_elements}"
            )
    inner_bits = item.box[-1] * item.element_bits if item.box else 0
    if inner_bits % 128:
        reasons.append(
            f"{item.field}.box[{len(item.box) - 1}]: {inner_bits / 8:g} B along the innermost dimension; "
            "valid: a multiple of 16 B"
        )
    if item.swizzle_bytes not in SWIZZLES_BYTES:
        reasons.append(f"{item.field}.swizzle: found {item.swizzle_bytes}; valid: 0, 32, 64, 128")
    elif item.swizzle_bytes and inner_bits > item.swizzle_bytes * 8:
        reasons.append(
            f"{item.field}.box[{len(item.box) - 1}]: {inner_bits // 8} B along the innermost dimension, the swizzle "
            f"spans {item.swizzle_bytes} B; valid: at most {item.swizzle_bytes * 8 // item.element_bits} elements"
        )


def _check_strides(item: TmaRequest, limits: Limits, reasons: list[str]) -> None:
    step = limits.tma_stride_align_bytes
    if item.stride_multiple_bytes % step:
        reasons.append(
            f"{item.field}.tensor: strides of {item.tensor} are multiples of {item.stride_multiple_bytes} B; "
            f"valid: multiples of {step} B (raise its stride_multiple)"
        )
    for axis, stride in enumerate(item.strides_bytes):
        if stride is not None and (stride % step or not 0 <= stride < 1 << limits.tma_stride_bits):
            reasons.append(
                f"{item.field}.tensor: stride {axis} of {item.tensor} is {stride:,} B; "
                f"valid: multiples of {step} B below 2^{limits.tma_stride_bits}"
            )


def _check_target(item: TmaRequest, aligned: dict[str, int], reasons: list[str]) -> None:
    needed = _ATOM_BYTES.get(item.swizzle_bytes)
    if item.into is None or needed is None:
        return
    if item.into not in aligned:
        reasons.append(f"{item.field}.into: found {item.into}; valid: {', '.join(aligned) or 'a shared-memory region'}")
    elif aligned[item.into] % needed:
        reasons.append(
            f"{item.field}.into: {item.into} is aligned to {aligned[item.into]} B, swizzle {item.swizzle_bytes} needs "
            f"{needed} B; valid: align: {needed} on {item.into}"
        )
