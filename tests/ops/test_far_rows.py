"""Rows of pools and of a compressor's state more than 2³¹ bytes behind the first, as in caches of 1M tokens.

The memory is reserved; the emulator takes as much again. Only what is written takes memory in this process.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from dsv4.generator.build import BuildResult
from dsv4.generator.spec import plan
from dsv4.generator.verify.emulator import EmulatedKernel
from dsv4.generator.verify.run import bind
from dsv4.runtime.pool import Pool, PoolFormat, page_bytes
from dsv4.runtime.reference.compressor import Compression
from dsv4.runtime.reference.compressor import compressor as compressor_reference
from dsv4.runtime.reference.pages import read_rows
from dsv4.runtime.reference.q_norm_rope_kv_insert import q_norm_rope_kv_insert as insert_reference
from tests.ops import builds as builds

BEYOND, NEEDED_BYTES = 2**31, 12 << 30
PAGE = 64
pytestmark = [
    pytest.mark.sweep,  # half a minute each
    pytest.mark.skipif(
        os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < NEEDED_BYTES, reason="needs 12 GB of free memory"
    ),
]


def built(op: str, arch: str, folder: Path, **choice: dict[str, object]) -> BuildResult:
    return builds.build_all([plan(op, arch, **choice)], folder)[0]  # type: ignore[arg-type]


def run(result: BuildResult, values: dict[str, object]) -> None:
    kernel = EmulatedKernel(builds.artifact(result))
    kernel(*bind(builds.manifest(result).contract, values))  # type: ignore[arg-type]
    assert kernel.report is not None and list(kernel.report.findings) == []


def far_pool() -> Pool:
    """Packed pages of which the last ones lie behind 2³¹ bytes."""
    size = page_bytes(PoolFormat.KV_FP8, PAGE)
    return Pool(torch.empty(BEYOND // size + 3, size, dtype=torch.uint8), PoolFormat.KV_FP8, PAGE)


def table(rows: int) -> torch.Tensor:
    angle = torch.rand(rows, 32) * 6
    return torch.cat((angle.cos(), angle.sin()), dim=1)


def close(got: torch.Tensor, expected: torch.Tensor) -> None:
    assert float((got - expected).norm()) <= 4e-3 * float(expected.norm())


@pytest.mark.parametrize("arch", ["sm_90a", "sm_100a"])
def test_keys_in_the_last_page(arch: str, tmp_path: Path) -> None:
    result = built("q_norm_rope_kv_insert", arch, tmp_path, dims={"H": 1}, variant={"cache": "kv_fp8"})
    torch.manual_seed(0)
    q, kv, norm, cos_sin = torch.randn(3, 1, 512), torch.randn(3, 512), torch.randn(512), table(3)
    pool = far_pool()
    rows = torch.tensor([pool.rows - 2, 70, -1])
    given = {"q": q.bfloat16(), "kv": kv.bfloat16(), "kv_norm": norm.bfloat16(), "cos_sin": cos_sin}
    near = Pool.allocate(8, format=PoolFormat.KV_FP8, page=4)
    insert_reference(*given.values(), near, torch.tensor([0, 1, 2]))
    run(
        result,
        {
            **given,
            "pool": pool.data,
            "rows": rows,
            "page": PAGE,
            "eps": 1e-6,
            "q_out": torch.empty(3, 1, 512).bfloat16(),
        },
    )
    close(read_rows(pool, rows[:2]), read_rows(near, torch.tensor([0, 1])))


@pytest.mark.parametrize("far", ["state", "pool"])
@pytest.mark.parametrize("arch", ["sm_90a", "sm_100a"])
def test_state_and_entries_in_their_last_rows(arch: str, far: str, tmp_path: Path) -> None:
    """Entry 0 of four rows of the state and four tokens, which are kept behind them; one of the two is large."""
    result = built("compressor", arch, tmp_path, dims={"m": 4, "D": 512}, variant={"format": "kv_fp8"})
    torch.manual_seed(0)
    kv, score, ape, norm = torch.randn(4, 1024), torch.randn(4, 1024), torch.randn(4, 1024), torch.randn(512).bfloat16()
    near, cos_sin = Pool.allocate(8, format=PoolFormat.KV_FP8, page=PAGE), table(1)
    pool = far_pool() if far == "pool" else Pool(near.data.clone(), near.format, PAGE)
    state = torch.empty(BEYOND // 8192 + 20 if far == "state" else 9, 2048)
    last = state.shape[0] - 9
    state[last : last + 4] = torch.randn(4, 2048)
    none = [-1] * 4
    fresh, phase = torch.tensor([[*none, 0, 1, 2, 3]]), torch.arange(4)
    entry, kept = torch.tensor([pool.rows - 2]), last + 4 + phase
    stored = torch.tensor([[*(last + phase).tolist(), *none]])
    near_state = torch.cat((state[last : last + 8], torch.zeros(1, 2048)))
    plan_near = Compression(phase, fresh, torch.where(stored < 0, -1, stored - last), torch.tensor([0]), kept - last)
    compressor_reference(kv, score, ape, norm, cos_sin, near_state, near, plan_near)
    given = {"kv": kv, "score": score, "ape": ape, "norm": norm, "cos_sin": cos_sin, "state": state, "pool": pool.data}
    numbers = {"phase": phase, "fresh": fresh, "stored": stored, "entry_rows": entry, "state_rows": kept}
    run(result, {**given, **numbers, "page": PAGE, "apart": 1, "eps": 1e-6})
    close(read_rows(pool, entry), read_rows(near, torch.tensor([0])))
    assert torch.equal(state[last : last + 8], near_state[:8])
