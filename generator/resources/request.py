"""What a kernel asks of its chip, in numbers: a spec's ``storage`` block with every expression evaluated.

``field`` is the place in the spec that a reason for refusal names. Nothing here knows YAML.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SmemRequest:
    """One shared-memory region of ``size_bytes`` on a multiple of ``align_bytes``; ``alias`` puts it onto another."""

    name: str
    size_bytes: int
    align_bytes: int
    dtype: str
    elements: int
    alias: str | None = None
    barriers: int = 0
    field: str = ""


@dataclass(frozen=True)
class TmemRequest:
    """One TMEM region of ``columns`` 32-bit columns × ``lanes``; ``overlaps`` puts it onto another on purpose."""

    name: str
    columns: int
    lanes: int
    first_lane: int
    align_columns: int
    dtype: str
    overlaps: str | None = None
    offset_columns: int = 0
    field: str = ""


@dataclass(frozen=True)
class RoleRequest:
    """``warps`` warps that do one job. ``registers``: the setmaxnreg value, or None for no setmaxnreg."""

    name: str
    warps: int
    registers: int | None
    field: str = ""


@dataclass(frozen=True)
class TmaRequest:
    """One TMA descriptor: box in elements, outermost first; strides in bytes, ``None`` where known at the call only."""

    name: str
    tensor: str
    element_bits: int
    box: tuple[int, ...]
    stride_multiple_bytes: int
    strides_bytes: tuple[int | None, ...]
    swizzle_bytes: int
    into: str | None = None
    field: str = ""


@dataclass(frozen=True)
class KernelRequest:
    """All that one launch asks for. ``cluster`` in CTAs (x, y, z); ``blocks_per_sm`` is min_blocks_per_mp."""

    name: str
    smem: tuple[SmemRequest, ...]
    tmem: tuple[TmemRequest, ...]
    roles: tuple[RoleRequest, ...]
    tma: tuple[TmaRequest, ...]
    allocation: str = "struct"
    cluster: tuple[int, int, int] = (1, 1, 1)
    non_portable_cluster: bool = False
    blocks_per_sm: int = 1
    launch_registers: int | None = None
    named_barriers: int = 1
