"""A budget as text, line by line, with units and what is left."""

from __future__ import annotations

from dsv4.generator.resources.budget import Budget


def lines(budget: Budget) -> list[str]:
    """The lines of ``budget`` and of the launches that follow it."""
    text = [f"{budget.name} on {budget.arch}"]
    text += _smem(budget) + _tmem(budget) + _roles(budget) + _tma(budget)
    if budget.cluster != (1, 1, 1) or budget.blocks_per_sm != 1:
        shape = "×".join(map(str, budget.cluster))
        text.append(f"launch       cluster {shape}, {budget.blocks_per_sm} CTAs an SM")
    for further in budget.further.values():
        text += ["", *lines(further)]
    return text


def _smem(budget: Budget) -> list[str]:
    left = budget.smem_limit_bytes - budget.smem_bytes
    text = [f"smem         {budget.smem_bytes:>9,} B of {budget.smem_limit_bytes:,} B ({left:,} B left)"]
    for region in budget.smem.values():
        what = f"{region.barriers} mbarriers" if region.barriers else f"{region.elements:,} × {region.dtype}"
        share = f", shares the bytes of {region.alias}" if region.alias else ""
        text.append(
            f"  {region.name:<12} {region.size_bytes:>7,} B at {region.offset_bytes:>7,}"
            f"  ({what}, aligned to {region.align_bytes} B{share})"
        )
    return text


def _tmem(budget: Budget) -> list[str]:
    if not budget.tmem:
        return ["tmem         none"]
    text = [f"tmem         {budget.tmem_columns:>9} columns of {budget.tmem_limit_columns} allocated"]
    for region in budget.tmem.values():
        base = budget.tmem[region.overlaps] if region.overlaps else None
        share = (
            "" if base is None else f", on {base.name} on purpose" if region.touches(base) else f", beside {base.name}"
        )
        text.append(
            f"  {region.name:<12} columns {region.first_column:>3}..{region.end_column - 1:<3} lanes "
            f"{region.first_lane}..{region.end_lane - 1}  ({region.columns} columns of {region.dtype}{share})"
        )
    return text


def _roles(budget: Budget) -> list[str]:
    text = [f"threads      {budget.threads:>9}, at most {budget.launch_registers} registers each at launch"]
    for role in budget.roles.values():
        registers = f"setmaxnreg {role.registers}" if role.registers else "no setmaxnreg"
        text.append(f"  {role.name:<12} warps {role.first_warp}..{role.first_warp + role.warps - 1}  ({registers})")
    held = sum((role.registers or budget.launch_registers) * role.threads for role in budget.roles.values())
    return [*text, f"registers    {held:>9,} at most", f"barriers     {budget.barriers:>9} mbarriers"]


def _tma(budget: Budget) -> list[str]:
    return [
        f"tma          {box.name}: box {'×'.join(map(str, box.box))} of {box.tensor}, swizzle {box.swizzle_bytes} B, "
        f"{box.transaction_bytes:,} B a copy"
        for box in budget.tma.values()
    ]
