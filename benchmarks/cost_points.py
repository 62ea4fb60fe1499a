"""The measured calls of the dated result files, as the cost model counts them: what it is calibrated and scored on."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness.operator import Case, OperatorBenchmark
from benchmarks.harness.result import RESULTS
from benchmarks.kernels import Wanted, recorded
from dsv4.generator.kernel import KernelPlan
from dsv4.generator.spec.errors import SpecError
from dsv4.generator.spec.plan import Planner
from dsv4.runtime.tuned import inside
from dsv4.tuner.cost.counts import count
from dsv4.tuner.cost.fit import Point

ARCH = "sm_90a"
DEVICE = "NVIDIA H100 80GB HBM3"
OURS = ("dsv4 kernel", "dsv4")
"""The peer whose times count: the default kernel called bare, or what there is of ours."""
NOT_SIZES = ("causal", "format", "fp4", "fp8", "two")
"""What a case's sizes hold besides: flags, which the kernels' variants have."""
LATER = {"swiglu_quant": {"two": False}}
"""Flags that a benchmark's cases have got since; results from before are of these."""

WRITTEN_ANEW = dict.fromkeys(("expert_offsets", "router_hash_many", "router_logits_many"), "2026-11-26T21:48")
"""Kernels that do their work in another way since: of files from before, the times are those of other kernels."""


@dataclass(frozen=True)
class Measured:
    """One case of one file: its point, the roofline's time for it, and why it is left out (empty: it is not)."""

    file: str
    point: Point
    roofline_us: float
    left_out: str


def measured_calls(folder: Path = RESULTS) -> list[Measured]:
    """Every case of our kernels in the files of ``folder`` that are not void, cold L2, medians; in the files' order."""
    found: list[Measured] = []
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        if "cases" in result and not result["void"] and result["device"]["name"] == DEVICE:
            found += _of_file(path.name, result)
    return found


def _of_file(file: str, result: Mapping[str, Any]) -> Iterator[Measured]:
    op = str(result["op"])
    bench: OperatorBenchmark = importlib.import_module(f"benchmarks.{op}").BENCHMARK
    name = next(name for name in OURS if name in result["peers"])
    peer = next(peer for peer in bench.peers() if peer.name == name)
    top = result["ceilings"]
    for item in result["cases"]:
        if "skipped" in item["peers"][name]:
            continue
        case = Case(item["label"], {**LATER.get(op, {}), **item["sizes"]})
        with recorded() as asked:
            peer.prepare(case)
        sizes = _sizes(op, case, asked)
        launches, left_out = [], _undescribed(op, case)
        for each in asked:
            dims = dict(each.dims)
            kernel = _default(Planner(each.op, ARCH, dims=dims, variant=dict(each.variant)), sizes)
            if str(result["date"]) < WRITTEN_ANEW.get(each.op, ""):
                left_out = f"measured before {each.op} was written anew"
                continue
            try:
                launches += count(kernel, {name: size for name, size in sizes.items() if name not in dims})
            except SpecError as error:  # a size that the case does not name, as the lengths of sequences
                left_out = str(error)
        work = item["work"]
        floor = max(work["bytes"] / top["copy_gb_s"] / 1e3, work["flops"] / top["product_tflops"] / 1e6)
        point = Point(op, item["label"], tuple(launches), item["peers"][name]["cold"]["median_us"])
        yield Measured(file, point, top["empty_node_us"] + floor, left_out)


def _default(planner: Planner, sizes: Mapping[str, int]) -> KernelPlan:
    """The default kernel that serves ``sizes``: that of a spec's bucket, or the one for all sizes."""
    for kernel in planner.bucketed():
        if inside(kernel.bucket, sizes):
            return kernel
    return planner.plan()


def _undescribed(op: str, case: Case) -> str:
    """Why launches.yaml does not speak of this case, though of its operator; empty where it does."""
    if op == "sample" and not case.label.endswith("all tokens"):
        return "how often a row is read depends on its top-k and top-p, which are on the device"
    return ""


def _sizes(op: str, case: Case, asked: Sequence[Wanted]) -> dict[str, int]:
    """The sizes of the call, those included that the case leaves to its benchmark, which asks for the kernels
    ``asked``."""
    sizes = {name: int(size) for name, size in case.sizes.items() if name not in NOT_SIZES}
    tokens = sizes.get("T", 0)
    if op == "compressor":
        from benchmarks.compressor import DECODING

        sizes["N"] = tokens if tokens <= DECODING else tokens // sizes["m"]
    if op == "router":
        from benchmarks.router import splits

        sizes["S"] = splits(tokens, sizes["d"], gemm=any(each.op == "router_logits_many" for each in asked))
    if op == "sparse_attention_decode":
        from benchmarks.sparse_attention_decode import lengths

        sizes["mean1"] = round(sum(lengths(case)) / sizes["B"])
    if op == "router_choose":
        sizes["S"] = 1
    if op == "inverse_rope_quant":
        sizes["TP"] = tokens
    return sizes
