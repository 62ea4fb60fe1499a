"""mhc_head: the input of the LM head, judged as u and y of mhc_pre are (see there).

h is the bf16 of a number within what the errors of the four weights make of it; with ``norm`` y is its RMS norm.
"""

from __future__ import annotations

import torch

from dsv4.generator.verify import judging, metrics
from dsv4.generator.verify.case import Case, Value, Verdict
from dsv4.generator.verify.operators import mhc_pre
from dsv4.runtime.artifact import Scalar
from dsv4.runtime.reference import mhc_head as reference
from dsv4.runtime.reference import rms_norm

STREAMS = mhc_pre.STREAMS

THOROUGH_CASES = (1, 3)
"""Seven tokens, and more passes than clusters (numbers in the list without empty cases)."""

WORKLOAD_SIZES = {"T": 256}


def cases(
    dims: dict[str, int], variant: dict[str, Scalar], *, config: dict[str, Scalar], seed: int, device: torch.device
) -> list[Case]:
    """mhc_pre's cases with the first four of their outputs."""
    made = []
    for each in mhc_pre.cases(dims, variant, config=config, seed=seed, device=device):
        if "Sinkhorn" in each.name:
            continue
        inputs = head_inputs(each.inputs)
        made.append(
            Case(
                op="mhc_head",
                name=each.name,
                inputs=inputs,
                outputs={"y": each.outputs["y"]},
                expected={"y": expected_float64(inputs)},
                limits=each.limits,
            )
        )
    return made


def head_inputs(inputs: dict[str, Value]) -> dict[str, Value]:
    return {
        **inputs,
        "fn": mhc_pre.tensor_of(inputs, "fn")[:STREAMS].contiguous(),
        "base": mhc_pre.tensor_of(inputs, "base")[:STREAMS].contiguous(),
        "scale": mhc_pre.tensor_of(inputs, "scale")[:1].contiguous(),
    }


def expected_float64(inputs: dict[str, Value]) -> torch.Tensor:
    """The reference in float64; h is rounded to bf16 before it is normalised."""
    norm_eps = mhc_pre.number(inputs, "norm_eps")
    h = reference.mhc_head(
        mhc_pre.tensor_of(inputs, "streams"),
        mhc_pre.tensor_of(inputs, "fn"),
        mhc_pre.tensor_of(inputs, "base"),
        mhc_pre.tensor_of(inputs, "scale"),
        norm_eps=norm_eps,
        eps=mhc_pre.number(inputs, "eps"),
        dtype=torch.float64,
        out_dtype=torch.float64,
    )
    weight = mhc_pre.optional_tensor(inputs, "norm_weight")
    if weight is None:
        return h
    return rms_norm.rms_norm(metrics.round_to_bf16(h), weight, norm_eps, dtype=torch.float64, out_dtype=torch.float64)


def judge(got: dict[str, torch.Tensor], case: Case) -> Verdict:
    inputs, expected = case.inputs, case.expected["y"]
    if case.is_empty:
        return judging.verdict(got["y"], expected, [])
    error = mhc_pre.logit_error(inputs, int(case.limits["cluster"]), int(case.limits["groups"]))
    bare = expected_float64({**inputs, "norm_weight": None})
    findings = mhc_pre.input_findings(got["y"], bare, error, inputs, expected)
    return judging.verdict(got["y"], expected, findings)


def first_wrong(
    got: dict[str, torch.Tensor], case: Case, config: dict[str, Scalar]
) -> tuple[str, tuple[int, ...], str] | None:
    """As of mhc_pre's y."""
    return mhc_pre.first_wrong(got, case, config)


def workload(
    dims: dict[str, int], variant: dict[str, Scalar], sizes: dict[str, int], *, seed: int, device: torch.device
) -> dict[str, Value]:
    made = mhc_pre.workload(dims, variant, sizes, seed=seed, device=device)
    return {name: value for name, value in head_inputs(made).items() if name not in ("post", "comb")}
