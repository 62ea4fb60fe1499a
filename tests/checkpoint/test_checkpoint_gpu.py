"""Loading onto a GPU: the same bytes, little of the host's memory, nothing left there after an error."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoint_samples import Written

from dsv4.runtime.checkpoint.loader import load
from dsv4.runtime.checkpoint.transfer import SMALL_BYTES, STAGE_BYTES
from dsv4.runtime.checkpoint.write_tiny import write_checkpoint
from dsv4.runtime.errors import CheckpointError
from dsv4.runtime.model.config import WeightScheme
from dsv4.runtime.model.presets import TINY
from dsv4.runtime.model.weights import ModelWeights, map_weights
from dsv4.runtime.weight import Weight

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:.*unverified:dsv4.runtime.errors.Dsv4Warning"),
]


def raws(weights: ModelWeights) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        found.append(tensor.reshape(-1).view(torch.uint8))
        return tensor

    def keep_all(weight: Weight) -> Weight:
        for tensor in weight.tensors().values():
            keep(tensor)
        return weight

    map_weights(weights, weight=keep_all, tensor=keep)
    return found


@pytest.mark.parametrize("threads", [1, 8])
@pytest.mark.parametrize("scheme", ["plain", "fp8_mxfp4", "fp8_nvfp4", "nvfp4"])
def test_the_gpu_gets_what_the_host_gets(written: Written, scheme: WeightScheme, threads: int) -> None:
    folder = written(scheme, 3)
    on_host, on_gpu = raws(load(folder).weights), raws(load(folder, "cuda", threads=threads).weights)
    assert len(on_host) == len(on_gpu)
    for host, gpu in zip(on_host, on_gpu, strict=True):
        assert gpu.is_cuda
        assert gpu.cpu().equal(host)


def test_tensors_larger_than_a_stage_arrive_whole(tmp_path: Path) -> None:
    config = TINY.replace(vocab_size=40_000, n_routed_experts=64, moe_intermediate_size=512)
    write_checkpoint(tmp_path, config, shards=2)
    host, gpu = load(tmp_path).weights, load(tmp_path, "cuda").weights
    assert host.embed.nbytes > STAGE_BYTES > SMALL_BYTES
    assert all(ours.cpu().equal(other) for ours, other in zip(raws(gpu), raws(host), strict=True))


def test_nothing_stays_on_the_gpu_after_an_error_even_while_it_is_held(copied: Written) -> None:
    folder = copied("fp8_mxfp4", 3)

    class Cutting:
        nbytes = 0

        def group(self, name: str) -> None:
            if name == "head":
                last = folder / "model-00003-of-00003.safetensors"
                os.truncate(last, last.stat().st_size - 50_000)

        def advance(self, nbytes: int) -> None:
            self.nbytes += nbytes

    gc.collect()
    before, cutting = torch.cuda.memory_allocated(), Cutting()
    with pytest.raises(CheckpointError, match="it was shortened after it was opened") as caught:
        load(folder, "cuda", progress=cutting)
    assert cutting.nbytes > 500_000
    assert torch.cuda.memory_allocated() == before
    assert caught.value.__traceback__ is not None


def test_a_gpu_without_room_is_refused_before_anything_is_read(
    written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (1000, 2000))
    for held in ("memory_reserved", "memory_allocated"):  # earlier tests' tensors may still be there
        monkeypatch.setattr(torch.cuda, held, lambda device=None: 0)
    with pytest.raises(CheckpointError, match=r"GB of tensors for cuda, which has 0\.0 GB free"):
        load(written("fp8_mxfp4", 1), "cuda")


def test_the_memory_is_not_shared_with_work_that_still_runs(written: Written) -> None:
    """Freed memory of the caching allocator may still be written by kernels in flight when a target gets it."""
    folder = written("fp8_mxfp4", 3)
    expected = raws(load(folder).weights)
    scratch = torch.empty(64 << 20, dtype=torch.uint8, device="cuda")
    torch.cuda._sleep(100_000_000)
    scratch.fill_(255)
    del scratch
    loaded = raws(load(folder, "cuda").weights)
    assert all(ours.cpu().equal(other) for ours, other in zip(loaded, expected, strict=True))


PROBE = """
import json, sys
from dsv4.runtime.checkpoint.loader import load

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))

small, large = sys.argv[1:]
load(small, "cuda", threads=2)  # what the first load brings: CUDA, pinned memory, code
start = peak()
model = load(large, "cuda", threads=2)
print(json.dumps(peak() - start))
"""


def test_the_host_holds_the_staging_buffers_and_little_more(written: Written, tmp_path: Path) -> None:
    config = TINY.replace(n_routed_experts=64, moe_intermediate_size=1024)
    write_checkpoint(tmp_path, config, shards=2)
    total = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    assert total > 8 * STAGE_BYTES
    command = [sys.executable, "-c", PROBE, str(written("fp8_mxfp4", 1)), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd="/")
    assert json.loads(done.stdout) < 2 * STAGE_BYTES + (16 << 20)
