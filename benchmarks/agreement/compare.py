"""The emulator's side: run the same probes and cases here and hold them to what the GPU answered."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.agreement import descriptors
from benchmarks.agreement.collect import META, read_volumes
from benchmarks.agreement.distance import Difference, difference
from benchmarks.agreement.errors import function_errors
from benchmarks.agreement.families import all_probes
from benchmarks.agreement.probe import OUT, Probe
from benchmarks.harness.machine import commit
from dsv4.emulator.policy import FIXED
from dsv4.emulator.ptx import PtxError

SCHEMA = 1
SHOWN_ROWS = 12
METHOD = (
    "The same compiled objects and the same PTX kernels with the same inputs (held to each other by hash) on the GPU "
    "and in the emulator; every output is compared bit by bit. Steps are units in the last place of the output format."
)


def compare_probe(probe: Probe, truth: np.ndarray) -> dict[str, Any]:
    """The probe in the emulator against the GPU's array: what differs in each row, and the emulator's findings."""
    before = {name: array.copy() for name, array in probe.kernel.arrays.items()}
    entry: dict[str, Any] = {"elements": int(truth.size), "different": 0, "rows": {}, "findings": []}
    try:
        result, _ = probe.kernel.run(FIXED[0])
        found = probe.kernel.arrays[OUT].copy()
    except PtxError as error:
        return {**entry, "unsupported": str(error)}
    finally:
        for name, array in before.items():
            probe.kernel.arrays[name][...] = array
    entry["findings"] = sorted({f"{f.kind}: {f.message}" for f in result.findings})[:4]
    labels = probe.labels or ("",)
    parts = zip(labels, found, truth, strict=True) if probe.labels else [("", found, truth)]
    merged: dict[str, list[Difference]] = defaultdict(list)
    for label, ours, theirs in parts:
        merged[label].append(difference(ours, theirs, probe.kind))
    for label, several in merged.items():
        if label in probe.open_rows:
            continue
        total = Difference(
            sum(d.elements for d in several),
            sum(d.different for d in several),
            sum(d.nan_only for d in several),
            max((d.max_steps for d in several if d.max_steps is not None), default=None),
            sum(d.within_one_step for d in several),
            max((d.max_relative for d in several if d.max_relative is not None), default=None),
            max((d.max_absolute for d in several if d.max_absolute is not None), default=None),
            [example for d in several for example in d.examples][:3],
        )
        if any(d.max_steps == -1 for d in several):
            total.max_steps = -1
        entry["different"] += total.different
        if total.different:
            entry["rows"][label] = asdict(total)
    return entry


def compare_refusal(probe: Probe, answer: dict[str, Any], truth: np.ndarray | None) -> dict[str, Any]:
    """A kernel that the chip may refuse: both get to its end, with the same bits, or neither does."""
    refused_there = "error" in answer or (truth is not None and truth.ravel()[0] == 0)
    entry = compare_probe(probe, probe.out.copy() if truth is None else truth)
    refused_here = bool(entry["findings"])
    if refused_here == refused_there:
        return {"elements": 1, "different": 0} if refused_here else entry
    said = answer.get("error", "it ends")
    return {"elements": 1, "different": 1, "refusal": f"GPU: {said}; emulator: {entry['findings'] or 'it ends'}"}


def compare_open(meta: dict[str, Any], arrays: dict[str, np.ndarray]) -> dict[str, dict[str, str]]:
    """Rows that the ISA leaves open: the first values of either side."""
    found = {}
    for probe in all_probes():
        if not probe.open_rows or f"probe/{probe.key}" not in arrays:
            continue
        probe.kernel.run(FIXED[0])
        for label in probe.open_rows:
            row = probe.labels.index(label)
            shown = [
                " ".join(f"{int(v):x}" for v in out[row][:32]) for out in (arrays[f"probe/{probe.key}"], probe.out)
            ]
            found[f"{probe.key}: {label}"] = {"gpu": shown[0], "emulator": shown[1]}
    return found


def compare_probes(meta: dict[str, Any], arrays: dict[str, np.ndarray], only: str = "") -> dict[str, dict[str, Any]]:
    """Every probe's entry by key."""
    found = {}
    for probe in all_probes(only):
        answer = meta["probes"].get(probe.key)
        if probe.may_fail and answer is not None:
            found[probe.key] = compare_refusal(probe, answer, arrays.get(f"probe/{probe.key}"))
        elif answer is None or "error" in answer:
            found[probe.key] = {"not_run": (answer or {}).get("error", "not collected")}
        elif answer["input"] != probe.input_hash():
            found[probe.key] = {"not_run": "the inputs are not the same on both machines"}
        else:
            entry = compare_probe(probe, arrays[f"probe/{probe.key}"])
            found[probe.key] = {**entry, "approximate": probe.approximate}
    return found


def compare_artifacts(
    meta: dict[str, Any], arrays: dict[str, np.ndarray], cache: Path, say: Callable[[str], None] = print
) -> list[dict[str, Any]]:
    """For each kernel: bitwise equal share, share within one step, the largest differences, over all its cases."""
    from benchmarks.agreement import artifacts as ours

    by_key = {entry["key"]: entry for entry in meta.get("artifacts", [])}
    found = []
    for artifact in ours.artifacts(cache):
        label = ours.label(artifact)
        total: dict[str, Any] = {
            "kernel": label,
            "key": artifact.manifest.key,
            "cases": 0,
            "findings": [],
            "outputs": {},
        }
        sums: dict[str, list[Difference]] = defaultdict(list)
        for number, (case, outputs, findings) in enumerate(ours.on_emulator(artifact, FIXED[0].name)):
            key = f"{label}/{number}"
            entry = by_key.get(key)
            if entry is None or entry["kernel"] != artifact.manifest.key:
                raise ValueError(f"{key}: the collection holds no such case of this very object")
            if entry["input"] != ours.input_hash(case):
                raise ValueError(f"{key}: the inputs are not the same on both machines")
            total["cases"] += 1
            total["findings"] += [f"{case.name}: {text}" for text in [*findings, *entry["findings"]]]
            for name, array in outputs.items():
                kind = "bf16" if array.itemsize == 2 else "f32"
                sums[name].append(difference(array, arrays[f"artifact/{key}/{name}"], kind))
        for name, several in sums.items():
            elements = sum(d.elements for d in several)
            total["outputs"][name] = {
                "elements": elements,
                "equal_share": 1 - sum(d.different for d in several) / elements,
                "within_one_step_share": sum(d.within_one_step for d in several) / elements,
                "max_steps": max((d.max_steps or 0 for d in several), default=0),
                "max_relative": max((d.max_relative or 0.0 for d in several), default=0.0),
                "max_absolute": max((d.max_absolute or 0.0 for d in several), default=0.0),
                "by_case_equal_share": [1 - d.different / max(d.elements, 1) for d in several],
            }
        say(f"{label}: {total['outputs']}")
        found.append(total)
    return found


def compare(folder: Path, cache: Path | None, only: str = "") -> dict[str, Any]:
    """The whole result. Raises ValueError where the collection is of other inputs or objects."""
    meta, arrays = json.loads((folder / META).read_text()), read_volumes(folder)
    probes = compare_probes(meta, arrays, only)
    families: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for key, entry in probes.items():
        family = families[key.partition("/")[0]]
        family["probes"] += 1
        family["not_run"] += "not_run" in entry
        family["elements"] += entry.get("elements", 0)
        family["different"] += entry.get("different", 0)
        family["probes_with_differences"] += bool(entry.get("different", 0))
        family["findings"] += len(entry.get("findings", []))
    return {
        "schema": SCHEMA,
        "date": meta["date"],
        "commit": commit(),
        "device": meta["device"],
        "versions": meta["versions"],
        "method": METHOD,
        "families": {name: dict(counts) for name, counts in families.items()},
        "differences": {
            key: entry
            for key, entry in probes.items()
            if entry.get("different") or entry.get("findings") or "not_run" in entry
        },
        "functions": function_errors(arrays, only),
        "open": compare_open(meta, arrays),
        "descriptors": {
            "requests": len(list(descriptors.requests())),
            "different": descriptors.compare(meta["descriptors"]),
        },
        "artifacts": compare_artifacts(meta, arrays, cache) if cache else [],
    }


def table(result: dict[str, Any]) -> str:
    """The result in Markdown: a row a family, a row an artifact."""
    lines = [
        "| family | probes | values | different | in probes | findings |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, counts in result["families"].items():
        lines.append(
            f"| {name} | {counts['probes']} | {counts['elements']:,} | {counts['different']:,} | "
            f"{counts['probes_with_differences']} | {counts['findings']} |"
        )
    described = result["descriptors"]
    lines.append(f"| descriptors | {described['requests']} | | {len(described['different'])} | | |")
    if result["functions"]:
        lines += ["", "| approximation | promised | GPU | emulator |", "| --- | ---: | ---: | ---: |"]
    for row in result["functions"]:
        lines.append(
            f"| {row['row']} ({row['promise']}, {row['unit']}) | {row['bound']:.3g} | {row['gpu']:.3g} | "
            f"{row['emulator']:.3g} |"
        )
    if result["artifacts"]:
        lines += [
            "",
            "| kernel | cases | output | values | equal bits | within 1 step | largest absolute | largest relative |",
            "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: |",
        ]
    for kernel in result["artifacts"]:
        for name, output in kernel["outputs"].items():
            lines.append(
                f"| {kernel['kernel']} | {kernel['cases']} | {name} | {output['elements']:,} | "
                f"{100 * output['equal_share']:.4f} % | {100 * output['within_one_step_share']:.4f} % | "
                f"{output['max_absolute']:.2e} | {output['max_relative']:.2e} |"
            )
    return "\n".join(lines)
