"""The products of linear layers by the Triton kernels, on a GPU or in Triton's interpreter, against plain torch."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor
from triton_setup import DEVICE, needs_kernels

from monai_fp4.quantization.kernels import cpu_quantize, triton_quantize, triton_support
from monai_fp4.quantization.layers import NVFP4Linear
from monai_fp4.quantization.layers.conv_products import ConvProducts, ConvSpec
from monai_fp4.quantization.layers.geometry import ConvGeometry
from monai_fp4.quantization.layers.linear_products import LinearProducts, LinearSpec
from monai_fp4.quantization.layers.triton_products import TritonConvProducts, TritonLinearProducts
from monai_fp4.quantization.recipes import RECIPES

pytestmark = needs_kernels


def operands(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """x ``[T, K]``, W ``[N, K]`` and dy ``[T, N]`` of a layer under autocast."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(DEVICE)

    return draw(48, 64).bfloat16(), draw(32, 64), draw(48, 32).bfloat16()


def close(found: Tensor | None, expected: Tensor | None) -> None:
    assert found is not None and expected is not None
    assert found.dtype is expected.dtype and found.shape == expected.shape
    # The same operands, summed in another order: a rounding to BF16 may turn.
    assert (found.float() - expected.float()).norm() <= 1e-3 * expected.float().norm()


@pytest.mark.parametrize("name", ["full", "sr", "2d", "sr_rht_2d", "chain_rule"])
def test_products_are_those_of_plain_torch(name: str) -> None:
    spec = LinearSpec(RECIPES[name], torch.bfloat16)
    ours, plain = TritonLinearProducts(spec), LinearProducts(spec)
    x, weight, dy = operands()
    y, saved, kept = ours.forward(x, weight)
    expected, expected_saved, expected_kept = plain.forward(x, weight)
    close(y, expected)
    assert (kept is None) == (expected_kept is None)
    for found, want in zip(saved, expected_saved, strict=True):
        assert torch.equal(found, want)
    assert (saved[0] is x) == (name != "chain_rule")
    for needed in ((True, True), (True, False), (False, True)):
        torch.manual_seed(5)
        gradients = ours.gradients(dy, x, weight, kept, needed)
        torch.manual_seed(5)
        expected_gradients = plain.gradients(dy, x, weight, expected_kept, needed)
        for gradient, wanted_gradient, wanted in zip(gradients, expected_gradients, needed, strict=True):
            if wanted:
                close(gradient, wanted_gradient)
            else:
                assert gradient is None and wanted_gradient is None


@pytest.mark.parametrize("transposed", [False, True])
def test_sums_of_a_convolution_are_scaled_and_cast_to_the_same_bits(transposed: bool) -> None:
    geometry = ConvGeometry((3, 3), (1, 1), (1, 1), (1, 1), 1)
    spec = ConvSpec(geometry, RECIPES["sr_rht_2d"], torch.bfloat16, transposed, (2, 16, 8, 8))
    x, weight = torch.randn(2, 16, 8, 8).to(DEVICE), torch.randn(16, 16, 3, 3).to(DEVICE)
    assert torch.equal(TritonConvProducts(spec).forward(x, weight).y, ConvProducts(spec).forward(x, weight).y)


def test_a_failure_of_triton_leaves_the_work_to_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The layer gets the numbers of the next implementation, and Triton is not asked again."""

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("PTXAS error")

    monkeypatch.setattr(triton_support, "_failure", None)
    monkeypatch.setattr(triton_quantize, "row_operand", fail)
    monkeypatch.setattr(triton_quantize, "takes", lambda x, task: triton_support.failure() is None)
    monkeypatch.setattr(cpu_quantize, "takes", lambda x, task: False)
    layer = NVFP4Linear(64, 32, bias=False, recipe="full").to(DEVICE)
    x, _, _ = operands()
    with pytest.warns(RuntimeWarning, match="PTXAS error"):
        y = layer(x)
    assert torch.equal(y, LinearProducts(LinearSpec(RECIPES["full"], torch.bfloat16)).forward(x, layer.weight).y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(layer(x), y)
