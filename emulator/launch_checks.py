"""What the hardware refuses before a kernel begins: sizes of grid, block, cluster and shared memory."""

from __future__ import annotations

import math
from collections.abc import Iterator

from dsv4.emulator.kernels import Kernel
from dsv4.emulator.outcome import LaunchRecord
from dsv4.emulator.shim import OPTIN_SMEM_BYTES

MAX_THREADS = 1024
MAX_BLOCK = (1024, 1024, 64)
MAX_GRID = ((1 << 31) - 1, 65535, 65535)
MAX_CLUSTER_CTAS = 16
SMEM_WITHOUT_OPT_IN_BYTES = 49152


def refusals(launch: LaunchRecord, kernel: Kernel, max_dynamic_smem_bytes: int) -> Iterator[str]:
    """One line for each reason why this launch would fail. ``max_dynamic_smem_bytes``: opted in to; -1 never."""
    entry, block, cluster = kernel.entry, launch.block, launch.cluster
    threads, ctas = math.prod(block), math.prod(cluster)
    for axis, limit in zip(range(3), MAX_GRID, strict=True):
        if not 1 <= launch.grid[axis] <= limit:
            yield f"grid: found {launch.grid}; valid: 1 to {limit} along {'xyz'[axis]}"
    for axis, limit in zip(range(3), MAX_BLOCK, strict=True):
        if not 1 <= block[axis] <= limit:
            yield f"block: found {block}; valid: 1 to {limit} along {'xyz'[axis]}"
    if threads > MAX_THREADS:
        yield f"block: found {threads} threads; valid: at most {MAX_THREADS}"
    if entry.block_size is not None and tuple(entry.block_size) != block:
        yield f"block: found {block}; valid: {tuple(entry.block_size)} (.reqntid of the kernel)"
    if entry.max_threads is not None and threads > entry.max_threads:
        yield f"block: found {threads} threads; valid: at most {entry.max_threads} (.maxntid of the kernel)"
    if not 1 <= ctas <= MAX_CLUSTER_CTAS:
        yield f"cluster: found {ctas} CTAs; valid: 1 to {MAX_CLUSTER_CTAS}"
    if entry.cluster_size is not None and tuple(entry.cluster_size) != cluster:
        yield f"cluster: found {cluster}; valid: {tuple(entry.cluster_size)} (.reqnctapercluster of the kernel)"
    if any(size == 0 or extent % size for extent, size in zip(launch.grid, cluster, strict=True)):
        yield f"grid: found {launch.grid}; valid: a multiple of the cluster {cluster}"
    static, dynamic = kernel.module.static_shared_bytes, launch.dynamic_smem_bytes
    opted_in = SMEM_WITHOUT_OPT_IN_BYTES - static if max_dynamic_smem_bytes < 0 else max_dynamic_smem_bytes
    if static + dynamic > OPTIN_SMEM_BYTES:
        yield f"shared memory: found {static + dynamic} bytes; valid: at most {OPTIN_SMEM_BYTES}"
    elif dynamic > opted_in:
        yield f"shared memory: found {dynamic} dynamic bytes; valid: at most {opted_in}, which the host opted in to"
