"""One bench for all lessons: kernels are compiled once a session, beside one another."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lessons.jobs import JOBS
from tests.lessons.planting import Bench


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    made = Bench(JOBS, tmp_path_factory.mktemp("lessons"))
    yield made
    made.close()
