"""The layers of Flash, Pro and tiny (dsv4-reference §1.2, §3.3, §9.1)."""

from __future__ import annotations

import dataclasses

import pytest

from dsv4.runtime.model.config import ModelConfig
from dsv4.runtime.model.presets import FLASH, PRO, TINY
from dsv4.runtime.model.schedule import LayerSchedule, schedule


def layers_of(kind: str, layers: tuple[LayerSchedule, ...]) -> list[int]:
    return [layer.index for layer in layers if layer.kind == kind and not layer.is_mtp]


def test_flash() -> None:
    layers = schedule(FLASH)
    assert len(layers) == 44
    assert layers_of("swa", layers) == [0, 1]
    assert layers_of("csa", layers) == list(range(2, 43, 2))
    assert layers_of("hca", layers) == list(range(3, 42, 2))


def test_pro() -> None:
    layers = schedule(PRO)
    assert len(layers) == 62
    assert layers_of("swa", layers) == []
    assert layers_of("csa", layers) == list(range(2, 61, 2))
    assert layers_of("hca", layers) == [0, 1, *range(3, 60, 2)]


@pytest.mark.parametrize("config", [FLASH, PRO, TINY])
def test_the_mtp_layer_comes_last_attends_to_its_window_and_routes_densely(config: ModelConfig) -> None:
    *main, mtp = schedule(config)
    assert (mtp.index, mtp.prefix, mtp.kind, mtp.router) == (config.num_hidden_layers, "mtp.0", "swa", "dense")
    assert mtp.is_mtp and not any(layer.is_mtp for layer in main)
    assert (mtp.rope.theta, mtp.rope.yarn) == (10000, None)


@pytest.mark.parametrize(("config", "hashed"), [(FLASH, 3), (PRO, 3), (TINY, 2)])
def test_the_first_layers_are_hash_routed(config: ModelConfig, hashed: int) -> None:
    routers = [layer.router for layer in schedule(config)]
    assert routers == ["hash"] * hashed + ["dense"] * (len(routers) - hashed)


@pytest.mark.parametrize("config", [FLASH, PRO, TINY])
def test_layers_with_a_compressor_rotate_by_the_long_frequencies(config: ModelConfig) -> None:
    """Trap: the window's keys of a compressed layer too (dsv4-reference §15 row 9)."""
    for layer in schedule(config):
        if layer.has_compressor:
            assert layer.rope.theta == 160000
            yarn = layer.rope.yarn
            assert yarn is not None
            assert (yarn.factor, yarn.beta_fast, yarn.beta_slow) == (16, 32, 1)
            assert yarn.original_max_position_embeddings == 65536
        else:
            assert (layer.rope.theta, layer.rope.yarn) == (10000, None)
        assert layer.rope.rotary_dim == 64


def test_only_csa_layers_have_an_indexer_and_overlap() -> None:
    for layer in schedule(FLASH):
        csa = layer.ratio == 4
        assert layer.has_indexer is csa
        assert layer.index_topk == (512 if csa else 0)
        assert layer.overlap == (2 if csa else 1)
        assert layer.window == 128


def test_prefixes_are_the_checkpoints() -> None:
    assert [layer.prefix for layer in schedule(TINY)] == [*(f"layers.{n}" for n in range(5)), "mtp.0"]


def test_a_model_without_mtp_has_main_layers_only() -> None:
    layers = schedule(TINY.replace(num_nextn_predict_layers=0, compress_ratios=(0, 0, 4, 128, 4)))
    assert [layer.is_mtp for layer in layers] == [False] * 5


def test_records_are_frozen_hashable_and_the_same_each_time() -> None:
    layers = schedule(TINY)
    assert schedule(TINY.replace()) is layers
    assert len(set(layers)) == 6
    with pytest.raises(dataclasses.FrozenInstanceError):
        layers[0].kind = "csa"  # type: ignore[misc]
