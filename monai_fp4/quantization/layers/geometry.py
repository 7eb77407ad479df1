"""The shape of a convolution, and the two facts about it that decide which numbers are quantized.

A convolution is an implicit GEMM over the im2col matrix ``U`` of shape ``[pixel, tap, channel]``. That matrix is never
built. What matters about it here is which pixels of the image it contains (a stride may skip some, and what it skips
must not raise the tensor's maximum), and what one tap sees (a shifted, strided view of the padded image).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._prims_common import suggest_memory_format

from monai_fp4.errors import ConfigError

__all__ = ["ConvGeometry", "kernel_of", "memory_format", "per_axis"]


def per_axis(value: int | str | Sequence[int], axes: int) -> tuple[int, ...]:
    """One number for each axis: a convolution's attribute, which may be set to a single number.

    >>> per_axis(2, 3), per_axis([1, 2], 2)
    ((2, 2, 2), (1, 2))
    """
    return (int(value),) * axes if isinstance(value, int) else tuple(map(int, value))


def kernel_of(layer: nn.modules.conv._ConvNd, weight: Tensor) -> tuple[int, ...]:
    """The size of a convolution's kernel as its weight has it; while a tracer records, as its attribute says."""
    return tuple(layer.kernel_size if torch.jit.is_tracing() else weight.shape[2:])


@dataclass(frozen=True)
class ConvGeometry:
    """A convolution of an image ``[N, B, *spatial]`` with a kernel ``[A, B / groups, *k]`` to pixels ``[N, A, *out]``.

    A transposed convolution is described by the convolution that it is the adjoint of: its input are the ``pixels`` and
    its output is the ``image``.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def __post_init__(self) -> None:
        axes = {len(self.kernel), len(self.stride), len(self.padding), len(self.dilation)}
        if len(axes) > 1 or min(*self.kernel, *self.stride, *self.dilation, self.groups) < 1 or min(self.padding) < 0:
            raise ConfigError(
                f"a convolution expected sizes of its {len(self.kernel)} axes, padding from 0 and all others from 1,"
                f" found {self}: check what set its attributes"
            )

    def arguments(self) -> tuple[Any, ...]:
        """Return the arguments that torch's convolution operators take between the tensors and the output mask."""
        return (self.stride, self.padding, self.dilation, False, (0,) * len(self.kernel), self.groups)

    def out_shape(self, spatial: tuple[int, ...]) -> tuple[int, ...]:
        """Return the number of output pixels along each axis of an image of this size.

        Raises:
            ConfigError: the image is smaller than the kernel.
        """
        axes = zip(spatial, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        out = tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in axes)
        if min(out) < 1:
            raise ConfigError(
                f"a convolution with kernel {self.kernel}, dilation {self.dilation} and padding {self.padding} expected"
                f" an image that the kernel fits in, found {spatial}: give larger images, or down-sample less"
            )
        return out

    def image_size(self, out: tuple[int, ...], extra: tuple[int, ...]) -> tuple[int, ...]:
        """Return the image's size that the adjoint gives for ``out`` pixels, and ``extra`` ones behind them."""
        axes = zip(out, self.kernel, self.stride, self.padding, self.dilation, extra, strict=True)
        return tuple((n - 1) * s - 2 * p + d * (k - 1) + e + 1 for n, k, s, p, d, e in axes)

    def only_last_axis(self) -> ConvGeometry:
        """Return the same geometry with every axis but the last left as it is (kernel 1, stride 1)."""
        first, ones, zeros = len(self.kernel) - 1, (1,) * (len(self.kernel) - 1), (0,) * (len(self.kernel) - 1)
        return ConvGeometry(
            (*ones, *self.kernel[first:]),
            (*ones, *self.stride[first:]),
            (*zeros, *self.padding[first:]),
            (*ones, *self.dilation[first:]),
            self.groups,
        )

    def without_last_axis(self) -> ConvGeometry:
        """Return the same geometry with the last axis left as it is (kernel 1, stride 1)."""
        return ConvGeometry(
            (*self.kernel[:-1], 1),
            (*self.stride[:-1], 1),
            (*self.padding[:-1], 0),
            (*self.dilation[:-1], 1),
            self.groups,
        )

    def pad(self, image: Tensor) -> Tensor:
        """Pad (or crop) the image with zeros so that every tap is a plain strided slice of it."""
        spatial = tuple(image.shape[2:])
        widths: list[int] = []
        axes = zip(spatial, self.out_shape(spatial), self.kernel, self.stride, self.padding, self.dilation, strict=True)
        for n, out, k, s, p, d in axes:
            widths[:0] = [p, (out - 1) * s + (k - 1) * d + 1 - p - n]
        return F.pad(image, widths) if any(widths) else image

    def tap(self, padded: Tensor, tap: tuple[int, ...], out: tuple[int, ...]) -> Tensor:
        """Return the view ``[N, B, *out]`` of the padded image that one kernel tap multiplies."""
        axes = zip(tap, self.dilation, self.stride, out, strict=True)
        slices = tuple(slice(t * d, t * d + (o - 1) * s + 1, s) for t, d, s, o in axes)
        return padded[(slice(None), slice(None), *slices)]

    def pixels_used(self, image: Tensor) -> Tensor:
        """Return the pixels of the image that are in the im2col matrix; the image itself when all of them are."""
        for axis, used in enumerate(_used(self, tuple(map(int, image.shape[2:])))):
            if used is not None:
                image = image[(slice(None),) * (2 + axis) + (list(used),)]
        return image

    def uses_all(self, spatial: tuple[int, ...]) -> bool:
        """Whether every pixel of an image of this size is in the im2col matrix."""
        return all(used is None for used in _used(self, spatial))

    def amax_used(self, image: Tensor) -> Tensor | None:
        """Return the maximum of the im2col matrix where it may differ from the image's own, else None."""
        used = self.pixels_used(image)
        return None if used is image else used.abs().amax().float()


def memory_format(*tensors: Tensor) -> torch.memory_format:
    """The format that a convolution of torch with these operands answers in: the first one that is channels last."""
    for x in tensors:
        if x.ndim in (4, 5) and not x.is_contiguous():
            last = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
            found = last if x.is_contiguous(memory_format=last) else suggest_memory_format(x)
            if found is not torch.contiguous_format:
                return found
    return torch.contiguous_format


@functools.lru_cache(maxsize=1024)
def _used(geometry: ConvGeometry, spatial: tuple[int, ...]) -> tuple[tuple[int, ...] | None, ...]:
    """Per axis, the coordinates that some tap of some output pixel reads; None when it is all of them."""
    found: list[tuple[int, ...] | None] = []
    out = geometry.out_shape(spatial)
    axes = zip(spatial, out, geometry.kernel, geometry.stride, geometry.padding, geometry.dilation, strict=True)
    for n, o, k, s, p, d in axes:
        used = {i * s - p + t * d for i in range(o) for t in range(k)} & set(range(n))
        found.append(None if len(used) == n else tuple(sorted(used)))
    return tuple(found)
