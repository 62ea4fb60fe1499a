"""What keeps the emulator from running a kernel. Every message is one line that says what to change."""

from __future__ import annotations

from dsv4.runtime.errors import Dsv4Error


class EmulatorError(Dsv4Error, RuntimeError):
    """Any reason why a kernel was not run to its end. What a kernel does wrong is a finding, not an error."""


class ObjectRefused(EmulatorError):
    """The compiled object, its PTX or its cubin is missing, cannot be opened, or they do not belong together."""


class TargetRefused(EmulatorError):
    """The kernel was compiled for an architecture that is not emulated."""


class ArgumentRefused(EmulatorError, ValueError):
    """An argument cannot be passed, or the kernel's own host code refuses it (its message is passed on)."""


class KernelUnsupported(EmulatorError):
    """The PTX holds an instruction that is not emulated; the message names opcode, PTX line and source line."""


class KernelEndless(EmulatorError):
    """The kernel did not end within its budget of instructions; the message says where it was."""


class FindingsError(EmulatorError, AssertionError):
    """Raised on request (``Report.check``) when a kernel has findings; the message holds all of them."""


class WorkerFailed(EmulatorError):
    """The emulating process died or did not answer within the time limit; it has been killed with its group."""


_KINDS: dict[str, type[EmulatorError]] = {
    each.__name__: each
    for each in (
        EmulatorError, ObjectRefused, TargetRefused, ArgumentRefused, KernelUnsupported, KernelEndless, WorkerFailed
    )
}  # fmt: skip


def described(error: BaseException) -> dict[str, str]:
    """The error as it travels from the emulating process; what is unexpected becomes a plain EmulatorError."""
    text = " ".join(str(error).split())
    if isinstance(error, EmulatorError):
        return {"kind": type(error).__name__, "message": text}
    return {"kind": "EmulatorError", "message": f"{type(error).__name__}: {text}"}


def rebuilt(raw: dict[str, str]) -> EmulatorError:
    """The error that ``described`` was made of."""
    return _KINDS.get(raw["kind"], EmulatorError)(raw["message"])
