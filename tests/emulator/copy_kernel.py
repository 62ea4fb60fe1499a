"""The small kernels of :mod:`dsv4.emulator.text_kernel`, by their short name."""

from dsv4.emulator.text_kernel import (
    BARRIER,
    EARLY,
    LATE,
    MAP_BYTES,
    POLICIES,
    SHARED_BASE,
    Kernel,
    aligned,
    barrier_init,
    copy_words,
    dump,
    expect,
    fill,
    wait,
)

__all__ = [
    "BARRIER",
    "EARLY",
    "LATE",
    "MAP_BYTES",
    "POLICIES",
    "SHARED_BASE",
    "Kernel",
    "aligned",
    "barrier_init",
    "copy_words",
    "dump",
    "expect",
    "fill",
    "wait",
]
