"""The calibration that is shipped: coefficients, the dated files that they come from, and those without an operator."""

from __future__ import annotations

import json
from functools import lru_cache
from importlib.resources import files
from typing import Literal

from pydantic import BaseModel, ConfigDict, model_validator

from dsv4.tuner.cost.model import NAMES, Coefficients

FILE = "calibration.json"
CALIBRATION_SCHEMA: Literal[1] = 1


class Calibration(BaseModel):
    """``without`` holds, for each operator, what was found from the others: what a score of that operator must use."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    calibration_schema: Literal[1] = CALIBRATION_SCHEMA
    date: str
    arch: str
    device: str
    sources: tuple[str, ...]
    calls: int
    coefficients: dict[str, float]
    without: dict[str, dict[str, float]]

    @model_validator(mode="after")
    def _complete(self) -> Calibration:
        for where, values in (("coefficients", self.coefficients), *self.without.items()):
            if tuple(values) != NAMES:
                raise ValueError(f"{where}: found {', '.join(values)}; valid: {', '.join(NAMES)}")
        return self

    def of(self, *, without: str | None = None) -> Coefficients:
        """The coefficients; ``without``: as found from all operators but this one (those of all where it is not one of
        the measured)."""
        return Coefficients(**self.without.get(without or "", self.coefficients))

    def trust(self, arch: str) -> str:
        """In words, how far a prediction on ``arch`` is to be believed."""
        if arch == self.arch:
            return f"calibrated on {self.device}, {self.date}; not measured"
        return f"untested: datasheet rates of {arch} with efficiencies calibrated on {self.device}; not measured"


@lru_cache(maxsize=1)
def shipped() -> Calibration:
    """The calibration of this installation."""
    return Calibration.model_validate(json.loads(files("dsv4.tuner.cost").joinpath(FILE).read_text(encoding="utf-8")))
