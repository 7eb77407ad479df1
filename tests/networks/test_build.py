"""Every network of the table: shapes, gradients, and what training loops do with a network."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from monai_fp4 import convert
from monai_fp4.errors import ConfigError
from monai_fp4.networks import ARCHITECTURES, build_network, find_cell, network_table
from monai_fp4.quantization import set_active

CELLS = [
    pytest.param(cell.arch, cell.scale, id=f"{cell.arch}_{cell.scale}")
    for cell in network_table()
    if not cell.config.of_the_paper
    or cell.scale == "500k"  # the larger ones are tests/networks/test_paper_networks.py's
]
SMALL = [(arch, "500k") for arch in ("unet", "swin", "vit")]


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_docstring_states_the_parameter_counts_in_3d() -> None:
    rows = [line.split() for line in str(build_network.__doc__).splitlines()]
    stated = {row[0]: row[1:] for row in rows if row and row[0] in ARCHITECTURES and row[-1].endswith("M")}
    for cell in network_table():
        if cell.config.of_the_paper:
            continue  # 2D only
        millions = count(build_network(cell.arch, cell.scale, image_size=(64,) * 3, spatial_dims=3)) / 1e6
        offered = [other.scale for other in network_table() if other.arch == cell.arch]
        figure = stated[cell.arch][offered.index(cell.scale)]
        digits = len(figure.removesuffix("M").partition(".")[2])
        assert figure == f"{millions:.{digits}f}M", (cell.arch, cell.scale)


@pytest.mark.parametrize("amp", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("arch", "scale"), CELLS)
def test_every_parameter_gets_a_gradient(arch: str, scale: str, amp: bool) -> None:
    torch.manual_seed(0)
    network = build_network(arch, scale, image_size=(64, 64))
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        logits = network(torch.randn(2, 3, 64, 64))
    logits.float().square().mean().backward()
    unused = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert unused == []
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize(("arch", "scale"), [*SMALL, ("swinunetr", "15m")])
@pytest.mark.parametrize("size", [(64, 96), (64, 64, 64)], ids=["2d", "3d"])
def test_logits_have_the_image_size_for_any_channels(arch: str, scale: str, size: tuple[int, ...]) -> None:
    network = build_network(arch, scale, in_channels=5, out_channels=3, image_size=size, spatial_dims=len(size))
    with torch.no_grad():
        assert network.eval()(torch.randn(1, 5, *size)).shape == (1, 3, *size)


def test_three_dimensional_networks_train() -> None:
    for arch, scale in SMALL:
        network = build_network(arch, scale, in_channels=1, image_size=(32, 32, 32), spatial_dims=3)
        network(torch.randn(1, 1, 32, 32, 32)).square().mean().backward()
        assert all(p.grad is not None and p.grad.any() for p in network.parameters()), arch


@pytest.mark.parametrize(("arch", "scale"), CELLS)
def test_smallest_size_trains_with_a_single_image(arch: str, scale: str) -> None:
    side = find_cell(arch, scale).config.size_rule.smallest
    network = build_network(arch, scale, image_size=(side, side))
    assert network(torch.randn(1, 3, side, side)).isfinite().all()


def test_build_network_checks_the_size_and_the_channels() -> None:
    with pytest.raises(ConfigError, match=r"nearest size that it can take is \[96, 256\]"):
        build_network("unet", "500k", image_size=(100, 256))
    with pytest.raises(ConfigError, match="spatial_dims of unet_500k must be 2 or 3, found 4"):
        build_network("unet", "500k", image_size=(64,) * 4, spatial_dims=4)
    with pytest.raises(ConfigError, match="in_channels must be"):
        build_network("unet", "500k", in_channels=0)
    with pytest.raises(ConfigError, match="out_channels must be"):
        build_network("unet", "500k", out_channels=1.5)  # type: ignore[arg-type]


@pytest.mark.parametrize(("arch", "scale"), [param.values for param in CELLS if param.values[0] in ("swin", "vit")])
def test_transformers_have_widths_that_fp4_blocks_divide(arch: str, scale: str) -> None:
    network = build_network(arch, scale)
    odd = [
        name
        for name, module in network.named_modules()
        if (isinstance(module, nn.Linear) and (module.in_features % 32 or module.out_features % 32))
        or (isinstance(module, nn.Conv2d) and module.in_channels > 3 and module.in_channels % 32)
        or (isinstance(module, nn.Conv2d) and module.out_channels > 4 and module.out_channels % 32)
    ]
    assert odd == []


@pytest.mark.parametrize(("arch", "scale"), SMALL)
def test_networks_copy_save_and_load(arch: str, scale: str) -> None:
    torch.manual_seed(0)
    network = build_network(arch, scale, image_size=(64, 64)).eval()
    other = build_network(arch, scale, image_size=(64, 64)).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = network(x)
        assert not torch.equal(other(x), expected)
        other.load_state_dict(network.state_dict())
        torch.testing.assert_close(other(x), expected)
        torch.testing.assert_close(copy.deepcopy(network)(x), expected)


@pytest.mark.parametrize(("arch", "scale"), SMALL)
def test_memory_format_does_not_change_the_result(arch: str, scale: str) -> None:
    torch.manual_seed(0)
    network = build_network(arch, scale, image_size=(64, 64)).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = network(x)
        actual = network.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("arch", ["swin", "vit"])
def test_convert_leaves_stems_and_head_and_finds_the_attention(arch: str) -> None:
    torch.manual_seed(0)
    network = build_network(arch, "500k", in_channels=32, out_channels=8, image_size=(64, 64)).eval()
    x = torch.randn(1, 32, 64, 64)
    with torch.no_grad():
        expected = network(x)
        network, report = convert(network, {"base": "sr_rht", "attention": "fp4"})
        stem = "encoder.patch_embed.proj" if arch == "swin" else "encoder.patch_embedding.patch_embeddings"
        actions = {layer.name: str(layer.action) for layer in report.layers}
        assert actions[stem] == actions["decoder.detail.conv"] == actions["decoder.head"] == "left"
        products = [layer for layer in report.layers if layer.kind in ("BiasedWindowAttention", "TokenAttention")]
        assert products
        assert all(layer.action == "swapped" for layer in products)
        assert not torch.equal(network(x), expected)
        set_active(network, False)
        torch.testing.assert_close(network(x), expected)
