"""Check image sizes against what a network can take, before anything is built.

Every network here halves the resolution a fixed number of times and adds its feature maps up again on the way back, so
each side of the image must be a multiple of the largest stride; below the smallest side a normalisation would see one
pixel, of which it cannot take a variance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from monai_fp4.data.image_size import check_size
from monai_fp4.errors import ConfigError

__all__ = ["SizeRule"]


@dataclass(frozen=True)
class SizeRule:
    """Each side of the image is a multiple of ``multiple`` pixels and at least ``smallest``.

    Attributes:
        multiple: pixels that become one of the coarsest features.
        smallest: smallest side.
        spatial_dims: numbers of axes that the network can have.
        powers_of_two: the side must be ``multiple`` times a power of two.
    """

    multiple: int
    smallest: int
    spatial_dims: tuple[int, ...] = (2, 3)
    powers_of_two: bool = False

    def accepts(self, side: int) -> bool:
        """Whether one side fits."""
        return side == self.nearest(side)

    def nearest(self, side: int) -> int:
        """The nearest side that fits; of two equally near ones the larger, which loses no detail.

        >>> SizeRule(16, 32).nearest(100), SizeRule(16, 32).nearest(104), SizeRule(16, 32).nearest(3)
        (96, 112, 32)
        >>> SizeRule(16, 64, powers_of_two=True).nearest(191), SizeRule(16, 64, powers_of_two=True).nearest(192)
        (128, 256)
        """
        if self.powers_of_two and side > self.smallest:
            below = self.multiple * 2 ** ((side // self.multiple).bit_length() - 1)
            return below if side < below * 1.5 else 2 * below
        return max(self.smallest, (side + self.multiple // 2) // self.multiple * self.multiple)

    def check(self, network: str, image_size: Sequence[int], spatial_dims: int) -> tuple[int, ...]:
        """Check that a network with this rule can take images of a size.

        Args:
            network: what the sentence calls it, such as ``"unet_500k"``.
            image_size: pixels (voxels) of each of the ``spatial_dims`` axes.
            spatial_dims: 2 or 3.

        Returns:
            The size as a tuple of plain integers.

        Raises:
            ConfigError: ``spatial_dims`` other than 2 or 3, a size of another length, or a side that does not fit; the
                nearest size that does is named.
        """
        if spatial_dims not in self.spatial_dims:
            raise ConfigError(
                f"spatial_dims of {network} must be {' or '.join(map(str, self.spatial_dims))}, found "
                f"{spatial_dims!r}; give images of that many axes or choose another network"
            )
        size = check_size(image_size, spatial_dims)
        if not all(self.accepts(side) for side in size):
            nearest = [self.nearest(side) for side in size]
            sides = f"{self.multiple} times a power of two" if self.powers_of_two else f"multiples of {self.multiple}"
            raise ConfigError(
                f"{network} takes images whose sides are {sides} and at least {self.smallest}, "
                f"found image_size {list(size)}; the nearest size that it can take is {nearest}"
            )
        return size
