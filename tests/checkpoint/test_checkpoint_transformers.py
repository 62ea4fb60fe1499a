"""Hugging Face transformers reads the checkpoints that we write, by its own names and its own dequantisation."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from dsv4.runtime.checkpoint.inventory import inventory
from dsv4.runtime.checkpoint.layouts import LAYOUTS
from dsv4.runtime.checkpoint.loader import load
from dsv4.runtime.checkpoint.write_tiny import stored_as, write_checkpoint
from dsv4.runtime.model.config import ModelConfig, WeightScheme
from dsv4.runtime.model.contiguous import ContiguousCache
from dsv4.runtime.model.presets import FLASH, PRO, TINY
from dsv4.runtime.model.step import Chunk, Step
from dsv4.runtime.model.transformer import Transformer

TOKENS = 150  # one HCA entry, 37 CSA entries of which 8 are chosen, past the window

SMALL = TINY.replace(
    vocab_size=300,
    hidden_size=128,
    num_attention_heads=4,
    q_lora_rank=128,
    o_lora_rank=64,
    index_n_heads=16,
    index_topk=8,
    n_routed_experts=8,
    num_experts_per_tok=3,
    moe_intermediate_size=128,
    swiglu_limit=0.5,
)
"""Widths of whole FP8 blocks, because transformers takes the size of a block from the shape of the scales."""


@pytest.fixture(scope="module")
def library() -> Any:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when it is imported, which takes seconds
    import transformers

    transformers.utils.logging.disable_progress_bar()
    return transformers


@pytest.mark.parametrize("layout", ["plain", "fp8_mxfp4"])
def test_its_logits_are_ours(
    library: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: WeightScheme
) -> None:
    # its FP8 reader insists on accelerate, which it needs for spreading a model over devices alone
    monkeypatch.setattr("transformers.quantizers.quantizer_finegrained_fp8.is_accelerate_available", lambda: True)
    config = write_checkpoint(tmp_path, SMALL, layout=layout, shards=2, seed=5)
    options = {} if layout == "plain" else {"quantization_config": library.FineGrainedFP8Config(dequantize=True)}
    model, told = library.DeepseekV4ForCausalLM.from_pretrained(
        tmp_path,
        dtype=torch.float32,
        attn_implementation="eager",
        experts_implementation="eager",
        output_loading_info=True,
        **options,
    )
    assert not any(told.values()), told  # missing, unexpected or mismatched; those of the MTP layer it leaves out
    numbers = torch.randint(config.vocab_size, (TOKENS,), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        expected = model.eval()(input_ids=numbers[None], use_cache=False).logits[0]
    loaded = load(tmp_path)
    step = Step.of([Chunk(0, 0, numbers.tolist())], logits="all")
    cache = ContiguousCache(config, positions_max=TOKENS)
    got = Transformer(loaded.config, loaded.weights).forward(step, cache).logits
    assert expected.dtype == torch.float32 and expected.std() > 0.1
    assert (got - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize(
    "config",
    [
        FLASH.replace(num_hidden_layers=4, compress_ratios=(0, 0, 4, 128, 0), num_hash_layers=2, n_routed_experts=6),
        PRO.replace(num_hidden_layers=3, compress_ratios=(128, 128, 4, 0), num_hash_layers=1, n_routed_experts=6),
    ],
    ids=["flash", "pro"],
)
def test_our_inventory_is_what_it_looks_for(library: Any, config: ModelConfig) -> None:
    """A few layers and experts of the real widths: names by its own renaming, and shapes."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    plain = stored_as(config, "plain")
    with torch.device("meta"):
        model = library.DeepseekV4ForCausalLM(library.DeepseekV4Config(**plain.to_hf()))
    wanted = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    mapping = get_model_conversion_mapping(model)
    renamings = [each for each in mapping if isinstance(each, WeightRenaming)]
    converters = [each for each in mapping if isinstance(each, WeightConverter)]
    found: dict[str, list[int]] = {}
    for spec in inventory(plain, LAYOUTS["plain"]).values():
        if spec.group.startswith("mtp"):
            continue
        name, _ = rename_source_key(spec.name, renamings, converters, model.base_model_prefix, wanted)
        shape = list(spec.shape)
        if ".mlp.experts." in name:  # one of its tensors stands for those of all experts, gate above up
            shape = [config.n_routed_experts, shape[0] * (2 if name.endswith("gate_up_proj") else 1), shape[1]]
        assert found.setdefault(name, shape) == shape
    assert found == wanted
