"""The products of linear layers by the Triton kernels, in Triton's interpreter, against plain torch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from triton_setup import DEVICE, needs_kernels

from monai_fp4.layers import linear_products
from monai_fp4.recipes import RECIPES, Recipe

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
    from monai_fp4.layers import cuda_linear

    recipe: Recipe = RECIPES[name]
    x, weight, dy = operands()
    y, kept = cuda_linear.forward(x, weight, recipe, torch.bfloat16)
    expected, expected_kept = linear_products.forward(x, weight, recipe, torch.bfloat16)
    close(y, expected)
    assert (kept is None) == (expected_kept is None)
    for ours, plain in zip(
        cuda_linear.decoded(x, weight, recipe, torch.bfloat16),
        linear_products.decoded(x, weight, recipe, torch.bfloat16),
        strict=True,
    ):
        assert torch.equal(ours, plain)
    for needed in ((True, True), (True, False), (False, True)):
        torch.manual_seed(5)
        ours = cuda_linear.gradients(dy, x, weight, kept, recipe, torch.bfloat16, needed)
        torch.manual_seed(5)
        plain = linear_products.gradients(dy, x, weight, expected_kept, recipe, torch.bfloat16, needed)
        for found, want, wanted in zip(ours, plain, needed, strict=True):
            if wanted:
                close(found, want)
            else:
                assert found is None and want is None


def test_a_failure_of_triton_leaves_the_work_to_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    from monai_fp4.kernels import triton_quantize
    from monai_fp4.layers import cuda_linear

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("PTXAS error")

    monkeypatch.setattr(triton_quantize, "_failure", None)
    monkeypatch.setattr(cuda_linear, "quantize", fail)
    x, weight, _ = operands()
    with pytest.warns(RuntimeWarning, match="PTXAS error"):
        y, _ = cuda_linear.forward(x, weight, RECIPES["full"], torch.bfloat16)
    assert torch.equal(y, linear_products.forward(x, weight, RECIPES["full"], torch.bfloat16)[0])
    assert not triton_quantize.available("cuda")[0]
