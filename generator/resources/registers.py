"""Threads, and the register file that they share.

At launch every thread holds the same number of registers: ptxas allots ``registers_per_sm / threads`` (rounded down
to 8, at most 255) when the kernel states its thread count. ``setmaxnreg`` then moves registers between warpgroups
within what the CTA got at launch (PTX ISA, setmaxnreg: a multiple of 8 in 24…256, executed by all warps of a
warpgroup alike). A pool that is promised more than it has blocks for ever, which no compiler reports.
"""

from __future__ import annotations

from dsv4.generator.resources.budget import Role
from dsv4.generator.resources.limits import Limits
from dsv4.generator.resources.request import KernelRequest
from dsv4.generator.resources.smem import round_up


def launch_registers(threads: int, blocks_per_sm: int, limits: Limits) -> int:
    """The most registers that each thread can hold at launch."""
    share = limits.registers_per_sm // max(1, threads * blocks_per_sm)
    return min(share // limits.register_granularity * limits.register_granularity, limits.registers_per_thread)


def place(request: KernelRequest, limits: Limits, reasons: list[str]) -> tuple[dict[str, Role], int, int]:
    """Roles by name, threads per CTA, registers per thread at launch. Appends to ``reasons`` what cannot be."""
    roles: dict[str, Role] = {}
    first_warp = 0
    for item in request.roles:
        if item.warps <= 0:
            reasons.append(f"{item.field}.warps: {item.name} has {item.warps} warps; valid: at least 1, or a `when`")
            continue
        if item.registers is not None:
            _check_value(item.field, item.name, item.registers, limits, reasons)
        roles[item.name] = Role(item.name, first_warp, item.warps, item.registers, limits.threads_per_warp)
        first_warp += item.warps
    threads = first_warp * limits.threads_per_warp
    if threads == 0:
        reasons.append("storage.roles: no warps; valid: at least one role")
        return roles, 0, 0
    if threads > limits.threads_per_cta:
        sizes = " + ".join(f"{role.name} {role.threads}" for role in roles.values())
        reasons.append(
            f"storage.roles: {threads} threads ({sizes}), {limits.threads_per_cta} per CTA available; "
            "valid: fewer warps"
        )
        return roles, threads, 0
    most = launch_registers(threads, request.blocks_per_sm, limits)
    at_launch = most if request.launch_registers is None else request.launch_registers
    if at_launch > most or at_launch <= 0:
        reasons.append(
            f"storage.launch_registers: {at_launch} registers × {threads} threads × {request.blocks_per_sm} CTAs = "
            f"{at_launch * threads * request.blocks_per_sm:,}, the file has {limits.registers_per_sm:,}; "
            f"valid: at most {most}, or fewer warps"
        )
    if any(role.registers is not None for role in roles.values()):
        _check_pool(roles, threads, at_launch, limits, reasons)
    return roles, threads, at_launch


def _check_value(field: str, name: str, registers: int, limits: Limits, reasons: list[str]) -> None:
    low, high, step = limits.setmaxnreg_min, limits.setmaxnreg_max, limits.register_granularity
    if not low <= registers <= high or registers % step:
        reasons.append(
            f"{field}.registers: {name} asks for {registers}; valid: multiples of {step} in {low}..{high} (setmaxnreg)"
        )


def _check_pool(roles: dict[str, Role], threads: int, at_launch: int, limits: Limits, reasons: list[str]) -> None:
    """Every warp of a warpgroup sets the same value, and the values together fit what the CTA got at launch."""
    size = limits.warps_per_warpgroup
    by_warp = [role for role in roles.values() for _ in range(role.warps)]
    if len(by_warp) % size:
        reasons.append(
            f"storage.roles: {len(by_warp)} warps with setmaxnreg; valid: whole warpgroups of {size} warps "
            "(add idle warps to a role)"
        )
        return
    for first in range(0, len(by_warp), size):
        group = by_warp[first : first + size]
        if len({role.registers for role in group}) > 1:
            names = ", ".join(dict.fromkeys(f"{role.name} {role.registers}" for role in group))
            reasons.append(
                f"storage.roles: warps {first}..{first + size - 1} are one warpgroup but set different registers "
                f"({names}); valid: the same value for each of them"
            )
    wanted = sum((role.registers or at_launch) * role.threads for role in roles.values())
    pool = round_up(at_launch, limits.register_granularity) * threads  # 255 takes 256 of the file
    if wanted > pool:
        sizes = " + ".join(f"{role.name} {role.threads}×{role.registers or at_launch}" for role in roles.values())
        reasons.append(
            f"storage.roles: {wanted:,} registers ({sizes}), {pool:,} held at launch "
            f"({threads} threads × {at_launch}); valid: smaller `registers` or fewer warps"
        )
