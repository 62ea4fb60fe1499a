"""The README's tables are the newest results' numbers, and nothing else of the README changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks.readme_tables import newest, rewritten, run, tables
from tests.benchmarks.test_results import make_result

README = """# title

<!-- tables: fake_op -->
stale body
<!-- /tables -->

rest
<!-- tables: other -->
<!-- /tables -->
"""


def save(folder: Path, name: str, **changes: Any) -> None:
    (folder / name).write_text(json.dumps({**make_result(), **changes}))


def test_the_table_holds_medians_and_ratios(tmp_path: Path) -> None:
    save(tmp_path, "2026-11-21_h100_fake_op.json")
    text = tables(newest(tmp_path, "fake_op"))
    assert "| case | ours | theirs | ours, of copy | of product |" in text
    assert "| small | 2.00 / 2.00 | 3.00 / 3.00 (1.50× / 1.50×) | 0 % | 0 % |" in text
    assert "| large | 2.00 / 2.00 | 3.00 / 3.00 (1.50× / 1.50×) | 83 % | 1 % |" in text
    assert "copy 3000 GB/s" in text and "(benchmarks/results/2026-11-21_h100_fake_op.json)" in text


def test_the_newest_result_of_each_device_that_is_not_void_is_taken(tmp_path: Path) -> None:
    save(tmp_path, "2026-11-21_h100_fake_op.json", date="2026-11-21T01:00:00+00:00")
    save(tmp_path, "2026-11-22_h100_fake_op.json", date="2026-11-22T01:00:00+00:00")
    save(tmp_path, "2026-11-23_h100_fake_op.json", date="2026-11-23T01:00:00+00:00", void=["copy_gb_s: …"])
    save(tmp_path, "2026-11-20_b200_fake_op.json", device={"name": "NVIDIA B200"})
    assert [name for name, _ in newest(tmp_path, "fake_op")] == [
        "2026-11-20_b200_fake_op.json",
        "2026-11-22_h100_fake_op.json",
    ]


def test_a_result_that_was_cut_short_does_not_take_the_place_of_a_whole_one(tmp_path: Path) -> None:
    save(tmp_path, "2026-11-22_h100_fake_op.json", date="2026-11-22T01:00:00+00:00", left=["large"])
    assert [name for name, _ in newest(tmp_path, "fake_op")] == ["2026-11-22_h100_fake_op.json"]
    save(tmp_path, "2026-11-21_h100_fake_op.json", date="2026-11-21T01:00:00+00:00")
    assert [name for name, _ in newest(tmp_path, "fake_op")] == ["2026-11-21_h100_fake_op.json"]


def test_a_skipped_peer_is_a_dash(tmp_path: Path) -> None:
    result = make_result()
    result["cases"][0]["peers"]["theirs"] = {"skipped": "not installed"}
    assert "| small | 2.00 / 2.00 | – |" in tables([("x.json", result)])


def test_a_peer_that_is_not_to_be_shown_has_no_column() -> None:
    result = {**make_result(), "shown": ["ours"]}
    assert "theirs" not in tables([("x.json", result)])


def test_only_the_marked_sections_change(tmp_path: Path) -> None:
    save(tmp_path, "2026-11-21_h100_fake_op.json")
    text = rewritten(README, tmp_path)
    assert text.startswith("# title\n\n<!-- tables: fake_op -->\n| case |")
    assert (
        "stale body" not in text and "\n\nrest\n<!-- tables: other -->\nNot measured yet.\n<!-- /tables -->\n" in text
    )
    assert rewritten(text, tmp_path) == text


def test_a_readme_without_sections_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="found no section"):
        rewritten("# title\n", tmp_path)


def test_without_write_a_stale_readme_is_exit_code_1_and_left_alone(tmp_path: Path) -> None:
    import typer

    readme, app = tmp_path / "README.md", typer.Typer()
    app.command()(run)
    readme.write_text(README)
    arguments = ["--readme", str(readme), "--results", str(tmp_path)]
    assert CliRunner().invoke(app, arguments).exit_code == 1
    assert readme.read_text() == README
    assert CliRunner().invoke(app, [*arguments, "--write"]).exit_code == 0
    assert CliRunner().invoke(app, arguments).exit_code == 0
