"""Print what a byte budget holds: ``python -m dsv4.runtime.kv --model pro --budget 40GiB --sequences 32``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dsv4.runtime.errors import Dsv4Error
from dsv4.runtime.kv.layout import CacheLayout
from dsv4.runtime.kv.settings import BLOCKS, CacheSettings, formats_for
from dsv4.runtime.kv.table import parse_size, table
from dsv4.runtime.model.config import ModelConfig
from dsv4.runtime.model.numerics import Numerics, Precision
from dsv4.runtime.model.presets import FLASH, PRO, TINY
from dsv4.runtime.pool import PoolFormat

MODELS = {"flash": FLASH, "pro": PRO, "tiny": TINY}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dsv4.runtime.kv", description=__doc__)
    parser.add_argument("--model", default="flash", help="flash, pro, tiny, or a config.json (default: flash)")
    parser.add_argument("--budget", default="40GiB", metavar="BYTES", help="such as 512MiB, 40GiB (default: 40GiB)")
    parser.add_argument("--sequences", type=int, default=1)
    parser.add_argument("--block", type=int, choices=BLOCKS, default=256)
    parser.add_argument("--drafts", type=int, default=1)
    parser.add_argument("--step-tokens", type=int, default=512)
    parser.add_argument("--numerics", choices=[each.value for each in Numerics], default="engine")
    parser.add_argument("--index", choices=["plain", "index_fp8", "index_fp4"], help="default: as the numerics have it")
    chosen = parser.parse_args(arguments)
    try:
        config = MODELS[chosen.model] if chosen.model in MODELS else ModelConfig.load(Path(chosen.model))
        numerics, budget = Numerics(chosen.numerics), parse_size(chosen.budget)
        kv, index = formats_for(numerics, config)
        settings = CacheSettings(
            sequences=chosen.sequences,
            block=chosen.block,
            drafts=chosen.drafts,
            step_tokens=chosen.step_tokens,
            kv=kv,
            index=PoolFormat(chosen.index) if chosen.index else index,
        )
        print(table(CacheLayout.within(config, settings, Precision(numerics), budget), budget))
    except Dsv4Error as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
