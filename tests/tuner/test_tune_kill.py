"""Kill −9 at any moment: the next run goes on from there, and nothing is lost or counted twice."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.tuner import postgres_server, sweep_process


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


@pytest.fixture
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A storage of the kind that the test asks for."""
    if request.param != "postgresql":
        yield str(tmp_path / "x.journal") if request.param == "journal" else f"sqlite:///{tmp_path}/x.db"
        return
    pytest.importorskip("psycopg", reason="the PostgreSQL driver is the extra 'postgres'")
    with ExitStack() as until_the_end:
        try:
            url = until_the_end.enter_context(postgres_server.running())
        except postgres_server.CannotStart as error:
            pytest.skip(f"no PostgreSQL server: {error}")
        yield url


@pytest.mark.parametrize("where", ["journal", "sqlite", "postgresql"], indirect=True)
def test_one_of_three_workers_is_killed_in_the_middle_of_its_trials(tmp_path: Path, where: str):
    """When the gate says that the victim measures, its claims are in the storage, and it cannot tell of them before the
    gate opens: the kill meets its trials for certain."""
    batch, configurations = 2, 14
    gate = sweep_process.Gate(tmp_path)
    workers = [
        sweep_process.start(tmp_path, where, seed=seed, batch=batch, configurations=configurations, gated=True)
        for seed in (0, 10, 20)
    ]
    gate.wait_for(workers)
    study = sweep_process.open_study(where)
    held = Counter(trial.user_attrs["worker"] for trial in study._trials() if not trial.state.is_finished())
    records = study.storage.get_study_user_attrs(study._id).values()
    (name,) = (record["name"] for record in records if record.get("pid") == workers[0].pid)
    assert 1 <= held[name] <= 2 * batch and len(held) == 3  # what it measures, and what it compiles meanwhile
    assert sweep_process.kill(workers[0]) and workers[0].exitcode == -9
    gate.open()
    for worker in workers[1:]:
        worker.join(timeout=200)
    assert [worker.exitcode for worker in workers[1:]] == [0, 0]
    lost = sweep_process.examine(tmp_path, where, configurations)
    assert lost == held[name], "all that the victim held is given up and retried, each of it once"


def test_workers_share_a_budget_exactly(tmp_path: Path):
    where = str(tmp_path / "x.journal")
    workers = [sweep_process.start(tmp_path, where, seed=seed, configurations=20, batch=2) for seed in range(2)]
    for worker in workers:
        worker.join(timeout=60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    sweep_process.examine(tmp_path, where, configurations=20)
