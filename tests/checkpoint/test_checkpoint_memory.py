"""Memory while loading: never more of the host than what stays and one group's working set (a synthetic checkpoint)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from checkpoint_samples import Written

from dsv4.runtime.checkpoint.write_tiny import write_checkpoint
from dsv4.runtime.model.presets import TINY

LAYERS = 8
CONFIG = TINY.replace(
    num_hidden_layers=LAYERS,
    compress_ratios=(0, 0, *(4, 128) * (LAYERS // 2 - 1), 0),
    n_routed_experts=32,
    num_attention_heads=2,
    moe_intermediate_size=512,
)

PROBE = """
import json, sys, tracemalloc
from dsv4.runtime.checkpoint.checkpoint import Checkpoint
from dsv4.runtime.checkpoint.loader import load, stream

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))

small, large = sys.argv[1:]
load(small, threads=2)  # what the first load brings: threads, code
tracemalloc.start()
start = peak()
with Checkpoint.open(large) as checkpoint:
    groups = [checkpoint.group_bytes(group) for group in checkpoint.groups]
    for group, tensors in stream(checkpoint, threads=2):
        pass
streamed = peak()
model = load(large, threads=2)
python = tracemalloc.get_traced_memory()[1]
print(json.dumps({"groups": groups, "streamed": streamed - start, "loaded": peak() - start, "python": python}))
"""


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory, written: Written) -> dict[str, Any]:
    """What one process saw that streamed and then loaded the checkpoint; in bytes."""
    if not Path("/proc/self/status").exists():
        pytest.skip("reads the peak from /proc")
    folder = tmp_path_factory.mktemp("memory")
    write_checkpoint(folder, CONFIG, shards=4)
    command = [sys.executable, "-c", PROBE, str(written("fp8_mxfp4", 1)), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd="/")
    return json.loads(done.stdout)


def test_streaming_holds_one_group_at_a_time(seen: dict[str, Any]) -> None:
    largest = max(seen["groups"])
    assert sum(seen["groups"]) > 7 * largest  # else this would show nothing
    assert largest * 0.9 < seen["streamed"] < 1.5 * largest + (4 << 20)


def test_loading_to_the_host_takes_what_stays_and_little_more(seen: dict[str, Any]) -> None:
    assert 0.9 * sum(seen["groups"]) < seen["loaded"] < 1.1 * sum(seen["groups"])


def test_python_itself_holds_little(seen: dict[str, Any]) -> None:
    assert seen["python"] < 8 << 20
