"""Reports: one page that needs nothing else, figures that are the study's, and texts that cannot break out."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from dsv4.generator.cli import run as run_cli
from dsv4.generator.console import UsageError
from dsv4.runtime.cache import KernelCache
from dsv4.runtime.tuned import FAKE_DEVICE
from dsv4.tuner import charts, cli, exchange, peers
from dsv4.tuner.budget import Budget
from dsv4.tuner.explain import explain, find
from dsv4.tuner.page import page
from dsv4.tuner.question import Settings
from dsv4.tuner.report import _gpu_ranges, gather, pick_study
from dsv4.tuner.storage import open_storage
from dsv4.tuner.study import study_names
from dsv4.tuner.sweep import sweep
from dsv4.tuner.target import Target
from dsv4.tuner.tried import Tried
from tests.tuner.tuner_fakes import GPU, FakeBuilder, FakeGpu

TARGET = Target("rms_norm", "sm_90a", dims={"d": 512})
SIZES = ({"T": 64}, {"T": 4096})
EVIL = "</script><script>alert('out')</script> & <b>bold</b>"


def cost(config, sizes) -> float:
    return sizes["T"] ** 0.5 * (1.0 + 8 / config["rows_per_cta"] + config["threads_per_row"] / 512)


@pytest.fixture
def swept(cache: KernelCache) -> KernelCache:
    """A cache with a study of 40 configurations, some of them failed, and a winner."""
    gpu = FakeGpu(FakeBuilder(cache), cost, width=0.01)

    def measure(request, *, limit_s, progress=lambda outcome: None):
        outcomes = gpu(request, limit_s=limit_s)
        for outcome in outcomes:
            if gpu.builder.plans[outcome.artifact].config["rows_in_flight"] == 2 and not request.compare:
                outcome.error = EVIL
            progress(outcome)
        return outcomes

    settings = Settings(GPU, SIZES, Budget(configurations=40), sampler="random", batch=8, bucket={"T": (1, None)})
    assert sweep(TARGET, settings, cache=cache, builder=gpu.builder, measure=measure).chosen
    return cache


@pytest.fixture
def report(swept: KernelCache):
    storage = open_storage(swept.root / "studies" / "rms_norm.sm_90a.journal")
    return gather(storage, pick_study(storage, None, "x"))


def call(monkeypatch, cache: KernelCache, *arguments: object) -> int:
    monkeypatch.setenv("DSV4_CACHE", str(cache.root))
    return run_cli(cli.app, [str(each) for each in arguments])


def test_figures_are_those_of_the_study(report):
    assert len(report.rows) == 40 and report.default is not None and report.best is not None
    assert report.default.config == TARGET.default().config
    scored = [row for row in report.rows if row.us is not None and not row.is_slow]
    assert report.best.us <= min(row.us for row in scored) * 1.01
    assert report.gain == pytest.approx(report.default.us / report.best.us)
    assert report.failed == {EVIL: sum(row.failure is not None for row in report.rows)} and report.failed[EVIL] > 3
    assert report.refused and report.importance_missing is None
    assert report.importance["threads_per_row"] > report.importance["opt_level"]  # ``cost`` goes by the first only
    assert sum(report.importance.values()) == pytest.approx(1.0)
    (small, large) = report.placed["best"]
    assert large.gigabytes_per_s == pytest.approx((4 * 4096 * 512 + 2 * 512) / large.us / 1e3)
    assert large.shares == {"HBM": pytest.approx(large.counts["bytes"] / 3.35e6 / large.us)}
    assert small.teraflops is None and report.best.spread == pytest.approx(0.01)


class Balance(HTMLParser):
    """Counts tags that are open, and notes what would be fetched."""

    VOID = ("meta", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.scripts: list[str] = []

    def handle_starttag(self, tag, attributes):
        names = dict(attributes)
        self.fetched += [f"{tag} {name}" for name in names if name in ("src", "href", "xlink:href", "data", "action")]
        if tag == "script":
            self.scripts.append(names.get("type", ""))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_needs_no_network_and_shows_every_part(report):
    html = page(report)
    balance = Balance()
    balance.feed(html)
    assert balance.open == [] and balance.fetched == [] and balance.scripts == ["application/json"]
    assert not re.search(r"https?://|url\(|@import", html)
    for title in (
        "Best and default", "Roofline", "Peers", "Search history", "What matters", "Parallel coordinates",
        "Each tunable against time", "The fastest", "Spread", "Refused before compilation", "Failed",
    ):  # fmt: skip
        assert f"<h2>{title}</h2>" in html
    assert html.count("<svg") >= 6 + 3 and "Fake GPU, driver 580.1, CUDA 13.0" in html
    assert "<b>bold</b>" not in html and "&lt;b&gt;bold" in html
    data = json.loads(re.search(r'id="data">(.*?)</script>', html, re.DOTALL)[1])  # type: ignore[index]
    assert len(data["rows"]) == 40 and data["failed"] == report.failed


def test_the_range_of_the_gpus_readings_is_a_fact(report):
    assert report.gpu == {} and "clock, temperature and power were not recorded" in page(report)
    timing = {"median_us": 1.0, "gpu": {"sm_clock_mhz": 1755.0, "temperature_c": None, "power_w": 500.2}}
    other = {"median_us": 1.0, "gpu": {"sm_clock_mhz": 1980.0, "temperature_c": None, "power_w": 411.9}}
    tried = [Tried({}, 1.0, detail={"timings": [timing, {"median_us": 1.0, "gpu": None}]}),
             Tried({}, 1.0, detail={"timings": [other]}), Tried({}, None, "hung")]  # fmt: skip
    ranges = _gpu_ranges(tried)
    assert ranges == {"sm_clock_mhz": (1755.0, 1980.0), "power_w": (411.9, 500.2)}
    assert "1755 to 1980 MHz, 412 to 500 W" in page(replace(report, gpu=ranges))


def test_made_up_times_are_called_so_in_the_headline(report):
    assert "made up" not in page(report) and "made-up" not in page(report)
    fake = replace(report, about={**report.about, "device": {**report.about["device"], "name": FAKE_DEVICE}})
    assert "(made-up times)</h1>" in page(fake) and "The times of this study are made up" in page(fake)


def test_csv_and_json_have_a_row_for_each_configuration(swept, report, monkeypatch, capsys):
    assert call(monkeypatch, swept, "report", "--csv") == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) == 40 and {row["state"] for row in rows} == {"measured", "slow", "failed"}
    for row, known in zip(rows, report.rows, strict=True):
        assert row["failure"] == (known.failure or "") and int(row["rows_per_cta"]) == known.config["rows_per_cta"]
        assert row["us"] == ("" if known.us is None else f"{known.us:.4f}")
    assert call(monkeypatch, swept, "report", "--json", "--op", "rms_norm", "--arch", "sm_90a") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["gain"] == pytest.approx(report.gain) and answer["about"]["device"]["name"] == "Fake GPU"


def test_the_page_is_written_where_asked(swept, tmp_path, monkeypatch, capsys):
    target = tmp_path / "r.html"
    assert call(monkeypatch, swept, "report", "-o", target) == 0
    assert target.read_text().startswith("<!doctype html>") and "40 configurations in" in capsys.readouterr().err
    journal = swept.root / "studies" / "rms_norm.sm_90a.journal"
    (name,) = study_names(open_storage(journal))
    capsys.readouterr()
    assert call(monkeypatch, swept, "report", name[:24], "--storage", journal, "-o", target) == 0
    assert "40 configurations in" in capsys.readouterr().err
    for arguments, words in (
        (("report", "--csv", "--json"), "valid: one of them"),
        (("report", "nothing-like-it", "-o", target), "found no study called"),
        (("report", "--op", "fmha"), "found no studies"),
        (("report", "--storage", tmp_path / "none.journal"), "found no such journal"),
        (("report", "-o", tmp_path / "no" / "folder.html"), "No such file or directory"),
        (("explain", "nothing"), f"valid: {exchange.cached_entries(swept)[0].name}"),
    ):
        assert call(monkeypatch, swept, *arguments) == 2
        said = capsys.readouterr().err.strip()
        assert words in said and "\n" not in said, said
    assert not (tmp_path / "none.journal").exists()


def test_an_entry_is_explained_in_words(swept, monkeypatch, capsys):
    (entry,) = exchange.cached_entries(swept)
    text = " ".join(explain(entry))
    assert f"{entry.proof['speedup']:.3f}× as fast" in text and "T=64" in text and "1 ≤ T" in text
    assert "40 configurations were tried" in text and "driver 580.1 and CUDA 13.0" in text
    assert "rows_per_cta" in text and "adversarial cases" in text and "f32_row_tree" in text
    assert call(monkeypatch, swept, "explain", entry.sha256[:6]) == 0
    assert "It serves on Fake GPU with 132 SMs" in capsys.readouterr().out
    guess = entry.model_copy(update={"source": "predicted", "proof": {}}).sealed()
    assert "nobody has measured" in " ".join(explain(guess, "its kernel is not in the cache"))
    with pytest.raises(UsageError, match="found no entry called ''"):
        find([entry, guess], "")


def test_an_entry_has_what_others_were_measured_to_take_there(cache, monkeypatch):
    case = {"label": "T=64", "sizes": {"T": 64, "d": 512}, "peers": {
        "quack": {"cold": {"median_us": 300.0}}, "dsv4 kernel": {"cold": {"median_us": 9.0}}, "torch": {"skipped": ""},
    }}  # fmt: skip
    files = [
        peers.ResultFile(op="rms_norm", date="2026-11-21T02:25", device={"name": name}, cases=[case])
        for name in (GPU.name, "another GPU")
    ]
    monkeypatch.setattr(peers, "shipped", lambda op: files)
    gpu = FakeGpu(FakeBuilder(cache), cost)
    sweep(TARGET, Settings(GPU, SIZES, Budget(configurations=20)), cache=cache, builder=gpu.builder, measure=gpu)
    (entry,) = exchange.cached_entries(cache)
    assert entry.proof["peers"] == [{"sizes": {"T": 64}, "name": "quack", "us": 300.0, "date": "2026-11-21"}]
    assert "Others were measured on such a device: T=64 quack 300.00 µs on 2026-11-21" in " ".join(explain(entry))


def test_a_report_of_little_says_what_is_missing(cache):
    gpu = FakeGpu(FakeBuilder(cache), cost)
    sweep(TARGET, Settings(GPU, SIZES, Budget(configurations=2)), cache=cache, builder=gpu.builder, measure=gpu)
    storage = open_storage(cache.root / "studies" / "rms_norm.sm_90a.journal")
    report = gather(storage, pick_study(storage, None, "x"))
    assert report.importance == {} and "8 are needed" in str(report.importance_missing)
    assert "8 are needed" in page(report)


@pytest.mark.parametrize("values", [[1.0], [3.0, 3.0], [1e-3, 1e3], [5.0, 5.1, 5.2]])
def test_scales_keep_their_ticks_inside(values):
    for log in (False, True):
        low, high = charts.padded(values, log=log)
        scale = charts.Scale(low, high, 0, 100, log=log)
        assert low < min(values) <= max(values) < high
        assert all(0 <= scale(tick) <= 100 for tick in scale.ticks()) and len(scale.ticks()) <= 24
    assert charts.history([], None, "t") and charts.parallel([], [], [], "t") and charts.bars([], "t", "µs")


def test_two_studies_of_one_beginning_are_told_apart(swept: KernelCache, tmp_path: Path):
    other = Target("rms_norm", "sm_90a", dims={"d": 1024})
    gpu = FakeGpu(FakeBuilder(swept), cost)
    settings = Settings(GPU, SIZES, Budget(configurations=1))
    sweep(other, settings, cache=swept, builder=gpu.builder, measure=gpu)
    storage = open_storage(swept.root / "studies" / "rms_norm.sm_90a.journal")
    with pytest.raises(UsageError, match="found 2 studies called 'rms_norm'"):
        pick_study(storage, "rms_norm", "x")
    assert gather(storage, pick_study(storage, None, "x")).about["dims"] == {"d": 1024}


def test_a_study_is_found_by_its_name_among_the_journals_of_other_operators(swept: KernelCache, monkeypatch, capsys):
    newer = Target("embed", "sm_90a", dims={"d": 4096})
    gpu = FakeGpu(FakeBuilder(swept), lambda config, sizes: float(config["threads"]))
    sweep(newer, Settings(GPU, ({"T": 1},), Budget(configurations=1)), cache=swept, builder=gpu.builder, measure=gpu)
    for name, op in ((None, "embed"), ("rms_norm.sm_90a", "rms_norm"), ("embed.sm_90a", "embed")):
        assert call(monkeypatch, swept, "report", *([] if name is None else [name]), "--json") == 0
        assert json.loads(capsys.readouterr().out)["about"]["op"] == op
    assert call(monkeypatch, swept, "report", "quantize.sm_90a.0123") == 2
    assert "found no study called 'quantize.sm_90a.0123'" in capsys.readouterr().err
