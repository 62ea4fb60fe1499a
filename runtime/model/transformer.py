"""The whole model: a step in, streams and logits out; and the draft of the MTP layer."""

from __future__ import annotations

from typing import NamedTuple

import torch

from dsv4.runtime.errors import ContractError
from dsv4.runtime.model.block import block, mix_head
from dsv4.runtime.model.cache import Cache
from dsv4.runtime.model.config import ModelConfig
from dsv4.runtime.model.mtp import mtp_streams
from dsv4.runtime.model.numerics import Numerics, Precision
from dsv4.runtime.model.plan import Plan, frequencies, make_plan
from dsv4.runtime.model.schedule import schedule
from dsv4.runtime.model.step import Step
from dsv4.runtime.model.weights import ModelWeights
from dsv4.runtime.ops.embed import embed
from dsv4.runtime.ops.lm_head import lm_head


class Forward(NamedTuple):
    """``streams`` [T, n, d] as they leave the last layer, before the head's mix; ``logits`` [R, vocabulary] of the
    step's ``logit_rows``, float32."""

    streams: torch.Tensor
    logits: torch.Tensor


class Transformer:
    """DeepSeek-V4 with ``weights`` on one device, computing as ``numerics`` says.

    ``wide`` is the dtype of all arithmetic, and in ``EXACT`` of the activations: float32, or float64 for an oracle.
    The caches are the caller's and must be in the dtypes that the numerics ask for: ``precision.activation`` for plain
    pools, ``wide`` for states. Nothing is kept between steps. No gradient is recorded.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: ModelWeights,
        *,
        numerics: Numerics = Numerics.EXACT,
        wide: torch.dtype = torch.float32,
    ) -> None:
        if len(weights.layers) != config.num_hidden_layers:
            raise ContractError(
                f"model: weights: found {len(weights.layers)} layers; valid: {config.num_hidden_layers}, "
                "num_hidden_layers of the configuration"
            )
        self.config = config
        self.weights = weights
        self.precision = Precision(numerics, wide)
        self.schedule = schedule(config)
        self.main_layers = self.schedule[: config.num_hidden_layers]
        self.device = weights.embed.device
        self._frequencies = frequencies(self.schedule, self.device)

    def plan(self, step: Step, cache: Cache) -> Plan:
        """What the layers share in ``step``. Raises ``ContractError`` where the step does not fit the cache."""
        return make_plan(step, self.schedule, cache, self._frequencies, dtype=self.precision.wide)

    @torch.no_grad()
    def forward(self, step: Step, cache: Cache, plan: Plan | None = None) -> Forward:
        """Run the main layers on ``step``, whose keys and states go to ``cache``. ``plan`` may be made before."""
        plan = plan or self.plan(step, cache)
        streams = embed(
            step.tokens, self.weights.embed, streams=self.config.hc_mult, out_dtype=self.precision.activation
        )
        for layer, weights in zip(self.main_layers, self.weights.layers, strict=True):
            streams = block(streams, weights, layer, plan, cache.layer(layer.index), self.config, self.precision)
        h = mix_head(streams[step.logit_rows], self.weights.head_mix, self.weights.norm, self.config, self.precision)
        return Forward(streams, lm_head(h, self.weights.head, dtype=self.precision.wide))

    @torch.no_grad()
    def draft(
        self, streams: torch.Tensor, next_tokens: torch.Tensor, step: Step, cache: Cache, plan: Plan | None = None
    ) -> Forward:
        """Run the MTP layer on the tokens of ``step`` and give the logits of the token after the next one.

        ``streams`` [T, n, d] are those of ``forward`` of the same step, ``next_tokens`` i64 [T] the token that follows
        each. A further draft takes the streams of this one. Raises ``ContractError`` where the model has no MTP layer.
        """
        mtp = self.weights.mtp
        if mtp is None:
            raise ContractError("draft: the model has no MTP layer; valid: num_nextn_predict_layers 1 and its weights")
        layer = self.schedule[-1]
        plan = plan or self.plan(step, cache)
        streams = mtp_streams(
            streams,
            next_tokens,
            self.weights.embed,
            mtp,
            layer,
            plan,
            cache.layer(layer.index),
            self.config,
            self.precision,
        )
        h = mix_head(streams[step.logit_rows], mtp.head_mix, mtp.norm, self.config, self.precision)
        return Forward(streams, lm_head(h, self.weights.head, dtype=self.precision.wide))
