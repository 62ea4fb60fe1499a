"""The tests that need a GPU, run on one, with a dated result: ``python -m benchmarks.gpu_tests --write``.

CI has no GPU and skips them; the file says what ran, on what, and how each test ended. Names of test files or folders
limit the run: ``python -m benchmarks.gpu_tests tests/engine tests/model``.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness.check_file import check_path, head, write_check
from benchmarks.harness.machine import commit, describe_device, device_slug, versions


class Recorder:
    """A pytest plugin that keeps how each test ended: [outcome, seconds, reason of a skip or the error]."""

    def __init__(self) -> None:
        self.ended: dict[str, list[Any]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.outcome == "passed":
            return
        reason = ""
        if report.skipped and isinstance(report.longrepr, tuple):
            reason = report.longrepr[2]
        elif report.failed:
            reason = f"{report.when}: {report.longreprtext.strip().splitlines()[-1]}"
        self.ended[report.nodeid] = [report.outcome, round(report.duration, 2), reason]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", metavar="FILE", nargs="?", const="", help="keep the result, under its dated name")
    parser.add_argument("--commit", default=commit(), help="what the files are of, where git cannot say it")
    parser.add_argument("tests", nargs="*", default=["tests"])
    chosen = parser.parse_args()
    recorder, now = Recorder(), datetime.now(UTC)
    code = pytest.main(["-m", "gpu", "-p", "no:cacheprovider", *chosen.tests], plugins=[recorder])
    if chosen.write is not None:
        device = describe_device()
        result = {
            **head(now),
            "commit": chosen.commit,
            "device": device,
            "versions": versions(),
            "total": dict(Counter(outcome for outcome, _, _ in recorder.ended.values())),
            "tests": recorder.ended,
        }
        name = f"{device_slug(device['name'])}_gpu_tests"
        path = Path(chosen.write) if chosen.write else check_path(now, name)
        write_check(path, result)
        print(f"written: {path.name}")
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
