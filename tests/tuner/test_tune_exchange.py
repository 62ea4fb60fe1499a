"""Tuned entries as files: what goes out comes back the same, merged by rule; what was altered is not believed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dsv4.generator.cli import run as run_cli
from dsv4.generator.console import UsageError
from dsv4.runtime.cache import KernelCache
from dsv4.runtime.tuned import Entry
from dsv4.tuner import cli, exchange
from dsv4.tuner.budget import Budget
from dsv4.tuner.question import Settings
from dsv4.tuner.sweep import sweep
from dsv4.tuner.target import Target
from tests.tuner.tuner_fakes import GPU, FakeBuilder, FakeGpu

TARGET = Target("rms_norm", "sm_90a", dims={"d": 512}, pinned={"opt_level": 3, "shuffle_lanes": 32})
DEFAULT = TARGET.default().config


@pytest.fixture
def entry(cache: KernelCache) -> Entry:
    """The entry of a small sweep; its kernel lies in ``cache``."""
    gpu = FakeGpu(FakeBuilder(cache), lambda config, sizes: 2.0 if config == DEFAULT else 1.0 + config["rows_per_cta"])
    gpu.cost = lambda config, sizes: 20.0 / config["rows_per_cta"] + (0 if config["rows_in_flight"] == 1 else 0.5)
    gpu.again = gpu.cost
    settings = Settings(GPU, ({"T": 64},), Budget(configurations=30), sampler="grid", bucket={"T": (1, 100)})
    assert sweep(TARGET, settings, cache=cache, builder=gpu.builder, measure=gpu).chosen
    (found,) = exchange.cached_entries(cache)
    return found


def other(entry: Entry, *, bucket=None, **changes) -> Entry:
    question = entry.question.model_copy(update={"bucket": bucket} if bucket else {})
    return entry.model_copy(update={"question": question, **changes}).sealed()


def call(monkeypatch, cache: KernelCache, *arguments: object) -> int:
    monkeypatch.setenv("DSV4_CACHE", str(cache.root))
    return run_cli(cli.app, [str(each) for each in arguments])


def test_an_export_comes_back_the_same_and_equal_entries_give_equal_bytes(cache, entry, tmp_path, monkeypatch, capsys):
    file = tmp_path / "h100.json"
    assert call(monkeypatch, cache, "export", file) == 0
    first = file.read_bytes()
    assert exchange.read_export(file) == [entry]
    exchange.write_export(tmp_path / "again.json", [entry])
    assert (tmp_path / "again.json").read_bytes() == first
    elsewhere = KernelCache(tmp_path / "elsewhere")
    assert call(monkeypatch, elsewhere, "import", file) == 0
    assert exchange.cached_entries(KernelCache(elsewhere.root)) == [entry]
    assert f"{entry.name} cannot serve yet: its kernel" in capsys.readouterr().err
    assert call(monkeypatch, elsewhere, "diff", "here", file, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"differences": []}


def test_checksums_of_equal_caches_agree(cache, entry, monkeypatch, capsys):
    assert call(monkeypatch, cache, "checksum") == 0
    first = capsys.readouterr().out.strip()
    assert len(first) == 64 and KernelCache(cache.root).checksum() == first
    cache.keep(other(entry, bucket={"T": (200, 300)}))
    assert call(monkeypatch, cache, "checksum", "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["entries"] == 2 and answer["checksum"] != first


def test_merging_keeps_one_answer_a_question_by_rule(entry):
    newer = other(entry, when="2027-01-01T00:00:00Z", config={**entry.config, "rows_per_cta": 2})
    guess = other(entry, when="2028-01-01T00:00:00Z", source="predicted")
    apart = other(entry, bucket={"T": (101, 200)})
    assert exchange.merge([entry], [newer]) == exchange.merge([newer], [entry]) == [newer]
    assert exchange.merge([entry], [newer], "ours") == [entry] == exchange.merge([newer], [entry], "theirs")
    assert exchange.merge([entry], [guess]) == exchange.merge([guess], [entry]) == [entry]
    assert exchange.merge([guess], [entry], "ours") == [entry]
    merged = exchange.merge([entry, apart], [newer])
    assert {each.sha256 for each in merged} == {apart.sha256, newer.sha256}


def test_differences_are_told_in_words(entry):
    changed = other(entry, config={**entry.config, "rows_per_cta": 2})
    (found,) = exchange.differences([entry], [changed])
    assert f"rows_per_cta={entry.config['rows_per_cta']}, theirs rows_per_cta=2" in found.words()
    only, missing = exchange.differences([other(entry, bucket={"T": (7, None)})], [entry])
    assert "[T=7:] on Fake GPU: only ours" in only.words() and "[T=1:100] on Fake GPU: only theirs" in missing.words()
    again = other(entry, when="2027-01-01T00:00:00Z")
    assert "the same configuration, measured" in exchange.differences([entry], [again])[0].words()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda raw: raw.update(dsv4_tuned=2), "dsv4_tuned: found 2; valid: 1"),
        (lambda raw: raw.update(checksum="0" * 64), "checksum: found '0000"),
        (lambda raw: raw["entries"][0]["proof"].update(speedup=9.0), "sha256: found .*it was altered"),
        (lambda raw: raw["entries"][0].pop("key"), "key: found .*Field required"),
        (lambda raw: raw["entries"].append({"tuned_schema": 7}), "entry 1: tuned_schema: found 7"),
        (lambda raw: raw["entries"].clear(), "checksum: found"),
    ],
)
def test_what_was_altered_is_refused_as_a_whole(cache, entry, tmp_path, monkeypatch, capsys, damage, words):
    file = tmp_path / "x.json"
    exchange.write_export(file, [entry])
    raw = json.loads(file.read_text())
    damage(raw)
    file.write_text(json.dumps(raw))
    with pytest.raises(UsageError, match=words):
        exchange.read_export(file)
    elsewhere = KernelCache(tmp_path / "elsewhere")
    assert call(monkeypatch, elsewhere, "import", file) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not (elsewhere.root / "tuned").exists()


@pytest.mark.parametrize("content", [None, "no json", "[]", "{}"])
def test_files_of_something_else_are_one_line_and_exit_code_2(cache, tmp_path, monkeypatch, capsys, content):
    file = tmp_path / "x.json"
    if content is not None:
        file.write_text(content)
    for arguments in (("import", file), ("diff", "here", file), ("merge", file, file, "-o", tmp_path / "y.json")):
        assert call(monkeypatch, cache, *arguments) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not (tmp_path / "y.json").exists()


def test_files_are_merged_without_the_cache(cache, entry, tmp_path, monkeypatch):
    newer = other(entry, when="2027-01-01T00:00:00Z")
    exchange.write_export(tmp_path / "a.json", [entry])
    exchange.write_export(tmp_path / "b.json", [newer, other(entry, bucket={"T": (5, 6)})])
    arguments = ("merge", tmp_path / "a.json", tmp_path / "b.json", "-o", tmp_path / "c.json")
    assert call(monkeypatch, cache, *arguments) == 0
    assert len(exchange.read_export(tmp_path / "c.json")) == 2
    assert call(monkeypatch, cache, *arguments, "--prefer", "luck") == 2
    assert exchange.cached_entries(cache) == [entry]


def test_entries_of_made_up_times_are_not_imported(cache, entry, tmp_path: Path, monkeypatch, capsys):
    device = entry.question.device.model_copy(update={"name": "made-up device"})
    fake = entry.model_copy(update={"question": entry.question.model_copy(update={"device": device})}).sealed()
    exchange.write_export(tmp_path / "x.json", [fake])
    assert call(monkeypatch, cache, "import", tmp_path / "x.json") == 2
    assert "made-up device" in capsys.readouterr().err and exchange.cached_entries(cache) == [entry]
