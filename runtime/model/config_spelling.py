"""The two spellings of the official configuration files, read into the fields of ``ModelConfig`` and written again.

``config.json`` follows Hugging Face's names; ``inference/config.json`` has the names of the official inference code
(dsv4-reference §1.1) and leaves out what that code has constants for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from dsv4.runtime.errors import ConfigError
from dsv4.runtime.model.config_checks import told

if TYPE_CHECKING:
    from dsv4.runtime.model.config import ModelConfig

ARCHITECTURE = "DeepseekV4ForCausalLM"
MODEL_TYPE = "deepseek_v4"

UNUSED = frozenset({"attention_dropout", "initializer_range", "use_cache", "transformers_version", "max_batch_size"})
"""Keys of the official files that say nothing about inference."""

UNUSED_QUANTIZATION = frozenset(
    {"producer", "ignore", "exclude_modules", "quantized_layers", "config_groups", "kv_cache_quant_algo"}
    | {"kv_cache_scheme"}
)
"""Keys of ModelOpt's ``quantization_config`` that repeat what the tensors' names say."""

_INFERENCE_NAMES = {
    "vocab_size": "vocab_size",
    "dim": "hidden_size",
    "moe_inter_dim": "moe_intermediate_size",
    "n_layers": "num_hidden_layers",
    "n_mtp_layers": "num_nextn_predict_layers",
    "n_hash_layers": "num_hash_layers",
    "n_heads": "num_attention_heads",
    "n_routed_experts": "n_routed_experts",
    "n_shared_experts": "n_shared_experts",
    "n_activated_experts": "num_experts_per_tok",
    "score_func": "scoring_func",
    "route_scale": "routed_scaling_factor",
    "swiglu_limit": "swiglu_limit",
    "q_lora_rank": "q_lora_rank",
    "head_dim": "head_dim",
    "rope_head_dim": "qk_rope_head_dim",
    "norm_eps": "rms_norm_eps",
    "o_groups": "o_groups",
    "o_lora_rank": "o_lora_rank",
    "window_size": "sliding_window",
    "compress_ratios": "compress_ratios",
    "compress_rope_theta": "compress_rope_theta",
    "rope_theta": "rope_theta",
    "max_seq_len": "max_position_embeddings",
    "index_n_heads": "index_n_heads",
    "index_head_dim": "index_head_dim",
    "index_topk": "index_topk",
    "hc_mult": "hc_mult",
    "hc_sinkhorn_iters": "hc_sinkhorn_iters",
    "hc_eps": "hc_eps",
    "expert_dtype": "expert_dtype",
}
_INFERENCE_YARN = {
    "rope_factor": "factor",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
    "original_seq_len": "original_max_position_embeddings",
}
_ONLY_INFERENCE = (set(_INFERENCE_NAMES) | set(_INFERENCE_YARN)) - set(_INFERENCE_NAMES.values()) - {"dtype"}
_CONSTANTS = {"n_mtp_layers": 1, "norm_eps": 1e-6, "hc_eps": 1e-6}
"""Left out of the official ``inference/config.json``, because its code has them."""


@dataclass(frozen=True)
class Source:
    """One file's name in errors, and what it holds."""

    name: str
    values: dict[str, Any]


def read(path: Path) -> list[Source]:
    """The configuration files at ``path``: itself, or ``config.json`` and ``inference/config.json`` of a folder.

    Raises ``ConfigError`` where there is none, or one is not a JSON object.
    """
    if not path.is_dir():
        return [Source(str(path), read_object(path))]
    found = [path / name for name in ("config.json", "inference/config.json") if (path / name).is_file()]
    if not found:
        raise ConfigError(f"{path}: found no config.json; valid: a folder with config.json or inference/config.json")
    return [Source(str(file), read_object(file)) for file in found]


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in the file ``path``. Raises ``ConfigError``: unreadable, not JSON, a key twice, NaN."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    try:
        values = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: found {type(values).__name__}; valid: an object")
    return values


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"the key {key!r} twice")
        values[key] = value
    return values


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"the constant {name}")


def to_fields(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """``values``, in either spelling, as fields of ``ModelConfig``. Raises ``ConfigError`` where neither fits."""
    inference = sorted(_ONLY_INFERENCE & set(values))
    if not inference:
        return _from_hf(values, source)
    hf = sorted({"hidden_size", "num_hidden_layers", "num_attention_heads", "model_type"} & set(values))
    if hf:
        found = f"{hf[0]} (of config.json) beside {inference[0]} (of inference/config.json)"
        raise ConfigError(f"{source}: found {found}; valid: one spelling")
    return _from_inference(values, source)


def _from_hf(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    fields = {key: value for key, value in values.items() if key not in UNUSED}
    kind = fields.pop("model_type", None)
    if kind != MODEL_TYPE:
        raise ConfigError(f"{source}: model_type: found {kind!r}; valid: {MODEL_TYPE!r}")
    architectures = fields.pop("architectures", [ARCHITECTURE])
    if architectures != [ARCHITECTURE]:
        raise ConfigError(f"{source}: architectures: found {architectures!r}; valid: [{ARCHITECTURE!r}]")
    if "dtype" in fields:  # newer files of transformers call it so
        fields.setdefault("torch_dtype", fields["dtype"])
        if fields.pop("dtype") != fields["torch_dtype"]:
            raise ConfigError(f"{source}: dtype: found another one than torch_dtype; valid: the same")
    fields.setdefault("rope_scaling", None)
    if isinstance(fields["rope_scaling"], dict):
        fields["rope_scaling"] = _yarn(fields["rope_scaling"], source)
    if isinstance(fields.get("quantization_config"), dict):
        fields["quantization_config"] = _quantization(fields["quantization_config"])
    return _with_tuples(fields)


def _yarn(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    kinds = [values[key] for key in ("type", "rope_type") if key in values]
    if not kinds or any(kind != "yarn" for kind in kinds):
        raise ConfigError(f"{source}: rope_scaling.type: found {kinds[0] if kinds else None!r}; valid: 'yarn'")
    return {**{key: value for key, value in values.items() if key != "rope_type"}, "type": "yarn"}


def _quantization(values: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in values.items() if key not in UNUSED_QUANTIZATION}
    if isinstance(kept.get("weight_block_size"), list):
        kept["weight_block_size"] = tuple(kept["weight_block_size"])
    return kept


def _from_inference(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    names = {**_INFERENCE_NAMES, **dict.fromkeys(_INFERENCE_YARN, ""), "dtype": "", "scale_fmt": "", "scale_dtype": ""}
    fields = {_INFERENCE_NAMES.get(key, key): value for key, value in values.items() if key not in UNUSED}
    for key in names:
        if key not in _INFERENCE_NAMES:
            fields.pop(key, None)
    missing = [key for key in _INFERENCE_YARN if key not in values]
    if missing:
        raise ConfigError(told(source, [f"{key}: missing; valid: a number" for key in missing]))
    yarn = {name: values[key] for key, name in _INFERENCE_YARN.items()}
    plain = yarn["original_max_position_embeddings"] == 0
    fields["rope_scaling"] = None if plain else {"type": "yarn", **yarn}
    if "max_position_embeddings" not in fields and not plain:
        reach = (yarn["factor"], yarn["original_max_position_embeddings"])
        numbers = all(isinstance(number, int | float) and abs(number) < 2**53 for number in reach)  # else complained of
        fields["max_position_embeddings"] = int(reach[0] * reach[1]) if numbers else 1
    dtype = values.get("dtype", "fp8")
    if dtype not in ("fp8", "bf16"):
        raise ConfigError(f"{source}: dtype: found {dtype!r}; valid: 'fp8' or 'bf16'")
    if values.get("scale_dtype", "fp8") != "fp8":
        raise ConfigError(f"{source}: scale_dtype: found {values['scale_dtype']!r}; valid: 'fp8' (scales in E8M0)")
    if dtype == "fp8":
        fields["quantization_config"] = {"scale_fmt": values.get("scale_fmt", "ue8m0")}
    return _with_tuples(fields)


def _with_tuples(fields: dict[str, Any]) -> dict[str, Any]:
    if isinstance(fields.get("compress_ratios"), list):
        fields["compress_ratios"] = tuple(fields["compress_ratios"])
    return fields


def from_pydantic(error: ValidationError, values: Mapping[str, Any]) -> list[str]:
    """The complaints of ``error``, one a line, in the names of the spelling that ``values`` has."""
    spelled = _spelled_as(values)
    lines: list[str] = []
    for item in error.errors():
        where = _path(item["loc"], spelled)
        if item["type"] == "missing":
            lines.append(f"{where}: missing; valid: a value (the official files have it)")
        elif item["type"] == "extra_forbidden":
            lines.append(f"{where}: unknown; valid: the keys of the official files")
        elif item["type"] == "value_error":
            lines += [_first_word_as(line, spelled) for line in str(item["ctx"]["error"]).split("\n")]
        else:
            hint = "; 'fp8' is that of the Base uploads, which are not supported" if where == "expert_dtype" else ""
            valid = item["msg"].removeprefix("Input should be ")
            lines.append(f"{where}: found {item['input']!r}; valid: {valid}{hint}")
    return lines


def _spelled_as(values: Mapping[str, Any]) -> dict[str, str]:
    if not _ONLY_INFERENCE & set(values):
        return {}
    yarn = {f"rope_scaling.{name}": key for key, name in _INFERENCE_YARN.items()}
    return {
        **{name: key for key, name in _INFERENCE_NAMES.items()},
        **yarn,
        "quantization_config.scale_fmt": "scale_fmt",
    }


def _path(parts: tuple[int | str, ...], spelled: Mapping[str, str]) -> str:
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).lstrip(".")
    layer = f" (layer {parts[1]})" if len(parts) == 2 and parts[0] == "compress_ratios" else ""
    return spelled.get(path, path) + layer


def _first_word_as(line: str, spelled: Mapping[str, str]) -> str:
    name = re.split(r"[^\w.]", line, maxsplit=1)[0]
    other = spelled.get(name, name)
    return line if other == name else f"{other} ({name}){line[len(name) :]}"


def require_agreement(
    name: str, config: ModelConfig, other_name: str, other: ModelConfig, said: Mapping[str, Any]
) -> None:
    """Raises ``ConfigError`` where ``other`` contradicts ``config`` in a field that its file ``said`` something of."""
    differing = [
        f"{key}: found {getattr(other, field)!r}; valid: {getattr(config, field)!r}, as {field} in {name}"
        for key, field in _INFERENCE_NAMES.items()
        if key in said and getattr(other, field) != getattr(config, field) and key != "expert_dtype"
    ]
    if set(said) & set(_INFERENCE_YARN) and other.rope_scaling != config.rope_scaling:
        found = f"YaRN parameters {other.rope_scaling!r}"
        differing.append(f"rope_factor, beta_fast, beta_slow, original_seq_len: found {found}; valid: as in {name}")
    if differing:
        raise ConfigError(told(other_name, differing))


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """The Hugging Face spelling of ``config``."""
    values = config.model_dump(mode="json")
    values |= {key: _whole(values[key]) for key in ("rope_theta", "compress_rope_theta")}
    if values["rope_scaling"] is not None:
        values["rope_scaling"] = {key: _whole(value) for key, value in values["rope_scaling"].items()}
    if values["expert_dtype"] is None:
        del values["expert_dtype"]
    if values["quantization_config"] is None:
        del values["quantization_config"]
    else:
        quantization = values["quantization_config"]
        values["quantization_config"] = {key: value for key, value in quantization.items() if value is not None}
    return {"architectures": [ARCHITECTURE], "model_type": MODEL_TYPE, **values}


def to_inference(config: ModelConfig) -> dict[str, Any]:
    """The spelling of the official inference code; what that code knows by itself is left out."""
    values = {key: getattr(config, field) for key, field in _INFERENCE_NAMES.items()}
    values = {key: value for key, value in values.items() if value != _CONSTANTS.get(key)}
    values["compress_ratios"] = list(config.compress_ratios)
    yarn = config.rope_scaling
    if yarn and values["max_seq_len"] == int(yarn.factor * yarn.original_max_position_embeddings):
        del values["max_seq_len"]
    values |= {key: _whole(getattr(yarn, name)) if yarn else 0 for key, name in _INFERENCE_YARN.items()}
    values |= {key: _whole(values[key]) for key in ("rope_theta", "compress_rope_theta")}
    values["dtype"] = "bf16" if config.quantization_config is None else "fp8"
    values["scale_fmt"] = "ue8m0"
    if config.quantization_config is not None:
        values["expert_dtype"] = "fp4"
    else:
        values.pop("expert_dtype", None)
    return values


def _whole(value: Any) -> Any:
    """A whole number without its ``.0``, as the official files have it."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
