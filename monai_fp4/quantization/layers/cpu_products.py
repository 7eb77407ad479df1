"""The products of layers on a CPU with BF16 instructions, by the compiled kernels; the same numbers as in plain torch.

Weights and columns lie in pairs of neighbours, which is what the compiled product reads
(`monai_fp4.quantization.kernels.cpu_gemm`). How a convolution becomes such products is told in `cpu_conv` and
`cpu_conv_gradient`.
"""

from __future__ import annotations

from torch import Tensor

from monai_fp4.errors import ConfigError
from monai_fp4.quantization.kernels import cpu_gemm, cpu_quantize
from monai_fp4.quantization.layers import cpu_conv, cpu_conv_gradient
from monai_fp4.quantization.layers.conv_products import ConvProducts, ConvSpec
from monai_fp4.quantization.layers.cpu_operands import quantized, quantized_rows, round_trip, swap_pairs
from monai_fp4.quantization.layers.layer_products import Forward, Spec
from monai_fp4.quantization.layers.linear_products import LinearProducts, LinearSpec
from monai_fp4.quantization.numerics import STANDARD, ScaledValues, gemm_alpha

__all__ = ["CPUConvProducts", "CPULinearProducts"]


def _takes(x: Tensor, spec: Spec) -> bool:
    return spec.recipe.standard_format and cpu_quantize.takes(x, STANDARD) and cpu_gemm.available()


class CPULinearProducts(LinearProducts):
    """The products of a linear layer."""

    @classmethod
    def takes(cls, x: Tensor, spec: LinearSpec, /) -> bool:
        """A tensor in a CPU's memory, in the standard format, where the kernels can be had."""
        return _takes(x, spec)

    def forward(self, x: Tensor, weight: Tensor) -> Forward:
        """Multiply; see `LinearProducts.forward`."""
        if x.shape[1] != weight.shape[1]:
            raise ConfigError(
                f"a linear layer of {weight.shape[1]} input features found an input of {x.shape[1]}: check what"
                " precedes it"
            )
        two_d = self.recipe.two_d_weights
        y = self._product_of_rows(quantized_rows(x), pairs := quantized(weight, two_d=two_d, pairs=True))
        saved = (x, weight)
        if self.decodes:
            saved = (round_trip(x, self.dtype), round_trip(weight, self.dtype, two_d=two_d))
        return Forward(y, saved, pairs if two_d else None)

    def input_gradient(self, dy: Tensor, weight: Tensor, kept: ScaledValues | None = None) -> Tensor:
        """Multiply backward; see `LinearProducts.input_gradient`."""
        rows = quantized_rows(dy, stochastic=self.recipe.stochastic_rounding)
        if kept is not None and kept.values.ndim == 3:  # plain torch, under a compiler say, keeps a matrix
            pairs = swap_pairs(kept, weight.shape[1])
        else:
            pairs = quantized(weight.mT, two_d=self.recipe.two_d_weights, pairs=True)
        return self._product_of_rows(rows, pairs)

    def weight_gradient(self, dy: Tensor, x: Tensor) -> Tensor:
        """Multiply backward; see `LinearProducts.weight_gradient`."""
        rht = self.recipe.hadamard
        a = quantized(dy.mT, rht=rht, stochastic=self.recipe.stochastic_rounding, pairs=True)
        b = quantized(x.mT, rht=rht, pairs=True)
        return cpu_gemm.product_of_pairs(a.values, b.values, gemm_alpha(a.amax, b.amax), self.dtype)

    def _product_of_rows(self, rows: ScaledValues, pairs: ScaledValues) -> Tensor:
        return cpu_gemm.product_of_rows(rows.values, pairs.values, gemm_alpha(rows.amax, pairs.amax), self.dtype)


class CPUConvProducts(ConvProducts):
    """The products of a convolution or transposed convolution without groups."""

    @classmethod
    def takes(cls, x: Tensor, spec: ConvSpec, /) -> bool:
        """As `CPULinearProducts`, and no groups."""
        return spec.geometry.groups == 1 and _takes(x, spec)

    def forward(self, x: Tensor, weight: Tensor) -> Forward:
        """Multiply; see `ConvProducts.forward`."""
        spec, two_d = self.spec, self.recipe.two_d_weights
        kernel = cpu_conv.pair_kernel(weight, two_d=two_d, along_first=spec.transposed)
        saved = self._round_trip(x, weight) if self.decodes else (x, weight)
        if spec.transposed:
            y = cpu_conv.scatter(x, kernel, spec.image_shape, spec.geometry, self.dtype)
        else:
            y = cpu_conv.gather(x, kernel, spec.geometry, self.dtype)
        return Forward(y, saved, kernel if two_d else None)

    def input_gradient(self, dy: Tensor, weight: Tensor, kept: ScaledValues | None = None) -> Tensor:
        """Multiply backward; see `ConvProducts.input_gradient`."""
        spec, recipe = self.spec, self.recipe
        if kept is not None:
            pairs = swap_pairs(kept, weight.shape[0 if spec.transposed else 1])
        else:
            pairs = cpu_conv.pair_kernel(weight, two_d=recipe.two_d_weights, along_first=not spec.transposed)
        stochastic = recipe.stochastic_rounding
        if spec.transposed:
            return cpu_conv.gather(dy, pairs, spec.geometry, self.dtype, stochastic=stochastic)
        return cpu_conv.scatter(dy, pairs, spec.image_shape, spec.geometry, self.dtype, stochastic=stochastic)

    def weight_gradient(self, dy: Tensor, x: Tensor) -> Tensor:
        """Multiply backward; see `ConvProducts.weight_gradient`."""
        stochastic, transposed = self.recipe.stochastic_rounding, self.spec.transposed
        return cpu_conv_gradient.weight_product(
            *self.spec.sides(x, dy),
            self.spec.kernel_shape(x, dy),
            self.spec.geometry,
            self.dtype,
            rht=self.recipe.hadamard,
            image_stochastic=stochastic and transposed,
            pixels_stochastic=stochastic and not transposed,
        )

    def _round_trip(self, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Decode what the forward product saw of its operands."""
        transposed, amax = self.spec.transposed, None if self.spec.transposed else self.spec.geometry.amax_used(x)
        pixels = round_trip(x.movedim(1, -1), self.dtype, amax=amax)
        taps = weight.flatten(2).movedim(-1, 0)
        decoded = round_trip(taps.mT if transposed else taps, self.dtype, two_d=self.recipe.two_d_weights)
        kernel = (decoded.mT if transposed else decoded).movedim(0, -1).reshape(weight.shape)
        return pixels.movedim(-1, 1), kernel
