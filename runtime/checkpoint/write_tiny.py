"""Write a small random checkpoint: ``python -m dsv4.runtime.checkpoint.write_tiny FOLDER --layout fp8_nvfp4``.

Tests and the demo load it. The same seed gives the same files.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from dsv4.runtime.checkpoint.files import INDEX_NAME, SINGLE_NAME
from dsv4.runtime.checkpoint.inventory import TensorSpec, inventory
from dsv4.runtime.checkpoint.layouts import LAYOUTS, Layout
from dsv4.runtime.checkpoint.random_tensors import RandomTensors
from dsv4.runtime.checkpoint.safetensors_file import DTYPE_BYTES
from dsv4.runtime.checkpoint.tiny_tokenizer import tokenizer_json
from dsv4.runtime.checkpoint.writer import write_file, write_index, write_json
from dsv4.runtime.errors import CheckpointError
from dsv4.runtime.model.config import ModelConfig, Quantization, WeightScheme
from dsv4.runtime.model.presets import TINY


def write_checkpoint(
    folder: Path | str,
    config: ModelConfig = TINY,
    *,
    layout: WeightScheme | Layout = "fp8_mxfp4",
    shards: int = 1,
    seed: int = 0,
    tokenizer: bool = True,
) -> ModelConfig:
    """Write a random checkpoint of ``config`` in ``layout`` to ``folder``, which must not hold one; returns its config.

    ``shards`` > 1 writes that many files (fewer where there are fewer tensors) and an index. Both spellings of the
    configuration are written; ``config``'s quantisation is replaced by the layout's. A tokenizer is written where the
    vocabulary has room for the 256 bytes. Memory: one shard.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.glob("*.safetensors")):
        raise CheckpointError(f"{folder}: found a checkpoint; valid: a new or empty folder")
    if shards < 1:
        raise CheckpointError(f"shards: found {shards}; valid: 1 or more")
    stored = layout if isinstance(layout, Layout) else LAYOUTS[layout]
    config = stored_as(config, stored.name)
    specs = inventory(config, stored)
    tensors = RandomTensors(config, specs, seed)
    parts = _split(list(specs.values()), shards)
    weight_map: dict[str, str] = {}
    for number, part in enumerate(parts, start=1):
        name = SINGLE_NAME if len(parts) == 1 else f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        write_file(folder / name, {spec.name: tensors(spec.name) for spec in part})
        weight_map |= {spec.name: name for spec in part}
    if len(parts) > 1:
        write_index(folder, weight_map, sum(map(_nbytes, specs.values())))
    write_json(folder / "config.json", config.to_hf())
    write_json(folder / "inference" / "config.json", config.to_inference())
    if tokenizer and (values := tokenizer_json(config.vocab_size)):
        write_json(folder / "tokenizer.json", values)
    return config


def stored_as(config: ModelConfig, scheme: WeightScheme) -> ModelConfig:
    """``config`` saying that its linears are stored as ``scheme``."""
    quantization: dict[WeightScheme, Quantization | None] = {
        "plain": None,
        "fp8_mxfp4": Quantization(),
        "fp8_nvfp4": Quantization(moe_quant_algo="NVFP4"),
        "nvfp4": Quantization(quant_method="modelopt", quant_algo="NVFP4", group_size=16),
    }
    stored = quantization[scheme]
    return config.replace(quantization_config=stored, expert_dtype=None if stored is None else "fp4")


def _nbytes(spec: TensorSpec) -> int:
    count = 1
    for size in spec.shape:
        count *= size
    return count * DTYPE_BYTES[spec.dtypes[0]]


def _split(specs: list[TensorSpec], shards: int) -> list[list[TensorSpec]]:
    """``specs`` in order, cut into at most ``shards`` parts of about as many bytes."""
    total = sum(map(_nbytes, specs))
    parts: list[list[TensorSpec]] = [[] for _ in range(shards)]
    done = 0
    for spec in specs:
        parts[min(shards - 1, done * shards // max(total, 1))].append(spec)
        done += _nbytes(spec)
    return [part for part in parts if part]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m dsv4.runtime.checkpoint.write_tiny", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layout", choices=get_args(WeightScheme), default="fp8_mxfp4")
    parser.add_argument("--shards", type=int, default=1, help="files to write (default: one, without an index)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--config", type=Path, help="a config.json whose sizes are taken (default: tiny)")
    parser.add_argument("--no-tokenizer", action="store_true")
    chosen = parser.parse_args(arguments)
    config = ModelConfig.load(chosen.config) if chosen.config else TINY
    write_checkpoint(
        chosen.folder,
        config,
        layout=chosen.layout,
        shards=chosen.shards,
        seed=chosen.seed,
        tokenizer=not chosen.no_tokenizer,
    )
    names = sorted(path.name for path in chosen.folder.iterdir())
    print(f"{chosen.folder}: {', '.join(name for name in names if name != INDEX_NAME or chosen.shards > 1)}")


if __name__ == "__main__":
    main()
