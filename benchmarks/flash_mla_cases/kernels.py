"""The kernels that the cases need, for a machine without a compiler: their default configurations for sm_90a."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.flash_mla_cases.product import Case, Decode, all_cases

if TYPE_CHECKING:
    from dsv4.generator.kernel import KernelPlan

Need = tuple[str, int, tuple[tuple[str, int | float | str], ...]]


def need_of(case: Case) -> Need:
    """Operator, heads and variant of what serves ``case``."""
    if not isinstance(case, Decode):
        flags: dict[str, int | float | str] = {"has_length": case.has_length, "has_sink": case.has_sink}
        return "sparse_attention_prefill", case.heads, tuple(flags.items())
    flags = {"extra": "rows" if len(case.scopes) == 2 else "none", "has_sink": case.has_sink}
    flags |= {f"has_length{i}": scope.has_length for i, scope in enumerate(case.scopes)}
    return "sparse_attention_decode", case.heads, tuple(flags.items())


def plans() -> list[KernelPlan]:
    """Each once."""
    from dsv4.generator.spec import plan

    needs = dict.fromkeys(need_of(case) for case in all_cases())
    return [plan(op, "sm_90a", dims={"H": heads}, variant=dict(flags)) for op, heads, flags in sorted(needs, key=str)]


def names_of_all() -> list[str]:
    return [each.name for each in plans()]


def build_all(cache: Path) -> list[str]:
    """Build what ``cache`` has not yet; what could not be built, a line each."""
    from dsv4.generator.build import build

    ended = build(plans(), cache_root=cache, jobs=1)
    return [f"{each.plan.name}: {each.error}" for each in ended if each.artifact is None]
