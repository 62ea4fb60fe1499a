"""Which kernels a command is about: the options --op, --arch, --model, --dims, --variant and --set, resolved."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import typer

from dsv4.generator.console import UsageError, parse_assignments, parse_sizes
from dsv4.generator.kernel import KernelPlan
from dsv4.generator.spec import default_plans, list_archs, list_models, list_ops, load_op, plan
from dsv4.runtime.cache import Artifact, KernelCache

Op = Annotated[str | None, typer.Option("--op", help="One operator (default: all that have a template).")]
Arch = Annotated[str | None, typer.Option("--arch", help="sm_90a or sm_100a (default: both).")]
Model = Annotated[str | None, typer.Option("--model", help="flash, pro or tiny: take dimensions from this model.")]
Dims = Annotated[list[str], typer.Option("--dims", help="A dimension, NAME=SIZE; repeatable.")]
Variant = Annotated[list[str], typer.Option("--variant", help="A flag, NAME=true|false; repeatable.")]
Set = Annotated[list[str], typer.Option("--set", help="A tunable, NAME=VALUE; repeatable.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output, nothing else.")]


@dataclass(frozen=True)
class Selection:
    """What the command line asked for, checked against what exists."""

    op: str | None = None
    arch: str | None = None
    model: str | None = None
    dims: list[str] = field(default_factory=list)
    variant: list[str] = field(default_factory=list)
    config: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        _known("--op", self.op, list_ops())
        _known("--arch", self.arch, list_archs())
        _known("--model", self.model, list_models())

    @property
    def ops(self) -> list[str]:
        return [self.op] if self.op else [op for op in list_ops() if load_op(op).status == "ready"]

    @property
    def archs(self) -> list[str]:
        if self.arch:
            return [self.arch]
        return [arch for arch in list_archs() if self.op is None or arch in load_op(self.op).archs]

    def plans(self) -> list[KernelPlan]:
        """Every kernel selected: the defaults, or the one that --dims, --variant and --set describe, per arch.

        Raises:
            UsageError: --dims, --variant or --set without --op.
            SpecError, Refused: what was asked for does not exist or does not fit.
        """
        if not (self.dims or self.variant or self.config):
            return [each for op in self.ops for arch in self.archs for each in default_plans(op, arch, self.model)]
        if self.op is None:
            raise UsageError("--dims, --variant and --set need --op: their names belong to one operator")
        return [self.single(arch) for arch in self.archs]

    def single(self, arch: str) -> KernelPlan:
        assert self.op is not None
        return plan(
            self.op,
            arch,
            model=self.model,
            dims=parse_sizes("--dims", self.dims),
            variant=parse_assignments("--variant", self.variant),
            config=parse_assignments("--set", self.config),
        )


def cached_artifacts(op: str | None, arch: str | None) -> tuple[KernelCache, list[Artifact]]:
    """The kernel cache, and every artifact in it of ``op`` and ``arch`` (``None``: of all), failed checks or not.

    Raises:
        UsageError: there is no such operator or arch, or the cache cannot be trusted.
        ArtifactRefused: an artifact's manifest cannot be read.
    """
    Selection(op, arch)
    cache = KernelCache()
    if cache.refused:
        raise UsageError(f"kernel cache refused: {cache.refused}")
    kinds = [kind for kind in cache.kinds() if op in (None, kind[0]) and arch in (None, kind[1])]
    folders = [folder for kind in kinds for folder in sorted(cache.folder(*kind).glob("[!.]*"))]
    return cache, [Artifact.read(folder) for folder in folders]


def _known(option: str, value: str | None, valid: list[str]) -> None:
    if value is not None and value not in valid:
        raise UsageError(f"{option}: found '{value}'; valid: {', '.join(valid)}")
