"""Recorded sweeps as files: what is kept, what is refused, and that a score and a replay take them like a study."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.keep_spaces import SPACES, kept
from dsv4.generator.cli import run as run_cli
from dsv4.generator.console import UsageError
from dsv4.tuner import cli
from dsv4.tuner.page import page
from dsv4.tuner.recorded import at_shape, by_shape, read_report
from dsv4.tuner.replay import recording

QUESTION = ("--op", "rms_norm", "--arch", "sm_90a")
SHAPES = ("--shape", "T=1", "--shape", "T=4096", "--bucket", "T=0:64", "--bucket", "T=65:")


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """What ``report --json`` printed of a sweep on made-up times, as if a GPU had given them."""
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("recorded")
        patch.setenv("DSV4_CACHE", str(root / "cache"))
        asked = (
            "--dims",
            "d=512",
            "--set",
            "opt_level=3",
            "--budget",
            "12",
            "--measure",
            "fake",
            "--sampler",
            "random",
        )
        journal = ("--storage", str(root / "a.journal"))
        assert run_cli(cli.app, ["sweep", *QUESTION, *SHAPES, *asked, *journal]) == 0
        from dsv4.tuner.commands.report import gathered

        found = gathered(None, None, None, journal[1])
        return json.loads(json.dumps(found.as_json()))


@pytest.fixture
def file(reported, tmp_path) -> Path:
    real = {**reported, "about": {**reported["about"], "device": {"name": "NVIDIA H100 80GB HBM3"}}}
    (tmp_path / "norm.report.json").write_text(json.dumps(real))
    name, contents = kept(tmp_path / "norm.report.json", "2026-11-30")
    assert name == "2026-11-30_h100-80gb-hbm3_norm.json" and contents["winners"] == []
    (tmp_path / name).write_text(json.dumps(contents))
    return tmp_path / name


def test_the_file_has_every_configuration_with_its_times(reported, file):
    found = read_report(file)
    assert [(row.config, row.us, row.shapes_us) for row in found.rows] == [
        (row["config"], row["us"], row["shapes_us"]) for row in reported["rows"]
    ]
    assert found.default is not None and found.default.config == found.about["default"] and len(found.rows) == 12
    assert recording(found).best_us == min(row["us"] for row in reported["rows"])


def test_made_up_times_are_not_kept(reported, tmp_path):
    (tmp_path / "norm.report.json").write_text(json.dumps(reported))
    assert kept(tmp_path / "norm.report.json", "2026-11-30") is None


def test_each_shape_is_a_sweep_of_its_own(file):
    report = read_report(file)
    small, large = by_shape(report)
    assert (small.about["sizes"], large.about["sizes"]) == ([{"T": 1}], [{"T": 4096}])
    assert [row.us for row in large.rows] == [row.shapes_us[1] for row in report.rows]
    assert small.best is not None and small.best.us == min(row.shapes_us[0] for row in report.rows)
    assert by_shape(at_shape(report, 0)) == []


def test_score_and_replay_take_the_file(file, capsys):
    assert run_cli(cli.app, ["predict", "--score", str(file), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["configurations"] for each in (*found["scores"], *found["single_shapes"])] == [12, 12, 12]
    assert run_cli(cli.app, ["predict", "--score", str(file)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "of 1 sweeps;" in shown and "of 2 single shapes;" in shown
    assert run_cli(cli.app, ["replay", str(file), "--shape", "T=4096", "--seeds", "2", "--json"]) == 0
    assert {each["sampler"] for each in json.loads(capsys.readouterr().out)["scores"]} == {"tpe", "random"}
    assert run_cli(cli.app, ["replay", str(file), "--shape", "T=3"]) == 2
    assert "--shape: found 'T=3'; valid: T=1, T=4096" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("text", ["", "[]", '{"study": "s", "rows": [], "gpu": {}, "about": {}}', '{"study": "s"}'])
def test_other_files_are_refused_in_one_line(text, tmp_path):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UsageError, match="a file of benchmarks/results/spaces") as caught:
        read_report(tmp_path / "a.json")
    assert "\n" not in str(caught.value)


def test_a_recorded_sweep_has_a_whole_report():
    path = SPACES / "2026-11-26_h100-80gb-hbm3_router.json"
    found = read_report(path, None)
    assert found.importance and found.importance_missing is None
    assert {name: len(each) for name, each in found.placed.items()} == {"default": 3, "best": 3}
    assert {peer.place for peer in found.peers} == {0, 1, 2} and all(peer.same_device for peer in found.peers)
    made = page(found)
    assert made.count("<svg") >= 7 and made.count("<script") == made.count('type="application/json"')
    alone = read_report(path)
    assert alone.peers == [] and alone.importance == found.importance
