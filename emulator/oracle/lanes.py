"""What lanes exchange: shfl, vote, match, redux on NumPy arrays of 32 lanes."""

from __future__ import annotations

import numpy as np

from dsv4.emulator.oracle.floats import extreme

LANES = 32


def shuffle(
    mode: str, a: np.ndarray, b: np.ndarray, c: np.ndarray, active: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(value, in range, taken from a lane that takes part) of shfl.sync for each lane."""
    value, valid, known = np.zeros(LANES, np.uint64), np.zeros(LANES, bool), np.zeros(LANES, bool)
    for lane in range(LANES):
        offset, clamp, segment = int(b[lane]) & 31, int(c[lane]) & 31, int(c[lane]) >> 8 & 31
        limit = (lane & segment) | (clamp & ~segment & 31)
        if mode == "up":
            source, valid[lane] = lane - offset, lane - offset >= limit
        elif mode == "down":
            source, valid[lane] = lane + offset, lane + offset <= limit
        elif mode == "bfly":
            source, valid[lane] = lane ^ offset, (lane ^ offset) <= limit
        else:
            source = (lane & segment) | (offset & ~segment & 31)
            valid[lane] = source <= limit
        source = source if valid[lane] else lane
        value[lane] = a[source]
        known[lane] = bool(active >> source & 1)
    return value, valid, known


def vote(mode: str, predicate: np.ndarray, active: int) -> int:
    """all, any, uni: 0 or 1; ballot: the mask."""
    ballot = sum(1 << lane for lane in range(LANES) if active >> lane & 1 and predicate[lane])
    return {"all": int(ballot == active), "any": int(ballot != 0), "uni": int(ballot in (0, active)), "ballot": ballot}[
        mode
    ]


def match(mode: str, a: np.ndarray, active: int) -> tuple[np.ndarray, bool]:
    """The masks of lanes with an equal value; match.all: everybody or nobody."""
    lanes = [lane for lane in range(LANES) if active >> lane & 1]
    masks = np.zeros(LANES, np.uint64)
    for lane in lanes:
        masks[lane] = sum(1 << other for other in lanes if a[other] == a[lane])
    same = all(a[lane] == a[lanes[0]] for lane in lanes)
    if mode == "all":
        for lane in lanes:
            masks[lane] = active if same else 0
    return masks, same


def reduce(
    operation: str, type_name: str, a: np.ndarray, active: int, *, absolute: bool = False, nan: bool = False
) -> int:
    """redux.sync over the active lanes."""
    values = [int(a[lane]) for lane in range(LANES) if active >> lane & 1]
    if type_name == "f32":
        if absolute:
            values = [value & 0x7FFFFFFF for value in values]
        return extreme(operation == "max", values, "f32", nan, False, False, False)
    if type_name == "s32":
        values = [value - (1 << 32) if value >> 31 else value for value in values]
    total = values[0]
    for value in values[1:]:
        total = {
            "add": total + value,
            "min": min(total, value),
            "max": max(total, value),
            "and": total & value,
            "or": total | value,
            "xor": total ^ value,
        }[operation]
    return total & 0xFFFFFFFF
