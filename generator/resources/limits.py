"""The limits of one chip, as ``specs/archs/<arch>.yaml`` states them under ``limits:``."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, PositiveInt


class Limits(BaseModel):
    """Hard limits; bytes, 32-bit TMEM columns, 32-bit registers. ``tmem_columns`` is 0 where there is no TMEM."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    smem_bytes_per_cta: PositiveInt
    smem_bytes_per_sm: PositiveInt
    smem_reserved_bytes_per_cta: int
    smem_align_max_bytes: PositiveInt
    registers_per_sm: PositiveInt
    registers_per_thread: PositiveInt
    register_granularity: PositiveInt
    setmaxnreg_min: PositiveInt
    setmaxnreg_max: PositiveInt
    threads_per_cta: PositiveInt
    threads_per_sm: PositiveInt
    threads_per_warp: PositiveInt
    warps_per_warpgroup: PositiveInt
    ctas_per_sm: PositiveInt
    cluster_portable: PositiveInt
    cluster_non_portable: PositiveInt
    tmem_columns: int
    tmem_lanes: int
    tmem_columns_min_allocation: int
    tma_rank: PositiveInt
    tma_box_elements: PositiveInt
    tma_stride_align_bytes: PositiveInt
    tma_stride_bits: PositiveInt
    named_barriers: PositiveInt
