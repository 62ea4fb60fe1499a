"""The kernel cache: what it finds, what it refuses, what it keeps."""

from __future__ import annotations

import json
import os
import shutil
import stat
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dsv4.runtime import cache as cache_module
from dsv4.runtime import trust
from dsv4.runtime.artifact import Check, Evidence
from dsv4.runtime.cache import KernelCache
from dsv4.runtime.errors import CacheRefused, Dsv4Warning, forget_said
from dsv4.runtime.tuned import FAKE_DEVICE, Device, Entry, Policy, Question

DEVICE = Device(name="NVIDIA H100 80GB HBM3", memory_bytes=80 << 30, sms=132, driver="580.95.05", cuda="13.0")


def find(cache: KernelCache, **changes: Any) -> str | None:
    request: dict[str, Any] = {"dims": {"d": 64}, "variant": {"pdl": False}, "sizes": {"T": 9}, "device": None}
    found = cache.find("rms_norm", "sm_90a", **{**request, **changes})
    return found.manifest.key if found else None


def foreign(monkeypatch: pytest.MonkeyPatch, owned: Path) -> None:
    """``owned`` belongs to somebody else from now on."""
    real = os.stat

    def fake(path: Any, **options: Any) -> Any:
        status = real(path, **options)
        if Path(path) == owned:
            return SimpleNamespace(st_uid=os.geteuid() + 4321, st_mode=status.st_mode)
        return status

    monkeypatch.setattr(trust.os, "stat", fake)


def test_root_is_made_private(tmp_path: Path) -> None:
    root = tmp_path / "deep" / "cache"
    KernelCache(root)
    assert stat.S_IMODE(root.stat().st_mode) == 0o700


def test_root_from_environment_else_user_folder(fresh_runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert KernelCache().root == fresh_runtime
    monkeypatch.delenv("DSV4_CACHE")
    assert cache_module.default_root() == Path(cache_module.platformdirs.user_cache_path("dsv4-kernels"))


def test_world_writable_root_is_refused_once(make: Any, fresh_runtime: Path) -> None:
    make()
    fresh_runtime.chmod(0o777)
    with pytest.warns(Dsv4Warning, match=r"found mode 0777, world-writable; valid: mode 0775") as said:
        cache = KernelCache()
    assert "\n" not in str(said[0].message)
    assert find(cache) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert find(KernelCache()) is None
    with pytest.raises(CacheRefused, match="world-writable"):
        choose(cache, "a" * 32)


def test_foreign_root_is_refused(make: Any, fresh_runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make()
    foreign(monkeypatch, fresh_runtime)
    with pytest.warns(Dsv4Warning, match=r"found owner uid \d+; valid: uid \d+ or root"):
        cache = KernelCache()
    assert find(cache) is None and cache.kinds() == ()


@pytest.mark.parametrize("what", ["folder", "manifest", "arch folder"])
def test_foreign_or_writable_artifact_is_passed_over(
    make: Any, fresh_runtime: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    make("b" * 32)
    bad = make("c" * 32).folder
    path = {"folder": bad, "manifest": bad / "manifest.json", "arch folder": bad.parent}[what]
    foreign(monkeypatch, path)
    with pytest.warns(Dsv4Warning, match="kernel refused: .*found owner"):
        assert find(KernelCache()) == (None if what == "arch folder" else "b" * 32)
    monkeypatch.undo()
    path.chmod(0o777)
    forget_said()
    with pytest.warns(Dsv4Warning, match="kernel refused: .*world-writable"):
        assert find(KernelCache(fresh_runtime)) == (None if what == "arch folder" else "b" * 32)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"manifest_schema": 1, "key"', "found no readable manifest"),
        ("[1, 2]", "manifest_schema: found None; valid: 1"),
        ('{"manifest_schema": 2}', "manifest_schema: found 2; valid: 1"),
        ('{"manifest_schema": 1}', "key: found .*; valid: Field required"),
    ],
)
def test_bad_manifest_is_said_in_one_line(make: Any, content: str, said: str) -> None:
    make("b" * 32)
    (make("c" * 32).folder / "manifest.json").write_text(content)
    with pytest.warns(Dsv4Warning, match=f"kernel refused: .*{said}") as messages:
        assert find(KernelCache()) == "b" * 32
    assert len(messages) == 1 and "\n" not in str(messages[0].message)


def test_manifest_must_lie_where_it_says(make: Any) -> None:
    artifact = make("b" * 32)
    artifact.folder.rename(artifact.folder.with_name("c" * 32))
    with pytest.warns(Dsv4Warning, match=f"found a manifest of rms_norm/sm_90a/{'b' * 32}; valid: .*{'c' * 32}"):
        assert find(KernelCache()) is None


def test_half_written_folders_are_not_looked_at(make: Any) -> None:
    hidden = make("b" * 32).folder
    hidden.rename(hidden.with_name(".building-b"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert find(KernelCache()) is None


def test_failed_check_is_not_served(make: Any) -> None:
    make("b" * 32)
    artifact = make("c" * 32)
    passed = Check(rung="gpu", device="H100", when="2026-11-20T10:00:00Z", ok=True)
    failed = passed.model_copy(update={"ok": False, "when": "2026-11-21T10:00:00Z"})
    path = artifact.folder / "evidence.json"
    path.write_text(Evidence(checks=(passed, failed)).model_dump_json())
    with pytest.warns(Dsv4Warning, match="the gpu check on H100 failed at 2026-11-21"):
        assert find(KernelCache()) == "b" * 32
    path.write_text(Evidence(checks=(failed, passed)).model_dump_json())
    assert find(KernelCache()) == "c" * 32


def test_a_candidate_that_failed_while_it_was_tuned_is_passed_over_without_a_word(make: Any) -> None:
    make("b" * 32)
    candidate = make("c" * 32, is_default=False)
    failed = Check(rung="gpu", device="H100", when="2026-11-21T10:00:00Z", ok=False)
    (candidate.folder / "evidence.json").write_text(Evidence(checks=(failed,)).model_dump_json())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert find(KernelCache()) == "b" * 32
    choose(KernelCache(), "c" * 32)
    with pytest.warns(Dsv4Warning, match="the gpu check on H100 failed"):
        assert find(KernelCache()) == "b" * 32


def test_find_compares_dims_variant_and_bucket(make: Any) -> None:
    make("b" * 32)
    make("c" * 32, dims={"d": 128})
    make("d" * 32, variant={"pdl": True})
    make("e" * 32, is_default=False)
    make("f" * 32, bucket={"T": [100, 200]})
    make("1" * 32, bucket={"T": [300, None]})
    cache = KernelCache()
    assert find(cache) == "b" * 32
    assert find(cache, dims={"d": 128}) == "c" * 32
    assert find(cache, dims={"d": 72}) is None
    assert find(cache, variant={"pdl": True}) == "d" * 32
    assert find(cache, variant={}) is None
    for rows, key in ((99, "b"), (100, "f"), (200, "f"), (201, "b"), (299, "b"), (300, "1"), (10**9, "1")):
        assert find(cache, sizes={"T": rows}) == key * 32, rows
    make("2" * 32)  # a newer default for all sizes
    cache.refresh()
    for rows, key in ((99, "2"), (100, "f"), (201, "2"), (300, "1")):
        assert find(cache, sizes={"T": rows}) == key * 32, rows


def test_newest_default_and_most_static_wins(make: Any) -> None:
    make("b" * 32)
    make("c" * 32)
    make("d" * 32, dims={})
    cache = KernelCache()
    assert find(cache) == "c" * 32
    assert find(cache, dims={"d": 72}) == "d" * 32


def test_refresh_sees_what_was_built_since(make: Any) -> None:
    cache = KernelCache()
    assert find(cache) is None
    make("b" * 32)
    assert find(cache) is None
    cache.refresh()
    assert find(cache) == "b" * 32


def tuned(key: str, low: int = 0, high: int | None = None, **changes: Any) -> Entry:
    """An entry for the artifacts that ``make`` makes."""
    question: dict[str, Any] = {
        "op": "rms_norm",
        "arch": "sm_90a",
        "spec_sha256": "0" * 64,
        "dims": {"d": 64},
        "variant": {"pdl": False},
        "bucket": {"T": (low, high)},
        "numeric_class": "f32_row_tree",
        "device": DEVICE,
        "toolchain": {},
        "policy": Policy(),
    }
    about = {name: changes.pop(name) for name in list(changes) if name in question}
    answer: dict[str, Any] = {"key": key, "config": {"threads_per_row": 8}, "when": "2026-11-26T09:00:00Z", **changes}
    return Entry(question=Question(**{**question, **about}), **answer)


def choose(cache: KernelCache, key: str, low: int = 0, high: int | None = None, **changes: Any) -> Entry:
    return cache.keep(tuned(key, low, high, **changes))


def test_a_tuned_entry_beats_the_default_on_its_device_and_bucket(make: Any) -> None:
    make("b" * 32)
    make("c" * 32, is_default=False)
    cache = KernelCache()
    choose(cache, "c" * 32, 1, 16)
    assert find(cache, device=DEVICE) == "c" * 32
    assert find(cache, device=DEVICE, sizes={"T": 17}) == "b" * 32
    assert find(cache, device=DEVICE.model_copy(update={"name": "NVIDIA H200"})) == "b" * 32
    assert find(cache) == "b" * 32


@pytest.mark.parametrize(
    ("field", "value"), [("memory_bytes", 96 << 30), ("sms", 114), ("driver", "570.1"), ("cuda", "12.9")]
)
def test_a_device_under_other_conditions_is_a_loud_miss(make: Any, field: str, value: Any) -> None:
    make("b" * 32)
    make("c" * 32, is_default=False)
    cache = KernelCache()
    choose(cache, "c" * 32)
    with pytest.warns(Dsv4Warning, match=rf"does not serve: {field} .* there, {value} here; valid: tune it here"):
        assert find(cache, device=DEVICE.model_copy(update={field: value})) == "b" * 32


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"spec_sha256": "1" * 64}, "spec_sha256 of the kernel"),
        ({"toolchain": {"cutlass": "9"}}, "toolchain of the kernel"),
        ({"numeric_class": "f32"}, "numeric_class of the kernel"),
        ({"config": {"threads_per_row": 16}}, "config of the kernel"),
        ({"key": "d" * 32}, "its kernel is not in the cache"),
    ],
)
def test_an_entry_whose_kernel_is_another_one_is_a_loud_miss(make: Any, changes: dict[str, Any], words: str) -> None:
    make("b" * 32)
    make("c" * 32, is_default=False)
    cache = KernelCache()
    cache.keep(tuned(**{"key": "c" * 32, **changes}))
    with pytest.warns(Dsv4Warning, match=f"does not serve: {words}"):
        assert find(cache, device=DEVICE) == "b" * 32


def test_tuning_again_replaces_and_keeps_others(make: Any, fresh_runtime: Path) -> None:
    make("b" * 32)
    make("c" * 32)
    cache = KernelCache()
    choose(cache, "b" * 32, 1, 16)
    choose(cache, "b" * 32, 17, 64)
    choose(cache, "c" * 32, 1, 16)
    written = json.loads((fresh_runtime / "tuned" / "rms_norm.sm_90a.json").read_text())
    assert [(c["question"]["bucket"]["T"], c["key"][0]) for c in written] == [([17, 64], "b"), ([1, 16], "c")]
    assert find(KernelCache(), device=DEVICE) == "c" * 32


@pytest.mark.parametrize("other", [{"policy": Policy(l2="warm")}, {"numeric_class": "f64"}, {"toolchain": {"a": "1"}}])
def test_another_policy_class_or_toolchain_is_another_question(make: Any, other: dict[str, Any]) -> None:
    make("b" * 32)
    cache = KernelCache()
    choose(cache, "b" * 32)
    choose(cache, "b" * 32, **other)
    assert len(cache.tuned("rms_norm", "sm_90a")) == 2


def test_candidates_end_with_the_defaults(make: Any) -> None:
    make("b" * 32)
    make("c" * 32)
    cache = KernelCache()
    choose(cache, "b" * 32)
    found = cache.candidates("rms_norm", "sm_90a", {"d": 64}, {"pdl": False}, {"T": 3}, device=DEVICE)
    assert [a.manifest.key[0] for a in found] == ["b", "c"]


def test_a_prediction_serves_until_something_was_measured(make: Any) -> None:
    for key in "abc":
        make(key * 32, is_default=key == "a")
    cache = KernelCache()
    choose(cache, "b" * 32, source="predicted")
    assert find(cache, device=DEVICE) == "b" * 32
    choose(cache, "c" * 32)
    assert find(cache, device=DEVICE) == "c" * 32
    assert choose(cache, "b" * 32, source="predicted").key == "c" * 32
    assert [entry.source for entry in cache.tuned("rms_norm", "sm_90a")] == ["measured"]


def test_made_up_measurements_are_never_kept(make: Any, fresh_runtime: Path) -> None:
    make("b" * 32)
    with pytest.raises(CacheRefused, match="made-up device"):
        choose(KernelCache(), "b" * 32, device=DEVICE.model_copy(update={"name": FAKE_DEVICE}))
    assert not (fresh_runtime / "tuned").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[{", "found no readable JSON"),
        ('{"a": 1}', "found dict; valid: a list"),
        ('[{"device": "H100"}]', "tuned_schema: found None; valid: 1"),
        ('[{"tuned_schema": 1}]', "question: found .*Field required"),
    ],
)
def test_damaged_entries_are_said_and_never_overwritten(
    make: Any, fresh_runtime: Path, content: str, words: str
) -> None:
    make("b" * 32)
    path = fresh_runtime / "tuned" / "rms_norm.sm_90a.json"
    path.parent.mkdir(mode=0o700)
    path.write_text(content)
    cache = KernelCache()
    with pytest.warns(Dsv4Warning, match=f"tuned entr.*refused, .*{words}"):
        assert find(cache, device=DEVICE) == "b" * 32
    with pytest.raises(CacheRefused, match=words):
        choose(cache, "b" * 32)
    assert path.read_text() == content


def test_an_altered_entry_is_not_believed_and_the_others_serve(make: Any, fresh_runtime: Path) -> None:
    make("b" * 32)
    make("c" * 32)
    cache = KernelCache()
    choose(cache, "b" * 32, 1, 16)
    choose(cache, "b" * 32, 17, 64)
    path = fresh_runtime / "tuned" / "rms_norm.sm_90a.json"
    raw = json.loads(path.read_text())
    raw[0]["question"]["bucket"]["T"] = [1, 9999]
    path.write_text(json.dumps(raw))
    with pytest.warns(Dsv4Warning, match="sha256: found .*it was altered"):
        assert find(KernelCache(), device=DEVICE, sizes={"T": 9}) == "c" * 32
    assert find(KernelCache(), device=DEVICE, sizes={"T": 20}) == "b" * 32


def test_entries_are_written_atomically(make: Any, fresh_runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make("b" * 32)
    cache = KernelCache()
    choose(cache, "b" * 32)
    path = fresh_runtime / "tuned" / "rms_norm.sm_90a.json"
    before = path.read_bytes()

    def fails(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(cache_module.os, "replace", fails)
    with pytest.raises(OSError, match="disk full"):
        choose(cache, "b" * 32, 5, 6)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir() if p.suffix == ".json" or p.name.startswith(".")] == [path.name]


def test_equal_caches_have_equal_checksums_and_different_ones_do_not(
    make: Any, fresh_runtime: Path, tmp_path: Path
) -> None:
    make("b" * 32)
    make("c" * 32, is_default=False)
    empty = KernelCache().checksum()
    cache = KernelCache()
    choose(cache, "c" * 32)
    first = cache.checksum()
    assert first != empty and KernelCache().checksum() == first
    copy = shutil.copytree(fresh_runtime, tmp_path / "copy")
    assert KernelCache(copy).checksum() == first
    choose(cache, "b" * 32, 1, 2)
    assert cache.checksum() != first
    make("d" * 32)  # another default, which would now serve
    assert KernelCache().checksum() != cache.checksum()
