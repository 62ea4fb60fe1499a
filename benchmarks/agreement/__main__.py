"""Command line: see the package's docstring."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.agreement")
    commands = parser.add_subparsers(dest="command", required=True)
    collecting = commands.add_parser("collect", help="on the GPU machine: run everything and keep what came out")
    collecting.add_argument("--out", type=Path, required=True)
    collecting.add_argument("--cache", type=Path, help="a kernel cache; without it no artifacts run")
    collecting.add_argument("--expect", type=Path, help="hashes of inputs (see expect); others' inputs are kept too")
    collecting.add_argument("--only", default="", help="probes whose family/name begins so")
    collecting.add_argument("--jobs", type=int, default=8)
    comparing = commands.add_parser("compare", help="run the emulator and hold it to a collection")
    comparing.add_argument("folder", type=Path)
    comparing.add_argument("--cache", type=Path, help="the same kernel cache")
    comparing.add_argument("--only", default="")
    comparing.add_argument("--write", type=Path, help="the result file")
    expecting = commands.add_parser("expect", help="hashes of the artifacts' inputs on this machine, as JSON")
    expecting.add_argument("--cache", type=Path, required=True)
    answering = commands.add_parser("answers", help="the GPU's answers in small, for the tests")
    answering.add_argument("folder", type=Path)
    answering.add_argument("target", type=Path, help="a folder, tests/emulator/data")
    assembling = commands.add_parser("assemble", help="does ptxas take every probe?")
    assembling.add_argument("--only", default="")
    options = parser.parse_args()

    if options.command == "collect":
        from benchmarks.agreement.collect import collect

        collect(options.out, options.cache, options.expect, only=options.only, jobs=options.jobs)
    elif options.command == "compare":
        from benchmarks.agreement.compare import compare, table

        result = compare(options.folder, options.cache, options.only)
        if options.write:
            options.write.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
        print(table(result))
    elif options.command == "answers":
        from benchmarks.agreement.answers import write

        write(options.folder, options.target)
    elif options.command == "expect":
        from benchmarks.agreement import artifacts as ours

        hashes = {
            f"{ours.label(artifact)}/{number}": ours.input_hash(case)
            for artifact in ours.artifacts(options.cache)
            for number, case in enumerate(ours.cases_of(artifact, "cpu"))
        }
        print(json.dumps(hashes, indent=1))
    else:
        from benchmarks.agreement.assemble import check
        from benchmarks.agreement.families import all_probes

        return int(check(all_probes(options.only)) > 0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
