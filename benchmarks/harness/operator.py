"""What one operator's benchmark has to say: its cases, its peers, its inputs, its check, its work."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

Inputs = dict[str, Any]
"""Arguments by name, outputs included; every call that writes into one takes it from here."""
Call = Callable[[Inputs], Any]
"""Runs a peer once on a set of inputs, asynchronously, and returns its output."""


class Unavailable(Exception):
    """A peer that cannot take part, with the reason in one line (not installed; a shape that it does not have)."""


def one_line(error: Exception) -> str:
    """What an error says, in one line of 200 characters at most."""
    return " ".join(str(error).split())[:200]


def proven(call: Call, cannot: str, passed_on: tuple[type[Exception], ...] = ()) -> Call:
    """``call``, whose first failure means that there is no such kernel for this chip or shape.

    ``cannot`` begins the reason ("flashinfer cannot"); errors of ``passed_on`` mean something else.
    """
    proved: list[bool] = []

    def guarded(s: Inputs) -> Any:
        if proved:
            return call(s)
        try:
            result = call(s)
        except passed_on:
            raise
        except Exception as error:
            raise Unavailable(f"{cannot} ({type(error).__name__}: {one_line(error)})") from None
        proved.append(True)
        return result

    return guarded


@dataclass(frozen=True)
class Case:
    """One measurement: a label that is unique within the operator, and the sizes that it stands for."""

    label: str
    sizes: Mapping[str, int | bool]


@dataclass(frozen=True)
class Work:
    """The fewest bytes of device memory that a call must move, and the floating-point operations that it must do."""

    bytes: int
    flops: int


@dataclass(frozen=True)
class Peer:
    """One implementation. ``prepare`` gives the call for a case or raises :class:`Unavailable`.

    ``shown``: whether it gets a column in the README's table. ``checked``: whether it computes the operator at all; a
    yardstick does not.
    """

    name: str
    prepare: Callable[[Case], Call]
    about: str = ""
    versions: Callable[[], Mapping[str, str]] = field(default=dict)
    shown: bool = True
    checked: bool = True


class OperatorBenchmark(Protocol):
    """An operator to be measured. ``ours`` names the peer that the ratios are taken against."""

    op: str
    ours: str

    def cases(self) -> Sequence[Case]: ...

    def peers(self) -> Sequence[Peer]: ...

    def make_inputs(self, case: Case, seed: int) -> Inputs:
        """Random inputs on the GPU and outputs full of NaN; another seed gives other inputs."""
        ...

    def check(self, case: Case, inputs: Inputs, output: Any) -> Mapping[str, float]:
        """Errors of ``output`` against a float64 result, by name; raises ``ValueError`` where it is wrong."""
        ...

    def work(self, case: Case) -> Work: ...
