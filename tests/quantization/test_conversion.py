"""What is swapped, what is left and why, and that a converted model is still the model it was."""

from __future__ import annotations

import copy
import io
import json
import pickle
from typing import Any

import pytest
import torch
from monai.networks.nets import SwinUNETR, UNet, ViT
from torch import Tensor, nn

from monai_fp4.errors import ConfigError
from monai_fp4.quantization import backends, convert, set_active, unconvert
from monai_fp4.quantization.backends import Availability, EmulatedBackend
from monai_fp4.quantization.conversion import Action, quantized_layers
from monai_fp4.quantization.layers import LAYER_TYPES, NVFP4Conv2d, NVFP4Linear
from monai_fp4.quantization.layers.attention import FP4SABlock, FP4WindowAttention
from monai_fp4.quantization.recipes import RECIPES, Recipe

FP4_TYPES = tuple(LAYER_TYPES.values())


def unet(out_channels: int = 1) -> UNet:
    torch.manual_seed(0)
    return UNet(2, 3, out_channels, (16, 24, 32), (2, 2), num_res_units=1)


def vit() -> nn.Module:
    torch.manual_seed(0)
    return ViT(
        3, (32, 32), (8, 8), 48, 96, num_layers=2, num_heads=3, spatial_dims=2, classification=True, num_classes=20
    )


def swinunetr(out_channels: int = 1) -> nn.Module:
    torch.manual_seed(0)
    return SwinUNETR(3, out_channels, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8), feature_size=12, spatial_dims=2)


def outcomes(report: Any) -> dict[str, tuple[str, str]]:
    return {layer.name: (str(layer.action), layer.reason) for layer in report.layers}


NETWORKS = {"unet": unet, "vit": vit, "swinunetr": swinunetr}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("recipe", ["bf16", "full", {"base": "sr_rht_2d", "attention": "fp4"}])
def test_every_module_with_parameters_is_reported_and_the_report_tells_the_truth(name: str, recipe: Any) -> None:
    model = NETWORKS[name]()
    expected = {n for n, m in model.named_modules() if list(m.parameters(recurse=False))}
    total = sum(p.numel() for p in model.parameters())
    model, report = convert(model, recipe)
    reported = {layer.name: layer for layer in report.layers}
    assert len(reported) == len(report.layers)
    assert expected <= set(reported)
    assert report.parameters == total
    modules = dict(model.named_modules())
    for layer in report.layers:
        assert layer.reason
        swapped = isinstance(modules[layer.name], (*FP4_TYPES, FP4SABlock, FP4WindowAttention))
        assert layer.quantized == swapped, layer
        if layer.in_channels is not None and layer.quantized:
            whole = layer.in_channels % 16 == 0 and layer.out_channels % 16 == 0
            assert layer.action is (Action.SWAPPED if whole else Action.PADDED)
    assert {n for n, _ in quantized_layers(model)} == {layer.name for layer in report.layers if layer.quantized}


def test_unet_stem_and_head_stay_and_the_middle_is_swapped() -> None:
    _, report = convert(unet(), "full")
    found = outcomes(report)
    assert found["model.0.conv.unit0.conv"][0] == "left"
    assert "3 input channels" in found["model.0.conv.unit0.conv"][1]
    assert found["model.1.submodule.0.conv.unit0.conv"] == ("padded", "output channels 24 -> 32")
    assert found["model.2.0.conv"][0] == "left"
    assert "1 output channels" in found["model.2.0.conv"][1]
    assert found["model.2.1.conv.unit0.conv"][0] == "left"
    assert found["model.0.conv.unit0.adn.A"] == ("left", "the slope of an activation, no product to quantize")


def test_a_head_for_many_classes_stays_too() -> None:
    _, report = convert(swinunetr(out_channels=24), "full")
    left = [layer for layer in report.layers if not layer.quantized and layer.kind.startswith(("Conv", "Linear"))]
    assert [layer.name for layer in left if "output head" in layer.reason and layer.out_channels == 24] == [
        "out.conv.conv"
    ]


def test_vit_reports_parameters_held_directly() -> None:
    _, report = convert(vit(), "full")
    found = outcomes(report)
    assert found["patch_embedding"] == (
        "left",
        "PatchEmbeddingBlock holds position_embeddings itself, and is no layer that this package knows",
    )
    assert "cls_token" in found[""][1]
    assert found["blocks.0.attn"] == ("left", "recipe full keeps the products of attention in high precision")
    assert found["blocks.0.attn.qkv"][0] == "swapped"
    assert found["classification_head.0"][0] == "left"
    assert "output head" in found["classification_head.0"][1]


class Odd(nn.Module):
    """Everything that a walk over modules can stumble over."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(32))
        self.embedding = nn.Embedding(4, 32)
        self.first = nn.Linear(32, 32)
        self.shared = self.first
        self.nested = nn.ModuleDict({"again": self.first})
        self.subclass = type("Scaled", (nn.Linear,), {"forward": lambda self, x: 2 * nn.Linear.forward(self, x)})(
            32, 32
        )
        self.attention = nn.MultiheadAttention(32, 2)
        self.grouped = nn.Conv2d(32, 32, 3, groups=2)
        self.depthwise = nn.Conv2d(32, 32, 3, groups=32)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(32, 32))
        self.lazy = nn.LazyLinear(32)
        self.recurrent = nn.GRU(32, 32)
        self.tied = nn.Linear(32, 32, bias=False)
        self.tied.weight = self.first.weight
        self.head = nn.Linear(32, 32)


def test_nothing_is_skipped_silently() -> None:
    model, report = convert(Odd(), "full")
    found = outcomes(report)
    assert found[""] == ("left", "Odd holds scale itself, and is no layer that this package knows")
    assert "table look-up" in found["embedding"][1]
    assert found["first"][0] == "swapped"
    assert model.first is model.shared is model.nested["again"]
    assert "subclass of Linear" in found["subclass"][1]
    assert "fused attention" in found["attention"][1]
    assert found["attention.out_proj"][0] == "left"
    assert found["grouped"][0] == "swapped"
    assert "1 input channels per group (32 groups)" in found["depthwise"][1]
    assert found["normed"][0] == "left"
    assert found["normed.parametrizations.weight"][0] == "left"
    assert "not initialised yet" in found["lazy"][1]
    assert "recurrent" in found["recurrent"][1]
    assert model.tied.weight is model.first.weight
    assert {layer.name: layer.parameters for layer in report.layers}["tied"] == 0
    assert "output head" in found["head"][1]


def test_old_style_weight_norm_is_left_alone() -> None:
    layer = nn.utils.weight_norm(nn.Linear(32, 32))
    _, report = convert(nn.Sequential(layer, nn.Linear(32, 32), nn.Linear(32, 1)), "full")
    assert "computed from other parameters" in report.layers[0].reason


def test_skip_and_overrides() -> None:
    recipe = {"base": "full", "overrides": [{"pattern": "blocks.0.*", "precision": "bf16"}]}
    _, report = convert(vit(), recipe, skip=["*.mlp.linear2"])
    found = outcomes(report)
    assert found["blocks.1.mlp.linear2"] == ("left", "skip pattern '*.mlp.linear2'")
    assert found["blocks.0.mlp.linear1"] == ("left", "override 'blocks.0.*' of the recipe keeps it in BF16")
    assert found["blocks.1.mlp.linear1"][0] == "swapped"


def test_a_name_is_a_pattern_of_itself_whatever_is_in_it() -> None:
    def network() -> nn.Module:
        return nn.ModuleDict({"level[0]": nn.Linear(32, 32), "level[1]": nn.Linear(32, 32)})

    bf16 = {"base": "full", "overrides": [{"pattern": "level[0]", "precision": "bf16"}]}
    for recipe, options in (("full", {"skip": ["level[0]"]}), ("full", {"heads": ["level[0]"]}), (bf16, {})):
        _, report = convert(network(), recipe, **{"heads": [], **options})
        assert [layer.quantized for layer in report.layers] == [False, True]
        assert not report.notes


def test_an_override_can_ask_for_stem_and_head() -> None:
    overrides = [{"pattern": "model.0.*", "precision": "fp4"}, {"pattern": "model.2.*", "precision": "fp4"}]
    model, report = convert(unet(), {"base": "full", "overrides": overrides})
    found = outcomes(report)
    assert found["model.0.conv.unit0.conv"] == ("padded", "input channels 3 -> 16")
    assert found["model.2.0.conv"][0] == "padded"
    assert model(torch.randn(1, 3, 32, 32)).isfinite().all()


@pytest.mark.parametrize("pattern", ["model.0", "model.0.*", "model.0*"])
def test_a_pattern_names_what_is_inside_too(pattern: str) -> None:
    """The name of a block in ``skip`` used to match that block, which is no layer, and to leave nothing out."""
    _, report = convert(unet(), "full", skip=[pattern])
    inside = [layer.reason for layer in report.layers if layer.name.startswith("model.0.") and layer.in_channels]
    assert inside and all(reason.startswith("skip pattern") for reason in inside)
    assert any(layer.quantized for layer in report.layers)


def test_a_pattern_that_matches_nothing_does_not_pass_unseen() -> None:
    with pytest.raises(ConfigError, match=r"skip expected patterns .* found 'decoder\.\*', which matches none"):
        convert(unet(), "full", skip=["decoder.*"])
    with pytest.raises(ConfigError, match="expected a list of patterns"):
        convert(unet(), "full", skip="model.0.*")
    _, report = convert(unet(), {"base": "full", "overrides": [{"pattern": "decoder.*", "precision": "bf16"}]})
    assert report.notes == ("override 'decoder.*' of recipe full_custom matches no layer of this model",)


def test_networks_can_name_their_heads_and_stems() -> None:
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 32))
    model.head_names, model.stem_names = ("1",), ["0"]
    _, report = convert(nn.Sequential(model, nn.Linear(32, 32)), "full")
    assert [str(layer.action) for layer in report.layers] == ["left", "left", "swapped", "swapped"]
    model.head_names = ()
    _, report = convert(model, "full")
    assert [str(layer.action) for layer in report.layers] == ["left", "swapped", "swapped"]


def test_a_single_layer_is_swapped_and_returned() -> None:
    layer = nn.Linear(32, 48)
    model, report = convert(layer, "full")
    assert isinstance(model, NVFP4Linear)
    assert model.weight is layer.weight
    assert report.layers[0].name == ""
    assert type(unconvert(model)) is nn.Linear


def test_bf16_swaps_nothing_and_says_so() -> None:
    model, report = convert(unet(), "bf16")
    assert not any(layer.quantized for layer in report.layers)
    assert {layer.reason for layer in report.layers} == {"recipe bf16 keeps every layer in high precision"}
    assert not list(quantized_layers(model))
    assert set_active(model, True) == 0


def test_notes_say_what_has_no_layer() -> None:
    _, report = convert(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 1, 1)), {"base": "full", "attention": "fp4"})
    assert len(report.notes) == 2
    assert "no layer computes in FP4" in report.notes[0]
    assert "no block was swapped" in report.notes[1]


def test_unknown_names_are_answered_with_the_nearest_and_change_nothing() -> None:
    model = unet()
    for arguments, message in [
        ({"recipe": "sr_rth"}, "recipe 'sr_rth' is not known; the nearest names are 'sr_rht'"),
        ({"recipe": "full", "backend": "emulate"}, "backend 'emulate' is not known"),
        ({"recipe": "full", "backend": "transformer_engine"}, "does not work here"),
    ]:
        with pytest.raises(ConfigError, match=message):
            convert(model, **arguments)
    assert not list(quantized_layers(model))


@pytest.mark.parametrize("found", [None, 3, "unet", nn.Linear, [nn.Linear(32, 32)], lambda x: x])
def test_what_is_no_network_is_refused(found: Any) -> None:
    for call in (lambda: convert(found, "sr"), lambda: unconvert(found), lambda: set_active(found, True)):
        with pytest.raises(ConfigError, match=r"expected a network, which is a torch\.nn\.Module, found"):
            call()


@pytest.mark.parametrize("option", ["skip", "heads", "dtype", "backend"])
@pytest.mark.parametrize("value", [3, [3], "conv", torch.int8, object()])
def test_options_of_another_kind_are_refused_and_change_nothing(option: str, value: Any) -> None:
    model = unet()
    with pytest.raises(ConfigError, match=rf"^{option} "):
        convert(model, "sr", **{option: value})
    assert not list(quantized_layers(model))


def test_attributes_of_the_users_own_are_kept_and_the_layer_is_left() -> None:
    block = FP4SABlock.float_type(32, 2)
    model = nn.ModuleList([nn.Linear(32, 32), nn.Linear(32, 32), nn.Conv2d(32, 32, 1), block])
    model[0].active, model[2].history, block.recipe = "mine", [3], "own"
    _, report = convert(model, {"base": "sr", "attention": "fp4"}, heads=[])
    left = {layer.name: layer.reason for layer in report.layers if not layer.quantized}
    assert set(left) == {"0", "2", "3"}
    assert "attributes of its own called active, which FP4 layers have too" in left["0"]
    unconvert(model)
    assert (model[0].active, model[2].history, block.recipe) == ("mine", [3], "own")


def test_what_torch_has_compiled_is_left_and_says_so() -> None:
    scripted = torch.jit.script(nn.Sequential(nn.Linear(32, 32)))
    _, report = convert(scripted, "sr")
    assert report.layers[0].reason == "compiled by torch.jit, which fixed what it computes: convert before that"


def test_few_channels_are_called_a_stem_or_head_only_where_they_are_few() -> None:
    model = nn.ModuleList([nn.Conv2d(3, 32, 1), nn.Linear(12, 32), nn.Linear(32, 8), nn.Linear(32, 2)])
    _, report = convert(model, "sr", heads=[])
    assert ["usually" in layer.reason for layer in report.layers] == [True, False, False, True]


def test_converting_again_starts_from_the_float_model() -> None:
    model, first = convert(unet(), "sr")
    parameters = dict(model.named_parameters())
    model, second = convert(model, "full", skip=["model.1.*"])
    assert [layer.kind for layer in first.layers] == [layer.kind for layer in second.layers]
    assert not list(quantized_layers(model))
    model, third = convert(model, "2d")
    assert outcomes(third) == outcomes(first)
    assert all(module.recipe is RECIPES["2d"] for _, module in quantized_layers(model))
    model, _ = convert(model, "bf16")
    assert {type(m) for m in model.modules()} == {type(m) for m in unet().modules()}
    assert all(parameters[name] is parameter for name, parameter in model.named_parameters())
    image = torch.randn(1, 3, 32, 32)
    assert torch.equal(model(image), unet()(image))


@pytest.mark.parametrize(("name", "size"), [("unet", 32), ("vit", 32), ("swinunetr", 64)])
def test_it_trains(name: str, size: int) -> None:
    model = NETWORKS[name]()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)  # made before the conversion, and still the right one
    model, _ = convert(model, {"base": "sr_rht_2d", "attention": "fp4"} if name != "unet" else "sr_rht_2d")
    before = {key: value.clone() for key, value in model.named_parameters()}
    output = model(torch.randn(1, 3, size, size))
    output = output[0] if isinstance(output, tuple) else output
    output.square().mean().backward()
    optimizer.step()
    for key, module in quantized_layers(model):
        if hasattr(module, "weight"):
            assert not torch.equal(module.weight, before[f"{key}.weight"]), key


@pytest.mark.parametrize("name", NETWORKS)
def test_checkpoints_load_into_the_unconverted_network_and_back(name: str) -> None:
    converted, _ = convert(NETWORKS[name](), {"base": "full", "attention": "fp4"} if name != "unet" else "full")
    plain = NETWORKS[name]()
    buffer = io.BytesIO()
    torch.save(converted.state_dict(), buffer)
    buffer.seek(0)
    plain.load_state_dict(torch.load(buffer, weights_only=True), strict=True)
    converted.load_state_dict(plain.state_dict(), strict=True)


@pytest.mark.parametrize("name", NETWORKS)
def test_copies_and_pickles_compute_the_same_and_share_nothing(name: str) -> None:
    model, _ = convert(NETWORKS[name]().eval(), {"base": "full", "attention": "fp4"} if name != "unet" else "full")
    x = torch.randn(1, 3, 64 if name == "swinunetr" else 32, 64 if name == "swinunetr" else 32)

    def run(network: nn.Module) -> Tensor:
        output = network(x)
        return output[0] if isinstance(output, tuple) else output

    with torch.no_grad():
        expected = run(model)
        twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
        for parameter in model.parameters():
            parameter.zero_()
        for twin in twins:
            assert torch.equal(run(twin), expected)


def test_set_active_switches_every_layer_and_back() -> None:
    image = torch.randn(1, 3, 32, 32)
    plain = unet()(image)
    model, report = convert(unet(), "full")
    quantized = model(image)
    assert not torch.allclose(quantized, plain)
    number = report.count(Action.SWAPPED) + report.count(Action.PADDED)
    assert set_active(model, False) == number
    assert torch.equal(model(image), plain)
    assert set_active(model, True) == number
    assert torch.equal(model(image), quantized)


def test_hooks_mode_and_frozen_parameters_survive() -> None:
    model = nn.Sequential(nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1)).eval()
    model[0].weight.requires_grad_(False)
    calls: list[str] = []
    model[0].register_forward_hook(lambda *args: calls.append("forward"))
    model, _ = convert(model, "full")
    assert isinstance(model[0], NVFP4Conv2d)
    assert not model[0].training
    assert not model[0].weight.requires_grad
    model(torch.randn(1, 16, 4, 4))
    assert calls == ["forward"]


def test_the_report_reads_well_and_is_json() -> None:
    _, report = convert(unet(), "full")
    assert json.loads(json.dumps(report.to_dict()))["layers"][0]["action"] == "left"
    text = str(report)
    assert text.splitlines()[0] == report.summary()
    for layer in report.layers:
        assert layer.name in text
        assert layer.reason in text
    assert f"{report.parameters:,} parameters" in report.summary()


def test_the_backend_that_is_asked_for_builds_the_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` takes the first that works; a name takes that one, though another would work too."""

    class First(EmulatedBackend):
        name = "first"

    class Marked(NVFP4Linear):
        pass

    class Second(EmulatedBackend):
        name = "second"

        def build(self, layer: nn.Module, recipe: Recipe) -> nn.Module:
            return Marked.from_float(layer, recipe)

    table = {backend.name: backend for backend in (First(), Second(), EmulatedBackend())}
    monkeypatch.setattr(backends, "BACKENDS", table)
    built = {}
    for name in ("auto", "first", "second", "emulated"):
        model, report = convert(nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 1)), "full", backend=name)
        built[name] = (report.backend, report.layers[0].backend, type(model[0]))
    assert built == {
        "auto": ("first", "first", NVFP4Linear),
        "first": ("first", "first", NVFP4Linear),
        "second": ("second", "second", Marked),
        "emulated": ("emulated", "emulated", NVFP4Linear),
    }


def test_the_dtype_that_layers_will_compute_in_reaches_the_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Asking(EmulatedBackend):
        def check(self, device: torch.device, dtype: torch.dtype = torch.float16) -> Availability:
            asked.append((device.type, dtype))
            return Availability.of([])

    monkeypatch.setattr(backends, "BACKENDS", {"emulated": Asking()})
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 1))
    convert(model, "full")
    convert(model, "full", dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        convert(model, "full")
    assert asked == [("cpu", torch.float32), ("cpu", torch.bfloat16), ("cpu", torch.bfloat16)]


def test_attention_that_stays_in_high_precision_is_named() -> None:
    from monai.networks.blocks.crossattention import CrossAttentionBlock

    class OwnAttention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.project = nn.Linear(32, 32)

    model = nn.ModuleDict(
        {"cross": CrossAttentionBlock(32, 2), "own": OwnAttention(), "torch": nn.MultiheadAttention(32, 2)}
    )
    _, report = convert(model, {"base": "full", "attention": "fp4"}, heads=[])
    found = outcomes(report)
    for name in ("cross", "own"):
        assert found[name][0] == "left"
        assert "products of attention stay in high precision" in found[name][1]
    assert "fused attention" in found["torch"][1]
    assert found["cross.to_q"][0] == "swapped"
    assert any("no block was swapped" in note for note in report.notes)
    _, report = convert(model, "full", heads=[])
    assert "own" not in outcomes(report), "only who asks for attention in FP4 is told"
