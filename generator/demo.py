"""The main job, once through: specs → refusals → kernels → checks → emulator → operators → the model → table.

Runs on any machine, for both chips; without a GPU the runtime runs the PyTorch reference and says so. ``make demo``.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import torch
from rich.rule import Rule

import dsv4
from dsv4.generator.build import build
from dsv4.generator.commands.build import build_table
from dsv4.generator.commands.listing import pairs
from dsv4.generator.console import err, out, progress_bar
from dsv4.generator.demo_model import generate_text
from dsv4.generator.kernel import KernelPlan
from dsv4.generator.resources import Refused
from dsv4.generator.spec import default_plans, list_archs, list_models, list_ops, load_op, plan
from dsv4.generator.verify import Case, cases, judge
from dsv4.generator.verify.climb import verify_artifacts
from dsv4.generator.verify.emulator import PREFLIGHT_SCHEDULES, preflight
from dsv4.runtime.cache import Artifact, KernelCache

IMPOSSIBLE: tuple[tuple[str, str, dict[str, int], dict[str, int]], ...] = (
    ("fmha", "sm_90a", {"D": 128}, {"kv_stage": 4}),
    ("fmha", "sm_100a", {"D": 512}, {"column_split": 1}),
)
SHOWN = (("rms_norm", {"d": 4096}), ("rms_norm", {"d": 7168}), ("fmha", {"D": 64}), ("fmha", {"D": 128}))
VERIFY_SECONDS = 60.0


def main() -> int:
    """Run the demo; returns 0 if every kernel was built, checked and, where it ran, right."""
    started = time.monotonic()
    out.print(Rule("1. specs"))
    for op in list_ops():
        out.print(f"  {op:26} {load_op(op).doc}", highlight=False)
    out.print(f"  models: {', '.join(list_models())}; archs: {', '.join(list_archs())}", highlight=False)

    out.print(Rule("2. configurations that cannot work are refused before anything is compiled"))
    for op, arch, dims, config in IMPOSSIBLE:
        show_refusal(op, arch, dims, config)

    out.print(Rule("3. emit and compile, for both chips, on this CPU"))
    cache = KernelCache()
    plans = demo_plans()
    with progress_bar("compile", len(plans)) as advance:
        results = build(
            plans,
            cache_root=cache.root,
            jobs=os.cpu_count() or 1,
            progress=lambda result: advance(result.plan.name),
        )
    failed = [result for result in results if result.error]
    for result in failed:
        err.print(f"  {result.plan.name}: {result.error}", style="red", markup=False)

    out.print(Rule("4. check what this machine can check"))
    cache.refresh()
    bad = 0
    built = [Artifact.read(result.artifact) for result in results if result.artifact and not result.error]
    with progress_bar("verify", len(built)) as advance:
        for report in verify_artifacts(built, "auto", timeout=VERIFY_SECONDS):
            bad += not report.ok
            advance(f"{report.manifest.name}: {report.device}, {'; '.join(report.findings) or 'no findings'}")
    out.print(f"  {len(built)} kernels, {bad} with findings; cache: {cache.root}", highlight=False)

    out.print(Rule("5. run kernels of both chips in the emulator"))
    bad += emulate(built)

    out.print(Rule("6. run the operators through the runtime"))
    wrong = run_operators()

    out.print(Rule("7. generate from a small random checkpoint"))
    wrong += generate_text("cuda" if torch.cuda.is_available() else "cpu")

    out.print(build_table(results))
    out.print(
        f"{time.monotonic() - started:.0f} s; no B200 was at hand: sm_100a kernels are compiled and emulated, no more."
    )
    return 1 if failed or bad or wrong else 0


def emulate(built: list[Artifact]) -> int:
    """Run one kernel of each operator and chip on two small cases, three schedules each; how many have findings."""
    chosen: dict[tuple[str, str], Artifact] = {}
    for artifact in built:
        chosen.setdefault((artifact.manifest.op, artifact.manifest.arch), artifact)
    bad = 0
    with progress_bar("emulate", len(chosen)) as advance:
        for artifact in chosen.values():
            found = preflight(artifact)
            bad += bool(found)
            advance(f"{artifact.manifest.name}: {'; '.join(found) or 'right, no findings'}")
    out.print(
        f"  {len(chosen)} kernels against float64 in {2 * len(PREFLIGHT_SCHEDULES)} runs each, {bad} with findings: "
        f"their PTX and host code, as a GPU would get them",
        highlight=False,
    )
    return bad


def demo_plans() -> list[KernelPlan]:
    """The small list: every default of the shown operators and dimensions, both archs."""
    chosen = []
    for op, dims in SHOWN:
        for arch in list_archs():
            chosen += [each for each in default_plans(op, arch) if each.dims.items() >= dims.items()]
    return chosen


def show_refusal(op: str, arch: str, dims: dict[str, int], config: dict[str, int]) -> None:
    label = f"{op} {pairs({**dims, **config})} on {arch}"
    try:
        plan(op, arch, model="flash", dims=dims, config=config)
    except Refused as refused:
        out.print(f"  {label}: {refused.reasons[0]}", highlight=False, markup=False)
    else:
        raise SystemExit(f"demo: {label} was expected to be refused, and fits")


def run_operators() -> int:
    """Call the public operators on one case each and judge them like a kernel; returns how many were wrong."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    wrong = 0
    for op, dims, variant in (
        ("rms_norm", {"d": 4096}, {"pdl": False}),
        ("fmha", {"D": 128}, {"causal": True, "has_sink": False, "pdl": False}),
    ):
        case = middle(cases(op, dims, variant, device=device))
        with dsv4.trace_dispatch() as trace:
            got = call(op, case, variant)
        verdict = judge(op, got, case)
        wrong += not verdict.ok
        served = ", ".join(f"served by {each.implementation}" for each in trace)
        outcome = "right" if verdict.ok else f"WRONG: {verdict.findings[0]}"
        out.print(f"  {op}, case '{case.name}', {device}: {outcome} (cosine {verdict.cosine:.7f}); {served}",
                  highlight=False, markup=False)  # fmt: skip
    return wrong


def call(op: str, case: Case, variant: dict[str, bool]) -> dict[str, torch.Tensor]:
    """The public function of ``op`` on the inputs of ``case``; outputs by the names of the contract."""
    inputs: dict[str, Any] = dict(case.inputs)
    if op == "rms_norm":
        return {"y": dsv4.rms_norm(inputs["x"], inputs["w"], inputs["eps"])}
    o, lse = dsv4.fmha(
        inputs["q"], inputs["k"], inputs["v"],
        causal=variant["causal"], softmax_scale=inputs["softmax_scale"], sink=inputs.get("sink"),
    )  # fmt: skip
    return {"o": o, "lse": lse}


def middle(found: list[Case]) -> Case:
    """The case of middling size: neither an empty one nor the one that takes longest."""
    return sorted(found, key=lambda case: sum(tensor.numel() for tensor in case.expected.values()))[len(found) // 2]


if __name__ == "__main__":
    sys.exit(main())
