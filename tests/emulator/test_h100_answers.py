"""The emulator against a real H100, without one: hashes of what it answered to some six hundred small kernels.

`data/h100_answers.json` is written by `python -m benchmarks.agreement answers`; docs/notes/emulator_vs_h100.md says how
it was measured. Where a hash differs, `python -m benchmarks.agreement compare` on a new collection shows the values.
"""

from __future__ import annotations

import importlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from benchmarks.agreement.answers import digest
from benchmarks.agreement.errors import PROMISES, operands_of, promises_of
from benchmarks.agreement.families import MODULES
from benchmarks.agreement.probe import OUT, Probe
from dsv4.emulator.oracle import matrix
from dsv4.emulator.policy import FIXED

DATA = Path(__file__).parent / "data"
APPROXIMATE = "functions"


@cache
def answers() -> dict[str, str]:
    found: dict[str, str] = json.loads((DATA / "h100_answers.json").read_text())["probes"]
    return found


def outcome(probe: Probe) -> str:
    """What the emulator answers, as the file says it of the GPU."""
    inputs = probe.input_hash()
    result, _ = probe.kernel.run(FIXED[0])
    if result.findings and probe.may_fail:
        return "refused"
    assert [finding.message for finding in result.findings] == [], probe.key
    return f"{inputs} {digest(probe, probe.kernel.arrays[OUT])}"


@pytest.mark.parametrize("module", [name for name in MODULES if name != APPROXIMATE])
def test_the_emulator_gives_the_bits_that_the_gpu_gives(module: str) -> None:
    probes = list(importlib.import_module(f"benchmarks.agreement.families.{module}").probes())
    assert {p.key for p in probes} == {key for key in answers() if key.startswith(f"{module}/")}
    for probe in probes:
        expected = answers()[probe.key]
        if expected != "refused":
            assert probe.input_hash() == expected.split()[0], f"{probe.key}: not the inputs that the GPU was given"
        assert outcome(probe) == expected, probe.key


def test_all_families_are_held_to_the_gpu() -> None:
    assert {key.partition("/")[0] for key in answers()} == {*MODULES} - {APPROXIMATE}


def test_approximations_keep_the_promises_of_the_isa() -> None:
    functions = importlib.import_module(f"benchmarks.agreement.families.{APPROXIMATE}")
    seen = set()
    for probe in functions.probes():
        if probe.kind != "f32":
            continue
        probe.kernel.run(FIXED[0])
        for row, label in enumerate(probe.labels):
            for name, promise in promises_of(label).items():
                error = promise.errors(operands_of(probe), probe.out[row])
                assert len(error) == 0 or error.max() <= promise.bound, (label, name)
                seen.add(name)
    assert seen == set(PROMISES)


def _sums() -> list[list[str]]:
    found: list[list[str]] = json.loads((DATA / "h100_sums.json").read_text())["sums"]
    return found


@pytest.mark.parametrize("types", sorted({case[0] for case in _sums()}))
def test_the_model_of_sums_is_that_of_the_gpu(types: str) -> None:
    """Exact rational arithmetic of the oracle, against single sums that an H100's wgmma made."""
    d_type, a_type, b_type = types.split()
    cases = [case for case in _sums() if case[0] == types]
    assert len(cases) >= 18
    rule = matrix.model("wgmma", a_type, b_type)
    wrong: list[Any] = []
    for _, a, b, c, d in cases:
        codes_a, codes_b = ([int(code, 16) for code in text.split()] for text in (a, b))
        found = matrix.sum_of_products(codes_a, codes_b, int(c, 16), (a_type, b_type, d_type, d_type), rule)
        if found != int(d, 16):
            wrong.append((a, b, c, d, f"{found:x}"))
    assert wrong == []


@pytest.mark.parametrize("types", ["f32 f16 f16", "f32 bf16 bf16", "f32 tf32 tf32", "f32 e4m3 e4m3", "f32 e5m2 e5m2"])
@pytest.mark.parametrize("change", [(-1, 0), (1, 0), (0, -1)], ids=["F-1", "F+1", "R-1"])
def test_the_sums_tell_other_models_apart(types: str, change: tuple[int, int]) -> None:
    """One bit more or less in the alignment, or one less in the result: each fails somewhere."""
    d_type, a_type, b_type = types.split()
    rule = matrix.model("wgmma", a_type, b_type)
    other = matrix.Model(rule.fraction_bits + change[0], rule.result_bits + change[1])
    wrong = 0
    for _, a, b, c, d in (case for case in _sums() if case[0] == types):
        codes_a, codes_b = ([int(code, 16) for code in text.split()] for text in (a, b))
        found = matrix.sum_of_products(codes_a, codes_b, int(c, 16), (a_type, b_type, d_type, d_type), other)
        wrong += found != int(d, 16)
    assert wrong > 0
