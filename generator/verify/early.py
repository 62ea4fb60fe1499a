"""What a kernel with programmatic dependent launch may read before the launch before it has ended.

Weights and other tensors that no launch writes, and those of which the caller promises that the launch directly before
does not (docs/operators.md, the spec's word on ``pdl``). All else may still be in use by that launch: the emulator is
told so, and finds a kernel that touches it before griddepcontrol.wait.
"""

from __future__ import annotations

from collections.abc import Mapping

from dsv4.runtime.artifact import Manifest

_MIX = {"fn", "base", "scale", "norm_weight"}
_STREAMS = {"streams", "post", "comb"}
EARLY: Mapping[str, frozenset[str]] = {
    name: frozenset(tensors)
    for name, tensors in {
        "compressor": {"ape", "norm", "cos_sin", "phase", "fresh", "stored", "entry_rows", "state_rows"},
        "dequantize": {"input_scale"},
        "fmha": {"sink"},
        "mhc_head": _MIX,
        "mhc_post": _STREAMS,
        "mhc_post_pre": _MIX | _STREAMS,
        "mhc_pre": _MIX,
        "q_norm_rope_kv_insert": {"kv_norm"},
        "quantize": {"input_scale"},
        "rms_norm": {"w"},
        "rms_norm_quant": {"w", "input_scale"},
        "router": {"gate"},
        "router_choose": {"bias"},
        "router_logits": {"gate"},
        "swiglu_quant": {"input_scale"},
    }.items()
}
"""By operator, the names of its spec; an operator that is not here reads nothing early."""


def prior_tensors(manifest: Manifest) -> set[str]:
    """Tensors of this kernel that the launch before may still be using; none without programmatic dependent launch."""
    if not manifest.variant.get("pdl"):
        return set()
    tensors = {each.name for each in manifest.contract.arguments if each.kind == "tensor"}
    return tensors - EARLY.get(manifest.op, frozenset())
