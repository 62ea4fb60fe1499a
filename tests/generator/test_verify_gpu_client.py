"""The client of the GPU worker, against workers that answer, hang or die; none of it needs a GPU."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from dsv4.generator.verify.gpu_client import GpuClient, GpuFailure

WORKER = """
import json, os, signal, sys, time
for line in sys.stdin:
    folder = line.strip()
    print(json.dumps({"begin": folder}), flush=True)
    if folder == "hang":
        os.system("sleep 600 &")
        time.sleep(600)
    if folder == "die":
        sys.stderr.write("CUDA error: an illegal memory access was encountered\\n")
        os.kill(os.getpid(), signal.SIGKILL)
    print(json.dumps({"folder": folder, "pid": os.getpid(), "findings": []}), flush=True)
"""


@pytest.fixture
def command(tmp_path: Path) -> tuple[str, ...]:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    return (sys.executable, str(script))


def test_one_worker_serves_several_kernels(command: tuple[str, ...]) -> None:
    with GpuClient(seed=3, timeout=20.0, command=command) as client:
        first, second = client.verify(Path("one")), client.verify(Path("two"))
    assert (first["folder"], second["folder"]) == ("one", "two")
    assert first["pid"] == second["pid"]


def test_a_hanging_kernel_is_killed_with_its_group_and_the_next_one_gets_a_fresh_worker(
    command: tuple[str, ...],
) -> None:
    with GpuClient(seed=0, timeout=1.0, command=command) as client:
        before = client.verify(Path("one"))
        started = time.monotonic()
        with pytest.raises(GpuFailure, match="killed: nothing heard for 1 s"):
            client.verify(Path("hang"))
        assert time.monotonic() - started < 10
        after = client.verify(Path("two"))
    assert before["pid"] != after["pid"]
    for pid in (before["pid"], after["pid"]):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_kernel_that_kills_its_process_fails_alone_with_the_last_words(command: tuple[str, ...]) -> None:
    with GpuClient(seed=0, timeout=20.0, command=command) as client:
        with pytest.raises(GpuFailure, match="illegal memory access"):
            client.verify(Path("die"))
        assert client.verify(Path("one"))["findings"] == []
