"""Which layers are taken for output heads: by the user's word, the network's, a forward pass, or a guess."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from monai.networks.nets import AutoencoderKL, DynUNet, SegResNetDS, SwinUNETR, VarAutoEncoder, ViT
from stand_ins import DeepLab, SameConv2d, WindowBlock, image
from torch import Tensor, nn

from monai_fp4.errors import ConfigError
from monai_fp4.quantization import convert
from monai_fp4.quantization.heads import find_special_layers


class HeadFirst(nn.Module):
    """Defines its head before everything else."""

    def __init__(self, classes: int = 20) -> None:
        super().__init__()
        self.head, self.body = nn.Linear(32, classes), nn.Sequential(nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 32))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class QKVLast(nn.Module):
    """A backbone whose last layer in module order projects to queries, keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.proj, self.qkv = nn.LayerNorm(32), nn.Linear(32, 32), nn.Linear(32, 96)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.proj(self.qkv(x)[..., :32]))


class TiedLanguageModel(nn.Module):
    """Its last layer has the weight of the table look-up, in a width that another layer takes in."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.body, self.logits = nn.Embedding(64, 32), nn.Linear(32, 32), nn.Linear(32, 64, bias=False)
        self.logits.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(self.body(x @ self.words.weight[:32]))


class Modulated(nn.Module):
    """As a diffusion transformer: a layer computes three shifts and three scales, and the answer has few channels."""

    def __init__(self) -> None:
        super().__init__()
        self.modulation, self.mlp, self.answer = nn.Linear(32, 192), nn.Linear(32, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        shift, scale, *_ = self.modulation(x).chunk(6, -1)
        return self.answer(self.mlp(shift + scale * x))


class Painter(nn.Module):
    """As a generator: the result of its first layer is an image."""

    def __init__(self) -> None:
        super().__init__()
        self.canvas, self.body, self.answer = nn.Linear(32, 2048), nn.Conv2d(32, 32, 3), nn.Conv2d(32, 20, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.answer(self.body(self.canvas(x).unflatten(-1, (32, 8, 8))))


class Subclasses(nn.Module):
    """Its convolutions are subclasses, and only the head is one of torch's own."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(SameConv2d(3, 32, 3), SameConv2d(32, 32, 3)), nn.Conv2d(32, 24, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def dynunet() -> nn.Module:
    return DynUNet(2, 3, 20, (3, 3, 3, 3), (1, 2, 2, 2), (2, 2, 2), deep_supervision=True, deep_supr_num=2)


DYNUNET = {"output_block.conv.conv", "deep_supervision_heads.0.conv.conv", "deep_supervision_heads.1.conv.conv"}
SEGRESNET = {"up_layers.0.head", "up_layers.1.head", "up_layers.2.head"}
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], set[str]]] = {
    "deep supervision": (dynunet, (1, 3, 32, 32), DYNUNET),
    "deep supervision in each level": (
        lambda: SegResNetDS(2, 16, in_channels=3, out_channels=24, dsdepth=3), (1, 3, 32, 32), SEGRESNET
    ),
    "an auxiliary head": (DeepLab, (1, 3, 16, 16), {"classifier", "aux_classifier"}),
    "a head defined first": (HeadFirst, (4, 32), {"head"}),
    "a backbone without a head": (
        lambda: ViT(3, (32, 32), (8, 8), 48, 96, 2, 3, spatial_dims=2), (1, 3, 32, 32), set()
    ),
    "a backbone that ends in qkv": (QKVLast, (2, 4, 32), set()),
    "a block": (lambda: nn.Sequential(WindowBlock(), nn.LayerNorm(32)), (2, 4, 32), set()),
    "subclasses": (Subclasses, (1, 3, 8, 8), {"head"}),
    "an autoencoder that defines the way to its decoder last": (
        lambda: VarAutoEncoder(2, (3, 16, 16), 3, 32, (32, 64), (2, 2)), (2, 3, 16, 16), {"decode.decode_1.conv.conv"}
    ),
    "an autoencoder that ends in the latents' layer": (
        lambda: AutoencoderKL(2, 3, 3, (1, 1), (32, 64), (False, False), latent_channels=32, norm_num_groups=16),
        (1, 3, 16, 16),
        {"decoder.blocks.8.conv"},
    ),
    "a generator": (Painter, (2, 32), {"answer"}),
    "a weight tied to a table": (TiedLanguageModel, (2, 4, 32), {"logits"}),
    "shifts and scales": (Modulated, (2, 4, 32), {"answer"}),
    "many classes": (
        lambda: SwinUNETR(3, 24, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8), feature_size=12, spatial_dims=2),
        (1, 3, 64, 64),
        {"out.conv.conv"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_heads_are_guessed(name: str) -> None:
    build, _, expected = CASES[name]
    found = find_special_layers(build())
    assert found.heads == expected
    assert found.how.startswith("guessed") or not expected


@pytest.mark.parametrize("name", CASES)
def test_heads_are_found_by_an_example(name: str) -> None:
    build, shape, expected = CASES[name]
    model = build().train()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    state = torch.get_rng_state()
    found = find_special_layers(model, example=image(*shape))
    assert found.heads == expected
    assert model.training and all(module.training for module in model.modules())
    assert all(int(norm.num_batches_tracked) == 0 for norm in norms), "the example leaves no trace"
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_hooks for module in model.modules())


def test_the_report_says_how_a_head_was_found_and_all_heads_stay() -> None:
    for arguments, how in (
        ({}, "guessed: nothing takes its channels in"),
        ({"heads": ["*classifier"]}, "named in heads"),
        ({"example": image(1, 3, 16, 16)}, "found by running the example"),
        ({"example": {"x": image(1, 3, 16, 16)}}, "found by running the example"),
    ):
        _, report = convert(DeepLab(), "full", **arguments)
        heads = [layer for layer in report.layers if "classifier" in layer.name]
        assert [layer.reason for layer in heads] == [f"an output head ({how}): logits stay in high precision"] * 2


def test_the_users_word_goes_before_all_others() -> None:
    model = HeadFirst()
    model.head_names = ("head",)
    _, report = convert(model, "full", heads=["body.2"])
    assert [layer.name for layer in report.layers if not layer.quantized] == ["body.2"]
    _, report = convert(model, "full", heads=[])
    assert all(layer.quantized for layer in report.layers)
    for wrong, message in ((["tail"], "'tail', which matches none"), ("head", "expected a list of patterns")):
        with pytest.raises(ConfigError, match=message):
            convert(model, "full", heads=wrong)
    with pytest.raises(ConfigError, match="example expected an input"):
        convert(HeadFirst(), "full", example=image(2, 31))


class Failing(HeadFirst):
    @property
    def head_names(self) -> list[str]:
        raise RuntimeError("set by fit()")


@pytest.mark.parametrize(
    "meaning",
    [("liver", "spleen"), "head", 3, {"head": 1}, [1, 2], torch.tensor([1.0]), lambda: ["head"]],
    ids=["names", "word", "number", "mapping", "numbers", "tensor", "function"],
)
def test_an_attribute_that_means_something_else_switches_nothing(meaning: Any) -> None:
    model = HeadFirst()
    expected = find_special_layers(model)
    model.head_names = model.body.stem_names = meaning
    found = find_special_layers(model)
    assert (found.heads, found.stems, found.how) == (expected.heads, expected.stems, expected.how)
    assert len(found.notes) == 2
    assert "head_names of HeadFirst names no layer" in found.notes[0]


def test_an_attribute_that_fails_switches_nothing() -> None:
    assert find_special_layers(Failing()).heads == {"head"}


def test_a_layer_alone_is_no_head() -> None:
    assert not find_special_layers(nn.Linear(32, 20)).heads
    assert not find_special_layers(nn.Sequential(nn.Conv2d(16, 20, 1), nn.ReLU())).heads
