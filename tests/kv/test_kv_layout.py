"""The bytes of a cache: the figures of dsv4-reference §11.1, and that what is predicted is what is allocated."""

from __future__ import annotations

import itertools

import pytest

from dsv4.runtime.errors import CacheFull, ContractError
from dsv4.runtime.kv import __main__ as printed
from dsv4.runtime.kv.layout import CacheLayout
from dsv4.runtime.kv.paged import PagedCache
from dsv4.runtime.kv.settings import CacheSettings, formats_for
from dsv4.runtime.kv.table import parse_size, table
from dsv4.runtime.model.config import ModelConfig
from dsv4.runtime.model.numerics import Numerics, Precision
from dsv4.runtime.model.presets import FLASH, PRO, TINY
from dsv4.runtime.pool import PoolFormat
from tests.model.tiny_model import SMALL

ENGINE, EXACT = Precision(Numerics.ENGINE), Precision(Numerics.EXACT)
GIB = 1 << 30


def packed(config: ModelConfig, index: PoolFormat = PoolFormat.INDEX_FP8) -> CacheLayout:
    settings = CacheSettings(kv=PoolFormat.KV_FP8, index=index, drafts=0, mtp=False)
    return CacheLayout(config, settings, ENGINE, blocks=1)


@pytest.mark.parametrize(
    ("config", "index", "per_token"),
    [
        (FLASH, PoolFormat.INDEX_FP8, 3850),
        (FLASH, PoolFormat.INDEX_FP4, 3514),
        (PRO, PoolFormat.INDEX_FP8, 5511),
        (PRO, PoolFormat.INDEX_FP4, 5031),
    ],
)
def test_bytes_of_a_token(config: ModelConfig, index: PoolFormat, per_token: int) -> None:
    layout = packed(config, index)
    assert int(sum(layout.layer_bytes(layer).per_token for layer in layout.layers)) == per_token


@pytest.mark.parametrize(("config", "gib"), [(FLASH, 3.76), (PRO, 5.38)])
def test_bytes_of_a_million_tokens(config: ModelConfig, gib: float) -> None:
    layout = packed(config)
    total = sum(layout.layer_bytes(layer).per_token for layer in layout.layers) * config.max_position_embeddings
    assert round(float(total) / GIB, 2) == gib


def test_bytes_of_an_entry_by_kind() -> None:
    csa, hca = (next(layer for layer in packed(FLASH).layers if layer.kind == kind) for kind in ("csa", "hca"))
    assert packed(FLASH).layer_bytes(csa).per_token == 146 + 33
    assert packed(FLASH, PoolFormat.INDEX_FP4).layer_bytes(csa).per_token == 146 + 17
    assert float(packed(FLASH).layer_bytes(hca).per_token) == 4.5625


@pytest.mark.parametrize(("config", "window_mib", "state_mib"), [(FLASH, 3.1, 11.6), (PRO, 4.3, 17.8)])
def test_bytes_of_a_sequence(config: ModelConfig, window_mib: float, state_mib: float) -> None:
    layout = packed(config)
    each = [layout.layer_bytes(layer) for layer in layout.layers]
    assert {layer.window for layer in each} == {74752}
    assert round(sum(layer.window for layer in each) / (1 << 20), 1) == window_mib
    assert round(sum(layer.state for layer in each) / (1 << 20), 1) == state_mib
    states = {layer.kind: layout.layer_bytes(layer).state for layer in layout.layers}
    assert (states["csa"], states["hca"]) == (65536 + 16384, 524288)


@pytest.mark.parametrize(
    ("settings", "precision"),
    [
        (CacheSettings(sequences=3, block=128, drafts=2, step_tokens=70), EXACT),
        (CacheSettings(kv=PoolFormat.KV_FP8, index=PoolFormat.INDEX_FP4, mtp=False, page=48), ENGINE),
        (CacheSettings(sequences=2, kv=PoolFormat.KV_FP8, index=PoolFormat.INDEX_FP8, positions_max=700), ENGINE),
    ],
)
def test_what_is_predicted_is_allocated(settings: CacheSettings, precision: Precision) -> None:
    cache = PagedCache(CacheLayout(TINY, settings, precision, blocks=7))
    layout = cache.layout
    held = 0
    for schedule, layer in zip(layout.layers, cache.layers(), strict=True):
        pools = [pool.data for pool in (layer.window, layer.compressed, layer.index) if pool is not None]
        tensors = [*pools, *(state for state in (layer.state, layer.index_state) if state is not None)]
        assert sum(tensor.nbytes for tensor in tensors) == layout.allocated_bytes(schedule)
        held += sum(tensor.nbytes for tensor in tensors)
    tables = (cache._table, cache._stage_first, cache._stage_shift)
    assert sum(tensor.nbytes for tensor in tables) == layout.table_bytes
    assert held + layout.table_bytes == layout.total_bytes


@pytest.mark.parametrize(("config", "budget"), list(itertools.product((TINY, FLASH), (64 << 20, 3 * GIB + 12345))))
def test_a_budget_is_used_and_never_passed(config: ModelConfig, budget: int) -> None:
    kv, index = formats_for(Numerics.ENGINE, config)
    settings = CacheSettings(sequences=2, kv=kv, index=index)
    layout = CacheLayout.within(config, settings, ENGINE, budget)
    assert layout.total_bytes <= budget
    more = CacheLayout(config, settings, ENGINE, layout.blocks + 1)
    assert more.total_bytes > budget or layout.blocks == layout.useful_blocks


def test_a_budget_too_small_says_what_is_needed() -> None:
    settings = CacheSettings(sequences=4)
    least = CacheLayout(TINY, settings, EXACT, 1).total_bytes
    with pytest.raises(CacheFull, match=rf"found {least - 1} bytes; valid: {least} or more"):
        CacheLayout.within(TINY, settings, EXACT, least - 1)
    assert CacheLayout.within(TINY, settings, EXACT, least).blocks == 1


def test_no_more_blocks_than_can_be_filled() -> None:
    settings = CacheSettings(sequences=3, block=128, positions_max=300)
    layout = CacheLayout.within(SMALL, settings, EXACT, GIB)
    assert layout.blocks == 9 and layout.positions_max == 300
    holding = CacheLayout.holding(SMALL, settings, EXACT, 300)
    assert holding.blocks == 9


def test_the_table_says_it_all() -> None:
    kv, index = formats_for(Numerics.ENGINE, FLASH)
    layout = CacheLayout.within(FLASH, CacheSettings(sequences=4, kv=kv, index=index), ENGINE, 8 * GIB)
    text = table(layout, 8 * GIB)
    rows = {line.split()[0]: line.split() for line in text.splitlines()}
    assert rows["CSA"][1:3] == ["21", "3759.00"]
    assert rows["HCA"][1:3] == ["20", "91.25"]
    assert rows["all"][1:3] == ["44", "3850.25"]
    assert rows["MTP"][1] == "1"
    assert f"{layout.tokens:,} tokens in {layout.blocks:,} blocks" in text
    assert "8.00 GiB budget" in text and "kv_fp8" in text


def test_the_table_is_a_program(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed.main(["--model", "pro", "--budget", "6GiB", "--block", "128"]) == 0
    assert "5511.44" in capsys.readouterr().out
    assert printed.main(["--model", "flash", "--budget", "1MiB"]) == 2
    assert capsys.readouterr().err.startswith("error: cache: budget: found 1048576 bytes")
    assert printed.main(["--model", "/nowhere"]) == 2


@pytest.mark.parametrize(
    ("text", "count"), [("800", 800), ("512MiB", 512 << 20), ("1.5G", 3 << 29), ("2 kib", 2048), ("7B", 7)]
)
def test_sizes_are_read(text: str, count: int) -> None:
    assert parse_size(text) == count


@pytest.mark.parametrize("text", ["", "MiB", "-3G", "3GiBx", "4 X"])
def test_wrong_sizes_are_refused(text: str) -> None:
    with pytest.raises(ContractError, match="size: found"):
        parse_size(text)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block": 64}, "block: found 64; valid: 128 or 256"),
        ({"sequences": 0}, "sequences: found 0"),
        ({"drafts": -1}, "drafts: found -1"),
        ({"positions_max": 0}, "positions_max: found 0"),
        ({"kv": PoolFormat.INDEX_FP8}, "kv: found index_fp8; valid: plain, kv_fp8"),
        ({"index": PoolFormat.KV_FP8}, "index: found kv_fp8"),
    ],
)
def test_wrong_settings_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        CacheSettings(**changes)  # type: ignore[arg-type]


def test_packed_rows_need_the_real_head_shape() -> None:
    with pytest.raises(ContractError, match="kv: found kv_fp8 for head_dim 128"):
        CacheLayout(SMALL, CacheSettings(kv=PoolFormat.KV_FP8), ENGINE, 1)
    assert formats_for(Numerics.ENGINE, SMALL)[0] is PoolFormat.PLAIN
    assert formats_for(Numerics.ENGINE, TINY) == (PoolFormat.KV_FP8, PoolFormat.INDEX_FP8)
    assert formats_for(Numerics.OFFICIAL, TINY) == (PoolFormat.PLAIN, PoolFormat.PLAIN)
