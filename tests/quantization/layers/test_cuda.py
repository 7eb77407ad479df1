"""The products of linear layers by the Triton kernels, on a GPU or in Triton's interpreter, against plain torch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from triton_setup import DEVICE, needs_kernels

from monai_fp4.quantization.layers.linear_products import LinearProducts
from monai_fp4.quantization.recipes import RECIPES, Recipe

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
    from monai_fp4.quantization.layers.cuda_linear import CUDALinearProducts

    recipe: Recipe = RECIPES[name]
    ours, plain = CUDALinearProducts(recipe, torch.bfloat16), LinearProducts(recipe, torch.bfloat16)
    x, weight, dy = operands()
    y, kept = ours.forward(x, weight)
    expected, expected_kept = plain.forward(x, weight)
    close(y, expected)
    assert (kept is None) == (expected_kept is None)
    for found, want in zip(ours.decoded(x, weight), plain.decoded(x, weight), strict=True):
        assert torch.equal(found, want)
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


def test_a_failure_of_triton_leaves_the_work_to_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    from monai_fp4.quantization.kernels import triton_quantize
    from monai_fp4.quantization.layers import cuda_linear

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("PTXAS error")

    monkeypatch.setattr(triton_quantize, "_failure", None)
    monkeypatch.setattr(cuda_linear, "quantize", fail)
    x, weight, _ = operands()
    with pytest.warns(RuntimeWarning, match="PTXAS error"):
        y, _ = cuda_linear.CUDALinearProducts(RECIPES["full"], torch.bfloat16).forward(x, weight)
    assert torch.equal(y, LinearProducts(RECIPES["full"], torch.bfloat16).forward(x, weight)[0])
    assert not triton_quantize.available("cuda")[0]
