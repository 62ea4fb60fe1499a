"""Kernels that nobody here wrote and that are known to be right: right values in the emulator, and nothing to accuse.

Dao-AILab's quack, unmodified, through its public functions; random data, ragged shapes, references in float64, several
schedules. A finding here is a rule of the emulator that is too strict, until the opposite is shown.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from benchmarks.third_party import products, rows
from benchmarks.third_party.session import MISSING, Session, is_installed
from benchmarks.third_party.stand_in import CAPABILITY

pytestmark = [
    pytest.mark.skipif(not is_installed(), reason=MISSING),
    pytest.mark.xdist_group("quack"),  # one process for each chip, not one for each worker
]

ONE_CHIP = ("softmax bf16", "rms_norm f32", "cross_entropy f32", "top_k f32", "rotary bf16 interleaved", "hadamard f32")
"""Second sizes and variants of kernels whose code is the same on both chips."""
CASES = [
    (arch, name)
    for arch in CAPABILITY
    for name in (*rows.CASES, *products.cases(arch))
    if arch == "sm_90a" or not name.startswith(ONE_CHIP)
]


@pytest.fixture(scope="module")
def sessions(request: pytest.FixtureRequest) -> Iterator[dict[str, Session]]:
    """Both processes work ahead, one on each core, on the cases that were selected."""
    params = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    chosen = [(each.get("arch"), each.get("name")) for each in params]
    with ExitStack() as stack:
        yield {
            arch: stack.enter_context(
                Session(arch, [name for chip, name in CASES if (chip, name) in chosen and chip == arch])
            )
            for arch in CAPABILITY
        }


@pytest.mark.parametrize(("arch", "name"), CASES, ids=[f"{arch} {name}" for arch, name in CASES])
def test_right_values_and_no_findings(sessions: dict[str, Session], arch: str, name: str) -> None:
    found = sessions[arch].answer(name)
    assert "error" not in found, found["error"]
    assert found["findings"] == []
    assert found["differs"] == [], "the result depends on the schedule"
    assert found["launches"] and found["checks"]
    for check in found["checks"]:
        assert check["of_bound"] <= 1, f"{check['name']} {check['shape']}: {check['of_bound']} times the bound"
