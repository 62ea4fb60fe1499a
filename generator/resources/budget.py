"""The placement of everything that one kernel takes, and how it is printed."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from dsv4.runtime.artifact import Resources


@dataclass(frozen=True)
class SmemRegion:
    """``size_bytes`` bytes at ``offset_bytes``; ``elements`` of ``dtype``. ``alias`` names the region whose bytes it
    shares (it is then no member of the kernel's struct). ``barriers`` > 0: that many mbarriers of 8 bytes."""

    name: str
    offset_bytes: int
    size_bytes: int
    align_bytes: int
    dtype: str
    elements: int
    alias: str | None = None
    barriers: int = 0

    @property
    def end_bytes(self) -> int:
        return self.offset_bytes + self.size_bytes


@dataclass(frozen=True)
class TmemRegion:
    """``columns`` 32-bit columns from ``first_column``, on ``lanes`` lanes from ``first_lane``."""

    name: str
    first_column: int
    columns: int
    first_lane: int
    lanes: int
    dtype: str
    overlaps: str | None = None

    @property
    def end_column(self) -> int:
        return self.first_column + self.columns

    @property
    def end_lane(self) -> int:
        return self.first_lane + self.lanes

    def touches(self, other: TmemRegion) -> bool:
        """Whether the two share a cell."""
        return (
            self.first_column < other.end_column
            and other.first_column < self.end_column
            and self.first_lane < other.end_lane
            and other.first_lane < self.end_lane
        )


@dataclass(frozen=True)
class Role:
    """Warps ``first_warp`` … ``first_warp + warps - 1``; ``registers`` is the setmaxnreg value or None."""

    name: str
    first_warp: int
    warps: int
    registers: int | None
    threads_per_warp: int = 32

    @property
    def threads(self) -> int:
        return self.warps * self.threads_per_warp

    @property
    def first_thread(self) -> int:
        return self.first_warp * self.threads_per_warp


@dataclass(frozen=True)
class TmaBox:
    """One TMA descriptor's box in elements, outermost first, and the bytes that one copy moves."""

    name: str
    tensor: str
    box: tuple[int, ...]
    swizzle_bytes: int
    transaction_bytes: int


@dataclass(frozen=True)
class Budget:
    """One launch, placed. ``smem_bytes`` is the dynamic shared memory that the host code asks for, ``tmem_columns``
    the operand of ``tcgen05.alloc`` (0 without TMEM), ``launch_registers`` the cap per thread at launch.

    ``further`` holds the budgets of an operator's other launches, by kernel name.
    """

    name: str
    arch: str
    smem: dict[str, SmemRegion]
    smem_bytes: int
    smem_limit_bytes: int
    tmem: dict[str, TmemRegion]
    tmem_columns: int
    tmem_limit_columns: int
    roles: dict[str, Role]
    threads: int
    launch_registers: int
    tma: dict[str, TmaBox]
    allocation: str = "struct"
    cluster: tuple[int, int, int] = (1, 1, 1)
    blocks_per_sm: int = 1
    named_barriers: int = 1
    further: dict[str, Budget] = field(default_factory=dict)

    @cached_property
    def smem_members(self) -> tuple[SmemRegion, ...]:
        """The members of the kernel's shared-memory struct, in order: regions that are no alias."""
        return tuple(region for region in self.smem.values() if region.alias is None)

    @property
    def barriers(self) -> int:
        """The number of mbarriers."""
        return sum(region.barriers for region in self.smem.values())

    def resources(self) -> Resources:
        """The prediction that goes into the manifest (registers are known after compiling only)."""
        return Resources(smem_bytes=self.smem_bytes, tmem_columns=self.tmem_columns, threads=self.threads)

    def table(self) -> list[str]:
        """The budget line by line, as ``dsv4-gen explain`` prints it."""
        from dsv4.generator.resources.table import lines

        return lines(self)
