"""compressor's kernels: what the compiled code contains, their values in the emulator, the judge, and the plans."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dsv4.generator.build import BuildResult, probe
from dsv4.generator.emit import emit
from dsv4.generator.spec import Refused, default_plans, plan
from dsv4.generator.verify import cases, judge
from dsv4.generator.verify.case import Case
from dsv4.generator.verify.compression_plans import planned
from dsv4.generator.verify.emulator import EmulatedKernel
from dsv4.generator.verify.run import run_case
from dsv4.runtime.cache import Artifact
from tests.ops import builds as builds

OP = "compressor"
# arch, dims, flags, tunables: a cluster and four parts of the slots; one part; parts gathered by channel, bf16; warps.
CONFIGURATIONS = {
    "csa": ("sm_90a", 4, 512, {"format": "kv_fp8", "pdl": True}, {"cluster": 2, "slots_per_thread": 2}),
    "one part": ("sm_100a", 4, 512, {"format": "kv_fp8"}, {"slots_per_thread": 8, "state_ctas": 132}),
    "hca": (
        "sm_90a",
        128,
        512,
        {"format": "plain", "inputs": "bf16"},
        {"cluster": 4, "state_ctas": 132},
    ),
    "keys": (
        "sm_100a",
        4,
        128,
        {"format": "index_fp4", "hadamard": True, "inputs": "bf16", "pdl": True},
        {"entries_per_cta": 2},
    ),
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, BuildResult]:
    plans = [
        plan(OP, arch, dims={"m": m, "D": width}, variant=flags, config=config)
        for arch, m, width, flags, config in CONFIGURATIONS.values()
    ]
    return dict(zip(CONFIGURATIONS, builds.build_all(plans, tmp_path_factory.mktemp(OP)), strict=True))


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_it_compiles_to_what_was_predicted(built: dict[str, BuildResult], name: str) -> None:
    builds.takes_what_was_predicted(built[name])
    made = builds.manifest(built[name])
    assert made.launches[0].cluster[0] == made.config["cluster"]
    # Rows of state in a launch of their own wait for the entries in either variant.
    waiting = {kernel for kernel, text in kernels(built[name]).items() if "griddepcontrol.wait" in text}
    assert waiting == ({"compressor_kernel", "state_kernel"} if made.variant["pdl"] else {"state_kernel"})


def kernels(result: BuildResult) -> dict[str, str]:
    """The PTX of both kernels by what their functions are called."""
    texts = builds.ptx(result).split(".entry")[1:]
    return {name: text for text in texts for name in ("compressor_kernel", "state_kernel") if name in text[:200]}


def test_rows_are_read_and_kept_16_bytes_at_a_time(built: dict[str, BuildResult]) -> None:
    for name in CONFIGURATIONS:
        for kernel, text in kernels(built[name]).items():
            assert builds.widths(text, "ld.global") <= {"v4.b32", "v2.b64", "b32", "b64"}
            single = len(re.findall(r"\bld\.global\.(?:b32|b64)", text))  # numbers of one row
            assert single == (3 if kernel == "compressor_kernel" else 2)
            assert {"v4.b32", "v2.b64"} & builds.widths(text, "st.global")


def test_ctas_of_an_entry_tell_each_other_words_without_a_fence(built: dict[str, BuildResult]) -> None:
    for name, (_, _, _, _, config) in CONFIGURATIONS.items():
        text = kernels(built[name])["compressor_kernel"]
        several = config.get("cluster", 1) > 1
        assert text.count("st.async") == int(several)
        assert text.count("barrier.cluster.arrive.relaxed") == text.count("barrier.cluster.arrive") == int(several)


def test_the_plan_and_the_parameters_are_read_before_the_launch_before_has_ended(built: dict[str, BuildResult]) -> None:
    keeping, entry, *_ = kernels(built["csa"])["compressor_kernel"].split("griddepcontrol.wait")
    assert keeping.count("ld.global") == 2  # a row of the state and a phase
    # After that wait kv, score and ape of a token; then one row of the pool, two slots' rows, fresh and stored, their
    # ape, the norm, cosines and sines.
    assert entry.count("ld.global") == 2 * 3 + 1 + 2 + 4 + 1 + 2


# Numbers of cases: chunks from anywhere, drafts, a long chunk in pages of one row, gaps, by hand, scores, NaN, copies.
@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("csa", (1, 2, 4, 5, 7, 8, 11, 12)),
        ("one part", (0, 1, 7, 12, 13)),
        ("hca", (2, 3, 5, 7, 8, 11, 12)),
        ("keys", (0, 1, 2, 4, 7, 11, 12)),
    ],
)
def test_values_in_the_emulator(built: dict[str, BuildResult], name: str, numbers: tuple[int, ...]) -> None:
    assert builds.findings(built[name], numbers) == []


def launches(result: BuildResult, folder: Path, tokens: int, entries: int, apart: int) -> list[int]:
    """The CTAs of each launch of the first configuration."""
    shutil.copy(builds.folder(result) / "kernel.so", folder)

    def tensor(dtype: str, *shape: int) -> dict[str, Any]:
        return {"dtype": dtype, "shape": shape, "strides": [*shape[1:], 1]}

    arguments = [
        *[tensor("f32", tokens, 1024)] * 2,
        tensor("f32", 4, 1024),
        tensor("bf16", 512),
        tensor("f32", entries, 64),
        tensor("f32", 9, 2048),
        tensor("u8", 1, 37440),
        {"none": True},
        tensor("i64", tokens),
        *[tensor("i64", entries, 8)] * 2,
        tensor("i64", entries),
        tensor("i64", tokens),
        *[{"scalar": value} for value in (64, apart, 1e-6)],
    ]
    artifact = Artifact.read(builds.folder(result))
    request = {"function": artifact.manifest.function, "candidates": [arguments]}
    return [each["grid"][0] for each in probe.run(folder, request, artifact.root / "support" / "libdsv4_probe.so")]


@pytest.mark.parametrize(
    ("tokens", "entries", "apart", "expected"),
    [
        (5, 3, 1, [6 + 6]),  # two CTAs an entry, and whole clusters for five tokens
        (5, 3, 0, [6, 6]),
        (5, 0, 0, [6]),
        (4000, 1001, 1, [2002 + 528]),
        (40000, 10001, 0, [20002, 1250]),  # at most 32 tokens a CTA
    ],
)
def test_tokens_wait_for_entries_where_they_may_take_their_rows(
    built: dict[str, BuildResult], tmp_path: Path, tokens: int, entries: int, apart: int, expected: list[int]
) -> None:
    assert launches(built["csa"], tmp_path, tokens, entries, apart) == expected


def test_no_tokens_mean_no_launch(built: dict[str, BuildResult], tmp_path: Path) -> None:
    with pytest.raises(probe.ProbeFailed, match="launched nothing"):
        launches(built["csa"], tmp_path, 0, 0, 0)


def test_a_step_that_is_said_to_be_apart_and_is_not_shows(built: dict[str, BuildResult]) -> None:
    artifact = Artifact.read(builds.folder(built["csa"]))
    made = artifact.manifest
    case = cases(OP, made.dims, made.variant, config=made.config)[1]
    assert "take the rows of others" in case.name and case.inputs["apart"] == 0
    wrong = replace(case, inputs={**case.inputs, "apart": 1})
    assert not run_case(EmulatedKernel(artifact), made.contract, wrong).ok


@pytest.mark.parametrize("ratio", [4, 128])
def test_steps_of_few_tokens_never_write_a_row_that_they_read(ratio: int) -> None:
    """What the kernel relies on, of the plans that the model makes: see ``specs/ops/compressor.yaml``."""
    numbers = random.Random(ratio)
    collisions = 0
    for _ in range(25):
        spare = numbers.choice([0, 1, 3, 7])
        longest = numbers.choice([1, 1 + spare, 2 + spare, 3 * ratio])
        chunks = [(numbers.randrange(3 * ratio), numbers.randint(1, longest)) for _ in range(6)]
        found = planned(ratio, chunks, spare=spare)
        assert found.apart == (max(length for _, length in chunks) <= 1 + spare)
        fresh, stored, kept = (getattr(found.compression, name) for name in ("fresh", "stored", "state_rows"))
        rows = stored[stored >= 0]
        shared = set(rows.tolist()) & set(kept[kept >= 0].tolist())
        assert not (found.apart and shared)
        collisions += bool(shared)
        kept = kept[kept >= 0]
        assert len(kept.unique()) == len(kept)
        halves = torch.arange(stored.shape[1]) // ratio  # of the channels
        read = torch.stack((stored, halves.expand_as(stored)), dim=-1)[stored >= 0]
        assert len(read.unique(dim=0)) == len(read)
        slots, phases = torch.arange(fresh.shape[1]).expand_as(fresh), found.compression.phase
        assert torch.equal(phases[fresh[fresh >= 0]], (slots % ratio)[fresh >= 0])
    assert collisions  # or the second launch would be for nothing


PAGE = 5


def code_two_steps_off(got: dict[str, torch.Tensor], row: int) -> None:
    byte = got["pool"][row // PAGE, 576 * (row % PAGE) + 5]
    got["pool"][row // PAGE, 576 * (row % PAGE) + 5] = byte + 2 if int(byte) & 0x7F < 0x70 else byte - 2


def scale_doubled(got: dict[str, torch.Tensor], row: int) -> None:
    got["pool"][row // PAGE, PAGE * 576 + 8 * (row % PAGE) + 6] += 1


def rotary_part_turned_back(got: dict[str, torch.Tensor], row: int) -> None:
    start = 576 * (row % PAGE)
    got["pool"][row // PAGE, start + 449 : start + 576 : 4] ^= 0x80  # the sign of every second number


def entry_not_written(got: dict[str, torch.Tensor], row: int) -> None:
    start = 576 * (row % PAGE)
    got["pool"][row // PAGE, start : start + 576] = 0xA5


def scratch_row_written(got: dict[str, torch.Tensor], row: int) -> None:
    got["pool"][-1, PAGE * 576 - 1] ^= 1


def state_a_bit_off(got: dict[str, torch.Tensor], row: int) -> None:
    got["state"].view(torch.int32)[0, -1] += 1


def scratch_state_written(got: dict[str, torch.Tensor], row: int) -> None:
    got["state"][-1] = 0.0


@pytest.mark.parametrize(
    "mistake",
    [
        code_two_steps_off,
        scale_doubled,
        rotary_part_turned_back,
        entry_not_written,
        scratch_row_written,
        state_a_bit_off,
        scratch_state_written,
    ],
)
def test_the_judge_finds(drafts: Case, mistake: Callable[[dict[str, torch.Tensor], int], None]) -> None:
    got = {name: drafts.expected[name].clone() for name in drafts.inouts}
    assert judge(OP, got, drafts).ok
    rows = drafts.inputs["entry_rows"]
    assert isinstance(rows, torch.Tensor)
    mistake(got, int(rows[rows >= 0][1]))
    assert not judge(OP, got, drafts).ok


@pytest.fixture(scope="module")
def drafts() -> Case:
    variant = {"format": "kv_fp8", "hadamard": False, "inputs": "f32", "pdl": False}
    case = cases(OP, {"m": 4, "D": 512}, variant)[2]
    assert case.inputs["page"] == PAGE
    return case


@pytest.mark.parametrize("arch", ["sm_90a", "sm_100a"])
def test_the_models_compressors_are_default_kernels(arch: str) -> None:
    made = {(each.dims["m"], each.dims["D"], each.variant["format"]) for each in default_plans(OP, arch)}
    assert made == {(4, 512, "kv_fp8"), (128, 512, "kv_fp8"), (4, 128, "index_fp8"), (4, 128, "index_fp4")}


def test_an_emitted_file_has_nothing_that_its_configuration_does_not_take() -> None:
    keys = emit(plan(OP, "sm_90a", dims={"D": 128}, variant={"format": "index_fp8", "hadamard": True})).text
    entries = emit(plan(OP, "sm_90a", dims={"m": 128})).text
    assert "SmemAllocator" not in keys and "CLUSTER" not in keys and "hadamard_row" in keys
    assert "merge_over_warp" not in entries and "hadamard_row" not in entries and "ENTRIES_PER_CTA" not in entries
    assert all(len(text.splitlines()) < 330 for text in (keys, entries))


@pytest.mark.parametrize(
    ("dims", "variant", "config", "named"),
    [
        ({"D": 128}, {"format": "kv_fp8"}, {}, "D = 512"),
        ({"m": 4}, {"format": "kv_fp8", "hadamard": True}, {}, "hadamard with D = 128"),
        ({"m": 128}, {}, {"cluster": 1}, "1024|another cluster"),
        ({"m": 4}, {}, {"entries_per_cta": 2}, "entries_per_cta 1"),
        (
            {"m": 4, "D": 512},
            {"format": "kv_fp8"},
            {"cluster": 8, "entries_per_cta": 2, "slots_per_thread": 2},
            "share one entry",
        ),
        ({"m": 4}, {"inputs": "bf16"}, {"slots_per_thread": 8}, "at most 4"),
    ],
)
def test_what_cannot_work_is_refused(
    dims: dict[str, int], variant: dict[str, Any], config: dict[str, Any], named: str
) -> None:
    with pytest.raises(Refused, match=named):
        plan(OP, "sm_90a", dims=dims, variant=variant, config=config)
