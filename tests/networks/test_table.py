"""Which networks exist, by name and by size."""

from __future__ import annotations

import dataclasses

import pytest
from torch import nn

from monai_fp4.errors import ConfigError
from monai_fp4.networks import ARCHITECTURES, SCALE_TOLERANCE, SCALES, build_network, find_cell, network_table

MATCHED = [cell for cell in network_table() if not cell.config.of_the_paper]
CELLS = [pytest.param(cell.arch, cell.scale, id=f"{cell.arch}_{cell.scale}") for cell in MATCHED]
KINDS = {"": ("unet", "swin", "vit"), "paper_": ("cnn", "swin", "vit")}


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(("arch", "scale"), CELLS)
def test_parameter_count_is_within_three_percent_of_the_scale(arch: str, scale: str) -> None:
    scales = {"500k": 500_000, "4m": 4_000_000, "15m": 15_000_000}
    assert abs(count(build_network(arch, scale)) / scales[scale] - 1) <= 0.03
    assert dict(SCALES) == scales
    assert SCALE_TOLERANCE == 0.03


def test_table_holds_every_cell_of_the_study_once() -> None:
    cells = [(cell.arch, cell.scale) for cell in network_table()]
    assert sorted(cells) == sorted(
        [(f"{prefix}{arch}", scale) for prefix, archs in KINDS.items() for arch in archs for scale in SCALES]
        + [("swinunetr", "15m")]
    )
    assert {arch for arch, _ in cells} == set(ARCHITECTURES)


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"architecture 'swim' is not known; the nearest names are 'swin'"):
        build_network("swim", "500k")
    with pytest.raises(ConfigError, match=r"scale '15M' is not known; the nearest names are '15m'"):
        build_network("swin", "15M")


@pytest.mark.parametrize("scale", ["500k", "4m"])
def test_swinunetr_exists_at_15m_only(scale: str) -> None:
    with pytest.raises(ConfigError, match=f"'swinunetr' exists at scale '15m' only, found scale '{scale}'"):
        find_cell("swinunetr", scale)


def test_table_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        network_table()[0].arch = "other"  # type: ignore[misc]
