"""flashinfer-python: its public functions on the arguments of our benchmarks.

Its kernels are compiled on the first call, some for some chips only; what fails there takes no part, with the reason.
What it does not offer in our operators' terms (July 2026, 0.6.18): SwiGLU with clamps and a routing weight, codes by
128 columns with powers of two as scales, √softplus routing by top-k, the compressor, the indexer's queries, the inverse
rotation with its quantiser, sorting routes by expert, the final mix of streams.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
from typing import Any, NamedTuple

from benchmarks.block_codes import TILE_ROWS
from benchmarks.harness import operator
from benchmarks.harness.operator import Call, Case, Inputs, Unavailable
from benchmarks.peers.prepared import once

POST_FACTOR = 2.0
EPS = 1e-6
ONE_E8M0 = 127


class Drawn(NamedTuple):
    """Tokens i32 [R] that were drawn with other noise than ours. ``joint``: top-p counts among all tokens."""

    tokens: Any
    joint: bool


@functools.cache
def function(path: str) -> Any:
    """A public function by module and name. Raises ``Unavailable`` where it is not there."""
    module, _, name = path.rpartition(".")
    try:
        found = importlib.import_module(f"flashinfer.{module}")
    except Exception as error:  # it loads libraries on import, which fail in ways of their own
        raise Unavailable(f"flashinfer is not installed ({type(error).__name__}: {operator.one_line(error)})") from None
    if not hasattr(found, name):
        raise Unavailable(f"this flashinfer has no {path}")
    return getattr(found, name)


def versions() -> dict[str, str]:
    try:
        return {"flashinfer-python": importlib.metadata.version("flashinfer-python")}
    except importlib.metadata.PackageNotFoundError:
        return {}


def proven(call: Call) -> Call:
    """``call``, whose first failure means that flashinfer has no such kernel for this chip or shape."""
    return operator.proven(call, "flashinfer cannot")


def rms_norm(case: Case) -> Call:
    """Its RMS norm into ``y``."""
    norm = function("norm.rmsnorm")
    return proven(lambda s: (norm(s["x"], s["w"], s["eps"], out=s["y"]), s["y"])[1])


def rms_norm_fp8(case: Case, *, block: int) -> Call:
    """Its norm with one given scale for the whole tensor, an easier task: (codes, scales of 1 for each block)."""
    import torch

    norm = function("norm.rmsnorm_quant")
    rows, columns = int(case.sizes["T"]), int(case.sizes["d"])
    one = torch.ones(1, device="cuda")
    ones = torch.full((rows, columns // block), ONE_E8M0, dtype=torch.uint8, device="cuda").view(torch.float8_e8m0fnu)
    return proven(lambda s: (norm(s["codes"], s["x"], s["w"], one, s["eps"]), (s["codes"], ones))[1])


def rms_norm_nvfp4(case: Case) -> Call:
    """Its norm with NVFP4 codes and scales in 128 × 4 tiles, without the bf16 result: (codes, scales)."""
    norm = function("cute_dsl.rmsnorm_fp4quant")
    columns = int(case.sizes["d"])

    def call(s: Inputs) -> Any:
        options = {"eps": s["eps"], "block_size": 16, "is_sf_swizzled_layout": True}
        return nvfp4_result(norm(s["x"], s["w"], global_scale=s["input_scale"], **options), columns)

    return proven(call)


def quantize_nvfp4(case: Case) -> Call:
    """NVFP4 codes and scales in 128 × 4 tiles: (codes, scales)."""
    quantize = function("quantization.fp4_quantization.fp4_quantize")
    inverse, columns = once(lambda scale: 1 / scale), int(case.sizes["K"])
    return proven(lambda s: nvfp4_result(quantize(s["x"], inverse(s["input_scale"])), columns))


def nvfp4_result(made: Any, columns: int) -> Any:
    """Codes as bytes and scales as a row for each tile of 128 rows, as our kernels write them; both are views."""
    import torch

    codes, scale = made
    tiles = scale.view(torch.uint8).reshape(-1, TILE_ROWS * columns // 16)
    return codes.view(torch.uint8), tiles.view(torch.float8_e4m3fn)


def mhc_post(case: Case) -> Call:
    """Its post mix, whose result it allocates."""
    post = function("mhc.mhc_post")
    return proven(lambda s: post(s["update"], s["streams"], s["post"], s["comb"]))


def mhc_pre(case: Case) -> Call:
    """torch's product in TF32, its fused remainder and its norm: three launches and the conversion of the streams.

    Gives (y, post, comb).
    """
    import torch

    fuse, norm = function("mhc.mhc_pre_big_fuse_with_prenorm"), function("norm.rmsnorm")
    tokens = int(case.sizes["T"])

    def call(s: Inputs) -> Any:
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = True
        try:
            logits = s["streams"].view(tokens, -1).float() @ s["fn"].T
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before
        post, comb, u = fuse(logits, s["streams"], s["scale"], s["base"], mhc_post_mult_value=POST_FACTOR)
        return norm(u, s["norm_weight"], EPS), post.squeeze(-1), comb

    return proven(call)


def router_hash(case: Case) -> Call:
    """torch's product with the whole gate, its routing by table, and the factor that it leaves out: (experts, weights).

    The token ids are i64 as it wants them, made before.
    """
    import torch

    route, wide = function("fused_moe.hash_topk.hash_topk"), once(lambda tokens: tokens.long())

    def call(s: Inputs) -> Any:
        logits = torch.mm(s["y"], s["gate"].T, out_dtype=torch.float32)
        weights, experts = route(logits, wide(s["tokens"]), s["tid2eid"])
        return experts, weights * s["factor"]

    return proven(call)


def sample(case: Case, *, top_k: int, top_p: float) -> Call:
    """Its sampling, with noise of its own; at a temperature of 1 the logits are taken as they are. Tokens i32 [R].

    All tokens: one function. Otherwise its softmax first. top-k with top-p: both at once, top-p among all tokens
    ("joint"); the module of its other order did not build within eight minutes on 16 cores.
    """
    import torch

    if top_k:
        both = function("sampling.top_k_top_p_sampling_from_probs")
        sampled = functools.partial(both, top_k=top_k, top_p=top_p, filter_apply_order="joint")
        draw = functools.partial(_by_probability, function("sampling.softmax"), sampled)
    elif top_p < 1:
        sampled = functools.partial(function("sampling.top_p_sampling_from_probs"), top_p=top_p)
        draw = functools.partial(_by_probability, function("sampling.softmax"), sampled)
    else:
        draw = functools.partial(function("sampling.sampling_from_logits"))
    seed = torch.zeros(1, dtype=torch.int64, device="cuda")
    return proven(lambda s: Drawn(draw(s["logits"], seed=seed, offset=seed), joint=top_k > 0))


def _by_probability(softmax: Any, sample: Any, logits: Any, **noise: Any) -> Any:
    return sample(softmax(logits), **noise)
