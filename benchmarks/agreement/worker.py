"""Runs probes on the GPU of this process: keys come in on standard input, a JSON line goes out before and after each.

Started by `collect`, which replaces it when a probe hangs or breaks the process's context.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np

from benchmarks.agreement.driver import Driver, DriverError
from benchmarks.agreement.families import all_probes
from benchmarks.agreement.probe import OUT


def main() -> None:
    folder = Path(sys.argv[1])
    probes = {probe.key: probe for probe in all_probes()}
    driver = Driver()
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        probe = probes[line.rstrip("\n")]
        print(json.dumps({"begin": probe.key}), flush=True)
        answer: dict[str, object] = {"done": probe.key, "input": probe.input_hash()}
        try:
            out = driver.run(probe.kernel)[OUT]
        except DriverError as error:
            print(json.dumps({**answer, "error": str(error)}), flush=True)
            if "cuModuleLoad" in str(error):
                continue
            return  # the context may be lost
        path = folder / f"{hashlib.sha256(probe.key.encode()).hexdigest()[:24]}.npy"
        np.save(path, out)
        print(json.dumps({**answer, "file": path.name}), flush=True)


if __name__ == "__main__":
    main()
