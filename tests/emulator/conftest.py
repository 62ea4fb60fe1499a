"""Fixtures of the emulator's tests."""

from __future__ import annotations

import pytest

from tests.emulator.scalar_machine import ScalarMachine


@pytest.fixture(scope="session")
def scalar_machine(tmp_path_factory: pytest.TempPathFactory) -> ScalarMachine:
    """The scalar handlers of the core, built once a session."""
    return ScalarMachine(tmp_path_factory.mktemp("scalar"))
