"""When a sweep ends: after so many configurations, after so long, or when nothing better comes any more."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

from dsv4.generator.console import UsageError

_SECONDS = {"s": 1, "m": 60, "h": 3600}
VALID = "a number of configurations (40), a time (90s, 10m, 1.5h), or one of each"


@dataclass(frozen=True)
class Budget:
    """``configurations`` counts those of the whole study, however many processes and runs share it; ``seconds`` is for
    this run; ``patience`` is how many configurations may follow without a better one."""

    configurations: int | None = None
    seconds: float | None = None
    patience: int | None = None

    @classmethod
    def parse(cls, texts: Sequence[str], patience: int | None = None) -> Budget:
        """``["40"]``, ``["10m"]`` or both. Raises UsageError for what is neither, and for contradictions."""
        configurations: int | None = None
        seconds: float | None = None
        for text in (part.strip() for each in texts for part in each.split(",")):
            match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
            if re.fullmatch(r"[1-9]\d*", text) and configurations is None:
                configurations = int(text)
            elif match and float(match[1]) > 0 and seconds is None:
                seconds = float(match[1]) * _SECONDS[match[2]]
            else:
                twice = configurations is not None or seconds is not None
                told = f"'{text}' after another one" if twice and (match or text.isdigit()) else f"'{text}'"
                raise UsageError(f"--budget: found {told}; valid: {VALID}")
        if patience is not None and patience < 1:
            raise UsageError(f"--patience: found {patience}; valid: a number of configurations from 1")
        if patience is not None and configurations is not None and patience >= configurations:
            raise UsageError(
                f"--patience: found {patience} with a budget of {configurations} configurations, which ends first; "
                f"valid: 1..{configurations - 1}"
                if configurations > 1
                else f"--patience: found {patience} with a budget of 1 configuration; valid: no --patience"
            )
        return cls(configurations, seconds, patience)

    def words(self) -> str:
        """For a person."""
        parts = [f"{self.configurations} configurations"] if self.configurations else []
        parts += [f"{self.seconds:g} s"] if self.seconds else []
        parts += [f"{self.patience} without a better one"] if self.patience else []
        return " or ".join(parts) or "the whole space"


class Meter:
    """Watches a budget in one run."""

    def __init__(self, budget: Budget) -> None:
        self.budget, self._began = budget, time.monotonic()

    @property
    def spent_s(self) -> float:
        return time.monotonic() - self._began

    def over(self, scores: Sequence[float | None], taken: int) -> str | None:
        """Why the sweep ends, in words, or None. ``scores`` are all outcomes in their order (None: failed), ``taken``
        counts what is claimed or told."""
        budget = self.budget
        if budget.configurations is not None and taken >= budget.configurations:
            return f"the budget of {budget.configurations} configurations is spent"
        if budget.seconds is not None and self.spent_s >= budget.seconds:
            return f"the budget of {budget.seconds:g} s is spent"
        if budget.patience is not None and since_best(scores) >= budget.patience:
            return f"{budget.patience} configurations brought nothing better"
        return None


def since_best(scores: Sequence[float | None]) -> int:
    """Outcomes after the best one; 0 while there is none."""
    passed = [(score, place) for place, score in enumerate(scores) if score is not None]
    return len(scores) - 1 - min(passed)[1] if passed else 0
