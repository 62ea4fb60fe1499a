"""Every operator with a kernel as torch knows it: schema, fake implementation, what it says it mutates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from dsv4.runtime.ops import plain
from dsv4.runtime.ops.torch_face import TorchFace
from tests.ops.test_doors import CALLS
from tests.ops.test_memory import MORE

NAMES = [name for name in {**CALLS, **MORE} if not name.startswith("rms_norm") or name.startswith("rms_norm_quant")]
"""``rms_norm`` registers itself (tests/runtime/test_torch_integration.py)."""


def checks(values: tuple[Any, ...], options: dict[str, Any]) -> list[str]:
    """What looks after the schema multiplies the inputs, which torch cannot in FP8; tracing the butterflies of a
    Hadamard transform takes it half a minute."""
    has_fp8 = any(torch.is_tensor(each) and each.is_floating_point() and each.itemsize == 1 for each in values)
    found = ["test_autograd_registration", "test_faketensor"]
    found += [] if has_fp8 else ["test_schema"]
    return found + ([] if options.get("rotate_hadamard") else ["test_aot_dispatch_dynamic"])


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, tuple[Any, ...]]]:
    """(operator, arguments) of each call, which goes through torch as if torch.compile traced it for a GPU."""
    calls: list[tuple[Any, tuple[Any, ...]]] = []

    def call(face: TorchFace, arguments: Any, options: Any) -> Any:
        operator = face._op

        def noted(*flat: Any) -> Any:
            calls.append((operator, flat))
            return operator(*flat)

        face._op = noted  # type: ignore[assignment]
        try:
            return through(face, arguments, options)
        finally:
            face._op = operator

    through: Callable[..., Any] = TorchFace.__call__
    monkeypatch.setattr(TorchFace, "__call__", call)
    monkeypatch.setattr(plain, "is_compiling", lambda: True)
    monkeypatch.setattr(plain, "_on_gpu", lambda arguments: True)
    return calls


@pytest.mark.parametrize("name", NAMES)
def test_torch_finds_nothing_to_complain_of(seen: list[tuple[Any, tuple[Any, ...]]], name: str) -> None:
    function, make, options = {**CALLS, **MORE}[name]
    torch.manual_seed(0)
    function(*make(), **options)
    ((operator, flat),) = seen
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plain, "is_compiling", torch.compiler.is_compiling)
        torch.library.opcheck(operator, flat, test_utils=checks(flat, options))
