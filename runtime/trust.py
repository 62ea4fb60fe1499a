"""Whom a file has to belong to before this process loads code from it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

_ROOT_UID = 0


def untrusted(path: Path) -> str | None:
    """Why ``path`` may not be trusted, in one line, or ``None`` where it may.

    Trusted is what belongs to this user or to root and is not world-writable. Raises ``OSError`` where ``path`` cannot
    be looked at.
    """
    status = os.stat(path)
    me = os.geteuid()
    if status.st_uid not in (me, _ROOT_UID):
        return f"{path}: found owner uid {status.st_uid}; valid: uid {me} or root"
    if status.st_mode & stat.S_IWOTH:
        mode = stat.S_IMODE(status.st_mode)
        return f"{path}: found mode {mode:04o}, world-writable; valid: mode {mode & ~stat.S_IWOTH:04o} (chmod o-w)"
    return None
