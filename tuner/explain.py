"""Why a tuned entry is what it is, in words."""

from __future__ import annotations

from typing import Any

from dsv4.generator.console import UsageError
from dsv4.runtime.tuned import ANY_DEVICE, Entry
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
        lines += _prediction(entry)
    else:
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
        lines += _conditions(proof)
    if "peers" in proof:
        lines.append(_others(proof))
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


def _prediction(entry: Entry) -> list[str]:
    """What is known of an entry that was not measured."""
    proof, device = entry.proof, entry.question.device
    name = f"any GPU of {entry.question.arch}" if device.name == ANY_DEVICE else device.name
    lines = [
        "It is a prediction that nobody has measured; any measurement replaces it.",
        f"It serves on {name} with {device.sms} SMs; made {entry.when}.",
    ]
    if "predicted_us" in proof:
        shapes = "; ".join(f"{spelled(e['sizes'])} {e['predicted_us']:.2f} µs ({e['bound']})" for e in proof["shapes"])
        lines.append(
            f"Predicted {proof['predicted_us']:.2f} µs, the default {proof['default']['predicted_us']:.2f} µs: "
            f"{shapes} ({proof['unmeasured']})."
        )
    return lines


def _by_shape(proof: dict[str, Any]) -> str:
    parts = []
    for each in proof.get("compared", []):
        times = ""
        if "first" in each and "second" in each:
            times = f" ({each['first']['median_us']:.2f} → {each['second']['median_us']:.2f} µs)"
        parts.append(f"{spelled(each['sizes'])} {1 / each['ratio']:.3f}×{times}")
    return "; ".join(parts) or "no shapes recorded"


def _conditions(proof: dict[str, Any]) -> list[str]:
    """What the GPU said of itself during the comparison, and the comparison in the other policies."""
    compared, lines = proof.get("compared", []), []
    states = [each["second"].get("gpu") for each in compared if "second" in each]
    readings = [
        f"{' to '.join(dict.fromkeys(f'{value:.0f}' for value in (min(values), max(values))))} {unit}"
        for name, unit in (("sm_clock_mhz", "MHz"), ("temperature_c", "°C"), ("power_w", "W"))
        if (values := [state[name] for state in states if state and state[name] is not None])
    ]
    if readings:
        lines.append(f"The GPU ran at {', '.join(readings)} meanwhile.")
    modes: dict[str, list[str]] = {}
    for each in compared:
        for mode in each.get("modes", []):
            policy, us = mode["first"]["policy"], (mode["first"]["median_us"], mode["second"]["median_us"])
            times = f"{spelled(each['sizes'])} {us[0]:.2f} → {us[1]:.2f} µs"
            modes.setdefault(f"{policy['launch']} launches, {policy['l2']} L2", []).append(times)
    if modes:
        words = "; ".join(f"{name}: {', '.join(times)}" for name, times in modes.items())
        lines.append(f"Timed in other ways, the default and this: {words}.")
    return lines


def _others(proof: dict[str, Any]) -> str:
    """What others took on the same device, each set beside this kernel in its comparison."""
    ours = {spelled(each["sizes"]): each["second"]["median_us"] for each in proof["compared"] if "second" in each}
    parts = []
    for peer in proof["peers"]:
        where = spelled(peer["sizes"])
        times = f", {peer['us'] / ours[where]:.2f} times as long" if where in ours else ""
        parts.append(f"{where} {peer['name']} {peer['us']:.2f} µs on {peer['date']}{times}")
    return f"Others were measured on such a device: {'; '.join(parts)}."


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
