"""Storages: what can be opened, what is said of the rest, and a journal that is whole after every interruption."""

from __future__ import annotations

import errno
import os
import stat
from itertools import islice
from pathlib import Path

import pytest

from dsv4.generator.console import UsageError
from dsv4.tuner import storage as storage_module
from dsv4.tuner.encoding import Encoding
from dsv4.tuner.storage import open_storage
from dsv4.tuner.study import Study
from dsv4.tuner.target import Target
from dsv4.tuner.tried import Tried

SPACE = Target("rms_norm", "sm_90a", dims={"d": 512}).space()
CONFIGS = list(islice(SPACE.in_order(), 8))


def tell(study: Study, number: int) -> None:
    claim = study.claim(CONFIGS[number])
    assert claim is not None
    study.tell(claim, Tried(CONFIGS[number], float(number + 1)))


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("mysql://somebody@host/name", "found 'mysql://…'; valid: a journal's file name, sqlite:///FILE or postgres"),
        ("://", "valid: a journal's file name"),
        ("sqlite:////no/such/folder/x.db", "cannot be opened (unable to open database file)"),
        ("postgresql://me:secret@localhost:1/none", "postgresql+psycopg://me:***@localhost:1/none cannot be opened"),
        ("/proc/no/such/x.journal", "/proc/no/such/x.journal cannot be written"),
    ],
)
def test_what_cannot_be_opened_is_one_line(where, words):
    if where.startswith("postgres"):
        pytest.importorskip("psycopg", reason="the PostgreSQL driver is an extra")
    with pytest.raises(UsageError) as caught:
        open_storage(where)
    message = str(caught.value)
    assert words in message and "\n" not in message and "secret" not in message


def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path: Path):
    path = tmp_path / "notes.txt"
    path.write_text("these are no\nlines of a journal\n")
    with pytest.raises(UsageError, match=r"notes\.txt is no journal of studies"):
        open_storage(path)
    assert path.read_text().startswith("these are no")


def test_a_journal_is_for_this_user_alone(tmp_path: Path):
    open_storage(tmp_path / "studies" / "x.journal")
    assert stat.S_IMODE((tmp_path / "studies" / "x.journal").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "studies").stat().st_mode) == 0o700


def test_a_line_that_was_cut_short_is_cut_off(tmp_path: Path):
    path = tmp_path / "x.journal"
    study = Study(open_storage(path), "study", Encoding(SPACE))
    tell(study, 0)
    whole = path.read_bytes()
    for cut in (1, 7, 60):
        tell(study, cut % 5 + 1)
        path.write_bytes(path.read_bytes()[:-cut])  # a kill, or a disk that was full, inside the write
        opened = Study(open_storage(path), "study", Encoding(SPACE))
        assert opened.tried()[0].score_us == 1.0
        tell(opened, 7)
        again = Study(open_storage(path), "study", Encoding(SPACE))
        assert [tried.score_us for tried in again.tried()][-1] == 8.0
        path.write_bytes(whole)
        study = Study(open_storage(path), "study", Encoding(SPACE))


def test_an_sqlite_file_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Killed between two tables, a process would leave a database in which a study may exist twice."""
    real = storage_module.RDBStorage

    def killed(url, **options):
        real(url, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(storage_module, "RDBStorage", killed)
    with pytest.raises(KeyboardInterrupt):
        open_storage(f"sqlite:///{tmp_path}/x.db")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    tell(Study(open_storage(f"sqlite:///{tmp_path}/x.db"), "study", Encoding(SPACE)), 0)
    assert len(Study(open_storage(f"sqlite:///{tmp_path}/x.db"), "study", Encoding(SPACE)).tried()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["x.db"]


def test_a_full_disk_leaves_the_journal_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "x.journal"
    study = Study(open_storage(path), "study", Encoding(SPACE))
    tell(study, 0)
    before = path.read_bytes()

    def half(self, logs):
        with open(path, "ab") as stream:
            stream.write(b'{"op_code":4,"half of')
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(storage_module.JournalFileBackend, "append_logs", half)
    with pytest.raises(OSError, match="No space left"):
        tell(study, 1)
    assert path.read_bytes() == before
    monkeypatch.undo()
    tell(Study(open_storage(path), "study", Encoding(SPACE)), 1)
    assert len(Study(open_storage(path), "study", Encoding(SPACE)).tried()) == 2
