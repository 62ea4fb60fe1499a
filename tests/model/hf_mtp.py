"""The MTP layer put together from transformers' modules, since its model has none (dsv4-reference §10.2).

The layer itself, the head's mix, the norms and the rotation are theirs; the way they are joined is from the text.
"""

from __future__ import annotations

import torch
from transformers.masking_utils import create_sliding_window_causal_mask
from transformers.models.deepseek_v4.modeling_deepseek_v4 import (
    DeepseekV4DecoderLayer,
    DeepseekV4HyperHead,
    DeepseekV4RMSNorm,
    DeepseekV4RotaryEmbedding,
)

from dsv4.runtime.model.config import ModelConfig
from dsv4.runtime.model.weights import ModelWeights
from tests.model.hf_weights import block_state, hf_config, values


@torch.no_grad()
def draft(
    config: ModelConfig, weights: ModelWeights, streams: torch.Tensor, next_tokens: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(streams [T, n, d], logits [T, vocabulary]) for the streams [T, n, d] of a sequence from its first token on."""
    mtp = weights.mtp
    assert mtp is not None
    single = hf_config(config.replace(num_hidden_layers=1, compress_ratios=(0, 0), num_hash_layers=0))
    layer, head = DeepseekV4DecoderLayer(single, 0), DeepseekV4HyperHead(single)
    layer.load_state_dict(dict(block_state(mtp.block)), strict=True)
    head.load_state_dict({f"hc_{name}": tensor for name, tensor in vars(mtp.head_mix).items()}, strict=True)

    def norm(weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        module = DeepseekV4RMSNorm(weight.shape[0], eps=config.rms_norm_eps)
        module.weight.data = weight
        return module(x)

    embedded = norm(mtp.enorm, weights.embed[next_tokens]) @ values(mtp.e_proj).T
    carried = torch.stack([norm(mtp.hnorm, streams[:, k]) @ values(mtp.h_proj).T for k in range(config.hc_mult)], dim=1)
    joined = (embedded[:, None] + carried)[None]
    positions = torch.arange(len(next_tokens))[None]
    rotation = DeepseekV4RotaryEmbedding(single)
    mask = create_sliding_window_causal_mask(
        config=single, inputs_embeds=joined[:, :, 0], attention_mask=None, cache=None, position_ids=positions
    )
    after = layer(
        joined,
        position_embeddings={kind: rotation(joined, positions, kind) for kind in ("main", "compress")},
        position_ids=positions,
        attention_mask=mask,
    )
    logits = norm(mtp.norm, head(after))[0] @ weights.head.T
    return after[0], logits
