"""NVFP4 layers: drop-in subclasses of torch's linear, convolution and transposed convolution.

They hold the float layer's parameters (master weights stay in high precision) and quantize the operands of their three
GEMMs on the way, as a `monai_fp4.quantization.recipes.Recipe` says. Where to read on:

* `operands`: which operand of which GEMM is quantized how under which recipe;
* `gemm`: the table of implementations that multiply, and their autograd function;
* `operators`, `custom_operator` and `flops`: the same as operators of torch, for compilers, tracers and counters;
* `layer_products` and `linear_products`: the three GEMMs of a linear layer;
* `conv_products`, `geometry` and `products`: the same for convolutions, without ever building the im2col matrix;
* `cpu_products`, `cpu_conv`, `cpu_conv_gradient` and `triton_products`: the same numbers by the compiled kernels;
* `base`, `linear`, `conv`, `transpose`: the modules; `history`: what each remembers, its random stream among it;
* `subclasses`: which of them takes the place of a layer of torch's, of a subclass, or of a class that was registered.
"""

from __future__ import annotations

from monai_fp4.quantization.layers.base import NVFP4Layer
from monai_fp4.quantization.layers.conv import NVFP4Conv1d, NVFP4Conv2d, NVFP4Conv3d
from monai_fp4.quantization.layers.history import seed_rounding
from monai_fp4.quantization.layers.linear import NVFP4Linear
from monai_fp4.quantization.layers.subclasses import (
    LAYER_TYPES,
    channels,
    fp4_layer,
    overridden,
    register_layer,
    sharded_class,
)
from monai_fp4.quantization.layers.transpose import NVFP4ConvTranspose1d, NVFP4ConvTranspose2d, NVFP4ConvTranspose3d

__all__ = [
    "LAYER_TYPES",
    "NVFP4Conv1d",
    "NVFP4Conv2d",
    "NVFP4Conv3d",
    "NVFP4ConvTranspose1d",
    "NVFP4ConvTranspose2d",
    "NVFP4ConvTranspose3d",
    "NVFP4Layer",
    "NVFP4Linear",
    "channels",
    "fp4_layer",
    "overridden",
    "register_layer",
    "seed_rounding",
    "sharded_class",
]
