"""Several tensors in one pass against each tensor alone: the same numbers, whoever else is there."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from monai_fp4 import Recipe, convert
from monai_fp4.networks import build_network
from monai_fp4.quantization.layers import LAYER_TYPES
from monai_fp4.quantization.layers.attention_product import fp4_product
from monai_fp4.quantization.layers.separate import maxima, separate, separated

COUNTS = (1, 3, 2)
SCALES = (1.0, 1e-3, 57.0)


def tensors(*shape: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [s * torch.randn(n, *shape, generator=generator) for n, s in zip(COUNTS, SCALES, strict=True)]


LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(32, 48), (7, 32)),
    "convolution": (nn.Conv2d(16, 32, 3, padding=1), (16, 9, 9)),
    "convolution that skips pixels": (nn.Conv2d(16, 32, 1, stride=2), (16, 9, 9)),
    "groups": (nn.Conv2d(32, 32, 3, groups=2), (32, 6, 6)),
    "transposed": (nn.ConvTranspose2d(16, 32, 2, stride=2), (16, 5, 5)),
    "volume": (nn.Conv3d(16, 16, 3, padding=1), (16, 6, 6, 6)),
}
RECIPES: dict[str, Any] = {
    "sr_rht_2d": "sr_rht_2d",
    "chain_rule": "chain_rule",
    "mxfp4": {"format": "mxfp4"},
    "four_over_six": {"four_over_six": "all"},
}


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("kind", LAYERS)
@torch.no_grad()
def test_each_tensor_is_quantized_as_if_it_were_alone(kind: str, recipe: str) -> None:
    torch.manual_seed(1)
    module, shape = LAYERS[kind]
    layer = LAYER_TYPES[type(module)].from_float(copy.deepcopy(module), Recipe.from_config(RECIPES[recipe]))
    parts = tensors(*shape)
    alone = [layer(part) for part in parts]
    with separate(COUNTS):
        together = layer(torch.cat(parts)).split(COUNTS)
    for mine, wanted in zip(together, alone, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("windows", [1, 4])
@pytest.mark.parametrize("format", ["nvfp4", "mxfp4"])
@torch.no_grad()
def test_so_are_the_products_of_attention_with_the_windows_of_an_image_together(format: str, windows: int) -> None:
    recipe = Recipe.from_config({"attention": "fp4", "format": format})
    queries, keys = tensors(windows, 2, 9, 16), tensors(windows, 2, 7, 16)
    both = [(q.flatten(0, 1), 3 * k.flatten(0, 1)) for q, k in zip(queries, keys, strict=True)]
    with separate(COUNTS):
        together = fp4_product(torch.cat([q for q, _ in both]), torch.cat([k for _, k in both]), recipe)
    for mine, (q, k) in zip(together.split([n * windows for n in COUNTS]), both, strict=True):
        torch.testing.assert_close(mine, fp4_product(q, k, recipe), rtol=1e-5, atol=1e-6 * float(mine.abs().max()))


@pytest.mark.parametrize("arch", ["unet", "swin"])
@torch.no_grad()
def test_a_network_s_answer_does_not_depend_on_the_others_to_the_last_bit(arch: str) -> None:
    torch.manual_seed(0)
    network = convert(build_network(arch, "500k", 1, 1, image_size=(64, 64)), "sr_rht_2d")[0].eval()
    mine, others = torch.randn(1, 1, 64, 64), 100 * torch.randn(3, 1, 64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        with separate([1, 3]):
            with_others = network(torch.cat([mine, others]))[:1]
        with separate([1, 1, 2]):
            with_less = network(torch.cat([mine, others / 50]))[:1]
        mixed = network(torch.cat([mine, others]))[:1]
    assert torch.equal(with_others, with_less)
    assert not torch.equal(with_others, mixed)


@torch.no_grad()
def test_a_tensor_of_zeros_stays_zero_and_one_that_is_not_finite_is_no_scale() -> None:
    x = torch.stack([torch.zeros(32), torch.full((32,), torch.inf), torch.full((32,), torch.nan), torch.ones(32) * 2])
    with separate([1, 1, 1, 1]):
        found = maxima(x)
    assert found is not None and found.flatten().tolist() == [1, 1, 1, 2]
    layer = LAYER_TYPES[nn.Linear].from_float(nn.Linear(32, 16, bias=False), "full")
    with separate([1, 1]):
        assert torch.equal(layer(torch.zeros(2, 32)), torch.zeros(2, 16))


def test_one_tensor_and_what_is_no_multiple_of_the_images_are_left_as_they_are() -> None:
    x = torch.randn(5, 32)
    assert not separated() and maxima(x) is None
    with separate([5]):
        assert not separated() and maxima(x) is None
    with separate([1, 2]):
        assert separated() and maxima(x) is None
        with separate([]):
            assert not separated()
        assert separated()
    with pytest.raises(RuntimeError), separate([1, 1]):
        raise RuntimeError
    assert not separated()


def test_channels_last_images_are_read_in_any_order() -> None:
    x = torch.randn(4, 16, 5, 3)
    with separate([1, 3]):
        for given in (x, x.to(memory_format=torch.channels_last), x.permute(0, 2, 1, 3)):
            found = maxima(given)
            assert found is not None
            wanted = [x[0].abs().max(), *[x[1:].abs().max()] * 3]
            torch.testing.assert_close(found.flatten(), torch.stack(wanted), rtol=0, atol=0)
