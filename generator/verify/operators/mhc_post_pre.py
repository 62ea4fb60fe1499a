"""mhc_post_pre: mhc_post, then mhc_pre of what it gave, judged by the rules of the two.

The new streams are held to the float64 result. The rest is held to the float64 result for the new streams that the
kernel itself gave: an element that rounds the other way is right, and what follows has to follow from it.
"""

from __future__ import annotations

import torch

from dsv4.generator.verify import judging, metrics
from dsv4.generator.verify.case import Case, OutputLayout, Value, Verdict
from dsv4.generator.verify.operators import mhc_post, mhc_pre
from dsv4.runtime.artifact import Scalar

STREAMS = mhc_pre.STREAMS
MIXING = ("update", "streams", "post", "comb")
PARAMETERS = ("fn", "base", "scale", "norm_weight", "norm_eps", "eps")

THOROUGH_CASES = (1, 3)
"""Seven tokens, and more passes than clusters (numbers in the list without empty cases)."""

WORKLOAD_SIZES = {"T": 8192}


def cases(
    dims: dict[str, int], variant: dict[str, Scalar], *, config: dict[str, Scalar], seed: int, device: torch.device
) -> list[Case]:
    """mhc_pre's cases, whose streams become those before a random mix; NaN and infinite tokens stay among them."""
    generator = torch.Generator(device="cpu").manual_seed(seed + 1)
    made = []
    for each in mhc_pre.cases(dims, variant, config=config, seed=seed, device=device):
        streams = mhc_pre.tensor_of(each.inputs, "streams")
        tokens, _, columns = streams.shape
        size = streams.abs().nan_to_num(posinf=1.0).amax((1, 2)).clamp(min=1e-20).cpu()[:, None]
        update = torch.randn(tokens, columns, generator=generator) * size * 0.3
        inputs: dict[str, Value] = {
            "update": update.to(torch.bfloat16).to(device),
            "post": (2 * torch.rand(tokens, STREAMS, generator=generator)).to(device),
            "comb": torch.rand(tokens, STREAMS, STREAMS, generator=generator).to(device),
            **each.inputs,
        }
        mixing = {name: mhc_pre.tensor_of(inputs, name) for name in MIXING}
        new = mhc_post.reference.mhc_post(**mixing, dtype=torch.float64, out_dtype=torch.float64)
        after = following(inputs, metrics.round_to_bf16(new))
        layout = OutputLayout((tokens, STREAMS, columns), (STREAMS * columns, columns, 1), torch.bfloat16)
        renamed = {"y": "y", "post": "next_post", "comb": "next_comb"}
        made.append(
            Case(
                op="mhc_post_pre",
                name=each.name,
                inputs=inputs,
                outputs={"new_streams": layout, **{renamed[name]: value for name, value in each.outputs.items()}},
                expected={"new_streams": new, **{renamed[name]: value for name, value in after.items()}},
                limits=each.limits,
            )
        )
    return made


def following(inputs: dict[str, Value], new_streams: torch.Tensor) -> dict[str, torch.Tensor]:
    """y, post and comb in float64 of the (rounded) new streams."""
    return mhc_pre.expected_float64({"streams": new_streams, **{name: inputs[name] for name in PARAMETERS}})


def judge(got: dict[str, torch.Tensor], case: Case) -> Verdict:
    inputs = case.inputs
    bound = mhc_post.error_bound({name: inputs[name] for name in MIXING})
    findings = judging.bf16_within("new_streams", got["new_streams"], case.expected["new_streams"], bound)
    new_streams = got["new_streams"].contiguous()
    own: dict[str, Value] = {"streams": new_streams, **{name: inputs[name] for name in PARAMETERS}}
    expected = following(inputs, new_streams)
    after = {"y": got["y"], "post": got["next_post"], "comb": got["next_comb"]}
    findings += mhc_pre.findings_of(after, own, expected, int(case.limits["cluster"]))
    return judging.verdict(got["y"], expected["y"], findings)


def first_wrong(
    got: dict[str, torch.Tensor], case: Case, config: dict[str, Scalar]
) -> tuple[str, tuple[int, ...], str] | None:
    """The first new stream, then the first element of y, that is more than one bf16 step off."""
    tokens = 16 * int(config.get("token_tiles", 1))
    for name in ("new_streams", "y"):
        apart = metrics.bf16_ulps_apart(got[name].contiguous(), metrics.round_to_bf16(case.expected[name]))
        places = (apart > 1).nonzero()
        if len(places):
            place = tuple(places[0].tolist())
            return name, place, f"pass {place[0] // tokens}, token {place[0] % tokens} of its {tokens}"
    return None


def workload(
    dims: dict[str, int], variant: dict[str, Scalar], sizes: dict[str, int], *, seed: int, device: torch.device
) -> dict[str, Value]:
    before = mhc_post.workload(dims, variant, sizes, seed=seed, device=device)
    after = mhc_pre.workload(dims, variant, sizes, seed=seed, device=device)
    renamed = {"next_post": after.pop("post"), "next_comb": after.pop("comb")}
    return {**after, **before, **renamed}
