"""NVFP4 tensors in the form that they are stored in, and the way there and back.

:func:`quantize` packs two codes into a byte. :func:`fake_quantize` is ``quantize(x, ...).dequantize(x.dtype)`` in one
pass, without packing: the value that a tensor has after a round trip through FP4.

>>> import torch
>>> x = torch.tensor([[0.1, -3.0, 6.0, 2.2] * 8])
>>> packed = quantize(x)
>>> packed.codes.shape, packed.scales.shape, packed.amax
(torch.Size([1, 16]), torch.Size([1, 2]), tensor(6.))
>>> packed.dequantize(torch.float32)[0, :4]
tensor([ 0., -3.,  6.,  2.])
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from monai_fp4.quantization.formats.blocks import (
    BLOCK_SIZE,
    block_bits,
    check_blocks,
    decode_factors,
    pad_last,
    prepare_blocks,
)
from monai_fp4.quantization.formats.philox import draw_key
from monai_fp4.quantization.formats.rounding import E2M1_GRID, round_e2m1, round_e2m1_stochastic
from monai_fp4.quantization.kernels import quantizers
from monai_fp4.quantization.kernels.task import Task

__all__ = ["NVFP4Tensor", "fake_quantize", "quantize"]

# The magnitude of a code is 0 to 6 in halves: twice a magnitude is a row of this table.
_CODE_OF_HALVES = torch.tensor([0, 1, 2, 3, 4, 0, 5, 0, 6, 0, 0, 0, 7], dtype=torch.uint8, device="cpu")
_SIGN_BIT = 8


@dataclass(frozen=True, slots=True, eq=False)
class NVFP4Tensor:
    """A packed NVFP4 tensor, quantized along its last axis.

    A NaN has no code. A tensor that held one has a NaN ``amax`` and NaN in every scale, and decodes to NaN throughout.

    Attributes:
        codes: uint8 ``[..., ceil(K / 2)]``. The low nibble is the even column; a code is ``sign << 3 | index`` with the
            index into 0, 0.5, 1, 1.5, 2, 3, 4, 6. A negative number that rounds to zero keeps its sign bit, as in
            Transformer Engine.
        scales: float8_e4m3fn ``[..., ceil(K / 16)]``, one for 16 codes; with 16 x 16 blocks each stands in 16 rows.
        amax: the largest magnitude of the tensor, an FP32 scalar.
        shape: of the decoded tensor.
    """

    codes: Tensor
    scales: Tensor
    amax: Tensor
    shape: torch.Size

    @torch.no_grad()
    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Decode: ``q * ((s * amax) * (1 / 2688))`` in FP32, then a cast. Zero decodes to +0, whatever its sign bit.

        Args:
            dtype: of the result.

        Returns:
            The tensor, of shape ``self.shape``. If it was quantized with ``rht``, these are the values of the *rotated*
            tensor, which are what a matrix product sees (its other operand is rotated too, which cancels), with K
            padded to a multiple of 16.
        """
        grid = torch.tensor(E2M1_GRID, dtype=torch.float32, device=self.codes.device)
        table = torch.cat([grid, 0.0 - grid])
        nibbles = torch.stack([self.codes & 0xF, self.codes >> 4], dim=-1).flatten(-2)
        blocks = pad_last(table[nibbles.int()], BLOCK_SIZE).unflatten(-1, (self.scales.shape[-1], BLOCK_SIZE))
        decoded = blocks * decode_factors(self.scales.float().unsqueeze(-1), self.amax)
        return decoded.flatten(-2)[..., : self.shape[-1]].to(dtype)


@torch.no_grad()
def quantize(
    x: Tensor,
    two_d: bool = False,
    rht: bool = False,
    stochastic: bool = False,
    generator: torch.Generator | None = None,
) -> NVFP4Tensor:
    """Quantize a tensor to NVFP4 along its last axis, bit-equal to Transformer Engine's reference quantizer.

    Args:
        x: FP32, BF16 or FP16, shape ``[..., K]``, any strides. K is padded with zeros to a multiple of 16 inside.
        two_d: 16 x 16 blocks over the last two axes (weights) rather than 1 x 16.
        rht: rotate each 16 numbers with the random Hadamard transform first, see
            :func:`monai_fp4.quantization.numerics.rotate`.
        stochastic: round stochastically rather than to nearest.
        generator: what the key of the random bits is drawn from, see :mod:`monai_fp4.quantization.formats.philox`; by
            default torch's CPU generator.

    Returns:
        The packed tensor.

    Raises:
        ConfigError: the dtype is none of the three, ``x`` has too few axes, or ``two_d`` and ``rht`` are both set.
    """
    quantized = prepare_blocks(x, two_d=two_d, rht=rht)
    scaled = quantized.blocks * quantized.encode
    if stochastic:
        rounded = round_e2m1_stochastic(scaled, block_bits(scaled, draw_key(generator)))
    else:
        rounded = round_e2m1(scaled)
    # NaN becomes code 0 here; its block's scale is NaN.
    halves = (rounded.abs() * 2).nan_to_num_(0.0).int()
    # Not the sign bit of the number: like TE, a scaled -0.0 gives code 0, anything below zero a negative code.
    codes = _CODE_OF_HALVES.to(x.device)[halves] | ((scaled < 0) * _SIGN_BIT).to(torch.uint8)
    codes = codes.flatten(-2)
    packed = codes[..., ::2] | (codes[..., 1::2] << 4)
    return NVFP4Tensor(
        codes=packed[..., : -(-quantized.length // 2)].contiguous(),
        scales=quantized.scales.squeeze(-1).contiguous().to(torch.float8_e4m3fn),
        amax=quantized.amax,
        shape=torch.Size((*x.shape[:-1], quantized.length)),
    )


@torch.no_grad()
def fake_quantize(
    x: Tensor,
    two_d: bool = False,
    rht: bool = False,
    stochastic: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Quantize and decode in one pass, in the dtype of ``x``.

    Equal to ``quantize(...).dequantize(x.dtype)`` bit for bit, given the same random bits. Takes the arguments of
    :func:`quantize` and raises what it raises. No gradient flows through it.

    Returns:
        The decoded tensor in the shape of ``x``; with ``rht`` the rotated values, the last axis padded to a multiple
        of 16.
    """
    check_blocks(x, two_d=two_d, rht=rht)
    key = draw_key(generator) if stochastic else None
    task = Task(two_d=two_d, rht=rht, key=key, dtype=x.dtype, decoded=True, with_scales=False)
    return quantizers.quantize(x, task).values
