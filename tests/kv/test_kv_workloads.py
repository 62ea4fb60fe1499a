"""Random lives of a cache against the plain model of ``workload``."""

from __future__ import annotations

import pytest

from tests.kv.workload import Workload

OPERATIONS = 60


@pytest.mark.parametrize("seed", range(6))
def test_random_workloads(seed: int) -> None:
    work = Workload(seed, block=(128, 256)[seed % 2], drafts=1 + seed % 3)
    work.do_open()
    for _ in range(OPERATIONS):
        work.act()
        for slot in work.texts:
            work.check_entries(slot)
    for slot in list(work.texts):
        work.cache.free(slot)
    assert work.cache.free_blocks == work.cache.layout.blocks and work.cache.free_slots == 4


def test_the_workloads_do_everything() -> None:
    """So that the test above cannot go blind."""
    done: dict[str, int] = {}
    refused = 0
    for seed in range(3):
        work = Workload(seed)
        work.do_open()
        for _ in range(OPERATIONS):
            work.act()
        refused += work.refused
        for name, count in work.done.items():
            done[name] = done.get(name, 0) + count
    assert set(done) == {"append", "decode", "rollback", "fork", "open", "free", "reserve"}
    assert refused > 0 and done["fork"] > 3 and done["rollback"] > 3


@pytest.mark.sweep
@pytest.mark.parametrize("seed", range(100, 300))
def test_many_random_workloads(seed: int) -> None:
    test_random_workloads(seed)
