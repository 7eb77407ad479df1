"""The one check of ``image_size``, wherever it is given: an option, an argument of a data set or of a network."""

from __future__ import annotations

from collections.abc import Sequence

from monai_fp4.errors import ConfigError

__all__ = ["check_size"]


def check_size(image_size: object, spatial_dims: int | None = None) -> tuple[int, ...]:
    """Check an image size: two numbers for networks that take slices, three for those that take volumes.

    Args:
        image_size: pixels (voxels) of each axis.
        spatial_dims: how many axes there must be; None takes two or three.

    Raises:
        ConfigError: anything else.

    >>> check_size([128, 96])
    (128, 96)
    """
    size = tuple(image_size) if isinstance(image_size, Sequence) and not isinstance(image_size, str) else ()
    counts = {2: "two", 3: "three"} if spatial_dims is None else {spatial_dims: str(spatial_dims)}
    if len(size) not in counts or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in size):
        raise ConfigError(
            f"image_size must be {' or '.join(counts.values())} whole numbers from 1 on, such as"
            f" {[128] * min(counts)}, but {image_size!r} was given"
        )
    return size
