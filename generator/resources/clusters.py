"""Clusters, named barriers, and CTAs that share an SM: what is never scheduled, or waits for ever."""

from __future__ import annotations

from math import prod

from dsv4.generator.resources.limits import Limits
from dsv4.generator.resources.request import KernelRequest


def check(
    request: KernelRequest, limits: Limits, smem_bytes: int, tmem_columns: int, threads: int, reasons: list[str]
) -> None:
    """Appends to ``reasons`` why the cluster, the barriers, or ``blocks_per_sm`` CTAs on one SM, cannot be."""
    size = prod(request.cluster)
    most = limits.cluster_non_portable if request.non_portable_cluster else limits.cluster_portable
    if min(request.cluster) < 1 or size > most:
        shape = " × ".join(map(str, request.cluster))
        hint = (
            "" if request.non_portable_cluster else f" (up to {limits.cluster_non_portable} with non_portable_cluster)"
        )
        reasons.append(f"storage.cluster: {shape} = {size} CTAs cannot be scheduled; valid: 1 to {most} CTAs{hint}")
    if not 0 <= request.named_barriers <= limits.named_barriers:
        reasons.append(f"storage.named_barriers: found {request.named_barriers}; valid: 0 to {limits.named_barriers}")
    blocks = request.blocks_per_sm
    if not 1 <= blocks <= limits.ctas_per_sm:
        reasons.append(f"storage.blocks_per_sm: found {blocks}; valid: 1 to {limits.ctas_per_sm}")
        return
    if blocks == 1:
        return
    if tmem_columns * blocks > limits.tmem_columns > 0:
        reasons.append(
            f"storage.blocks_per_sm: {blocks} CTAs × {tmem_columns} TMEM columns = {tmem_columns * blocks}, "
            f"{limits.tmem_columns} on an SM; valid: at most {limits.tmem_columns // tmem_columns}, or fewer columns"
        )
    taken = (smem_bytes + limits.smem_reserved_bytes_per_cta) * blocks
    if taken > limits.smem_bytes_per_sm:
        reasons.append(
            f"storage.blocks_per_sm: {blocks} CTAs × {smem_bytes + limits.smem_reserved_bytes_per_cta:,} B of shared "
            f"memory = {taken:,} B, {limits.smem_bytes_per_sm:,} B on an SM; valid: fewer CTAs or smaller tiles"
        )
    if threads * blocks > limits.threads_per_sm:
        reasons.append(
            f"storage.blocks_per_sm: {blocks} CTAs × {threads} threads = {threads * blocks}, {limits.threads_per_sm} "
            f"on an SM; valid: at most {limits.threads_per_sm // threads}"
        )
