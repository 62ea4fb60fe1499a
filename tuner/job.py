"""What a pack of candidates asks of the machine that measures them, and what that machine answers."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from dsv4.runtime.artifact import Scalar, digest
from dsv4.runtime.tuned import Bucket, Device, Policy
from dsv4.tuner.protocol import Sizes

RESULTS_SCHEMA = 1


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Candidate(_Strict):
    """A compiled configuration: ``key`` is that of its artifact."""

    key: str
    config: dict[str, Scalar]
    numeric_class: str


class Job(_Strict):
    """The default and the candidates to be measured at ``sizes``, for a winner that serves ``bucket``."""

    op: str
    arch: str
    model: str | None
    dims: dict[str, int]
    variant: dict[str, Scalar]
    pinned: dict[str, Scalar]
    sizes: tuple[Sizes, ...]
    bucket: Bucket
    policy: Policy
    default: Candidate
    candidates: tuple[Candidate, ...]
    rounds: int = 15
    compare_rounds: int = 41
    seed: int = 0


class Results(_Strict):
    """The answer: an outcome for each candidate measured so far, and the comparison of the winner with the default."""

    dsv4_results: int = RESULTS_SCHEMA
    pack_sha256: str
    device: Device
    job: Job
    outcomes: list[dict[str, Any]] = Field(default_factory=list)
    """``Tried`` by field, the default first."""
    winner: str | None = None
    """The key of the artifact that was compared with the default, once that was done."""
    compared: list[dict[str, Any]] = Field(default_factory=list)
    is_done: bool = False
    sha256: str = ""

    def sealed(self) -> Results:
        """The same with its own sha256."""
        return self.model_copy(update={"sha256": self._own_sha256()})

    def is_whole(self) -> bool:
        return self.sha256 == self._own_sha256()

    def _own_sha256(self) -> str:
        return digest(self.model_dump(mode="json", exclude={"sha256"}))
