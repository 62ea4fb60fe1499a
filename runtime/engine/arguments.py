"""The command line of ``python -m dsv4.generate``; made without torch, so that ``--help`` comes at once."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn

_EXAMPLES = """\
examples:
  python -m dsv4.runtime.checkpoint.write_tiny /tmp/tiny     a small random checkpoint to try it on
  python -m dsv4.generate --checkpoint /tmp/tiny --prompt-ids 5,9,11 --max-new-tokens 32
  python -m dsv4.generate --checkpoint /tmp/tiny --prompt "Once upon a time" --temperature 0.8 --top-p 0.95 --seed 7
  python -m dsv4.generate --checkpoint /tmp/tiny --prompt-ids 5,9 --prompt-ids 7,7,7 --speculate --json
  python -m dsv4.generate --checkpoint DeepSeek-V4-Flash --device cuda --prompt "…" --cache 8GiB --show-cache

exit codes: 0 done, 2 something given is wrong (one line says what), 130 ended by Ctrl-C with what there was
"""


class _OneLine(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; valid: what --help shows\n")


def parser() -> argparse.ArgumentParser:
    """Gives a namespace with the fields that ``command.run`` reads."""
    made = _OneLine(
        prog="python -m dsv4.generate",
        description="Generate text from a DeepSeek-V4 checkpoint.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--checkpoint", type=Path, required=True, metavar="DIR", help="folder with config.json")
    prompts = made.add_argument_group("what to go on from (repeat for a batch)")
    prompts.add_argument("--prompt", action="append", default=[], metavar="TEXT")
    prompts.add_argument("--prompt-ids", action="append", default=[], metavar="5,9,11", help="token ids")
    choice = made.add_argument_group("how tokens are chosen")
    choice.add_argument("--max-new-tokens", type=int, default=128, metavar="N", help="(default: 128)")
    choice.add_argument("--temperature", type=float, default=0.0, help="0 takes the most probable token (default)")
    choice.add_argument("--top-k", type=int, default=0, help="of the k most probable tokens only (default: all)")
    choice.add_argument("--top-p", type=float, default=1.0, help="of those that together reach p only (default: all)")
    choice.add_argument("--seed", type=int, default=0, help="the same seed gives the same text (default: 0)")
    choice.add_argument("--stop-ids", default="", metavar="1,7", help="token ids that end the text")
    choice.add_argument("--ignore-eos", action="store_true", help="go on after the model's own end")
    how = made.add_argument_group("how it runs")
    how.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    how.add_argument("--numerics", choices=("exact", "official", "engine"), default="official")
    how.add_argument("--chunk", type=int, default=512, metavar="N", help="prompt tokens a step (default: 512)")
    how.add_argument("--speculate", action="store_true", help="draft a token ahead with the MTP layer")
    how.add_argument("--block", type=int, choices=(128, 256), default=256, help="tokens of a cache block")
    how.add_argument(
        "--cache", metavar="BYTES", help="memory of the KV cache, such as 512MiB (default: what is needed)"
    )
    how.add_argument("--show-cache", action="store_true", help="print the table of the KV cache to stderr")
    output = made.add_argument_group("what is printed")
    output.add_argument("--json", action="store_true", help="one JSON object instead of the text")
    output.add_argument("--debug", action="store_true", help="the traceback of an error")
    return made
