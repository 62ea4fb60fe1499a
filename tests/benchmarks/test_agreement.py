"""The comparison of emulator and GPU itself: distances, volumes, what is compared of a tensor map, refusals."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.agreement import collect, compare, descriptors
from benchmarks.agreement.distance import difference
from benchmarks.agreement.families import all_probes, integers
from benchmarks.agreement.probe import OUT, Probe


def f32(*values: float) -> np.ndarray:
    return np.array(values, np.float32).view(np.uint32)


def test_distances_count_steps_of_the_format() -> None:
    ours = f32(1.0, -0.0, 2.0, np.nan, 1e-45)
    theirs = f32(1.0, 0.0, 2.0, np.nan, -1e-45)
    theirs[2] += 3
    theirs[3] ^= 1
    found = difference(ours, theirs, "f32")
    assert (found.elements, found.different, found.nan_only, found.max_steps) == (5, 4, 1, 3)
    assert found.within_one_step == 3  # equal bits, the two zeros, the two NaN
    assert found.max_relative is not None and found.max_absolute == pytest.approx(3 * 2.0**-22)


def test_a_nan_against_a_number_is_no_distance_in_steps() -> None:
    found = difference(f32(np.nan, 1.0), f32(1.0, 1.0), "f32")
    assert found.max_steps == -1 and found.within_one_step == 1
    assert found.examples == ["[0] 0x7fc00000 instead of 0x3f800000"]


def test_halves_of_packed_registers_are_counted_each() -> None:
    found = difference(np.array([0x3C003C01], np.uint32), np.array([0x3C003C00], np.uint32), "f16x2")
    assert (found.elements, found.different, found.max_steps) == (2, 1, 1)


def test_bits_have_no_steps() -> None:
    found = difference(np.array([1, 2], np.uint64), np.array([1, 3], np.uint64), "bits")
    assert (found.different, found.max_steps, found.within_one_step) == (1, None, 1)


def test_volumes_give_back_what_they_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect, "VOLUME_BYTES", 100)
    store = collect.Volumes(tmp_path)
    held = {f"probe/{n}": np.arange(n + 1, dtype=np.uint32) for n in range(12)}
    for name, array in held.items():
        store.add(name, array)
    store.flush()
    assert len(list(tmp_path.glob("arrays-*.npz"))) > 1
    found = collect.read_volumes(tmp_path)
    assert found.keys() == held.keys()
    assert all(np.array_equal(found[name], array) for name, array in held.items())


FAKE_WORKER = """
import json, sys, time
import numpy as np
def say(**what): print(json.dumps(what), flush=True)
say(ready=True)
for line in sys.stdin:
    key = line.strip()
    say(begin=key)
    if key == "hangs": time.sleep(60)
    if key == "dies": sys.exit(1)
    if key == "refused": say(done=key, input="1", error="cuLaunchKernelEx: 715"); sys.exit(0)
    np.save(sys.argv[1] + "/" + key + ".npy", np.arange(3))
    say(done=key, input="1", file=key + ".npy")
"""


def test_a_probe_that_hangs_or_faults_costs_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect, "WORKER", [sys.executable, "-c", FAKE_WORKER])
    monkeypatch.setattr(collect, "SILENCE_SECONDS", 3.0)
    keys = ["a", "hangs", "b", "dies", "c", "refused", "d", "e"]
    answers = collect.run_probes(keys, tmp_path, jobs=2)
    assert {key for key, answer in answers.items() if "file" in answer} == {"a", "b", "c", "d", "e"}
    assert answers["refused"]["error"] == "cuLaunchKernelEx: 715"
    assert "no answer" in answers["hangs"]["error"] and "no answer" in answers["dies"]["error"]
    assert np.load(tmp_path / answers["e"]["file"]).tolist() == [0, 1, 2]


def test_a_tensor_map_is_compared_in_what_means_something() -> None:
    request = next(iter(descriptors.requests()))
    raw = bytearray.fromhex(descriptors.ours(request))
    theirs = {each.name: descriptors.ours(each) for each in descriptors.requests()}
    assert descriptors.compare(theirs) == [] or all("refused" in e["emulator"] for e in descriptors.compare(theirs))
    raw[8] &= ~2  # bit 65
    raw[70] ^= 5  # behind byte 64
    theirs[request.name] = raw.hex()
    assert request.name not in {entry["request"] for entry in descriptors.compare(theirs)}
    raw[33] ^= 1
    theirs[request.name] = raw.hex()
    assert request.name in {entry["request"] for entry in descriptors.compare(theirs)}


@pytest.fixture
def probe() -> Probe:
    return next(iter(integers.probes()))


def ran(probe: Probe) -> np.ndarray:
    probe.kernel.run()
    return probe.kernel.arrays[OUT].copy()


def test_a_probe_is_compared_row_by_row(probe: Probe) -> None:
    truth = ran(probe)
    assert compare.compare_probe(probe, truth)["different"] == 0
    truth[1, 5] ^= 4
    entry = compare.compare_probe(probe, truth)
    assert entry["different"] == 1 and list(entry["rows"]) == [probe.labels[1]]
    assert compare.compare_probe(replace(probe, open_rows=(probe.labels[1],)), truth)["different"] == 0


def test_other_inputs_are_no_agreement(probe: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "all_probes", lambda only: iter([probe]))
    arrays = {f"probe/{probe.key}": ran(probe)}
    meta: dict[str, Any] = {"probes": {probe.key: {"input": "0123456789abcdef"}}}
    assert "not_run" in compare.compare_probes(meta, arrays)[probe.key]
    meta["probes"][probe.key]["input"] = probe.input_hash()
    assert compare.compare_probes(meta, arrays)[probe.key]["different"] == 0
    meta["probes"][probe.key] = {"error": "cuLaunchKernelEx: 1"}
    assert compare.compare_probes(meta, arrays)[probe.key] == {"not_run": "cuLaunchKernelEx: 1"}


def test_a_refusal_must_be_one_of_both() -> None:
    refused = next(p for p in all_probes("faults/trap"))
    assert compare.compare_refusal(refused, {"error": "fault"}, None)["different"] == 0
    entry = compare.compare_refusal(refused, {"input": ""}, np.ones_like(refused.out))
    assert entry["different"] == 1 and "it ends" in entry["refusal"]


def test_the_table_names_every_family() -> None:
    counts = {"probes": 2, "elements": 1000, "different": 0, "probes_with_differences": 0, "findings": 0}
    result: dict[str, Any] = {
        "families": {"wgmma_sums": counts},
        "descriptors": {"requests": 3, "different": []},
        "functions": [{"row": "ex2", "promise": "ex2", "unit": "ulp", "bound": 2.0, "gpu": 1.0, "emulator": 0.5}],
        "artifacts": [],
    }
    text = compare.table(result)
    assert "| wgmma_sums | 2 | 1,000 | 0 | 0 | 0 |" in text and "| ex2 (ex2, ulp) | 2 | 1 | 0.5 |" in text
