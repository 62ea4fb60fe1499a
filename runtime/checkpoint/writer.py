"""Write safetensors files and the index of shards: each file whole or not at all, in any dtype of the format."""

from __future__ import annotations

import ctypes
import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from dsv4.runtime.checkpoint.files import INDEX_NAME
from dsv4.runtime.checkpoint.safetensors_file import DTYPE_BYTES


def write_file(path: Path, tensors: Mapping[str, tuple[str, torch.Tensor]]) -> None:
    """Write ``tensors``, name → (the format's dtype, tensor), in this order."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, tensor) in tensors.items():
        if tensor.itemsize != DTYPE_BYTES[dtype]:
            raise ValueError(f"{name}: found {tensor.dtype}; valid: elements of {DTYPE_BYTES[dtype]} bytes for {dtype}")
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [end, end + tensor.nbytes]}
        end += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for _, tensor in tensors.values():
                _write_bytes(file, tensor)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_index(folder: Path, weight_map: Mapping[str, str], total_bytes: int) -> None:
    """Write the index of shards: each tensor's file, and the bytes of all."""
    index = {"metadata": {"total_size": total_bytes}, "weight_map": dict(weight_map)}
    write_json(folder / INDEX_NAME, index)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write ``values`` as people read them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_bytes(file: BinaryIO, tensor: torch.Tensor) -> None:
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    if flat.numel():
        file.write((ctypes.c_char * flat.numel()).from_address(flat.data_ptr()))
