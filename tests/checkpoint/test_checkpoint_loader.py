"""Loading: every byte arrives where it belongs, whatever the layout and the shards; nothing is kept after an error."""

from __future__ import annotations

import gc
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from checkpoint_samples import MINI, Written

from dsv4.runtime.checkpoint import arrange
from dsv4.runtime.checkpoint.checkpoint import Checkpoint
from dsv4.runtime.checkpoint.layouts import UNVERIFIED
from dsv4.runtime.checkpoint.loader import load, stream
from dsv4.runtime.errors import CheckpointError, Dsv4Warning, forget_said
from dsv4.runtime.model.config import WeightScheme
from dsv4.runtime.model.schedule import schedule
from dsv4.runtime.model.weights import BlockWeights, ModelWeights, map_weights
from dsv4.runtime.weight import Format, Weight

SCHEMES: list[WeightScheme] = ["plain", "fp8_mxfp4", "fp8_nvfp4", "nvfp4"]
pytestmark = pytest.mark.filterwarnings("ignore:.*unverified:dsv4.runtime.errors.Dsv4Warning")


def theirs(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors as the safetensors library reads them."""
    tensors: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        tensors |= safetensors.torch.load_file(path)
    return tensors


def raw(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).view(torch.uint8)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_groups_hold_every_tensor_once(written: Written, scheme: WeightScheme, shards: int) -> None:
    folder = written(scheme, shards)
    expected, seen = theirs(folder), set()
    with Checkpoint.open(folder) as checkpoint:
        for group, tensors in stream(checkpoint):
            prefix = "" if group in ("embed", "head") else f"{group}."
            for key, tensor in tensors.items():
                if key.startswith("ffn.experts."):
                    part = key.removeprefix("ffn.experts.")
                    names = [f"{prefix}ffn.experts.{expert}.{part}" for expert in range(MINI.n_routed_experts)]
                    assert tensor.shape[0] == len(names)
                    pairs = list(zip(names, tensor, strict=True))
                else:
                    pairs = [(prefix + key, tensor)]
                for name, found in pairs:
                    assert raw(found).equal(raw(expected[name])), name
                    assert found.shape == expected[name].shape
                    wanted = expected[name].dtype
                    assert found.dtype == (torch.uint8 if wanted == torch.int8 else wanted)
                    seen.add(name)
    assert seen == set(expected)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_containers_hold_the_right_tensors(written: Written, scheme: WeightScheme) -> None:
    """Against the raw files, in names spelled out here."""
    folder = written(scheme, 3)
    raws, model = theirs(folder), load(folder)
    weights = model.weights
    assert weights.embed.equal(raws["embed.weight"])
    assert weights.head.equal(raws["head.weight"])
    assert weights.norm.equal(raws["norm.weight"])
    assert weights.head_mix.fn.equal(raws["hc_head_fn"])
    assert weights.head_mix.base.equal(raws["hc_head_base"])
    assert weights.head_mix.scale.equal(raws["hc_head_scale"])
    assert len(weights.layers) == 5 and weights.mtp is not None
    for layer in schedule(model.config):
        p = layer.prefix
        block = weights.mtp.block if layer.is_mtp else weights.layers[layer.index]
        for mix, name in ((block.attention_mix, "hc_attn"), (block.ffn_mix, "hc_ffn")):
            assert mix.fn.equal(raws[f"{p}.{name}_fn"])
            assert mix.base.equal(raws[f"{p}.{name}_base"])
            assert mix.scale.equal(raws[f"{p}.{name}_scale"])
        assert block.attention_norm.equal(raws[f"{p}.attn_norm.weight"])
        assert block.ffn_norm.equal(raws[f"{p}.ffn_norm.weight"])
        attention = block.attention
        assert attention.sink.equal(raws[f"{p}.attn.attn_sink"])
        assert attention.q_norm.equal(raws[f"{p}.attn.q_norm.weight"])
        assert attention.kv_norm.equal(raws[f"{p}.attn.kv_norm.weight"])
        for name in ("wq_a", "wq_b", "wkv", "wo_a", "wo_b"):
            assert_linear(getattr(attention, name), raws, f"{p}.attn.{name}")
        assert (attention.compressor is not None) == (layer.ratio > 0)
        assert (attention.indexer is not None) == (layer.ratio == 4)
        if attention.compressor is not None:
            assert attention.compressor.ape.equal(raws[f"{p}.attn.compressor.ape"])
            assert attention.compressor.norm.equal(raws[f"{p}.attn.compressor.norm.weight"])
            assert attention.compressor.wkv.codes.equal(raws[f"{p}.attn.compressor.wkv.weight"])
            assert attention.compressor.wgate.codes.equal(raws[f"{p}.attn.compressor.wgate.weight"])
        if attention.indexer is not None:
            name = f"{p}.attn.indexer"
            assert_linear(attention.indexer.wq_b, raws, f"{name}.wq_b")
            assert attention.indexer.weights_proj.codes.equal(raws[f"{name}.weights_proj.weight"])
            assert attention.indexer.compressor.ape.equal(raws[f"{name}.compressor.ape"])
            assert attention.indexer.compressor.wkv.codes.equal(raws[f"{name}.compressor.wkv.weight"])
        assert_moe(block, raws, p, hashed=layer.router == "hash")
    for name in ("e_proj", "h_proj"):
        assert_linear(getattr(weights.mtp, name), raws, f"mtp.0.{name}")
    for name in ("enorm", "hnorm", "norm"):
        assert getattr(weights.mtp, name).equal(raws[f"mtp.0.{name}.weight"])
    assert weights.mtp.head_mix.fn.equal(raws["mtp.0.hc_head_fn"])


def assert_moe(block: BlockWeights, raws: dict[str, torch.Tensor], p: str, *, hashed: bool) -> None:
    router = block.moe.router
    assert router.weight.equal(raws[f"{p}.ffn.gate.weight"])
    assert (router.bias is None, router.tid2eid is None) == (hashed, not hashed)
    if router.tid2eid is not None:
        assert router.tid2eid.equal(raws[f"{p}.ffn.gate.tid2eid"])
    if router.bias is not None:
        assert router.bias.equal(raws[f"{p}.ffn.gate.bias"])
    for part in ("w1", "w2", "w3"):
        assert_linear(getattr(block.moe.shared, part), raws, f"{p}.ffn.shared_experts.{part}")
        stack = getattr(block.moe.experts, part)
        assert stack.shape[0] == MINI.n_routed_experts
        for expert in range(MINI.n_routed_experts):
            assert_linear(stack[expert], raws, f"{p}.ffn.experts.{expert}.{part}")


def assert_linear(weight: Weight, raws: dict[str, torch.Tensor], name: str) -> None:
    assert raw(weight.codes).equal(raw(raws[f"{name}.weight"])), name
    if weight.format is Format.NVFP4:
        assert weight.scale is not None and weight.scale_2 is not None and weight.input_scale is not None
        assert raw(weight.scale).equal(raw(raws[f"{name}.weight_scale"]))
        assert weight.scale_2.equal(raws[f"{name}.weight_scale_2"])
        assert weight.input_scale.equal(raws[f"{name}.input_scale"])
    elif weight.format is not Format.PLAIN:
        assert weight.scale is not None
        assert raw(weight.scale).equal(raw(raws[f"{name}.scale"]))


def test_one_seed_is_one_model_in_every_layout(written: Written) -> None:
    """The official layout, NVIDIA's and the plain one hold the same numbers; full NVFP4 the same experts."""
    values = {scheme: expanded(load(written(scheme, 1)).weights) for scheme in SCHEMES}
    official = tensors_of(values["fp8_mxfp4"])
    for scheme in ("fp8_nvfp4", "plain"):
        pairs = list(zip(official, tensors_of(values[scheme]), strict=True))
        assert all(ours.equal(other) for ours, other in pairs)
    for ours, full in zip(values["fp8_mxfp4"].layers, values["nvfp4"].layers, strict=True):
        assert ours.moe.experts.w2.codes.equal(full.moe.experts.w2.codes)


def expanded(weights: ModelWeights) -> ModelWeights:
    return map_weights(weights, weight=lambda weight: Weight.plain(weight.dequantize()), tensor=lambda tensor: tensor)


def tensors_of(weights: ModelWeights) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        found.append(tensor)
        return tensor

    def keep_all(weight: Weight) -> Weight:
        found.extend(weight.tensors().values())
        return weight

    map_weights(weights, weight=keep_all, tensor=keep)
    return found


def test_one_thread_and_many_load_the_same(written: Written) -> None:
    one, many = (tensors_of(load(written("fp8_mxfp4", 3), threads=threads).weights) for threads in (1, 6))
    assert len(one) > 100
    assert all(raw(ours).equal(raw(other)) for ours, other in zip(one, many, strict=True))


def test_a_checkpoint_of_one_file_is_loaded_by_the_files_name(written: Written) -> None:
    folder = written("fp8_mxfp4", 1)
    assert load(folder / "model.safetensors").config == load(folder).config


def test_the_mtp_layer_may_be_left_out(written: Written) -> None:
    weights = load(written("fp8_mxfp4", 3), mtp=False).weights
    assert weights.mtp is None and len(weights.layers) == 5


def test_full_nvfp4_says_that_its_names_are_unverified(written: Written) -> None:
    forget_said()
    with pytest.warns(Dsv4Warning, match=UNVERIFIED):
        load(written("nvfp4", 1))


class Counter:
    def __init__(self) -> None:
        self.groups: list[str] = []
        self.nbytes = 0

    def group(self, name: str) -> None:
        self.groups.append(name)

    def advance(self, nbytes: int) -> None:
        self.nbytes += nbytes


def test_progress_is_told_of_every_group_and_every_byte(written: Written) -> None:
    counter = Counter()
    folder = written("fp8_nvfp4", 3)
    load(folder, progress=counter, threads=1)
    assert counter.groups == ["embed", *(f"layers.{layer}" for layer in range(5)), "head", "mtp.0"]
    assert counter.nbytes == sum(tensor.nbytes for tensor in theirs(folder).values())


def test_nothing_is_shown_where_stderr_is_no_terminal(written: Written, capfd: pytest.CaptureFixture[str]) -> None:
    load(written("fp8_mxfp4", 1))
    assert capfd.readouterr() == ("", "")


def test_weights_are_arranged_once_and_by_their_operator(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrange, "_arrangements", {})
    arranged: list[Weight] = []

    @arrange.arranges("experts", "sm_test")
    def swap(weight: Weight) -> Weight:
        arranged.append(weight)
        return Weight(weight.format, weight.codes.flip(-1), weight.scale)

    plain, changed = load(written("fp8_mxfp4", 1)).weights, load(written("fp8_mxfp4", 1), arch="sm_test").weights
    assert len(arranged) == 3 * 6
    ours, other = plain.layers[3].moe, changed.layers[3].moe
    assert other.experts.w3.codes.equal(ours.experts.w3.codes.flip(-1))
    assert other.shared.w3.codes.view(torch.uint8).equal(ours.shared.w3.codes.view(torch.uint8))


# ------------------------------------------------------------------------------------------------ what is refused


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the header of a file, the data staying as it is."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


def refused(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    return str(caught.value)


def test_every_kind_of_wrong_tensor_is_listed_in_one_error(copied: Written) -> None:
    folder = copied("fp8_mxfp4", 1)

    def change(header: dict[str, Any]) -> None:
        header["extra.weight"] = header.pop("layers.1.attn.kv_norm.weight")
        header["norm.weight"]["shape"] = [4, 48]
        header["layers.0.attn.attn_sink"]["dtype"] = "I32"
        header["layers.2.attn.wkv.scale"]["dtype"] = "U8"

    edit(folder / "model.safetensors", change)
    message = refused(folder)
    assert "1 missing, 1 unexpected, 1 wrongly shaped, 2 wrongly typed" in message
    assert "missing: layers.1.attn.kv_norm.weight" in message
    assert "unexpected: extra.weight" in message
    assert "wrongly shaped: norm.weight: found [4, 48]; valid: [192]" in message
    assert "wrongly typed: layers.0.attn.attn_sink: found I32; valid: F32" in message
    assert "wrongly typed: layers.2.attn.wkv.scale: found U8; valid: F8_E8M0" in message
    assert "layout fp8_mxfp4" in message


def test_a_long_list_is_cut_and_counted(copied: Written) -> None:
    folder = copied("fp8_mxfp4", 1)
    renamed = []

    def change(header: dict[str, Any]) -> None:
        for name in [name for name in header if ".ffn.experts.3." in name]:
            header[name.replace(".3.", ".9.")] = header.pop(name)
            renamed.append(name)

    edit(folder / "model.safetensors", change)
    message = refused(folder)
    assert f"{len(renamed)} missing, {len(renamed)} unexpected" in message
    assert message.count("missing: layers") == 20
    assert f"missing: … and {len(renamed) - 20} more" in message


def test_a_configuration_of_other_sizes_is_refused_by_the_tensors_that_do_not_fit(copied: Written) -> None:
    folder = copied("fp8_mxfp4", 1)
    (folder / "config.json").write_text(json.dumps(MINI.replace(n_routed_experts=6).to_hf()))
    (folder / "inference" / "config.json").unlink()
    message = refused(folder)
    assert "missing: layers.0.ffn.experts.5.w1.weight" in message
    assert "wrongly shaped: layers.0.ffn.gate.weight: found [5, 192]; valid: [6, 192]" in message


def test_an_unverified_layouts_error_says_so(copied: Written) -> None:
    folder = copied("nvfp4", 1)
    edit(folder / "model.safetensors", lambda header: header["norm.weight"].update(shape=[2, 96]))
    assert f"note: {UNVERIFIED}" in refused(folder)


def test_an_expert_that_does_not_exist_is_refused(copied: Written) -> None:
    folder = copied("fp8_mxfp4", 3)
    with Checkpoint.open(folder) as checkpoint:
        found = checkpoint.files.tensors["layers.1.ffn.gate.tid2eid"]
    for expert in (5, -1):
        with found.file.path.open("r+b") as file:
            file.seek(found.entry.start + 8 * 7)
            file.write(struct.pack("<q", expert))
        assert f"layers.1.ffn.gate.tid2eid: found expert {expert}; valid: 0 to 4" in refused(folder)


def test_a_missing_configuration_is_said(copied: Written) -> None:
    folder = copied("fp8_mxfp4", 1)
    (folder / "config.json").unlink()
    (folder / "inference" / "config.json").unlink()
    with pytest.raises(Exception, match="found no config"):
        load(folder)


@pytest.mark.parametrize(
    ("device", "said"),
    [("nonsense", "device: found 'nonsense'; valid: 'cpu', 'cuda'"), ("meta", "device: found 'meta'; valid: 'cpu'")],
)
def test_a_device_that_cannot_be_loaded_onto_is_refused(written: Written, device: str, said: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        load(written("fp8_mxfp4", 1), device)
    assert said in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="for a machine without a GPU")
def test_a_gpu_that_is_not_there_is_refused(written: Written) -> None:
    with pytest.raises(CheckpointError, match="found 'cuda'; valid: 'cpu', since torch sees no GPU here"):
        load(written("fp8_mxfp4", 1), "cuda")


def test_a_number_of_threads_that_cannot_be_is_refused(written: Written) -> None:
    with pytest.raises(CheckpointError, match="threads: found 0; valid: 1 or more"):
        load(written("fp8_mxfp4", 1), threads=0)


def live_bytes() -> int:
    gc.collect()
    storages = {
        item.untyped_storage().data_ptr(): item.untyped_storage().nbytes()
        for item in gc.get_objects()
        if type(item) is torch.Tensor
    }
    return sum(storages.values())


def test_nothing_half_loaded_is_kept_even_while_the_error_is_held(copied: Written) -> None:
    """A shard that loses its end after it was checked: the first layers are there by then."""
    folder = copied("fp8_mxfp4", 3)

    class Cutting(Counter):
        def group(self, name: str) -> None:
            super().group(name)
            if name == "head":
                last = folder / "model-00003-of-00003.safetensors"
                os.truncate(last, last.stat().st_size - 50_000)

    before = live_bytes()
    cutting = Cutting()
    with pytest.raises(CheckpointError, match="it was shortened after it was opened") as caught:
        load(folder, progress=cutting)
    assert cutting.nbytes > 500_000
    assert live_bytes() == before
    assert caught.value.__traceback__ is not None


def test_an_interrupt_leaves_nothing_behind(written: Written) -> None:
    class Interrupting(Counter):
        def group(self, name: str) -> None:
            if name == "layers.3":
                raise KeyboardInterrupt

    before = live_bytes()
    with pytest.raises(KeyboardInterrupt):
        load(written("fp8_nvfp4", 3), progress=Interrupting())
    assert live_bytes() == before


def test_a_tensor_larger_than_one_read_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dsv4.runtime.checkpoint import transfer
    from dsv4.runtime.checkpoint.files import CheckpointFiles
    from dsv4.runtime.checkpoint.writer import write_file

    monkeypatch.setattr(transfer, "STAGE_BYTES", 1000)
    values = torch.arange(5003, dtype=torch.int64)
    write_file(tmp_path / "a.safetensors", {"small": ("I64", values[:3]), "large": ("I64", values)})
    with CheckpointFiles.open(tmp_path) as files, transfer.Transfer(torch.device("cpu"), 3) as moving:
        targets = [
            transfer.Target(torch.zeros(files.tensors[name].entry.shape, dtype=torch.int64), [files.tensors[name]])
            for name in ("large", "small")
        ]
        moving.fill(targets, lambda nbytes: None)
    assert targets[0].tensor.equal(values)
    assert targets[1].tensor.equal(values[:3])
