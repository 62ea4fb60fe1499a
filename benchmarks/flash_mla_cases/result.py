"""What came out of the cases so far: counts, failures and the worst errors, and how far a run has come."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.flash_mla_cases.product import Case

FAILURES_KEPT = 200
"""With their findings; the counts are of all of them."""


@dataclass
class Result:
    """``worst``: by kind and error the largest, and in which case. ``done``: how many cases of the order have run."""

    done: int = 0
    planned: dict[str, int] = field(default_factory=dict)
    right: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    worst: dict[str, list[Any]] = field(default_factory=dict)
    failures: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    kernels: list[str] = field(default_factory=list)

    def begin(self, cases: Sequence[Case]) -> None:
        """``cases`` are those that there are. Raises ``ValueError`` when the earlier run had others."""
        planned = dict(sorted(Counter(case.group for case in cases).items()))
        if self.done and planned != self.planned:
            raise ValueError(f"--continue: planned: found {self.planned}; valid: {planned}")
        self.planned = planned

    def left(self, cases: Sequence[Case]) -> Iterator[Case]:
        yield from cases[self.done :]

    def add(self, case: Case, errors: dict[str, float], findings: list[str]) -> None:
        """How ``case``, the next in the order, ended."""
        self.done += 1
        (self.wrong if findings else self.right)[case.group] += 1
        if findings:
            self.failures.append({"case": case.label, "findings": findings, "errors": errors})
        kind = case.group.split()[0]
        for name, error in errors.items():
            key = f"{kind} {name}"
            if key not in self.worst or error > self.worst[key][0]:
                self.worst[key] = [error, case.label]

    def ended(self, seconds: float, kernels: list[str]) -> None:
        self.seconds += seconds
        self.kernels = sorted({*self.kernels, *kernels})

    def as_json(self) -> dict[str, Any]:
        right, wrong, planned = (sum(each.values()) for each in (self.right, self.wrong, self.planned))
        return {
            "seconds": round(self.seconds, 1),
            "total": {"planned": planned, "right": right, "wrong": wrong, "not_run": planned - self.done},
            "groups": {
                group: {"planned": count, "right": self.right[group], "wrong": self.wrong[group]}
                for group, count in self.planned.items()
            },
            "worst": {name: self.worst[name] for name in sorted(self.worst)},
            "failures": self.failures[:FAILURES_KEPT],
            "kernels": self.kernels,
        }

    @classmethod
    def read(cls, text: dict[str, Any]) -> Result:
        """From what ``as_json`` gave."""
        groups = text["groups"]
        result = cls(text["total"]["right"] + text["total"]["wrong"])
        result.planned = {group: each["planned"] for group, each in groups.items()}
        result.right = Counter({group: each["right"] for group, each in groups.items()})
        result.wrong = Counter({group: each["wrong"] for group, each in groups.items()})
        result.worst, result.failures = text["worst"], text["failures"]
        result.seconds, result.kernels = text["seconds"], text["kernels"]
        return result
