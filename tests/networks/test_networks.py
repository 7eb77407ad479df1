"""Networks: sizes, shapes, gradients, and that what was made faster computes what MONAI's code computes."""

from __future__ import annotations

import copy
import dataclasses
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.networks.blocks import SABlock
from monai.networks.nets import UNet, ViT
from monai.networks.nets.swin_unetr import SwinTransformer, WindowAttention, compute_mask
from torch import Tensor, nn

from monai_fp4.errors import ConfigError
from monai_fp4.networks import (
    ARCHITECTURES,
    SCALE_TOLERANCE,
    SCALES,
    build_network,
    check_image_size,
    find_cell,
    network_table,
    size_rule,
    token_attention,
)
from monai_fp4.networks.activations import quicken_prelu
from monai_fp4.networks.decoder import LightDecoder
from monai_fp4.networks.swin import SwinEncoder, _shift_mask
from monai_fp4.networks.table import SwinConfig
from monai_fp4.networks.window_attention import BiasedWindowAttention
from monai_fp4.quantization.conversion import convert, set_active
from monai_fp4.quantization.layers.conv3d_guard import guard_conv3d

CELLS = [pytest.param(cell.arch, cell.scale, id=f"{cell.arch}_{cell.scale}") for cell in network_table()]
SMALL = [(arch, "500k") for arch in ("unet", "swin", "vit")]


def small_swin(spatial_dims: int = 2) -> SwinEncoder:
    config = SwinConfig(16, (2, 2, 2), (2, 2, 4), 32, 32, patch_size=2, window_size=4)
    return SwinEncoder(config=config, in_channels=2, spatial_dims=spatial_dims)


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(("arch", "scale"), CELLS)
def test_parameter_count_is_within_three_percent_of_the_scale(arch: str, scale: str) -> None:
    scales = {"500k": 500_000, "4m": 4_000_000, "15m": 15_000_000}
    assert abs(count(build_network(arch, scale)) / scales[scale] - 1) <= 0.03
    assert dict(SCALES) == scales
    assert SCALE_TOLERANCE == 0.03


def test_docstring_states_the_parameter_counts_in_3d() -> None:
    rows = [line.split() for line in str(build_network.__doc__).splitlines()]
    stated = {row[0]: row[1:] for row in rows if row and row[0] in ARCHITECTURES and row[-1].endswith("M")}
    for cell in network_table():
        millions = count(build_network(cell.arch, cell.scale, image_size=(64,) * 3, spatial_dims=3)) / 1e6
        offered = [other.scale for other in network_table() if other.arch == cell.arch]
        figure = stated[cell.arch][offered.index(cell.scale)]
        digits = len(figure.removesuffix("M").partition(".")[2])
        assert figure == f"{millions:.{digits}f}M", (cell.arch, cell.scale)


def test_table_holds_every_cell_of_the_study_once() -> None:
    cells = [(cell.arch, cell.scale) for cell in network_table()]
    assert sorted(cells) == sorted(
        [(arch, scale) for arch in ("unet", "swin", "vit") for scale in SCALES] + [("swinunetr", "15m")]
    )
    assert {arch for arch, _ in cells} == set(ARCHITECTURES)


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


# ---- image sizes


@pytest.mark.parametrize(("arch", "scale"), CELLS)
def test_smallest_size_trains_with_a_single_image(arch: str, scale: str) -> None:
    side = size_rule(arch, scale).smallest
    network = build_network(arch, scale, image_size=(side, side))
    assert network(torch.randn(1, 3, side, side)).isfinite().all()


@settings(deadline=None)
@given(cell=st.sampled_from(network_table()), size=st.lists(st.integers(-3, 600), min_size=2, max_size=3))
def test_refused_size_names_the_nearest_that_fits(cell, size: list[int]) -> None:
    rule = size_rule(cell.arch, cell.scale)
    fitting = [side for side in range(rule.smallest, 1000) if side % rule.multiple == 0]
    if all(side in fitting for side in size):
        assert check_image_size(cell.arch, cell.scale, size, len(size)) == tuple(size)
        return
    with pytest.raises(ConfigError) as caught:
        check_image_size(cell.arch, cell.scale, size, len(size))
    nearest = [min(fitting, key=lambda fit, side=side: (abs(fit - side), -fit)) for side in size]
    assert str(caught.value).endswith(f"nearest size that it can take is {nearest}")
    assert str(list(size)) in str(caught.value)
    check_image_size(cell.arch, cell.scale, nearest, len(size))


@pytest.mark.parametrize("size", [(256,), (256, 256, 256), 256, "256", (256, 256.0), (True, 256), None])
def test_size_that_is_no_pair_of_integers_is_refused(size) -> None:
    with pytest.raises(ConfigError, match="2 whole numbers of pixels"):
        check_image_size("unet", "500k", size)


def test_build_network_checks_the_size_and_the_channels() -> None:
    with pytest.raises(ConfigError, match=r"nearest size that it can take is \[96, 256\]"):
        build_network("unet", "500k", image_size=(100, 256))
    with pytest.raises(ConfigError, match="spatial_dims must be 2 or 3, found 4"):
        build_network("unet", "500k", image_size=(64,) * 4, spatial_dims=4)
    with pytest.raises(ConfigError, match="in_channels must be"):
        build_network("unet", "500k", in_channels=0)
    with pytest.raises(ConfigError, match="out_channels must be"):
        build_network("unet", "500k", out_channels=1.5)  # type: ignore[arg-type]


# ---- names


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"architecture 'swim' is not known; the nearest names are 'swin'"):
        build_network("swim", "500k")
    with pytest.raises(ConfigError, match=r"scale '15M' is not known; the nearest names are '15m'"):
        build_network("swin", "15M")


@pytest.mark.parametrize("scale", ["500k", "4m"])
def test_swinunetr_exists_at_15m_only(scale: str) -> None:
    with pytest.raises(ConfigError, match=f"'swinunetr' exists at scale '15m' only, found scale '{scale}'"):
        find_cell("swinunetr", scale)


# ---- the same results as MONAI's code


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("tokens", [16, 9], ids=["whole", "shrunk"])
def test_window_attention_equals_monai(masked: bool, tokens: int) -> None:
    torch.manual_seed(0)
    theirs = WindowAttention(32, 4, (4, 4), qkv_bias=True)
    ours = BiasedWindowAttention(32, 4, (4, 4), qkv_bias=True)
    ours.load_state_dict(theirs.state_dict())
    side = int(tokens**0.5)
    mask = compute_mask([2 * side] * 2, (side, side), (side // 2,) * 2, torch.device("cpu")) if masked else None
    x = torch.randn(12, tokens, 32)
    for amp in (False, True):
        gradients, outputs = [], []
        for module in (theirs, ours):
            module.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=amp):
                outputs.append(module(x, mask))
            outputs[-1].float().square().sum().backward()
            gradients.append([p.grad.clone() for p in module.parameters()])
        assert outputs[0].dtype == outputs[1].dtype
        torch.testing.assert_close(outputs[1], outputs[0])
        torch.testing.assert_close(gradients[1], gradients[0], rtol=2e-2 if amp else 1e-5, atol=1e-2 if amp else 1e-5)


@pytest.mark.parametrize("size", [(32, 32), (24, 40), (8, 8), (16, 16, 24)], ids=str)
def test_swin_encoder_equals_monai_before_each_merging(size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    ours = small_swin(len(size)).eval()
    dims = len(size)
    theirs = SwinTransformer(
        2, 16, (4,) * dims, (2,) * dims, (2, 2, 2, 1), (2, 2, 4, 4), spatial_dims=dims, downsample="mergingv2"
    ).eval()
    missing, unexpected = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert unexpected == []
    assert all(name.startswith(("layers3.0.downsample", "layers4")) for name in missing)
    captured: list[Tensor] = []
    for stage in (theirs.layers1[0], theirs.layers2[0], theirs.layers3[0]):
        stage.blocks[-1].register_forward_hook(lambda module, args, output: captured.append(output))
    x = torch.randn(2, 2, *size)
    with torch.no_grad():
        theirs(x)
        outputs = ours(x)
    assert len(outputs) == len(captured) == 3
    for output, expected in zip(outputs, captured, strict=True):
        torch.testing.assert_close(output, F.layer_norm(expected, expected.shape[-1:]))


def test_mask_made_in_inference_mode_serves_training() -> None:
    _shift_mask.cache_clear()
    encoder = small_swin()
    x = torch.randn(1, 2, 24, 24)
    with torch.inference_mode():
        first = [output.clone() for output in encoder(x)]
    # An inference tensor in the cache would fail in training wherever autograd saves it.
    assert not _shift_mask((12, 12), (4, 4), (2, 2), x.device).is_inference()
    made = _shift_mask.cache_info().misses
    outputs = encoder(x)
    sum(output.square().mean() for output in outputs).backward()
    assert _shift_mask.cache_info().misses == made
    torch.testing.assert_close([output.detach() for output in outputs], first)


def test_vit_encoder_equals_monai() -> None:
    torch.manual_seed(0)
    config = find_cell("vit", "500k").config
    ours = build_network("vit", "500k", image_size=(64, 96)).encoder
    theirs = ViT(
        3, (64, 96), config.patch_size, config.width, 4 * config.width, config.taps[-1], config.num_heads,
        pos_embed_type="sincos", spatial_dims=2, qkv_bias=True,
    )  # fmt: skip
    missing, unexpected = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert unexpected == []
    assert all("norm_cross_attn" in name or "position_embeddings" in name for name in missing)
    x = torch.randn(2, 3, 64, 96)
    last, hidden = theirs(x)
    outputs = ours(x)
    torch.testing.assert_close(outputs[-1].flatten(1, 2), last, rtol=1e-4, atol=1e-5)
    expected = F.layer_norm(hidden[0], hidden[0].shape[-1:])
    torch.testing.assert_close(outputs[0].flatten(1, 2), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("amp", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["first", "last"])
def test_prelu_with_one_slope_equals_torch(amp: bool, layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    ours, theirs = quicken_prelu(nn.Sequential(nn.PReLU(init=0.3))), nn.Sequential(nn.PReLU(init=0.3))
    x = torch.randn(2, 5, 8, 9)
    x[0, 0, 0] = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, 1e-40, -1e-40, 1e30, -1e30, 1])
    upstream = torch.randn(2, 5, 8, 9)
    outputs, gradients, slopes = [], [], []
    for module in (ours, theirs):
        leaf = x.clone(memory_format=layout).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            outputs.append(module(leaf))
        outputs[-1].backward(upstream.to(outputs[-1].dtype))
        gradients.append(leaf.grad)
        slopes.append(module[0].weight.grad)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=amp):
            torch.testing.assert_close(module(x), outputs[-1].detach(), rtol=0, atol=0)
    assert type(ours[0]) is not nn.PReLU
    assert outputs[0].dtype == outputs[1].dtype == (torch.bfloat16 if amp else torch.float32)
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=0)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)
    assert slopes[0].shape == slopes[1].shape and slopes[0].dtype == slopes[1].dtype
    finite = x.isfinite() & (x.abs() < 1e20)  # the sums above hold infinities; this one has an answer to compare with
    small = torch.where(finite, x, 0.0)
    for module in (ours, theirs):
        module.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            (module(small).float() * upstream).sum().backward()
    expected = (upstream.double() * small.double().clamp(max=0)).sum().view(1).float()
    torch.testing.assert_close(ours[0].weight.grad, expected, rtol=1e-2 if amp else 1e-5, atol=1e-5)
    torch.testing.assert_close(theirs[0].weight.grad, expected, rtol=1e-2 if amp else 1e-5, atol=1e-5)


def test_prelu_with_one_slope_can_be_differentiated_twice() -> None:
    torch.manual_seed(0)
    x, upstream = torch.randn(3, 4, 5, dtype=torch.double), torch.randn(3, 4, 5, dtype=torch.double)
    ours, theirs = quicken_prelu(nn.Sequential(nn.PReLU(init=0.3))).double(), nn.PReLU(init=0.3).double()

    def second_order(module: nn.Module) -> tuple[torch.Tensor, ...]:
        leaf, dy = x.clone().requires_grad_(), upstream.clone().requires_grad_()
        wanted = (leaf, *module.parameters())
        dx, da = torch.autograd.grad(module(leaf), wanted, dy, create_graph=True)
        return dx, da, *torch.autograd.grad((dx**2).sum() + (dx * x).sum() + da**2, (*wanted, dy))

    for found, expected in zip(second_order(ours), second_order(theirs), strict=True):
        torch.testing.assert_close(found, expected)
    leaf = x.clone().requires_grad_()
    assert torch.autograd.gradgradcheck(ours, leaf)


@pytest.mark.parametrize("amp", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("size", [(32, 48), (32, 32, 32)], ids=["2d", "3d"])
def test_unet_is_monais(size: tuple[int, ...], amp: bool) -> None:
    torch.manual_seed(1)
    ours = build_network("unet", "4m", image_size=size, spatial_dims=len(size))
    torch.manual_seed(1)
    theirs = UNet(len(size), 3, 1, (48, 96, 144, 192, 288), (2,) * 4, num_res_units=2, norm="batch")
    assert {name: value.shape for name, value in ours.state_dict().items()} == {
        name: value.shape for name, value in theirs.state_dict().items()
    }
    x = torch.randn(2, 3, *size)
    outputs = []
    for network in map(guard_conv3d, (ours, theirs)):
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            outputs.append(network(x))
        outputs[-1].float().square().mean().backward()
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=0)
    for (name, ours_p), theirs_p in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(ours_p, theirs_p, rtol=0, atol=0)
        largest = theirs_p.grad.abs().max().item()
        torch.testing.assert_close(ours_p.grad, theirs_p.grad, rtol=0, atol=largest * (1e-2 if amp else 1e-5), msg=name)


def attention_by_the_book(projected: Tensor, heads: int, scale: float) -> Tensor:
    q, k, v = projected.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    return ((q @ k.mT * scale).softmax(-1) @ v).transpose(1, 2).flatten(2)


@settings(deadline=None, max_examples=40)
@given(
    shape=st.tuples(*[st.integers(1, most) for most in (3, 5, 40, 9)]),
    scores=st.sampled_from([1, 500, 2**20]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 2**31),
)
def test_cached_attention_is_softmax_attention(
    shape: tuple[int, ...], scores: int, dtype: torch.dtype, seed: int
) -> None:
    batch, heads, tokens, width = shape
    torch.manual_seed(seed)
    given = torch.randn(batch, tokens, 3 * heads * width).to(dtype)
    upstream = torch.randn(batch, tokens, heads * width).to(dtype)
    ours, exact = given.clone().requires_grad_(), given.double().requires_grad_()
    with mock.patch.object(token_attention, "_SCORES", scores):
        attended = token_attention.cached_attention(ours, heads, 0.3)
        attended.backward(upstream)
    expected = attention_by_the_book(exact, heads, 0.3)
    expected.backward(upstream.double())
    assert attended.dtype == ours.grad.dtype == dtype
    for one, other in ((attended, expected), (ours.grad, exact.grad)):
        tolerance = (3e-2 if dtype is torch.bfloat16 else 1e-5) * max(1.0, other.abs().max().item())
        torch.testing.assert_close(one.double(), other, rtol=0, atol=tolerance)


def test_a_torch_without_onednn_has_no_bf16_products() -> None:
    """As on a Mac, where the operator that would be asked does not exist."""
    token_attention._cpu_multiplies_bf16.cache_clear()
    with mock.patch.object(torch.backends.mkldnn, "is_available", return_value=False):
        assert not token_attention._cpu_multiplies_bf16()
    token_attention._cpu_multiplies_bf16.cache_clear()


@pytest.mark.parametrize(("tokens", "quick"), [(64, True), (2049, False)])
@pytest.mark.parametrize("amp", [False, True], ids=["fp32", "bf16"])
def test_token_attention_equals_monais_block(tokens: int, quick: bool, amp: bool) -> None:
    torch.manual_seed(0)
    theirs = SABlock(32, 2, qkv_bias=True)
    ours = copy.deepcopy(theirs)
    ours.__class__ = token_attention.TokenAttention
    x = torch.randn(1, tokens, 32)
    outputs, gradients = [], []
    supported = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    with mock.patch.object(token_attention, "cached_attention", wraps=token_attention.cached_attention) as spy:
        for block in (theirs, ours):
            with torch.autocast("cpu", torch.bfloat16, enabled=amp):
                outputs.append(block(x))
            outputs[-1].float().square().sum().backward()
            gradients.append([parameter.grad for parameter in block.parameters()])
    assert spy.called == (quick and amp and supported)
    assert outputs[0].dtype == outputs[1].dtype
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-2 if amp else 1e-5, atol=1e-2 if amp else 1e-5)
    for one, other in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=other.abs().max().item() * (2e-2 if amp else 1e-4))


def test_vit_draws_the_weights_of_monais() -> None:
    torch.manual_seed(4)
    ours = build_network("vit", "500k", image_size=(32, 32)).encoder
    torch.manual_seed(4)
    theirs = ViT(3, (32, 32), 8, 96, 384, 3, 3, pos_embed_type="sincos", spatial_dims=2, qkv_bias=True).state_dict()
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=0)


def test_vit_weights_do_not_depend_on_the_image_size() -> None:
    network = build_network("vit", "500k", image_size=(64, 64))
    build_network("vit", "500k", image_size=(128, 96)).load_state_dict(network.state_dict())
    assert not any("norm_cross_attn" in name for name in network.state_dict())


# ---- the decoder


@pytest.mark.parametrize(("arch", "scale"), [param.values for param in CELLS if param.values[0] in ("swin", "vit")])
def test_no_convolution_of_the_decoder_runs_at_full_resolution(arch: str, scale: str) -> None:
    network = build_network(arch, scale, image_size=(64, 64)).eval()
    sides: dict[str, int] = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda m, args, out, name=name: sides.update({name: out.shape[-1]}))
    with torch.no_grad():
        network(torch.zeros(1, 3, 64, 64))
    assert len(sides) >= 4
    assert max(sides.values()) == 32


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_head_gives_each_pixel_its_own_logit(spatial_dims: int) -> None:
    torch.manual_seed(0)
    decoder = LightDecoder(
        spatial_dims=spatial_dims, in_channels=1, out_channels=2, feature_channels=[8, 16], feature_strides=[4, 8],
        width=32, detail_width=16,
    ).eval()  # fmt: skip
    size = (16,) * spatial_dims
    features = [torch.randn(1, *(side // s for side in size), c) for c, s in ((8, 4), (16, 8))]
    logits = decoder(torch.randn(1, 1, *size), features)
    assert logits.shape == (1, 2, *size)
    corner = logits[(0, 1, *[slice(0, 2)] * spatial_dims)]
    assert corner.unique().numel() == 2**spatial_dims


@pytest.mark.parametrize("tap", range(2))
def test_decoder_reads_every_feature_and_the_image(tap: int) -> None:
    torch.manual_seed(0)
    decoder = LightDecoder(
        spatial_dims=2, in_channels=1, out_channels=1, feature_channels=[8, 8], feature_strides=[8, 8], width=32,
        detail_width=16,
    ).eval()  # fmt: skip
    features = [torch.randn(1, 4, 4, 8) for _ in range(2)]
    image = torch.randn(1, 1, 32, 32)
    before = decoder(image, features)
    assert not torch.equal(before, decoder(image + torch.randn_like(image), features))
    features[tap] = torch.randn(1, 4, 4, 8)
    assert not torch.equal(before, decoder(image, features))


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


# ---- what training loops do with a network


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


def test_table_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        network_table()[0].arch = "other"  # type: ignore[misc]
