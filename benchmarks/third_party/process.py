"""The process in which quack runs: case names come in, one a line, and results go out, one JSON object a line.

``python -m benchmarks.third_party.process sm_90a FOLDER``, the folder for the compiler's files. One architecture a
process, since the compiler reads it once.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict
from typing import Any

from benchmarks.third_party import stand_in


def answer(name: str, case: Any) -> dict[str, Any]:
    """Run a case: its checks, and what was recorded of its kernels."""
    stand_in.RECORD = stand_in.Record()
    started = time.monotonic()
    checks = [asdict(check) for check in case()]
    return {"name": name, "checks": checks, **asdict(stand_in.RECORD), "seconds": time.monotonic() - started}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print goes where errors go
    arch, folder = sys.argv[1:]
    stand_in.prepare(arch, folder)
    from benchmarks.third_party import products, rows

    known = {**rows.CASES, **products.cases(arch)}
    for line in sys.stdin:
        name = json.loads(line)
        try:
            found = answer(name, known[name])
        except Exception as error:  # quack's, the compiler's or the emulator's: the caller is told
            found = {"name": name, "error": f"{type(error).__name__}: {' '.join(str(error).split())}"}
        answers.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
