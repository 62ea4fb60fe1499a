"""What the rooms of the generator hand to one another: a kernel that is planned, and a kernel that is emitted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dsv4.runtime.artifact import Contract, Resources, Scalar, digest

if TYPE_CHECKING:
    from dsv4.generator.resources.budget import Budget


@dataclass(frozen=True)
class KernelPlan:
    """One kernel, decided in every particular and known to fit its chip; made by ``generator.spec.plan``.

    ``variant`` holds the flags that this compiled kernel takes (``causal`` …), ``config`` the values of its tunables
    (``tile_m`` …, ``opt_level``), ``dims`` the static dimensions (``D`` …). ``template`` is the path of the template
    below ``generator/templates`` and ``budget`` the placement that the template writes into the source.
    """

    op: str
    arch: str
    model: str | None
    dims: dict[str, int]
    variant: dict[str, Scalar]
    config: dict[str, Scalar]
    is_default: bool
    template: str
    budget: Budget
    predicted: Resources
    contract: Contract
    numeric_class: str
    spec_sha256: str
    compute_capabilities: tuple[tuple[int, int], ...]
    build_target: str
    forbid_spills: bool
    compile_seconds_limit: float
    bucket: dict[str, tuple[int, int | None]] = field(default_factory=dict)

    @property
    def identity(self) -> dict[str, object]:
        return {
            "op": self.op,
            "arch": self.arch,
            "dims": self.dims,
            "variant": self.variant,
            "config": self.config,
        }

    @property
    def name(self) -> str:
        """A readable name, unique by its last eight characters: ``fmha_sm90a_D128_causal_1f00ba12``."""
        dims = "".join(f"_{k}{v}" for k, v in self.dims.items())
        flags = "".join(f"_{k}" if v is True else f"_{k}{v}" for k, v in self.variant.items() if v is not False)
        return f"{self.op}_{self.arch.replace('_', '')}{dims}{flags}_{digest(self.identity)[:8]}"


@dataclass(frozen=True)
class EmittedSource:
    """A CuTeDSL module as text. ``devices`` names the ``generator/device`` modules that it really imports."""

    plan: KernelPlan
    text: str
    sha256: str
    devices: tuple[str, ...]
