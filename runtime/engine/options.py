"""What is asked of the engine: a prompt, how to choose tokens, when to stop; and what it gives back."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from dsv4.runtime.errors import ContractError
from dsv4.runtime.model.config import ModelConfig

Finish = Literal["stop", "length", "interrupted", "failed"]
"""Why a sequence ended: a stop token (which is not part of it), its token limit or the cache's, the user, an error."""

LEAST_TEMPERATURE = 1e-5
"""As in the official code. Logits divided by much less are infinite in float32, and probabilities no numbers."""
_INT64_LIMIT = 1 << 63


@dataclass(frozen=True)
class SamplingOptions:
    """``temperature`` 0 takes the most probable token; ``top_k`` 0 and ``top_p`` 1 leave all tokens in. The same
    ``seed`` gives the same text, whatever else is in the batch. ``stop_tokens`` end the text and are left out of it."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    stop_tokens: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise _refused("max_new_tokens", self.max_new_tokens, "1 or more")
        if not (self.temperature == 0 or LEAST_TEMPERATURE <= self.temperature < math.inf):
            raise _refused("temperature", self.temperature, f"0 (greedy), or {LEAST_TEMPERATURE} and more")
        if not 0 <= self.top_k < _INT64_LIMIT:
            raise _refused("top_k", self.top_k, "0 (all) or more, a signed 64-bit number")
        if not 0 < self.top_p <= 1:
            raise _refused("top_p", self.top_p, "more than 0, at most 1")
        if not -_INT64_LIMIT <= self.seed < _INT64_LIMIT:
            raise _refused("seed", self.seed, "a signed 64-bit number")


@dataclass(frozen=True)
class Request:
    """``on_token`` is called with each new token, in order, after the step that made it."""

    prompt: Sequence[int]
    options: SamplingOptions = SamplingOptions()
    on_token: Callable[[int], None] | None = None


@dataclass(frozen=True)
class Result:
    """``tokens``: what was generated. ``drafts`` tokens were drafted for it by the MTP layer, ``accepted`` of them
    kept."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    finish: Finish
    drafts: int = 0
    accepted: int = 0


def require_prompt(prompt: Sequence[int], config: ModelConfig, positions_max: int | None = None) -> None:
    """Raises ``ContractError`` for a prompt that is empty, has ids outside the vocabulary, or is too long for the model
    or for a cache of ``positions_max`` tokens a sequence."""
    if not len(prompt):
        raise ContractError("prompt: found no tokens; valid: one or more")
    for place, token in enumerate(prompt):
        if not 0 <= token < config.vocab_size:
            raise ContractError(f"prompt: token {place}: found id {token}; valid: 0 to {config.vocab_size - 1}")
    if len(prompt) > config.max_position_embeddings:
        raise ContractError(
            f"prompt: found {len(prompt)} tokens; valid: at most {config.max_position_embeddings}, "
            "max_position_embeddings of the model"
        )
    if positions_max is not None and len(prompt) > positions_max:
        raise ContractError(
            f"prompt: found {len(prompt)} tokens; valid: at most {positions_max}, what this cache has for a sequence"
        )


def _refused(name: str, found: object, valid: str) -> ContractError:
    return ContractError(f"sampling: {name}: found {found}; valid: {valid}")
