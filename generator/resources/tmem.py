"""Tensor memory: 512 columns × 128 lanes of 32 bits a CTA on Blackwell, none on Hopper.

Regions are placed one after the other; a region that ``overlaps`` another on purpose lies inside that one's columns
(P on S: the probabilities replace the logits that they came from). No other two regions may share a cell, and the
templates take first columns from here, never from ``find_tmem_tensor_col_offset`` (which is a footprint, not a free
column). The allocation is a power of two of at least 32 columns (PTX ISA, tcgen05.alloc).
"""

from __future__ import annotations

from itertools import combinations

from dsv4.generator.resources.budget import TmemRegion
from dsv4.generator.resources.limits import Limits
from dsv4.generator.resources.request import KernelRequest, TmemRequest
from dsv4.generator.resources.smem import round_up


def allocation_columns(end_column: int, minimum: int) -> int:
    """The operand of tcgen05.alloc that covers ``end_column`` columns: a power of two, at least ``minimum``."""
    return 0 if end_column == 0 else max(minimum, 1 << (end_column - 1).bit_length())


def place(request: KernelRequest, limits: Limits, reasons: list[str]) -> tuple[dict[str, TmemRegion], int]:
    """Regions by name and the columns to allocate. Appends to ``reasons`` what cannot be."""
    if request.tmem and limits.tmem_columns == 0:
        reasons.append(f"storage.tmem: {len(request.tmem)} regions asked for; valid: none, this chip has no TMEM")
        return {}, 0
    regions: dict[str, TmemRegion] = {}
    end_column = 0
    for item in request.tmem:
        if not _well_formed(item, limits, reasons):
            continue
        first_column = round_up(end_column, item.align_columns)
        if item.overlaps is not None:
            base = regions.get(item.overlaps)
            if base is None:
                reasons.append(
                    f"{item.field}.overlaps: found {item.overlaps}; valid: a region placed before {item.name}"
                )
                continue
            first_column = base.first_column + item.offset_columns
            if first_column + item.columns > base.end_column:
                reasons.append(
                    f"{item.field}.columns: {item.name} ends at column {first_column + item.columns}, beyond "
                    f"{base.name}, which ends at {base.end_column}; valid: at most "
                    f"{base.columns - item.offset_columns} columns"
                )
            if first_column % item.align_columns:
                reasons.append(
                    f"{item.field}.align: {item.name} needs multiples of {item.align_columns} columns but lies at "
                    f"{first_column}; valid: an offset on such a multiple"
                )
        regions[item.name] = TmemRegion(
            name=item.name,
            first_column=first_column,
            columns=item.columns,
            first_lane=item.first_lane,
            lanes=item.lanes,
            dtype=item.dtype,
            overlaps=item.overlaps,
        )
        end_column = max(end_column, first_column + item.columns)
    _check_overlaps(regions, request, reasons)
    columns = allocation_columns(end_column, limits.tmem_columns_min_allocation)
    if columns > limits.tmem_columns:
        parts = " + ".join(f"{r.name} {r.columns}" for r in regions.values() if r.overlaps is None)
        reasons.append(
            f"storage.tmem: {end_column} columns asked for ({parts}), {limits.tmem_columns} available; "
            "valid: fewer columns (smaller tile_n or pv_n_tile)"
        )
    return regions, columns


def _check_overlaps(regions: dict[str, TmemRegion], request: KernelRequest, reasons: list[str]) -> None:
    """Two regions may share a cell only if one overlaps the other on purpose."""
    fields = {item.name: item.field for item in request.tmem}
    for one, two in combinations(regions.values(), 2):
        if one.touches(two) and two.overlaps != one.name and one.overlaps != two.name:
            reasons.append(
                f"{fields[two.name]}: {two.name} (columns {two.first_column}..{two.end_column - 1}) shares cells with "
                f"{one.name} (columns {one.first_column}..{one.end_column - 1}); valid: other columns or other lanes"
            )


def _well_formed(item: TmemRequest, limits: Limits, reasons: list[str]) -> bool:
    before = len(reasons)
    if item.columns <= 0:
        reasons.append(f"{item.field}.columns: {item.name} has {item.columns}; valid: at least 1 column, or a `when`")
    if item.lanes <= 0 or item.first_lane < 0 or item.first_lane + item.lanes > limits.tmem_lanes:
        reasons.append(
            f"{item.field}.lanes: {item.name} takes lanes {item.first_lane}..{item.first_lane + item.lanes - 1}; "
            f"valid: within 0..{limits.tmem_lanes - 1}"
        )
    if item.align_columns <= 0 or item.align_columns & (item.align_columns - 1):
        reasons.append(f"{item.field}.align: found {item.align_columns}; valid: a power of two")
    if item.offset_columns < 0:
        reasons.append(f"{item.field}.offset: found {item.offset_columns}; valid: 0 or more columns")
    return len(reasons) == before
