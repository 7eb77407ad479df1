"""The products of layers on a CPU with BF16 instructions, by the compiled kernels; the same numbers as in plain torch.

Weights and columns lie in pairs of neighbours, which is what the compiled product reads
(`monai_fp4.quantization.kernels.cpu_gemm`). How a convolution becomes such products is told in `cpu_conv` and
`cpu_conv_gradient`.
"""

from __future__ import annotations

from torch import Tensor

from monai_fp4.errors import ConfigError
from monai_fp4.quantization.kernels import cpu_gemm, cpu_quantize
from monai_fp4.quantization.kernels.task import STANDARD_TASK
from monai_fp4.quantization.layers import cpu_conv, cpu_conv_gradient
from monai_fp4.quantization.layers.conv_products import ConvProducts, ConvSpec
from monai_fp4.quantization.layers.cpu_operands import quantized, quantized_rows, round_trip, swap_pairs
from monai_fp4.quantization.layers.layer_products import Forward, Spec
from monai_fp4.quantization.layers.linear_products import LinearProducts
from monai_fp4.quantization.numerics import ScaledValues, gemm_alpha
from monai_fp4.quantization.recipes import Encoding

__all__ = ["CPUConvProducts", "CPULinearProducts"]


class _OnCPU:
    @classmethod
    def takes(cls, x: Tensor, spec: Spec, /) -> bool:
        """A tensor in a CPU's memory, in the standard format, where the kernels can be had."""
        return spec.recipe.standard_format and cpu_quantize.takes(x, STANDARD_TASK) and cpu_gemm.available()


class CPULinearProducts(_OnCPU, LinearProducts):
    """The products of a linear layer."""

    def forward(self, x: Tensor, weight: Tensor) -> Forward:
        """Multiply; see `LinearProducts.forward`."""
        if x.shape[1] != weight.shape[1]:
            raise ConfigError(
                f"a linear layer of {weight.shape[1]} input features found an input of {x.shape[1]}: check what"
                " precedes it"
            )
        how, saved = self.how, (x, weight)
        y = self.multiply(quantized_rows(x, how.input), pairs := quantized(weight, how.weight, pairs=True))
        if self.decodes:
            saved = (round_trip(x, self.dtype, how.input), round_trip(weight, self.dtype, how.weight))
        return Forward(y, saved, pairs if self.keeps else None)

    def input_gradient(self, dy: Tensor, weight: Tensor, kept: ScaledValues | None = None) -> Tensor:
        """Multiply backward; see `LinearProducts.input_gradient`."""
        rows = quantized_rows(dy, self.how.gradient)
        if kept is not None and kept.values.ndim == 3:  # plain torch, under a compiler say, keeps a matrix
            pairs = swap_pairs(kept, weight.shape[1])
        else:
            pairs = quantized(weight.mT, self.how.weight, pairs=True)
        return self.multiply(rows, pairs)

    def weight_gradient(self, dy: Tensor, x: Tensor) -> Tensor:
        """Multiply backward; see `LinearProducts.weight_gradient`."""
        a = quantized(dy.mT, self.how.gradient_columns, pairs=True)
        return self.multiply(a, quantized(x.mT, self.how.input_columns, pairs=True))

    def multiply(self, a: ScaledValues, b: ScaledValues) -> Tensor:
        """Rows or pairs with pairs."""
        return cpu_gemm.matrix_product(a.values, b.values, gemm_alpha(a.amax, b.amax), self.dtype)


class CPUConvProducts(_OnCPU, ConvProducts):
    """The products of a convolution or transposed convolution without groups."""

    @classmethod
    def takes(cls, x: Tensor, spec: ConvSpec, /) -> bool:  # type: ignore[override]
        """As of a linear layer, and no groups."""
        return spec.geometry.groups == 1 and super().takes(x, spec)

    def forward(self, x: Tensor, weight: Tensor) -> Forward:
        """Multiply; see `ConvProducts.forward`."""
        transposed = self.spec.transposed
        pairs = cpu_conv.pair_kernel(weight, self.how.weight, along_first=transposed)
        saved = self._round_trip(x, weight) if self.decodes else (x, weight)
        y = self._product(x, pairs, self.how.input, adjoint=transposed)
        return Forward(y, saved, pairs if self.recipe.two_d_weights else None)

    def input_gradient(self, dy: Tensor, weight: Tensor, kept: ScaledValues | None = None) -> Tensor:
        """Multiply backward; see `ConvProducts.input_gradient`."""
        transposed = self.spec.transposed
        if kept is not None:
            pairs = swap_pairs(kept, weight.shape[0 if transposed else 1])
        else:
            pairs = cpu_conv.pair_kernel(weight, self.how.weight, along_first=not transposed)
        return self._product(dy, pairs, self.how.gradient, adjoint=not transposed)

    def weight_gradient(self, dy: Tensor, x: Tensor) -> Tensor:
        """Multiply backward; see `ConvProducts.weight_gradient`."""
        how = self.spec.sides(self.how.input_columns, self.how.gradient_columns)
        sides, shape = self.spec.sides(x, dy), self.spec.kernel_shape(x, dy)
        return cpu_conv_gradient.weight_product(*sides, shape, self.spec.geometry, how, self.dtype)

    def _product(self, x: Tensor, pairs: ScaledValues, how: Encoding, *, adjoint: bool) -> Tensor:
        if adjoint:
            return cpu_conv.scatter(x, pairs, self.spec.image_shape, self.spec.geometry, how, self.dtype)
        return cpu_conv.gather(x, pairs, self.spec.geometry, how, self.dtype)

    def _round_trip(self, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Decode what the forward product saw of its operands."""
        transposed, amax = self.spec.transposed, None if self.spec.transposed else self.spec.geometry.amax_used(x)
        pixels = round_trip(x.movedim(1, -1), self.dtype, self.how.input, amax)
        taps = weight.flatten(2).movedim(-1, 0)
        decoded = round_trip(taps.mT if transposed else taps, self.dtype, self.how.weight)
        kernel = (decoded.mT if transposed else decoded).movedim(0, -1).reshape(weight.shape)
        return pixels.movedim(-1, 1), kernel
