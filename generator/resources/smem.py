"""Shared memory, laid out exactly as CuTeDSL lays out what a kernel allocates.

Measured on CuTeDSL 4.8.1 against the dynamic shared memory in the compiled host code
(``tests/generator/test_resources_cutedsl.py``):

* ``allocation: struct``: one ``cute.struct`` given to ``SmemAllocator.allocate``. C rules: each member on the next
  multiple of its alignment, the total rounded up to the largest alignment of a member.
* ``allocation: separate``: one ``SmemAllocator`` call for each region. Same offsets, but the total is not rounded.

The base is 1024-byte aligned in both cases (the chip reserves the first 1,024 bytes of a CTA's window).
"""

from __future__ import annotations

from dsv4.generator.resources.budget import SmemRegion
from dsv4.generator.resources.limits import Limits
from dsv4.generator.resources.request import KernelRequest, SmemRequest


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def place(request: KernelRequest, limits: Limits, reasons: list[str]) -> tuple[dict[str, SmemRegion], int]:
    """Regions by name, and the dynamic shared memory in bytes. Appends to ``reasons`` what cannot be."""
    regions: dict[str, SmemRegion] = {}
    end_bytes, align_bytes = 0, 1
    for item in request.smem:
        if not _well_formed(item, limits, reasons):
            continue
        if item.name in regions:
            reasons.append(
                f"{item.field}.name: {item.name} exists twice; valid: `when` conditions that exclude each other"
            )
        offset_bytes = round_up(end_bytes, item.align_bytes)
        if item.alias is not None:
            base = regions.get(item.alias)
            if base is None:
                reasons.append(f"{item.field}.alias: found {item.alias}; valid: a region placed before {item.name}")
                continue
            offset_bytes = base.offset_bytes
            if item.size_bytes > base.size_bytes:
                reasons.append(
                    f"{item.field}.bytes: {item.name} takes {item.size_bytes:,} B but its alias {base.name} has "
                    f"{base.size_bytes:,} B; valid: at most {base.size_bytes:,} B, or no alias"
                )
            if offset_bytes % item.align_bytes:
                reasons.append(
                    f"{item.field}.align: {item.name} needs multiples of {item.align_bytes} B but {base.name} lies at "
                    f"{offset_bytes} B; valid: align {base.name} to {item.align_bytes} B"
                )
        else:
            end_bytes = offset_bytes + item.size_bytes
            align_bytes = max(align_bytes, item.align_bytes)
        regions[item.name] = SmemRegion(
            name=item.name,
            offset_bytes=offset_bytes,
            size_bytes=item.size_bytes,
            align_bytes=item.align_bytes,
            dtype=item.dtype,
            elements=item.elements,
            alias=item.alias,
            barriers=item.barriers,
        )
    total_bytes = round_up(end_bytes, align_bytes) if request.allocation == "struct" else end_bytes
    if total_bytes > limits.smem_bytes_per_cta:
        largest = sorted((r for r in regions.values() if r.alias is None), key=lambda r: -r.size_bytes)[:3]
        parts = " + ".join(f"{region.name} {region.size_bytes:,}" for region in largest)
        reasons.append(
            f"storage.smem: {total_bytes:,} B of shared memory asked for, {limits.smem_bytes_per_cta:,} B per CTA "
            f"available ({total_bytes - limits.smem_bytes_per_cta:,} B too many; largest: {parts}); "
            "valid: fewer stages or smaller tiles"
        )
    return regions, total_bytes


def _well_formed(item: SmemRequest, limits: Limits, reasons: list[str]) -> bool:
    before = len(reasons)
    if item.size_bytes <= 0:
        reasons.append(f"{item.field}.bytes: {item.name} has {item.size_bytes} B; valid: at least 1 B, or a `when`")
    align = item.align_bytes
    if align <= 0 or align & (align - 1) or align > limits.smem_align_max_bytes:
        reasons.append(
            f"{item.field}.align: {item.name} asks for multiples of {align} B; "
            f"valid: powers of two up to {limits.smem_align_max_bytes}"
        )
    return len(reasons) == before
