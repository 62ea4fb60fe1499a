"""Words (u32) that a CTA writes into the shared memory of another CTA of its cluster, and the barrier that ends it."""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Int32, Uint32


@cute.jit
def send(words: list[Uint32], target: cute.Pointer, cta: Int32, ctas: cutlass.Constexpr[int]) -> None:
    """Store one, two or four ``words`` where ``target`` (in this CTA's shared memory) lies in that of CTA ``cta``.

    ``target`` is aligned to the words' bytes. CTA ``cta`` has begun and does not end before the next
    :func:`cluster_sync`, which makes the words visible to it. A cluster of one CTA needs no address of another.
    """
    if cutlass.const_expr(ctas == 1):
        own = cute.make_tensor(target, cute.make_layout((len(words),)))
        for i in cutlass.range_constexpr(len(words)):
            own[i] = words[i]
    else:
        theirs = cute.arch.map_dsmem_ptr(target, cta).toint()
        if cutlass.const_expr(len(words) == 1):
            cute.arch.inline_ptx("st.shared::cluster.b32 [{$r0}], {$r1};", read_only_args=[theirs, *words])
        elif cutlass.const_expr(len(words) == 2):
            cute.arch.inline_ptx("st.shared::cluster.v2.b32 [{$r0}], {{$r1}, {$r2}};", read_only_args=[theirs, *words])
        else:
            cute.arch.inline_ptx(
                "st.shared::cluster.v4.b32 [{$r0}], {{$r1}, {$r2}, {$r3}, {$r4}};", read_only_args=[theirs, *words]
            )


@cute.jit
def cluster_sync(ctas: cutlass.Constexpr[int]) -> None:
    """All threads of the cluster meet; what they wrote to shared memory before is visible after."""
    if cutlass.const_expr(ctas == 1):
        cute.arch.sync_threads()
    else:
        cute.arch.cluster_arrive()
        cute.arch.cluster_wait()
