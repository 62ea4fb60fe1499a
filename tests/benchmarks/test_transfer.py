"""Times of one GPU beside those of another: which configurations are asked for, what is made of the answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks import transfer
from benchmarks.keep_spaces import SPACES
from dsv4.runtime.artifact import canonical_json
from dsv4.tuner.protocol import Beside, Event, Timing
from dsv4.tuner.recorded import by_shape, read_report

FILE = next(iter(sorted(SPACES.glob("*_rms_norm_quant.json"))))
H200 = {"name": "NVIDIA H200", "memory_bytes": 1, "sms": 132, "driver": "1", "cuda": "13.0"}


@pytest.fixture(scope="module")
def report():
    return read_report(FILE)


def answers(report, rows, faster: float, folder: Path, last: int | None = None) -> None:
    """What ``measure.sh`` would leave: every row as fast as recorded, but for the default, which is ``faster``."""
    op = report.about["op"]
    events = [Event(event="ready", data={"device": H200["name"], "capability": [9, 0]})]
    for number, row in enumerate(rows):
        for place, sizes in enumerate(report.about["sizes"]):
            default_us = report.default.shapes_us[place] / faster
            ratio = row.shapes_us[place] / report.default.shapes_us[place]
            beside = Beside(ratio=ratio, low=ratio, high=ratio, default_us=default_us, anchor_us=1.0)
            us = ratio * default_us
            timing = Timing(sizes=sizes, median_us=us, low_us=us, high_us=us, rounds=9, input_copies=4, beside=beside)
            events.append(Event(event="measured", artifact=f"/k/{number}", data=timing.model_dump()))
    folder.mkdir()
    text = "\n".join(event.model_dump_json() for event in events)
    (folder / f"{op}.events").write_text(text if last is None else text[:last])
    (folder / f"{op}.configs.json").write_text(json.dumps({str(n): row.config for n, row in enumerate(rows)}))
    (folder / f"{op}.about.json").write_text(json.dumps(report.about))
    (folder / "device.json").write_text(json.dumps(H200))


def test_the_subset_has_the_default_the_best_of_each_shape_and_all_of_the_range(report):
    rows = transfer.subset(report, most=40)
    keys = [canonical_json(row.config) for row in rows]
    assert len(set(keys)) == len(keys) == 40 and rows[0].config == report.about["default"]
    for each in (report, *by_shape(report)):
        best = min((row for row in each.rows if row.us), key=lambda row: row.us)
        assert canonical_json(best.config) in keys
    times = sorted(row.us for row in report.rows if row.us)
    slowest = max(row.us for row in rows)
    assert slowest >= times[int(0.9 * len(times))] and transfer.subset(report, most=40) == rows


def test_answers_become_a_recorded_sweep_and_a_comparison(report, tmp_path):
    rows = transfer.subset(report, most=30)
    answers(report, rows[1:], 1.25, tmp_path / "out")
    ran = CliRunner().invoke(
        transfer.app, ["keep", str(tmp_path / "out"), str(FILE), "--date", "2026-11-30", "--into", str(tmp_path)]
    )
    assert ran.exit_code == 0, ran.output
    found = read_report(tmp_path / "2026-11-30_h200_rms_norm_quant.json")
    assert found.about["device"] == H200 and len(found.rows) == 30 and found.default is not None
    assert found.default.us == pytest.approx(report.default.us / 1.25)
    summary = json.loads((tmp_path / "2026-11-30_h200_transfer.json").read_text())
    assert [row["sizes"] for row in summary["rows"]][1:] == [[sizes] for sizes in report.about["sizes"]]
    first = summary["rows"][0]
    assert first["transfer"]["spearman"] == pytest.approx(1.0) and first["transfer"]["loss"] == pytest.approx(0.0)
    assert first["transfer"]["configurations"] == 30 and first["default_loss"] == pytest.approx(
        report.default.us / report.best.us - 1
    )


def test_a_run_that_was_cut_off_counts_as_far_as_it_came(report, tmp_path):
    rows = transfer.subset(report, most=10)
    answers(report, rows[1:], 1.0, tmp_path / "out", last=8000)
    events = transfer.read_events(tmp_path / "out" / "rms_norm_quant.events")
    configs = {str(number): row.config for number, row in enumerate(rows[1:])}
    found = transfer.timed_there(report.about, events, configs, H200)
    assert 1 < len(found["rows"]) < 10
    with pytest.raises(SystemExit, match="found no configuration timed at every shape; valid: a longer run"):
        transfer.timed_there(report.about, events[:2], configs, H200)


def test_what_failed_there_is_told(report, tmp_path):
    rows = transfer.subset(report, most=4)
    answers(report, rows[1:], 1.0, tmp_path / "out")
    events = transfer.read_events(tmp_path / "out" / "rms_norm_quant.events")
    events.append(Event(event="failed", artifact="/k/9", data={"error": "AcceleratorError: illegal access"}))
    configs = {str(number): row.config for number, row in enumerate([*rows[1:], *[rows[0]] * 7])}
    found = transfer.timed_there(report.about, events, configs, H200)
    assert found["rows"][-1]["failure"] == "AcceleratorError: illegal access"


def test_without_a_kernel_of_the_default_nothing_is_asked(tmp_path):
    ran = CliRunner().invoke(transfer.app, ["prepare", str(tmp_path / "to"), str(FILE), "--cache", str(tmp_path)])
    assert ran.exit_code != 0 and "found no kernel of its default" in str(ran.exception or ran.output)
    assert not (tmp_path / "to").exists()
