"""sparse_attention_prefill for Hopper: compiled, and its cases in the emulator."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dsv4.emulator.policy import FIXED, starving
from dsv4.generator.build import BuildResult
from dsv4.generator.spec import plan
from dsv4.generator.verify import cases
from dsv4.runtime import dispatch
from dsv4.runtime.artifact import Scalar
from dsv4.runtime.ops import sparse_attention_prefill as door
from dsv4.runtime.reference import sparse_attention_prefill as reference
from tests.ops import builds as builds

OP, ARCH = "sparse_attention_prefill", "sm_90a"
# heads, flags, configuration
CONFIGURATIONS: dict[str, tuple[int, dict[str, bool], dict[str, Scalar]]] = {
    "64 heads": (64, {"has_length": True, "has_sink": True, "pdl": True}, {}),
}
SWEPT = CONFIGURATIONS | {
    "128 heads": (128, {"has_length": True, "has_sink": True}, {}),
    "80 heads, no length, no sink": (80, {}, {}),
    "8 heads, two CTAs for each SM": (8, {"has_length": True}, {"persistent_ctas": 264}),
}
EMULATED = {"early": [0, 2, 5, 6, 8], "late": [3, 4, 9, 10, 11], "mixed:0": [1, 7, 12, 13]}
MORE_QUERIES_THAN_CTAS = 14
SCHEDULES = [policy.name for policy in (*FIXED, starving(0), starving(4, 1), starving(9))]


def built_as(name: str, root: Path) -> BuildResult:
    heads, flags, config = SWEPT[name]
    (result,) = builds.build_all([plan(OP, ARCH, dims={"H": heads}, variant=dict(flags), config=dict(config))], root)
    return result


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> BuildResult:
    return built_as("64 heads", tmp_path_factory.mktemp(OP))


def test_it_compiles_to_what_was_predicted(built: BuildResult) -> None:
    builds.takes_what_was_predicted(built)
    (launch,) = builds.manifest(built).launches
    assert launch.block == (512, 1, 1) and launch.cluster == (1, 1, 1)


def test_rows_go_straight_to_shared_memory(built: BuildResult) -> None:
    text = builds.ptx(built)
    assert text.count("cp.async.cg.shared.global") == 2 * 2 * 16  # halves of 16 rows: of Q, of a tile of keys
    assert text.count("cp.async.mbarrier.arrive.noinc") == 2
    assert builds.widths(text, "st.global") >= {"v4.b32"}


@pytest.mark.parametrize("schedule", EMULATED)
def test_values_in_the_emulator(built: BuildResult, schedule: str) -> None:
    assert builds.findings(built, EMULATED[schedule], schedule) == []


def test_more_queries_than_ctas(built: BuildResult) -> None:
    assert builds.findings(built, [MORE_QUERIES_THAN_CTAS], "late") == []


def test_where_there_is_no_such_kernel_the_decoding_one_serves(
    served: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "arch_of", lambda device: "sm_100a")
    torch.manual_seed(3)
    q, kv = torch.randn(2, 64, 512).bfloat16() / 10, torch.randn(70, 512).bfloat16() / 10
    rows, length = torch.randint(-1, 72, (2, 70)), torch.tensor([70, 3])
    found = door.sparse_attention_prefill(q, kv, rows, length)
    assert served == ["sparse_attention_decode"]
    expected = reference.sparse_attention_prefill(q, kv, rows, length, dtype=torch.float64)
    for got, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(got.double(), wanted.double(), rtol=2.01 / 128, atol=1e-3)


@pytest.mark.sweep  # minutes of compiler and emulator; EMULATED has the most of it for 64 heads
@pytest.mark.parametrize("name", SWEPT)
def test_every_case_under_every_schedule(tmp_path: Path, name: str) -> None:
    result = built_as(name, tmp_path)
    made = builds.manifest(result)
    count = len(cases(OP, made.dims, made.variant, config=made.config))
    for schedule in SCHEDULES:
        assert builds.findings(result, range(count), schedule) == []
