"""Verify artifacts on this process's GPU, a JSON line each: started by `gpu_client`, killed if one hangs.

Needs the runtime and torch only. A folder a line comes in on standard input; ``{"begin": folder}`` is printed before a
kernel first runs and the outcome after it, so that whoever waits knows which one hangs.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from dsv4.generator.verify import cases, run_case
from dsv4.runtime.cache import Artifact
from dsv4.runtime.loader import load


def verify_on_gpu(folder: Path, seed: int) -> dict[str, Any]:
    """Every case of the artifact's operator on the current CUDA device.

    Returns ``{"device", "cases", "cosine", "rel_l2", "max_abs", "findings", "verdicts"}``: the worst figures over all
    cases, each finding with the name of its case, and the verdict on each case.
    """
    artifact = Artifact.read(folder)
    manifest = artifact.manifest
    kernel = load(artifact, torch.cuda.get_device_capability())
    verdicts = {}
    for case in cases(manifest.op, manifest.dims, manifest.variant, config=manifest.config, seed=seed, device="cuda"):
        verdicts[case.name] = run_case(kernel, manifest.contract, case)
    return {
        "device": torch.cuda.get_device_name(),
        "cases": len(verdicts),
        "cosine": min(verdict.cosine for verdict in verdicts.values()),
        "rel_l2": max(verdict.rel_l2 for verdict in verdicts.values()),
        "max_abs": max(verdict.max_abs for verdict in verdicts.values()),
        "findings": [f"{name}: {finding}" for name, each in verdicts.items() for finding in each.findings],
        "verdicts": {name: asdict(verdict) for name, verdict in verdicts.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    seed = parser.parse_args().seed
    for line in sys.stdin:
        folder = line.rstrip("\n")
        print(json.dumps({"begin": folder}), flush=True)
        print(json.dumps({"folder": folder, **verify_on_gpu(Path(folder), seed)}, default=str), flush=True)


if __name__ == "__main__":
    main()
