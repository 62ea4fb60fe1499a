"""Why a tuned entry is what it is, in words."""

from __future__ import annotations

from typing import Any

from dsv4.generator.console import UsageError
from dsv4.runtime.tuned import Entry
from dsv4.tuner.tried import changed, spelled


def find(entries: list[Entry], wanted: str) -> Entry:
    """The entry whose name, or the beginning of whose sha256, is ``wanted``. Raises UsageError."""
    found = [each for each in entries if each.name == wanted or each.sha256.startswith(wanted)]
    if len(found) != 1 or not wanted:
        names = ", ".join(each.name for each in entries[-8:]) or "none (tune something first)"
        how = f"{len(found)} entries" if found and wanted else "no entry"
        raise UsageError(f"ENTRY: found {how} called '{wanted}'; valid: {names}")
    return found[0]


def explain(entry: Entry, unusable: str | None = None) -> list[str]:
    """Paragraphs of one line each. ``unusable``: why this cache cannot serve it."""
    question, proof = entry.question, entry.proof
    bucket = ", ".join(f"{low} ≤ {n}" + (f" ≤ {high}" if high else "") for n, (low, high) in question.bucket.items())
    device = question.device
    default = proof.get("default", {}).get("config", {})
    apart = changed(entry.config, default)
    lines = [
        f"{entry.name}: {question.op} on {question.arch}, {spelled({**question.dims, **question.variant})}, "
        f"{bucket or 'every size'}.",
    ]
    if entry.source == "predicted":
        lines.append("It is a prediction that nobody has measured; any measurement replaces it.")
    lines.append(
        f"It serves on {device.name} with {device.sms} SMs and {device.memory_bytes / 2**30:.0f} GiB under driver "
        f"{device.driver} and CUDA {device.cuda}, and nowhere else; measured {entry.when} with "
        f"{question.policy.launch} launches and a {question.policy.l2} L2."
    )
    if apart:
        before = {name: default[name] for name in apart if name in default}
        lines.append(f"It differs from the default in {spelled(apart)} (the default has {spelled(before)}).")
    else:
        lines.append(f"Configuration: {spelled(entry.config)}.")
    if "speedup" in proof:
        lines.append(
            f"Measured again in turn with the default it was {proof['speedup']:.3f}× as fast: {_by_shape(proof)}."
        )
    if "tried" in proof:
        lines.append(_search(proof))
    checked = proof.get("checked", {})
    if checked:
        words = f"{checked.get('cases', '?')} adversarial cases"
        cosine = f", cosine {checked['cosine']:.7f} at worst" if "cosine" in checked else ""
        bits = {True: ", the same bits each time", False: ", other bits from call to call"}
        steady = bits.get(checked.get("deterministic"), "")
        lines.append(
            f"Before it was timed it passed {words} against float64{cosine}{steady}; its numeric class is "
            f"{question.numeric_class}."
        )
    lines.append(f"Kernel {entry.key}, spec {question.spec_sha256[:12]}, {spelled(question.toolchain)}.")
    if unusable:
        lines.append(f"This cache cannot serve it: {unusable}.")
    return lines


def _by_shape(proof: dict[str, Any]) -> str:
    parts = []
    for each in proof.get("compared", []):
        times = ""
        if "first" in each and "second" in each:
            times = f" ({each['first']['median_us']:.2f} → {each['second']['median_us']:.2f} µs)"
        parts.append(f"{spelled(each['sizes'])} {1 / each['ratio']:.3f}×{times}")
    return "; ".join(parts) or "no shapes recorded"


def _search(proof: dict[str, Any]) -> str:
    failed = sum(proof.get("failed", {}).values())
    words = f"{proof['tried']} configurations were tried, {proof.get('slow', 0)} given up as slow, {failed} failed"
    if failed:
        reason, count = max(proof["failed"].items(), key=lambda each: each[1])
        words += f" (most often, {count} ×: {reason})"
    refused = proof.get("refused", {})
    if refused:
        reason, count = max(refused.items(), key=lambda each: each[1])
        words += f"; {len(refused)} kinds of reasons refused others beforehand, the largest {count:,} × {reason}"
    return words + "."
