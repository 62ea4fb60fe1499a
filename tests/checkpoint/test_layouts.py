"""Which layout a checkpoint has: what the configuration says and what the tensors' names say."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dsv4.runtime.checkpoint.inventory import inventory
from dsv4.runtime.checkpoint.layouts import LAYOUTS, layout_of
from dsv4.runtime.checkpoint.write_tiny import stored_as
from dsv4.runtime.errors import CheckpointError
from dsv4.runtime.model.config import WeightScheme
from dsv4.runtime.model.presets import TINY
from dsv4.runtime.weight import Format

SCHEMES: list[WeightScheme] = ["plain", "fp8_mxfp4", "fp8_nvfp4", "nvfp4"]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_each_layout_is_recognised(scheme: WeightScheme) -> None:
    config = stored_as(TINY, scheme)
    assert config.weight_scheme == scheme
    assert layout_of(config, inventory(config, LAYOUTS[scheme])) == LAYOUTS[scheme]


def test_mtp_experts_may_be_nvfp4_or_mxfp4() -> None:
    """Trap: the MTP layer loaded by the main scheme (dsv4-reference §16.7). Uploads differ; names decide."""
    config = stored_as(TINY, "fp8_nvfp4")
    for form in (Format.MXFP4, Format.NVFP4):
        upload = replace(LAYOUTS["fp8_nvfp4"], mtp_experts=form)
        assert layout_of(config, inventory(config, upload)) == upload


def test_mtp_projections_may_be_plain_and_the_full_layout_may_leave_mtp_as_released() -> None:
    config = stored_as(TINY, "fp8_nvfp4")
    upload = replace(LAYOUTS["fp8_nvfp4"], mtp_projections=Format.PLAIN)
    assert layout_of(config, inventory(config, upload)) == upload
    config = stored_as(TINY, "nvfp4")
    official = LAYOUTS["fp8_mxfp4"]
    upload = replace(
        LAYOUTS["nvfp4"],
        mtp_projections=official.mtp_projections,
        mtp_attention=official.mtp_attention,
        mtp_shared=official.mtp_shared,
        mtp_experts=official.mtp_experts,
    )
    assert layout_of(config, inventory(config, upload)) == upload


@pytest.mark.parametrize("said", SCHEMES)
@pytest.mark.parametrize("stored", SCHEMES)
def test_a_configuration_that_names_another_layout_is_refused(said: WeightScheme, stored: WeightScheme) -> None:
    if said == stored:
        return
    with pytest.raises(CheckpointError) as caught:
        layout_of(stored_as(TINY, said), inventory(stored_as(TINY, stored), LAYOUTS[stored]))
    message = str(caught.value)
    assert message.startswith("config.json says")
    assert "its tensors' names say" in message
    assert "valid for these tensors" in message


def test_only_the_full_layout_says_that_its_names_are_unverified() -> None:
    assert [scheme for scheme in SCHEMES if LAYOUTS[scheme].unverified] == ["nvfp4"]


def test_a_checkpoint_without_the_probed_tensors_takes_the_configured_layout() -> None:
    assert layout_of(TINY, set()) == LAYOUTS["fp8_mxfp4"]
