"""Transformer Engine's reference NVFP4 quantizer, loaded on a machine without CUDA.

``transformer_engine.pytorch`` cannot be imported without its compiled CUDA extension, but the reference quantizer is
one file of plain torch code. It is loaded here from the installed wheel by its path; the modules that it imports from
its package are replaced by stubs that hold just the names it needs. Nothing of it is copied into this repository.

``sys.modules`` is left as it was found, so loading the oracle cannot disturb code that looks for the real package.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

_PACKAGE = "transformer_engine.pytorch.custom_recipes"


class Oracle(NamedTuple):
    """What the reference gives for one tensor [..., K], flattened to [M, K] as TE does."""

    codes: Tensor
    """uint8 [M, K / 2], low nibble first."""
    scales: Tensor
    """float8_e4m3fn [M, K / 16]; for MXFP4 float32 [M, K / 32]."""
    amax: Tensor
    """float32 scalar."""

    @property
    def values(self) -> Tensor:
        """Code times block scale, float32 [M, K]."""
        codes = reference().cast_from_fp4x2(self.codes, torch.float32)
        return codes * self.scales.float().repeat_interleave(codes.shape[-1] // self.scales.shape[-1], -1)


def wheel_folder() -> Path:
    """The installed ``transformer_engine`` package; skips the calling test where the wheel is not installed."""
    try:
        return Path(str(importlib.metadata.distribution("transformer_engine").locate_file("transformer_engine")))
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("needs the transformer-engine wheel (pip install --no-deps transformer-engine)")


@cache
def reference() -> ModuleType:
    """TE's ``reference_nvfp4`` module."""
    folder = wheel_folder() / "pytorch" / "custom_recipes"
    stubs = {
        "transformer_engine": {},
        "transformer_engine.pytorch": {},
        "transformer_engine.pytorch.quantized_tensor": {
            "QuantizedTensorStorage": type("QuantizedTensorStorage", (), {}),
            "Quantizer": type("Quantizer", (), {"__init__": _quantizer_init}),
        },
        "transformer_engine.pytorch.tensor": {},
        "transformer_engine.pytorch.tensor.utils": {"is_custom": lambda _: True},
        _PACKAGE: {},
    }
    saved = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "transformer_engine"}
    for name in saved:
        del sys.modules[name]
    try:
        for name, content in stubs.items():
            module = ModuleType(name)
            module.__path__ = []
            vars(module).update(content)
            sys.modules[name] = module
        for name in ("reference_utils", "gemm", "reference_nvfp4"):
            spec = importlib.util.spec_from_file_location(f"{_PACKAGE}.{name}", folder / f"{name}.py")
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module
            setattr(sys.modules[_PACKAGE], name, module)
            spec.loader.exec_module(module)
        return module
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "transformer_engine"]:
            del sys.modules[name]
        sys.modules.update(saved)


def _quantizer_init(self: Any, *, rowwise: bool, columnwise: bool) -> None:
    self.rowwise_usage, self.columnwise_usage = rowwise, columnwise


def reference_quantizer(
    *,
    two_d: bool = False,
    rht: bool = False,
    rowwise: bool = True,
    columnwise: bool = True,
    four_over_six: bool = False,
) -> Any:
    """TE's ``NVFP4QuantizerRef``; ``rht`` rotates its column-wise copy only, as TE does."""
    module = reference()
    return module.NVFP4QuantizerRef(
        dtype=module.reference_utils.Fp4Formats.E2M1,
        quant_tile_shape=(16, 16) if two_d else (1, 16),
        with_rht=rht,
        rowwise=rowwise,
        columnwise=columnwise,
        nvfp4_use_4over6=four_over_six,
        nvfp4_e4m3_max=256 if four_over_six else 448,
    )


def quantize(x: Tensor, *, two_d: bool = False, rht: bool = False) -> Oracle:
    """Quantize along the last axis with TE's reference.

    A rotated tensor is TE's column-wise copy of the transposed one. The reference rotates in the dtype of its input and
    TE's kernels take BF16 only; for other dtypes the rotation here is TE's in FP32, rounded to BF16, and then quantized
    row-wise.
    """
    flat = x.reshape(-1, x.shape[-1]).contiguous()
    if rht and x.dtype is torch.bfloat16:
        result = reference_quantizer(rht=True).quantize(flat.t().contiguous())
        return Oracle(result.data_t, result.scale_t, result.global_amax_col.reshape(()))
    if rht:
        flat = reference_quantizer(rht=True)._apply_rht(flat.float()).bfloat16()
    result = reference_quantizer(two_d=two_d, columnwise=False).quantize(flat)
    # TE leaves the rows that it padded in the scales of 16x16 blocks, though not in the codes.
    return Oracle(result.data, result.scale[: len(flat)], result.global_amax_row.reshape(()))


def quantize_four_over_six(x: Tensor, *, two_d: bool = False) -> Oracle:
    """Quantize along the last axis with TE's adaptive block scales: mean absolute error, 256 as the global bound."""
    flat = x.reshape(-1, x.shape[-1]).contiguous()
    result = reference_quantizer(two_d=two_d, columnwise=False, four_over_six=True).quantize(flat)
    return Oracle(result.data, result.scale[: len(flat)], result.global_amax_row.reshape(()))


def quantize_mxfp4(x: Tensor, *, two_d: bool = False) -> Oracle:
    """Quantize whole blocks with TE's powers of two; ``quantize`` of its class fails in this mode, its inside does not.

    TE has no 32x32 blocks. Each is one long block here.
    """
    flat = x.reshape(-1, x.shape[-1]).contiguous()
    rows, columns = flat.shape
    blocked = flat.unflatten(0, (-1, 32)).unflatten(-1, (-1, 32)).transpose(1, 2).flatten(2) if two_d else flat
    codes, scales = reference().NVFP4QuantizerRef._quantize_blockwise_reference(
        blocked.flatten(0, -2).contiguous(), torch.ones(()), 1024 if two_d else 32, 1, pow_2_scales=True, eps=0.0
    )
    if two_d:
        codes = codes.view(rows // 32, columns // 32, 32, 16).transpose(1, 2).reshape(rows, columns // 2)
        scales = scales.view(rows // 32, columns // 32).repeat_interleave(32, 0)
    return Oracle(codes, scales, torch.ones(()))
