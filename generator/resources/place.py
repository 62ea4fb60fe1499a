"""From a request to a placed budget, or to every reason why there is none."""

from __future__ import annotations

from dsv4.generator.resources import clusters, registers, smem, tma, tmem
from dsv4.generator.resources.budget import Budget
from dsv4.generator.resources.limits import Limits
from dsv4.generator.resources.refused import Refused
from dsv4.generator.resources.request import KernelRequest


def place(request: KernelRequest, limits: Limits, arch: str) -> Budget:
    """Places ``request`` on a chip with ``limits``. Raises Refused with every reason found, not only the first."""
    reasons: list[str] = []
    regions, smem_bytes = smem.place(request, limits, reasons)
    columns, tmem_columns = tmem.place(request, limits, reasons)
    roles, threads, launch_registers = registers.place(request, limits, reasons)
    boxes = tma.place(request, limits, reasons)
    clusters.check(request, limits, smem_bytes, tmem_columns, threads, reasons)
    if reasons:
        raise Refused(reasons)
    return Budget(
        name=request.name,
        arch=arch,
        smem=regions,
        smem_bytes=smem_bytes,
        smem_limit_bytes=limits.smem_bytes_per_cta,
        tmem=columns,
        tmem_columns=tmem_columns,
        tmem_limit_columns=limits.tmem_columns,
        roles=roles,
        threads=threads,
        launch_registers=launch_registers,
        tma=boxes,
        allocation=request.allocation,
        cluster=request.cluster,
        blocks_per_sm=request.blocks_per_sm,
        named_barriers=request.named_barriers,
    )
