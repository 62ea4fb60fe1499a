"""The stand-in for a GPU: which tensors have no contents yet."""

from __future__ import annotations

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from benchmarks.third_party import stand_in


def test_what_is_empty_is_known_until_a_kernel_sees_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "empty", torch.empty)  # restored at the end
    monkeypatch.setattr(torch, "empty_like", torch.empty_like)
    stand_in._mark_what_is_empty()
    made = torch.empty(96)
    assert not isinstance(stand_in._plain(made.view(2, -1)), torch.Tensor), "marked as without contents"
    assert isinstance(stand_in._plain(made), torch.Tensor), "a kernel has seen it"


def test_memory_that_another_tensor_had_is_not_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    gone, other = torch.empty(96), torch.ones(96)
    left_over = StorageWeakRef(gone.untyped_storage())
    del gone
    monkeypatch.setattr(stand_in, "_fresh", {other.data_ptr(): left_over})  # as if it lay where the other one was
    assert isinstance(stand_in._plain(other), torch.Tensor)
