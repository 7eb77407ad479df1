"""What `convert` does to networks that other people wrote: parameters in FP4, training, compiling, export, accuracy.

    python benchmarks/conversion.py
    python benchmarks/conversion.py --recipe chain_rule --only monai

Every network is built with random weights and converted. Then

* one forward pass says which layers compute in FP4, which are bypassed and which never run; the share is that of the
  parameters of the first (`monai_fp4.quantization.ConversionReport.after`);
* it **trains** if in a few steps of AdamW (1e-4) on one batch every gradient is finite and the loss falls;
* it **compiles** if `torch.compile` makes one graph of it (``fullgraph=True``) with the same output, by the backend
  ``eager``, since others compute some functions of torch (interpolation, say) to other bits, and **exports** if
  `torch.export.export` (``strict=True``) does; where it does not, the network is tried as it was before it was
  converted;
* it can be **traced** if `torch.jit.trace` gives a network with the same output;
* **SNR** is that of the output in evaluation against the network in FP32, in decibels, before training.

Families that are not installed are left out and named. Writes benchmarks/results/conversion.json.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import math
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, Results
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from monai_fp4 import convert

PEERS = ("monai", "torchvision", "timm", "segmentation-models-pytorch", "dynamic-network-architectures")
Recorder = Callable[[nn.Module, Tensor], Callable[[Tensor], Any]]
Network = tuple[str, Callable[[], nn.Module], tuple[int, ...]]


def monai_networks() -> Iterator[Network]:
    """Networks of MONAI in two and three dimensions."""
    from monai.networks import nets

    image, volume = (2, 3, 64, 64), (1, 1, 32, 32, 32)
    yield "UNet", lambda: nets.UNet(2, 3, 1, (32, 64, 128), (2, 2), num_res_units=2), image
    yield "BasicUNet", lambda: nets.BasicUNet(2, 3, 1), image
    yield "AttentionUnet", lambda: nets.AttentionUnet(2, 3, 1, (32, 64, 128), (2, 2)), image
    yield "DynUNet, 3D", lambda: nets.DynUNet(3, 1, 2, (3, 3, 3), (1, 2, 2), (2, 2), deep_supervision=True), volume
    yield "SegResNet, 3D", lambda: nets.SegResNet(3, 16, 1, 2), volume
    yield "SegResNetDS", lambda: nets.SegResNetDS(2, 32, in_channels=3, out_channels=2, dsdepth=2), image
    yield "UNETR", lambda: nets.UNETR(3, 2, (64, 64), 16, 192, 384, 6, spatial_dims=2), image
    yield "SwinUNETR", lambda: nets.SwinUNETR(3, 2, feature_size=24, spatial_dims=2), image
    yield "DenseNet121", lambda: nets.DenseNet121(2, 3, 4), image
    yield "ResNet18, 3D", lambda: nets.resnet18(n_input_channels=1, num_classes=4), volume
    yield "ViT", lambda: nets.ViT(3, (64, 64), (8, 8), 192, 384, 4, 6, spatial_dims=2, classification=True), image


def torchvision_networks() -> Iterator[Network]:
    """Networks of torchvision."""
    _declare_operators()
    from torchvision import models

    image = (2, 3, 64, 64)
    yield "ResNet-50", models.resnet50, image
    yield "Swin-T", models.swin_t, image
    yield "ConvNeXt-T", models.convnext_tiny, image
    own = {"weights": None, "weights_backbone": None, "num_classes": 21}
    yield "FCN, ResNet-50", lambda: models.segmentation.fcn_resnet50(**own, aux_loss=True), image
    yield "DeepLabV3, ResNet-50", lambda: models.segmentation.deeplabv3_resnet50(**own, aux_loss=True), image


def timm_networks() -> Iterator[Network]:
    """Networks of timm."""
    _declare_operators()
    import timm

    yield "ViT-Ti/16", lambda: timm.create_model("vit_tiny_patch16_224", img_size=64), (2, 3, 64, 64)
    yield "Swin-T", lambda: timm.create_model("swin_tiny_patch4_window7_224", img_size=56), (2, 3, 56, 56)
    yield "ConvNeXt, atto", lambda: timm.create_model("convnext_atto"), (2, 3, 64, 64)
    yield "EfficientNet-B0", lambda: timm.create_model("efficientnet_b0"), (2, 3, 64, 64)


def smp_networks() -> Iterator[Network]:
    """Networks of segmentation_models_pytorch."""
    _declare_operators()
    import segmentation_models_pytorch as smp

    for name in ("Unet", "DeepLabV3Plus", "FPN", "PSPNet", "Segformer"):
        yield (
            name,
            lambda name=name: smp.create_model(name, "resnet18", encoder_weights=None, classes=2),
            (2, 3, 64, 64),
        )


def nnunet_networks() -> Iterator[Network]:
    """The networks that nnU-Net trains."""
    from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet

    sizes = (1, 3, (32, 64, 128), nn.Conv3d, 3, (1, 2, 2))
    norm = {"norm_op": nn.InstanceNorm3d, "nonlin": nn.LeakyReLU, "deep_supervision": True, "conv_bias": True}
    yield "PlainConvUNet, 3D", lambda: PlainConvUNet(*sizes, 2, 2, 2, **norm), (1, 1, 32, 32, 32)
    yield "ResidualEncoderUNet, 3D", lambda: ResidualEncoderUNet(*sizes, 2, 2, 2, **norm), (1, 1, 32, 32, 32)


FAMILIES: dict[str, Callable[[], Iterator[Network]]] = {
    "monai": monai_networks,
    "torchvision": torchvision_networks,
    "timm": timm_networks,
    "smp": smp_networks,
    "nnU-Net": nnunet_networks,
}


def _declare_operators() -> None:
    """Let torchvision be imported where the library of its operators was built for another torch; none is called."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None or hasattr(torch.ops.torchvision, "nms"):
        return
    source = Path(spec.origin).with_name("_meta_registrations.py").read_text(encoding="utf-8")
    names = {"nms", "qnms", *re.findall(r'register_meta\("(\w+)"', source)}
    for name in names:
        torch.library.define(f"torchvision::{name}", "(Tensor x) -> Tensor")


def measure(build: Callable[[], nn.Module], shape: tuple[int, ...], recipe: str, steps: int) -> dict[str, Any]:
    """Convert one network and see what it does."""
    torch.manual_seed(0)
    plain = build()
    model, report = convert(copy.deepcopy(plain), recipe)
    x = torch.randn(shape)
    with torch.no_grad():
        exact = _first(plain.eval()(x))
        seen = report.after(lambda: model.eval()(x))
        found = _first(model(x))
        noise = float((found - exact).square().mean())
        traced = _same(_trace, model, found, x)
        compiled, exported = (_whole(recorder, x, (model, found), (plain, exact)) for recorder in (_compile, _export))
    layers = [layer for layer in seen.layers if layer.use]
    return {
        "parameters": report.parameters,
        "share": seen.quantized_parameters / report.parameters,
        "layers": len(layers),
        "uses": {use: sum(str(layer.use) == use for layer in layers) for use in sorted({str(e.use) for e in layers})},
        "compiled": compiled,
        "exported": exported,
        "traced": traced,
        "snr_db": 10 * math.log10(float(exact.square().mean()) / noise) if noise else None,
        "trains": _trains(model.train(), x, steps),
    }


def _first(output: Any) -> Tensor:
    return next(leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))


def _trace(model: nn.Module, x: Tensor) -> Callable[[Tensor], Any]:
    traced: Callable[[Tensor], Any] = torch.jit.trace(model, x, check_trace=False, strict=False)
    return traced


def _compile(model: nn.Module, x: Tensor) -> Callable[[Tensor], Any]:
    torch._dynamo.reset()
    compiled: Callable[[Tensor], Any] = torch.compile(model, fullgraph=True, backend="eager")
    return compiled


def _export(model: nn.Module, x: Tensor) -> Callable[[Tensor], Any]:
    return torch.export.export(model, (x,), strict=True).module()


def _same(recorder: Recorder, model: nn.Module, expected: Tensor, x: Tensor) -> bool:
    try:
        return torch.equal(_first(recorder(model, x)(x)), expected)
    except Exception:  # of the network's own: an output that no tracer takes, say
        return False


def _whole(recorder: Recorder, x: Tensor, converted: tuple[nn.Module, Tensor], before: tuple[nn.Module, Tensor]) -> str:
    if _same(recorder, *converted, x):
        return "yes"
    return "no" if _same(recorder, *before, x) else "no, nor before"


def _trains(model: nn.Module, x: Tensor, steps: int) -> bool:
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        outputs = [leaf for leaf in tree_leaves(model(x)) if isinstance(leaf, Tensor)]
        loss = torch.stack([(output - 0.5).square().mean() for output in outputs]).mean()
        loss.backward()
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        if not all(bool(gradient.isfinite().all()) for gradient in gradients):
            return False
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses[-1] < losses[0]


def main() -> None:
    """Measure every network of every family that is installed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="sr", help="recipe to convert to")
    parser.add_argument("--steps", type=int, default=8, help="steps of the training")
    parser.add_argument("--only", nargs="+", choices=FAMILIES, default=list(FAMILIES), help="families")
    parser.add_argument("--out", type=Path, default=RESULTS / "conversion.json")
    arguments = parser.parse_args()
    results = Results(arguments.out, protocol={"recipe": arguments.recipe, "steps": arguments.steps}, peers=PEERS)
    cells: list[dict[str, Any]] = []
    absent: list[str] = []
    for family in arguments.only:
        try:
            networks = list(FAMILIES[family]())
        except ImportError as error:
            absent.append(f"{family}: {error}")
            continue
        for name, build, shape in networks:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                figures = measure(build, shape, arguments.recipe, arguments.steps)
            cells.append({"family": family, "network": name, "shape": list(shape), **figures})
            print(f"{family} {name}: {figures}")
            results.write({"cells": cells, "absent": absent})


if __name__ == "__main__":
    main()
