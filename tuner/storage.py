"""Where studies are kept: Optuna's storages, a journal file by default, and what it takes for one to survive a kill."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from dsv4.generator.console import UsageError

VALID = "a journal's file name, sqlite:///FILE or postgresql://USER@HOST/NAME"
BUSY_S = 60.0
"""How long a process waits for another one's write to an SQLite file."""
OPEN_ATTEMPTS = 6
DATABASE_ERRORS = (optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError)
"""What a database that goes away, or is full, raises at any call."""
_DRIVERS = {"sqlite": "sqlite", "postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg"}


def open_storage(where: str | Path) -> BaseStorage:
    """The storage at ``where``: a journal's path, or a URL of a database. Made where there is none.

    Raises UsageError, in one line and without the URL's password, where it cannot be opened.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    text = str(where)
    if "://" not in text:
        return _journal(Path(text))
    try:
        url = sqlalchemy.engine.make_url(text)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        raise UsageError(f"--storage: found '{text.partition('://')[0]}://…'; valid: {VALID}") from None
    kind, plus, _ = url.drivername.partition("+")
    if kind not in _DRIVERS:
        raise UsageError(f"--storage: found '{url.drivername}://…'; valid: {VALID}")
    if not plus:
        url = url.set(drivername=_DRIVERS[kind])
    options = {"connect_args": {"timeout": BUSY_S}} if kind == "sqlite" else {"pool_pre_ping": True}
    try:
        if kind == "sqlite":
            _make_sqlite(url, options)
        return _quiet_database(url.render_as_string(hide_password=False), options)
    except ModuleNotFoundError as missing:
        raise UsageError(f"--storage: {kind} needs {missing.name}; valid: pip install {missing.name}") from None
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.OptunaError, ImportError, RuntimeError) as error:
        why = database_words(error)
        if url.password:
            why = why.replace(str(url.password), "***")
        raise UsageError(f"--storage: {url.render_as_string()} cannot be opened ({why:.160}); valid: {VALID}") from None


def database_words(error: BaseException) -> str:
    """What the database itself said, in one line."""
    cause: BaseException = error.__cause__ or error
    return " ".join(str(getattr(cause, "orig", None) or cause).split())


def _make_sqlite(url: sqlalchemy.engine.URL, options: dict[str, Any]) -> None:
    """Make the file with its tables whole or not at all.

    SQLite commits each table and index by itself: a process that is killed between them would leave a database in
    which a study may exist twice.
    """
    if not url.database or url.database == ":memory:" or url.database.startswith("file:"):
        return
    path = Path(url.database)
    if path.exists():
        return
    making = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        storage = RDBStorage(url.set(database=str(making)).render_as_string(hide_password=False), engine_kwargs=options)
        storage.engine.dispose()
        with contextlib.suppress(FileExistsError):  # another process was faster
            os.link(making, path)
    finally:
        making.unlink(missing_ok=True)


def _quiet_database(url: str, options: dict[str, Any]) -> BaseStorage:
    for attempt in range(OPEN_ATTEMPTS):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                return optuna.storages.get_storage(RDBStorage(url, engine_kwargs=options))
        except sqlalchemy.exc.DBAPIError as error:
            # Of two workers that find an empty database both make the tables, and one is told that they are there.
            made_by_another = any(words in str(error.orig) for words in ("already exists", "duplicate key"))
            if not made_by_another or attempt == OPEN_ATTEMPTS - 1:
                raise
            time.sleep(0.2 * (attempt + 1))
    raise AssertionError


def _journal(path: Path) -> BaseStorage:
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        return JournalStorage(Journal(path))
    except OSError as error:
        reason = error.strerror or error
        raise UsageError(f"--storage: {path} cannot be written ({reason}); valid: {VALID}") from None
    except (ValueError, KeyError, TypeError) as error:  # what the journal's reader raises for lines of something else
        reason = " ".join(str(error).split())
        raise UsageError(f"--storage: {path} is no journal of studies ({reason:.120}); valid: {VALID}") from None


class Journal(JournalFileBackend):
    """Optuna's journal, whole after any interruption.

    A write that was cut short (by a kill or a full disk) leaves a line without an end, to which the next one would be
    joined; here it is cut off first. The lock goes with the process that held it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._flock = FileLock(path.with_name(path.name + ".lock"))
        super().__init__(str(path), lock_obj=_NoLock())

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        with self._flock.held():
            self._cut_to(_whole_bytes(self._path))
            size = self._path.stat().st_size
            try:
                super().append_logs(logs)
            except BaseException:
                self._cut_to(size)
                raise

    def _cut_to(self, size_bytes: int) -> None:
        if self._path.stat().st_size > size_bytes:
            os.truncate(self._path, size_bytes)


class FileLock:
    """An exclusive lock between processes and threads that the system releases when its holder dies."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        handle = os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


class _NoLock(JournalFileOpenLock):
    """``Journal`` holds a lock of its own around more than the backend's write."""

    def __init__(self) -> None:
        pass

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        return None


def _whole_bytes(path: Path) -> int:
    """Length of the file up to and with its last end of line."""
    with path.open("rb") as stream:
        size = end = stream.seek(0, os.SEEK_END)
        while end > 0:
            begin = max(0, end - 4096)
            stream.seek(begin)
            found = stream.read(end - begin).rfind(b"\n")
            if found >= 0:
                return begin + found + 1
            end = begin
        return 0 if size else size
