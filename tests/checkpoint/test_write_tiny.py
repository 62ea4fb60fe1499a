"""Random checkpoints: the same for the same seed, whole, readable by others, one model in every layout."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from checkpoint_samples import MINI, Written

from dsv4.runtime.checkpoint import tiny_tokenizer
from dsv4.runtime.checkpoint.checkpoint import Checkpoint
from dsv4.runtime.checkpoint.inventory import inventory
from dsv4.runtime.checkpoint.layouts import LAYOUTS
from dsv4.runtime.checkpoint.write_tiny import main, stored_as, write_checkpoint
from dsv4.runtime.errors import CheckpointError
from dsv4.runtime.model.config import ModelConfig, WeightScheme
from dsv4.runtime.model.presets import TINY

SCHEMES: list[WeightScheme] = ["plain", "fp8_mxfp4", "fp8_nvfp4", "nvfp4"]


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_same_seed_writes_the_same_files(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        write_checkpoint(tmp_path / name, MINI, shards=2, seed=seed)
    first, again, other = (digests(tmp_path / name) for name in "abc")
    assert first == again
    assert first["model-00001-of-00002.safetensors"] != other["model-00001-of-00002.safetensors"]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_shards_hold_what_the_single_file_holds(written: Written, scheme: WeightScheme) -> None:
    single = safetensors.torch.load_file(written(scheme, 1) / "model.safetensors")
    shards = sorted(written(scheme, 3).glob("*.safetensors"))
    assert [path.name for path in shards] == [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    parts = [safetensors.torch.load_file(path) for path in shards]
    assert sum(map(len, parts)) == len(single) == len(inventory(stored_as(MINI, scheme), LAYOUTS[scheme]))
    for part in parts:
        for name, tensor in part.items():
            assert tensor.dtype == single[name].dtype
            assert raw(tensor).equal(raw(single[name]))
    sizes = [path.stat().st_size for path in shards]
    assert max(sizes) < 2 * min(sizes)


def raw(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).view(torch.uint8)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_both_configuration_files_say_the_layout(written: Written, scheme: WeightScheme) -> None:
    folder = written(scheme, 1)
    assert ModelConfig.load(folder).weight_scheme == scheme
    assert json.loads((folder / "inference" / "config.json").read_text())["dim"] == MINI.hidden_size


def test_values_are_of_a_size_that_a_model_can_run_on(written: Written) -> None:
    with Checkpoint.open(written("fp8_mxfp4", 1)) as checkpoint:
        for name in checkpoint.specs:
            tensor = checkpoint.files.mapped(name)
            if tensor.dtype in (torch.bfloat16, torch.float32):
                assert tensor.isfinite().all()
                assert tensor.abs().max() < 10
            if name.endswith(".scale"):
                assert 0.001 < tensor.to(torch.float32).mean() < 0.2
        ids = checkpoint.files.mapped("layers.0.ffn.gate.tid2eid")
        assert all(len(set(row)) == MINI.num_experts_per_tok for row in ids.tolist())


def test_more_shards_than_tensors_are_not_written(tmp_path: Path) -> None:
    config = write_checkpoint(tmp_path, MINI, shards=10_000)
    shards = list(tmp_path.glob("*.safetensors"))
    assert 1 < len(shards) <= len(inventory(config, LAYOUTS["fp8_mxfp4"]))
    Checkpoint.open(tmp_path).close()


def test_a_checkpoint_is_not_written_over(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, MINI)
    before = digests(tmp_path)
    with pytest.raises(CheckpointError, match="found a checkpoint; valid: a new or empty folder"):
        write_checkpoint(tmp_path, MINI, seed=1)
    assert digests(tmp_path) == before
    with pytest.raises(CheckpointError, match="shards: found 0; valid: 1 or more"):
        write_checkpoint(tmp_path / "new", MINI, shards=0)


def test_the_command_writes_a_checkpoint_of_the_given_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = tmp_path / "sizes.json"
    sizes.write_text(json.dumps(MINI.to_hf()))
    folder = tmp_path / "out"
    main([str(folder), "--layout", "fp8_nvfp4", "--shards", "2", "--seed", "7", "--config", str(sizes)])
    said = capsys.readouterr().out
    assert "model-00002-of-00002.safetensors" in said and "model.safetensors.index.json" in said
    with Checkpoint.open(folder) as checkpoint:
        assert checkpoint.layout == LAYOUTS["fp8_nvfp4"]
        assert checkpoint.config.hidden_size == MINI.hidden_size


def test_the_tokenizer_gives_every_id_a_text() -> None:
    values = tiny_tokenizer.tokenizer_json(TINY.vocab_size)
    assert values is not None
    vocabulary = values["model"]["vocab"]
    assert sorted(vocabulary.values()) == list(range(TINY.vocab_size))
    assert (vocabulary[tiny_tokenizer.BEGIN], vocabulary[tiny_tokenizer.END]) == (0, 1)
    assert all("".join(pair) in vocabulary for pair in values["model"]["merges"])
    assert tiny_tokenizer.tokenizer_json(257) is None


def test_the_tokenizers_library_reads_it(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="an optional library: the extra `text`")
    write_checkpoint(tmp_path, MINI.replace(vocab_size=300))
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == 300
    for text in ("the tiger sat on the mat", "größer, 東京 \n\t\0", ""):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert tokenizer.encode("<｜begin▁of▁sentence｜>x").ids[0] == 0


def test_a_vocabulary_without_room_for_the_bytes_gets_no_tokenizer(written: Written) -> None:
    assert not (written("fp8_mxfp4", 1) / "tokenizer.json").exists()
