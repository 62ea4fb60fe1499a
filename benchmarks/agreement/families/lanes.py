"""What lanes exchange: shfl, vote, match, redux, elect, activemask; special registers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from benchmarks.agreement.probe import Probe
from benchmarks.agreement.tables import mixed_u32, table

COUNT = 1024
FIRST_20, ODD = 0x000FFFFF, 0xAAAAAAAA


def _shuffles() -> list[tuple[str, str]]:
    rows = []
    for mode in ("idx", "up", "down", "bfly"):
        for clamp in (0, 31, 0x1F, 0x1807, 0x101F, 0x1C03):
            for offset in (1, 3, 16, 31):
                form = f"shfl.sync.{mode}.b32"
                rows.append((f"{form} {offset} {clamp:#x}", f"{form} d|p, a, {offset}, {clamp}, -1;"))
                rows.append(
                    (
                        f"{form} {offset} {clamp:#x} valid",
                        f"{form} t0|p, a, {offset}, {clamp}, -1; selp.b32 d, 1, 0, p;",
                    )
                )
        rows.append((f"shfl {mode} by lane", f"and.b32 t0, b, 63; shfl.sync.{mode}.b32 d|p, a, t0, 31, -1;"))
        rows.append((f"shfl {mode} all operands", f"shfl.sync.{mode}.b32 d|p, a, b, c, -1;"))
    return rows


def _reductions() -> list[tuple[str, str]]:
    rows = []
    for form in ("add.s32", "add.u32", "min.s32", "max.s32", "min.u32", "max.u32", "and.b32", "or.b32", "xor.b32"):
        rows.append((f"redux.{form}", f"redux.sync.{form} d, a, -1;"))
        rows.append(
            (
                f"redux.{form} of 20 lanes",
                f"mov.b32 d, 5; setp.lt.u32 p, lane, 20; @p redux.sync.{form} d, a, {FIRST_20};",
            )
        )
    return rows


def _votes() -> list[tuple[str, str]]:
    odd = "and.b32 t0, lane, 1; setp.eq.u32 p, t0, 1;"
    rows = [("ballot", "setp.lt.s32 p, a, 0; vote.sync.ballot.b32 d, p, -1;")]
    for mode in ("all", "any", "uni"):
        for negated in ("", "!"):
            rows.append(
                (
                    f"vote.{mode} {negated}",
                    f"setp.lt.s32 p, g, 0; vote.sync.{mode}.pred q, {negated}p, -1; selp.b32 d, 1, 0, q;",
                )
            )
    rows += [
        ("ballot of odd lanes", f"mov.b32 d, 0; {odd} setp.lt.s32 q, a, 0; @p vote.sync.ballot.b32 d, q, {ODD};"),
        ("match.any.b32", "and.b32 t0, a, 3; match.any.sync.b32 d, t0, -1;"),
        ("match.all.b32", "match.all.sync.b32 d|p, g, -1;"),
        ("match.all.b32 equal", "match.all.sync.b32 t0|p, g, -1; selp.b32 d, 1, 0, p;"),
        ("match.any.b64", "and.b32 t0, a, 1; and.b32 t1, b, 1; mov.b64 w0, {t0, t1}; match.any.sync.b64 d, w0, -1;"),
        ("match.any of odd lanes", f"mov.b32 d, 0; {odd} and.b32 t1, a, 3; @p match.any.sync.b32 d, t1, {ODD};"),
        ("elect", "elect.sync t0|p, -1; selp.b32 d, 1, 0, p;"),
        ("elect register", "elect.sync d|p, -1;"),
        ("elect of odd lanes", f"mov.b32 d, 7; {odd} @!p bra SKIP; elect.sync t0|q, {ODD}; selp.b32 d, 1, 0, q; SKIP:"),
        ("activemask", "activemask.b32 d;"),
        ("lanemasks", "mov.u32 t0, %lanemask_lt; mov.u32 t1, %lanemask_ge; xor.b32 d, t0, t1;"),
        ("lanemask_le", "mov.u32 d, %lanemask_le;"),
        ("lanemask_gt", "mov.u32 d, %lanemask_gt;"),
        ("lanemask_eq", "mov.u32 d, %lanemask_eq;"),
        ("ntid", "mov.u32 d, %ntid.x;"),
        ("nctaid", "mov.u32 d, %nctaid.x;"),
        ("cluster_nctarank", "mov.u32 d, %cluster_nctarank;"),
        ("nclusterid", "mov.u32 d, %nclusterid.x;"),
        ("clusterid", "mov.u32 d, %clusterid.x;"),
        ("dynamic_smem_size", "mov.u32 d, %dynamic_smem_size;"),
        ("address of dynamic shared memory", "mov.u32 d, %smem;"),
        ("total_smem_size", "mov.u32 d, %total_smem_size;"),
    ]  # fmt: skip
    return rows


def probes() -> Iterator[Probe]:
    rng = np.random.default_rng(51)
    a, b, c = (mixed_u32(rng, COUNT) for _ in range(3))
    uniform = np.repeat(mixed_u32(rng, COUNT)[: COUNT // 32], 32)  # in half of the warps all lanes hold the same
    g = np.where(np.arange(COUNT) // 32 % 2, uniform, a).astype(np.uint32)
    yield table("lanes", "shuffles", _shuffles(), {"a": a, "b": b, "c": c})
    yield table("lanes", "reductions", _reductions(), {"a": a})
    votes = table("lanes", "votes", _votes(), {"a": a, "b": b, "g": g})
    yield replace(votes, open_rows=tuple(label for label in votes.labels if label.startswith("elect")))
