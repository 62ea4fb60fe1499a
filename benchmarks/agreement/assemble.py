"""Does the real assembler take every probe? ``ptxas`` of CUDA 13.0 or newer, on any machine."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.agreement.probe import TARGET, Probe


def refused(probe: Probe) -> str:
    """What ptxas says against the probe's text, or an empty string."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.ptx"
        source.write_text(probe.kernel.text())
        command = ["ptxas", f"-arch={TARGET}", "-O1", str(source), "-o", str(source.with_suffix(".cubin"))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else (done.stderr or done.stdout).strip()


def check(probes: Iterable[Probe], jobs: int = 2) -> int:
    """Prints what is refused; the number of refused probes."""
    found = list(probes)
    bad = 0
    with ThreadPoolExecutor(jobs) as pool:
        for probe, said in zip(found, pool.map(refused, found), strict=True):
            if said:
                bad += 1
                lines = probe.kernel.text().splitlines()
                print(f"{probe.key}:")
                for line in said.splitlines()[:12]:
                    number = line.partition("line ")[2].partition(";")[0]
                    print(f"  {line}" + (f"\n      {lines[int(number) - 1].strip()[:160]}" if number.isdigit() else ""))
    print(f"{len(found)} probes, {bad} refused")
    return bad
