"""What the tests of operators' doors share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import dsv4
from dsv4.runtime import dispatch
from dsv4.runtime.cache import Artifact, KernelCache
from dsv4.runtime.ops import plain


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Kernels serve the CPU, compiled on demand for sm_90a and run by the emulator; gives the operators served so."""
    monkeypatch.setenv("DSV4_CACHE", str(tmp_path_factory.mktemp("doors")))
    from dsv4.generator.build import build  # here: a machine with a GPU runs its tests without the compiler
    from dsv4.generator.spec import plan
    from dsv4.generator.verify.emulator import EmulatedKernel

    names: list[str] = []

    def serve(request: dispatch.Request) -> Any:
        made = plan(request.op, "sm_90a", dims=request.dims, variant=request.variant)
        (result,) = build([made], cache_root=tmp_path_factory.mktemp("kernels"), jobs=1)
        assert result.artifact is not None, result.error
        artifact = Artifact.read(Path(result.artifact))
        names.append(request.op)
        return SimpleNamespace(artifact=artifact, function=EmulatedKernel(artifact))

    dispatch.reset()
    monkeypatch.setattr(plain, "KERNEL_DEVICES", ("cpu",))
    monkeypatch.setattr(dispatch, "serve", serve)
    yield names
    dispatch.reset()


@pytest.fixture
def kernels_only() -> Iterator[None]:
    """Kernels must serve on the GPU; a cache without them is no place for such tests."""
    if not KernelCache().kinds():
        pytest.skip("the kernel cache is empty; valid: one with the default kernels of this GPU's arch")
    dispatch.reset()
    dsv4.configure(missing="raise")
    yield
    dispatch.reset()
