"""One class an architecture: the sizes that make a network of it, and everything that the package asks about it.

A config knows how to build its network, which images the network takes and what the network's first and last blocks
are called. A new architecture is one class here and one line in :mod:`monai_fp4.networks.table`; nothing else in the
package tells architectures apart. Torch and MONAI are imported when a network is built, since commands that only read
the table should not wait for them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from monai_fp4.networks.sizes import SizeRule

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "NetworkConfig",
    "PaperCNNConfig",
    "PaperTransformerConfig",
    "SwinConfig",
    "SwinUNETRConfig",
    "UNetConfig",
    "ViTConfig",
]


class NetworkConfig(ABC):
    """Base class of an architecture's sizes; subclasses are frozen dataclasses of plain numbers."""

    learning_rate: ClassVar[float] = 0.001
    """Peak of the one-cycle schedule in the bundles at 500k; larger networks take half of it."""

    of_the_paper: ClassVar[bool] = False
    """Whether this is a network of arXiv 2605.27616 as it is: of its own size, and chosen by ``--arch``."""

    @abstractmethod
    def build(self, in_channels: int, out_channels: int, image_size: tuple[int, ...]) -> nn.Module:
        """Build the network for images ``[B, in_channels, *image_size]``; the arguments have been checked."""

    @property
    @abstractmethod
    def stride(self) -> int:
        """Pixels along each axis that become one of the coarsest features."""

    @property
    def size_rule(self) -> SizeRule:
        """Image sizes that the network takes: those that give whole features, at least two along each axis."""
        return SizeRule(self.stride, 2 * self.stride)

    @property
    @abstractmethod
    def first_and_last(self) -> tuple[str, str]:
        """Patterns over the module names of the first and the last block.

        The embedding before them and the head behind them are no blocks: a network names those in ``stem_names`` and
        ``head_names``, and `convert` leaves them in high precision.
        """


@dataclass(frozen=True)
class UNetConfig(NetworkConfig):
    """MONAI UNet: ``channels`` a level (each level halves the resolution) and residual units a level."""

    learning_rate = 0.003

    channels: tuple[int, ...]
    num_res_units: int

    def build(self, in_channels: int, out_channels: int, image_size: tuple[int, ...]) -> nn.Module:
        from monai.networks.nets import UNet

        from monai_fp4.networks.activations import quicken_prelu

        unet = UNet(
            spatial_dims=len(image_size),
            in_channels=in_channels,
            out_channels=out_channels,
            channels=self.channels,
            strides=(2,) * (len(self.channels) - 1),
            num_res_units=self.num_res_units,
            norm="batch",
        )
        return quicken_prelu(unet)

    @property
    def stride(self) -> int:
        return 2 ** (len(self.channels) - 1)

    @property
    def first_and_last(self) -> tuple[str, str]:
        return "model.0.*", "model.2.*"


@dataclass(frozen=True)
class SwinConfig(NetworkConfig):
    """Swin encoder (``width`` doubles a stage) and its decoder.

    ``decoder_width`` counts the channels of the decoder's levels at the encoder's strides, ``detail_width`` those at
    stride 2.
    """

    width: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    decoder_width: int
    detail_width: int
    patch_size: int = 4
    window_size: int = 8
    mlp_ratio: float = 4.0

    def build(self, in_channels: int, out_channels: int, image_size: tuple[int, ...]) -> nn.Module:
        from monai_fp4.networks.swin import SwinSegmenter

        return SwinSegmenter(self, in_channels=in_channels, out_channels=out_channels, spatial_dims=len(image_size))

    @property
    def stride(self) -> int:
        return self.patch_size * 2 ** (len(self.depths) - 1)

    @property
    def first_and_last(self) -> tuple[str, str]:
        return _swin_blocks("encoder", self.depths)


@dataclass(frozen=True)
class ViTConfig(NetworkConfig):
    """ViT encoder (``width`` channels on patches of ``patch_size`` pixels) and its decoder.

    ``taps`` are the numbers of blocks after which the decoder reads the features; the last is the number of blocks.
    """

    width: int
    taps: tuple[int, ...]
    num_heads: int
    decoder_width: int
    detail_width: int
    patch_size: int = 8
    mlp_ratio: float = 4.0

    def build(self, in_channels: int, out_channels: int, image_size: tuple[int, ...]) -> nn.Module:
        from monai_fp4.networks.vit import ViTSegmenter

        return ViTSegmenter(self, in_channels=in_channels, out_channels=out_channels, image_size=image_size)

    @property
    def stride(self) -> int:
        return self.patch_size

    @property
    def first_and_last(self) -> tuple[str, str]:
        return "encoder.blocks.0.*", f"encoder.blocks.{self.taps[-1] - 1}.*"


@dataclass(frozen=True)
class SwinUNETRConfig(NetworkConfig):
    """MONAI SwinUNETR's own arguments; the patch size is its default of 2."""

    feature_size: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    window_size: int = 8

    def build(self, in_channels: int, out_channels: int, image_size: tuple[int, ...]) -> nn.Module:
        from monai.networks.nets import SwinUNETR

        return SwinUNETR(
            in_channels=in_channels,
            out_channels=out_channels,
            feature_size=self.feature_size,
            depths=self.depths,
            num_heads=self.num_heads,
            window_size=self.window_size,
            spatial_dims=len(image_size),
        )

    @property
    def stride(self) -> int:
        return 2 * 2 ** len(self.depths)  # patches of 2, merged after each stage

    @property
    def first_and_last(self) -> tuple[str, str]:
        return _swin_blocks("swinViT", self.depths)


@dataclass(frozen=True)
class PaperCNNConfig(NetworkConfig):
    """The CNN of arXiv 2605.27616: ``stages`` that halve the resolution, each of ``width`` channels; 2D only."""

    of_the_paper = True

    stages: int
    width: int

    def build(self, in_channels: int, out_channels: int, image_size: tuple[int, ...]) -> nn.Module:
        from monai_fp4.networks.paper_cnn import PaperCNN

        return PaperCNN(self, in_channels=in_channels, out_channels=out_channels)

    @property
    def stride(self) -> int:
        return 2**self.stages

    @property
    def size_rule(self) -> SizeRule:
        return SizeRule(self.stride, 2 * self.stride, spatial_dims=(2,))

    @property
    def first_and_last(self) -> tuple[str, str]:
        return "encoders.1.*", f"decoders.{self.stages - 2}.*"


@dataclass(frozen=True)
class PaperTransformerConfig(NetworkConfig):
    """Swin or, without a ``window_size``, ViT of arXiv 2605.27616; ``hidden`` units of the MLP; 2D only."""

    of_the_paper = True

    width: int
    depth: int
    num_heads: int
    hidden: int
    window_size: int | None = None
    patch_size: int = 16

    def build(self, in_channels: int, out_channels: int, image_size: tuple[int, ...]) -> nn.Module:
        from monai_fp4.networks.paper_transformer import PaperTransformer

        return PaperTransformer(self, in_channels=in_channels, out_channels=out_channels, image_size=image_size)

    @property
    def stride(self) -> int:
        return self.patch_size

    @property
    def size_rule(self) -> SizeRule:
        return SizeRule(self.stride, self.stride * (self.window_size or 2), spatial_dims=(2,), powers_of_two=True)

    @property
    def first_and_last(self) -> tuple[str, str]:
        return "blocks.0.*", f"blocks.{self.depth - 1}.*"


def _swin_blocks(encoder: str, depths: tuple[int, ...]) -> tuple[str, str]:
    return f"{encoder}.layers1.0.blocks.0.*", f"{encoder}.layers{len(depths)}.0.blocks.{depths[-1] - 1}.*"
