"""FlashMLA, and our functions of its names: a benchmark says how the module is called, this who takes part.

``called`` gives the call of a module with FlashMLA's interface, ``flash_mla`` or ``dsv4.flash_mla``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.harness.operator import Call, Case, Inputs, Unavailable

HEADS = (64, 128)


def ours(called: Callable[[Any], Call]) -> Call:
    """Our compatible functions; a missing kernel is an answer, not a slow reference."""
    try:
        import dsv4
        from dsv4 import flash_mla as module
    except ImportError as error:
        raise Unavailable(f"dsv4 is not installed ({error})") from None
    dsv4.configure(missing="raise")
    call = called(module)

    def served(s: Inputs) -> Any:
        try:
            return call(s)
        except dsv4.KernelMissing as error:
            raise Unavailable(str(error)) from None

    return served


def theirs(case: Case, called: Callable[[Any], Call]) -> Call:
    """FlashMLA's own kernels, which there are for 64 and 128 heads."""
    try:
        import flash_mla as module  # type: ignore[import-not-found]
    except ImportError as error:
        raise Unavailable(f"flash_mla is not installed ({error})") from None
    if int(case.sizes["H"]) not in HEADS:
        raise Unavailable("FlashMLA has kernels for 64 and 128 heads")
    return called(module)


def versions() -> dict[str, str]:
    try:
        import flash_mla as module
    except ImportError:
        return {}
    return {"flash_mla": str(getattr(module, "__version__", "unknown"))}
