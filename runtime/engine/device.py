"""The device that a name stands for."""

from __future__ import annotations

import re

import torch

from dsv4.runtime.errors import ContractError


def device_of(name: str) -> torch.device:
    """The device ``name``: cpu, cuda (the current one) or cuda:N. Raises ``ContractError`` where there is none."""
    found = re.fullmatch(r"cpu|cuda(?::(\d+))?", name)
    if found is None:
        raise ContractError(f"device: found {name!r}; valid: cpu, cuda or cuda:N")
    if name == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = int(found[1] or 0)
    if index >= count:
        raise ContractError(f"device: found {name}; valid: cpu, or one of this machine's {count} GPUs")
    return torch.device("cuda", index if found[1] else torch.cuda.current_device())
