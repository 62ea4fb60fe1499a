"""What the compiler works out for every operation that it traces, kept: where in the source it is.

An operation bears the place of the call that made it. For each the compiler walks up the stack to a frame that is not
its own, asking every frame anew, and through a code object's table of positions up to the instruction. Both depend on
the code alone: kept, a kernel is traced in a third less time (prefilling attention: 1.7 s for 2.6), to the same PTX.

The functions are the compiler's own and no interface of it: where a release has them not, it takes its time.
"""

from __future__ import annotations

from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

_known: dict[tuple[str, int, int], tuple[CodeType, Any]] = {}
"""By function, code object and instruction. The object is kept with the answer, so that its address stays its own."""


def remember_places() -> None:
    """From now on what is known of a frame's code is not worked out again, until ``forget_places``."""
    from cutlass._mlir_helpers import op

    for name, with_instruction in (("_is_framework_stack_frame", False), ("_fast_frameinfo", True)):
        original = getattr(op, name, None)
        if original is not None:
            setattr(op, name, _kept(name, original, with_instruction))


def _kept(name: str, original: Callable[[FrameType], Any], with_instruction: bool) -> Callable[[FrameType], Any]:
    def kept(frame: FrameType) -> Any:
        code = frame.f_code
        key = (name, id(code), frame.f_lasti if with_instruction else -1)
        found = _known.get(key)
        if found is None:
            found = _known[key] = (code, original(frame))
        return found[1]

    return kept


def forget_places() -> None:
    """Before other sources are traced, whose code may be gone with the next ones."""
    _known.clear()
