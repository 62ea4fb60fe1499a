"""Kill −9 at any moment: the next run goes on from there, and nothing is lost or counted twice."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.tuner import sweep_process


def killed(root: Path, where: str, kills: int, seed: int) -> tuple[int, int]:
    """Runs that are killed at random moments until so many were, or one came to its end; kills, and claims that died
    with them."""
    rng = random.Random(seed)
    done = run = 0
    while done < kills:
        process = sweep_process.start(root, where, seed=run)
        process.join(timeout=rng.uniform(0.05, 0.9))
        done += sweep_process.kill(process)
        run += 1
        assert run < 20 * kills, "the sweeps end before they can be killed"
        if process.exitcode == 0:
            break
    sweep_process.work(root, where, seed=run)
    return done, sweep_process.examine(root, where)


def test_a_sweep_that_is_killed_at_random_moments_loses_nothing(tmp_path: Path):
    kills, lost = killed(tmp_path, str(tmp_path / "x.journal"), kills=5, seed=1)
    assert kills >= 1 and lost >= 0


@pytest.mark.sweep
def test_a_sweep_that_is_killed_a_hundred_times_loses_nothing(tmp_path: Path):
    lost = kills = part = 0
    while kills < 100:
        root = tmp_path / str(part)
        root.mkdir()
        where = str(root / "x.journal") if part % 2 else f"sqlite:///{root}/x.db"
        more = killed(root, where, kills=5, seed=100 + part)
        kills, lost, part = kills + more[0], lost + more[1], part + 1
    assert lost > kills / 4, "hardly a kill met a measurement"


@pytest.mark.parametrize("kind", ["journal", "sqlite"])
def test_of_two_workers_on_one_study_one_is_killed(tmp_path: Path, kind: str):
    where = str(tmp_path / "x.journal") if kind == "journal" else f"sqlite:///{tmp_path}/x.db"
    victim, other = (sweep_process.start(tmp_path, where, seed=seed, configurations=16) for seed in (1, 2))
    victim.join(timeout=0.7)
    sweep_process.kill(victim)
    other.join(timeout=60)
    assert other.exitcode == 0
    sweep_process.examine(tmp_path, where, configurations=16)


def test_workers_share_a_budget_exactly(tmp_path: Path):
    where = str(tmp_path / "x.journal")
    workers = [sweep_process.start(tmp_path, where, seed=seed, configurations=20, batch=2) for seed in range(2)]
    for worker in workers:
        worker.join(timeout=60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    sweep_process.examine(tmp_path, where, configurations=20)
