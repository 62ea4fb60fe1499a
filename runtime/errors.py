"""What can go wrong at serving time, and how it is said: one line, naming what was found and what would be valid."""

from __future__ import annotations

import threading
import warnings


class Dsv4Error(Exception):
    """Any error that this package raises on purpose."""


class SettingError(Dsv4Error, ValueError):
    """A setting (an environment variable or an argument of ``configure``) has a value that it cannot have."""


class ContractError(Dsv4Error, ValueError):
    """An argument of an operator breaks its contract; the message starts with the operator and the argument."""


class ConfigError(Dsv4Error):
    """A model configuration cannot be read, or contradicts itself; names the file and each field.

    Not a ``ValueError``, which pydantic would make its own.
    """


class CheckpointError(Dsv4Error):
    """A checkpoint is not what its configuration promises, or a file of it is broken; nothing of it was kept."""


class CacheRefused(Dsv4Error):
    """The kernel cache's folder cannot be trusted, or a file in it cannot be read."""


class CacheFull(Dsv4Error):
    """The KV cache has no room for what was asked; every sequence in it is as it was before."""


class ArtifactRefused(Dsv4Error):
    """A compiled kernel does not match its manifest, this machine or its owner, and was not loaded."""


class KernelMissing(Dsv4Error, RuntimeError):
    """No kernel can serve a call, and the caller chose ``missing="raise"``."""


class Dsv4Warning(RuntimeWarning):
    """Something was refused or replaced by the PyTorch reference; said once a process for each cause."""


_said: set[str] = set()
_lock = threading.Lock()


def say_once(message: str) -> None:
    """Warn with ``message`` unless this process has said exactly that before."""
    with _lock:
        if message in _said:
            return
        _said.add(message)
    warnings.warn(message, Dsv4Warning, stacklevel=3)


def forget_said() -> None:
    """Make ``say_once`` speak again, after the cache or a setting has changed."""
    with _lock:
        _said.clear()
