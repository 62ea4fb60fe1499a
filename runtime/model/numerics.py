"""What is rounded where: the three ways of computing the same model.

=====================  ====================  ===========================  =======================================
                       ``EXACT``             ``OFFICIAL``                 ``ENGINE``
=====================  ====================  ===========================  =======================================
activations            float32               bf16                         bf16
before FP8 linears     –                     E4M3 by 128 columns          E4M3 by 128 columns
before MXFP4 experts   –                     E4M3 by 128 columns          E4M3 by 32 columns, h not rounded before
before NVFP4           –                     E2M1 by the input scale      E2M1 by the input scale
before wo_a            –                     –                            E4M3 by 128 columns
norm, RoPE, store      float32               rounded to bf16 each         float32, rounded once
KV                     as the cache holds    FQ64, then as the cache      as the cache holds it (packed pages: FP8)
indexer q and k        –                     Hadamard, MXFP4              Hadamard, as the cache holds the keys
indexer scores         float32               bf16 at each step            float32
probabilities          float32               bf16                         bf16
=====================  ====================  ===========================  =======================================

``EXACT`` has no rounding that a quantisation-aware training put in, and is what other implementations in float32 are
compared with; ``OFFICIAL`` follows the official inference code step by step; ``ENGINE`` is what the kernels compute
(dsv4-reference §3.2, §4, §5.5, §6, §8, §9). mHC, the router's scores and the logits are float32 everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import torch

from dsv4.runtime.pool import Pool, PoolFormat
from dsv4.runtime.reference.experts import Rule
from dsv4.runtime.reference.indexer_q import IndexCode
from dsv4.runtime.reference.pages import Fake
from dsv4.runtime.weight import Format


class Numerics(Enum):
    EXACT = "exact"
    OFFICIAL = "official"
    ENGINE = "engine"


_RULES: dict[Numerics, dict[Format, Rule]] = {
    Numerics.EXACT: {},
    Numerics.OFFICIAL: {Format.FP8_BLOCK: "fp8_128", Format.MXFP4: "fp8_128", Format.NVFP4: "nvfp4"},
    Numerics.ENGINE: {Format.FP8_BLOCK: "fp8_128", Format.MXFP4: "fp8_32", Format.NVFP4: "nvfp4"},
}
_INDEX_CODES: dict[PoolFormat, IndexCode] = {
    PoolFormat.PLAIN: "none",
    PoolFormat.INDEX_FP8: "fp8",
    PoolFormat.INDEX_FP4: "fp4",
}


@dataclass(frozen=True)
class Precision:
    """The roundings of one model. ``wide`` is the dtype of all arithmetic: float32, or float64 for an oracle."""

    numerics: Numerics
    wide: torch.dtype = torch.float32

    @property
    def is_exact(self) -> bool:
        return self.numerics is Numerics.EXACT

    @property
    def activation(self) -> torch.dtype:
        """Between operators."""
        return self.wide if self.is_exact else torch.bfloat16

    @property
    def stage(self) -> torch.dtype | None:
        """Rounded to after each step inside the operators that have several; ``None``: not."""
        return torch.bfloat16 if self.numerics is Numerics.OFFICIAL else None

    @property
    def product(self) -> torch.dtype:
        """What the products inside the experts are rounded to."""
        return self.activation

    @property
    def probability(self) -> torch.dtype | None:
        return None if self.is_exact else torch.bfloat16

    @property
    def rounds_hidden(self) -> bool:
        """Whether the SwiGLU's result is rounded to bf16 before it is quantised."""
        return self.numerics is Numerics.OFFICIAL

    @property
    def quantizes_output(self) -> bool:
        """Whether the attention output is quantised before wo_a."""
        return self.numerics is Numerics.ENGINE

    @property
    def fakes_kv(self) -> bool:
        """Whether FQ64 is applied to what goes into plain pools."""
        return self.numerics is Numerics.OFFICIAL

    @property
    def fake_kv(self) -> Fake:
        return "fq64" if self.fakes_kv else "none"

    @property
    def rotates_index(self) -> bool:
        """Whether the Hadamard transform is applied to the indexer's queries and keys."""
        return not self.is_exact

    @property
    def fake_index(self) -> Fake:
        """Rounding of the indexer's keys before a plain pool."""
        return "fp4" if self.numerics is Numerics.OFFICIAL else "none"

    def index_code(self, keys: Pool) -> IndexCode:
        """How the indexer's queries are quantised beside ``keys``."""
        if self.is_exact:
            return "none"
        return "fp4" if self.numerics is Numerics.OFFICIAL else _INDEX_CODES[keys.format]

    @property
    def folds_index_weights(self) -> bool:
        """Whether the indexer's weights are scaled where its queries are made: not where each step is rounded."""
        return self.stage is None

    def rule(self, format: Format) -> Rule:
        """How the activation of a linear with weights in ``format`` is quantised."""
        return _RULES[self.numerics].get(format, "none")
