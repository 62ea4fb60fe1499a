"""Benchmarks without a GPU: tensors that ask for one are made on the CPU, formulas run as they are written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks import embed, router_hash

SMALL_VOCABULARY = 1000
FACTORIES = (
    "arange", "empty", "full", "full_like", "ones", "rand", "randint", "randn", "randperm", "tensor", "zeros",
)  # fmt: skip


def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the test ends."""

    def moved(make: Callable[..., Any]) -> Callable[..., Any]:
        def made(*arguments: Any, **options: Any) -> Any:
            if options.get("device") == "cuda":
                options["device"] = "cpu"
            return make(*arguments, **options)

        return made

    for name in FACTORIES:
        monkeypatch.setattr(torch, name, moved(getattr(torch, name)))
    generator = torch.Generator
    monkeypatch.setattr(torch, "Generator", lambda device=None: generator())
    mm = torch.mm
    monkeypatch.setattr(torch, "mm", lambda a, b, out_dtype: mm(a.to(out_dtype), b.to(out_dtype)))
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: function)
    monkeypatch.setattr(torch.compiler, "reset", lambda: None)
    monkeypatch.setattr(torch.version, "cuda", None)
    for benchmark in (embed, router_hash):
        monkeypatch.setattr(benchmark, "VOCABULARY", SMALL_VOCABULARY)
