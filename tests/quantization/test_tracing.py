"""Tracers, scripts and exporters: each works or is refused by a sentence, and none kills the process."""

from __future__ import annotations

import copy
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.networks.nets import UNet, ViT
from stand_ins import image
from torch import Tensor, nn

from monai_fp4 import fake_quantize, quantize
from monai_fp4.errors import ConfigError
from monai_fp4.quantization import convert, set_active, unconvert


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(16, 24, 3, padding="same"),
        nn.ReLU(inplace=True),
        nn.Conv2d(24, 32, 3, stride=2, padding=1, padding_mode="reflect", groups=1),
        nn.ConvTranspose2d(32, 16, 3, stride=2, padding=1, output_padding=1),
        nn.Flatten(2),
        nn.Linear(64, 32),
    )


def volumes() -> nn.Module:
    return nn.Sequential(nn.Conv3d(16, 16, 3, padding=1), nn.ConvTranspose3d(16, 32, 2, stride=2))


def unet() -> nn.Module:
    return UNet(2, 3, 1, (16, 24, 32), (2, 2), num_res_units=1).eval()


def vit() -> nn.Module:
    return ViT(3, (32, 32), (8, 8), 48, 96, 2, 3, spatial_dims=2, classification=True).eval()


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], Any]] = {
    "convolutions": (convolutions, (1, 16, 8, 8), "sr_rht_2d"),
    "volumes": (volumes, (1, 16, 4, 4, 4), "full"),
    "monai's unet": (unet, (1, 3, 32, 32), "sr"),
    "monai's vit": (vit, (1, 3, 32, 32), {"base": "full", "attention": "fp4"}),
    "another format": (convolutions, (1, 16, 8, 8), {"base": "full", "format": "mxfp4"}),
}


def first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


@pytest.mark.parametrize("name", CASES)
def test_a_trace_computes_the_same_and_can_be_saved(name: str, tmp_path: Path) -> None:
    build, shape, recipe = CASES[name]
    torch.manual_seed(0)
    model, _ = convert(build(), recipe, heads=[])
    with warnings.catch_warnings():
        if "monai" not in name:  # whose own code converts sizes to numbers
            warnings.simplefilter("error", torch.jit.TracerWarning)
        traced = torch.jit.trace(model, image(*shape))
    traced.save(tmp_path / "traced.pt")
    other = image(3 if "vit" not in name else 1, *shape[1:], seed=1)
    for network in (traced, torch.jit.load(tmp_path / "traced.pt")):
        assert torch.equal(first(network(other)), first(model(other)))
    if recipe == "sr":
        return
    gradients = []
    for network in (model, traced):
        model.zero_grad()
        first(network(other)).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None])
    stochastic = recipe == "sr_rht_2d"
    for ours, theirs in zip(*gradients, strict=True):
        assert torch.equal(ours, theirs) or (stochastic and (ours - theirs).norm() < 0.5 * ours.norm())


def test_the_graph_is_drawn(tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    model, _ = convert(unet(), "sr")
    with SummaryWriter(str(tmp_path)) as writer:
        writer.add_graph(model, image(1, 3, 32, 32))
    (events,) = tmp_path.iterdir()
    assert b"monai_fp4::convolution" in events.read_bytes()


def test_a_script_is_refused_and_an_unconverted_network_scripted() -> None:
    model, _ = convert(nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32)), "full", heads=[])
    with pytest.raises(ConfigError, match=r"torch\.jit\.script cannot compile FP4 layers, found NVFP4Linear"):
        torch.jit.script(model)
    assert model(image(4, 32)).isfinite().all()
    scripted = torch.jit.script(unconvert(copy.deepcopy(model)))
    assert scripted(image(4, 32)).shape == (4, 32)


def test_an_export_by_tracing_is_refused(tmp_path: Path) -> None:
    model, _ = convert(nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32)), "full", heads=[])
    arguments: dict[str, Any] = {"dynamo": False, "verbose": False}
    with pytest.raises(ConfigError, match="ONNX has no operators for FP4 layers"):
        torch.onnx.export(model, (image(4, 32),), str(tmp_path / "model.onnx"), **arguments)
    set_active(model, False)
    plain = unconvert(copy.deepcopy(model))
    assert torch.equal(torch.jit.trace(model, image(4, 32))(image(4, 32)), plain(image(4, 32)))


def test_torch_fx_keeps_layers_whole_as_it_keeps_torchs() -> None:
    model, _ = convert(convolutions(), "full", heads=[])
    graph = torch.fx.symbolic_trace(model)
    x = image(1, 16, 8, 8)
    assert torch.equal(graph(x), model(x))
    assert sum(node.op == "call_module" for node in graph.graph.nodes) == len(model)
    set_active(model, False)
    assert torch.equal(torch.fx.symbolic_trace(model)(x), model(x))


def test_what_is_no_tensor_is_refused_as_torch_refuses_it() -> None:
    for layer, name in ((nn.Linear(32, 32), "linear"), (nn.Conv2d(32, 32, 3), "conv2d")):
        convert(layer, "full")
        for wrong in ("x", None, [1.0]):
            with pytest.raises(TypeError, match=rf"{name}\(\)"):
                layer(wrong)


@pytest.mark.parametrize("function", [fake_quantize, lambda x: quantize(x).dequantize()], ids=["fake", "packed"])
def test_quantizing_a_tensor_cannot_be_traced(function: Any) -> None:
    with pytest.raises(ConfigError, match="cannot record how a tensor is quantized"):
        torch.jit.trace(function, image(4, 32))


def test_the_process_that_traced_ends_well(tmp_path: Path) -> None:
    """A tracer's sizes, kept in a cache, were freed twice when the process ended."""
    code = """
import torch
from torch import nn
from monai_fp4 import convert
model, _ = convert(nn.Sequential(nn.Conv2d(16, 16, 3, stride=2), nn.Flatten(), nn.Linear(144, 32)), "sr", heads=[])
x = torch.randn(2, 16, 7, 7)
traced = torch.jit.trace(model, x)
model(x).sum().backward()
print(torch.equal(traced(x), model(x)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "True"), done.stderr
