"""Image sizes: refused ones name the nearest that fits."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_fp4.errors import ConfigError
from monai_fp4.networks import check_image_size, network_table


@settings(deadline=None)
@given(cell=st.sampled_from(network_table()), size=st.lists(st.integers(1, 600), min_size=2, max_size=3))
def test_refused_size_names_the_nearest_that_fits(cell, size: list[int]) -> None:
    rule = cell.config.size_rule
    size = size[: max(rule.spatial_dims)]
    fitting = [side for side in range(rule.smallest, 1000) if side % rule.multiple == 0]
    if rule.powers_of_two:
        fitting = [side for side in fitting if (side // rule.multiple).bit_count() == 1] + [1024]
    if all(side in fitting for side in size):
        assert check_image_size(cell.arch, cell.scale, size, len(size)) == tuple(size)
        return
    with pytest.raises(ConfigError) as caught:
        check_image_size(cell.arch, cell.scale, size, len(size))
    nearest = [min(fitting, key=lambda fit, side=side: (abs(fit - side), -fit)) for side in size]
    assert str(caught.value).endswith(f"nearest size that it can take is {nearest}")
    assert str(list(size)) in str(caught.value)
    check_image_size(cell.arch, cell.scale, nearest, len(size))


@pytest.mark.parametrize(
    "size", [(256,), (256, 256, 256), (-3, 256), (0, 256), 256, "256", (256, 256.0), (True, 256), None]
)
def test_size_that_is_no_pair_of_integers_is_refused(size) -> None:
    with pytest.raises(ConfigError, match="2 whole numbers from 1 on"):
        check_image_size("unet", "500k", size)
