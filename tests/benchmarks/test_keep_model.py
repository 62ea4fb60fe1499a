"""What is kept of a whole-model sweep: the kept ones are whole, and made-up times are no result."""

from __future__ import annotations

import json

import pytest

from benchmarks.keep_model import MODELS, kept, last_swept
from dsv4.generator.console import UsageError
from dsv4.runtime.tuned import FAKE_DEVICE, parse_entries

FOLDERS = sorted(MODELS.glob("*"))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_kept_sweep_is_whole(folder):
    turns = json.loads((folder / "turns.json").read_text())
    entries, problems = parse_entries(json.loads((folder / "entries.json").read_text())["entries"], "entries.json")
    assert not problems and {entry.question.device.name for entry in entries} == {turns["device"]}
    swept = [kernel for kernel in turns["kernels"] if "winners" in kernel]
    chosen = [winner for kernel in swept for winner in kernel["winners"] if winner["chosen"]]
    assert chosen and all(winner["speedup"] > 1 and winner["changes"] for winner in chosen)
    assert len(entries) >= len(chosen)
    for kernel in swept:
        if kernel["tried"]:
            assert 0 < sum(kernel["gpus"].values()) <= kernel["tried"]
            assert "<svg" in (folder / f"{kernel['study']}.html").read_text()


def test_made_up_times_are_no_result():
    with pytest.raises(UsageError, match="found times of"):
        kept({"steps": [], "kernels": []}, FAKE_DEVICE, "2026-11-27")


def test_of_several_runs_the_last_that_swept_a_kernel_counts():
    def run(first, second, served):
        kernels = [
            {"op": op, "dims": {"d": 512}, "variant": {}, "result": result, "served": served}
            for op, result in (("rms_norm", first), ("embed", second))
        ]
        return {"device": "H100", "kernels": kernels}

    merged = last_swept(
        [run("old", "older", {"default": 1}), run("new", None, {"default": 2}), run("newest", None, {"tuned": 3})]
    )
    assert [kernel["result"] for kernel in merged["kernels"]] == ["newest", "older"]
    assert [kernel["served"] for kernel in merged["kernels"]] == [{"tuned": 3}] * 2
    assert last_swept([run(None, None, {})])["kernels"][0]["result"] is None
