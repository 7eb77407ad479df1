"""Tensors that are more than a tensor: MONAI's, sharded, nested, sparse, batched by torch.func."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import CacheDataset, DataLoader, MetaTensor
from monai.engines import SupervisedTrainer
from monai.losses import DiceLoss
from monai.networks.blocks import SABlock
from monai.networks.nets import UNet
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, ScaleIntensityd
from stand_ins import image
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from monai_fp4.errors import ConfigError
from monai_fp4.quantization import convert, set_active, unconvert

LAYERS = {
    "linear": (lambda: nn.Linear(32, 48), (2, 5, 32)),
    "convolution": (lambda: nn.Conv2d(32, 16, 3, padding=1), (2, 32, 6, 6)),
    "convolution, same": (lambda: nn.Conv2d(32, 16, 4, padding="same"), (2, 32, 6, 6)),
    "circular": (lambda: nn.Conv1d(32, 16, 3, padding=1, padding_mode="circular"), (2, 32, 6)),
    "transposed": (lambda: nn.ConvTranspose3d(32, 16, 2, stride=2), (1, 32, 2, 2, 2)),
}


class Noted(Tensor):
    """Somebody's own subclass, without a word about functions."""


def metatensor(x: Tensor) -> MetaTensor:
    return MetaTensor(x, affine=2 * torch.eye(4, dtype=torch.float64), meta={"filename": "scan.nii"})


@pytest.mark.parametrize(
    "wrap", [metatensor, lambda x: x.as_subclass(Noted), nn.Parameter], ids=["monai", "own", "par"]
)
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_answers_in_the_type_that_torchs_does(name: str, wrap: Any) -> None:
    build, shape = LAYERS[name]
    torch.manual_seed(0)
    layer, x = build(), image(*shape)
    expected = layer(wrap(x))
    convert(layer, "full")
    found = layer(wrap(x).requires_grad_())
    assert type(found) is type(expected)
    assert torch.equal(torch.as_tensor(found).as_subclass(Tensor), layer(x))
    if isinstance(expected, MetaTensor):
        assert found.meta["filename"] == "scan.nii" and torch.equal(found.affine, expected.affine)
    leaf, plain = wrap(x.clone()).requires_grad_(), x.clone().requires_grad_()
    layer(leaf).square().sum().backward()
    layer(plain).square().sum().backward()
    assert torch.equal(torch.as_tensor(leaf.grad).as_subclass(Tensor), plain.grad)


def test_attention_in_fp4_takes_monais_tensors() -> None:
    from monai.networks.blocks.selfattention import SABlock

    torch.manual_seed(0)
    model, report = convert(nn.Sequential(SABlock(32, 2)), {"base": "full", "attention": "fp4"}, heads=[])
    assert report.layers[0].quantized
    x = image(2, 8, 32)
    found = model(metatensor(x))
    assert torch.equal(torch.as_tensor(found).as_subclass(Tensor), model(x))
    found.sum().backward()


def test_a_stock_training_of_monai(tmp_path: Path) -> None:
    """CacheDataset, LoadImaged, MONAI's loader and trainer, as its tutorials have them."""
    import nibabel

    files = []
    for number in range(4):
        rng = np.random.default_rng(number)
        paths = {key: tmp_path / f"{key}{number}.nii.gz" for key in ("image", "label")}
        nibabel.save(nibabel.Nifti1Image(rng.random((16, 16), dtype=np.float32), np.eye(4)), paths["image"])
        label = (rng.random((16, 16)) > 0.5).astype(np.uint8)
        nibabel.save(nibabel.Nifti1Image(label, np.eye(4)), paths["label"])
        files.append({key: str(path) for key, path in paths.items()})
    keys = ["image", "label"]
    steps = Compose([LoadImaged(keys), EnsureChannelFirstd(keys), ScaleIntensityd(keys)])
    loader = DataLoader(CacheDataset(files, steps, progress=False), batch_size=2)
    torch.manual_seed(0)
    network, report = convert(UNet(2, 1, 1, (16, 32), (2,), num_res_units=1), "sr_rht_2d")
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
    loss = DiceLoss(sigmoid=True)
    trainer = SupervisedTrainer(torch.device("cpu"), 2, loader, network, optimizer, loss)
    losses = []
    trainer.add_event_handler("ITERATION_COMPLETED", lambda engine: losses.append(engine.state.output[0]["loss"]))
    trainer.run()
    assert len(losses) == 4 and all(np.isfinite(losses))
    assert {layer.use for layer in report.so_far().layers if layer.use} == {"ran in FP4"}


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("each", [True, False], ids=["layer by layer", "as a whole"])
@pytest.mark.parametrize("before", [True, False])
def test_fully_sharded_weights_train(before: bool, each: bool) -> None:
    from torch.distributed.fsdp import FSDPModule, fully_shard

    mesh = init_device_mesh("cpu", (1,))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
    expected, x = model(image(4, 32)), image(4, 32)

    def shard() -> None:
        for layer in (model[0], model[2]) if each else ():
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)

    if before:
        shard()
    kinds = [type(layer) for layer in model]
    model, report = convert(model, "full", heads=[])
    if not before:
        shard()
    assert sum(layer.quantized for layer in report.layers) == 2
    assert all(isinstance(layer, FSDPModule) is each for layer in (model[0], model[2])), "its methods are still there"
    found = model(x)
    assert 0 < (found - expected).norm() < 0.5 * expected.norm()
    found.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert {layer.use for layer in report.after(lambda: model(x)).layers} == {"ran in FP4"}
    unconvert(model)
    assert torch.equal(model(x), expected)
    assert not before or [type(layer) for layer in model] == kinds


@pytest.mark.usefixtures("process_group")
def test_weights_that_stay_sharded_are_refused() -> None:
    from torch.distributed.tensor import Replicate, distribute_tensor

    mesh = init_device_mesh("cpu", (1,))
    layer, _ = convert(nn.Linear(32, 32), "full")
    layer.weight = nn.Parameter(distribute_tensor(layer.weight.detach(), mesh, [Replicate()]))
    for x in (image(4, 32), distribute_tensor(image(4, 32), mesh, [Replicate()])):
        with pytest.raises(ConfigError, match="in plain memory, found a DTensor"):
            layer(x)


def test_what_has_no_plain_memory_is_refused() -> None:
    layer, _ = convert(nn.Linear(32, 32), "full")
    nested = torch.nested.nested_tensor([image(3, 32), image(5, 32)], layout=torch.jagged)
    for x in (nested, image(4, 32).to_sparse()):
        with pytest.raises(ConfigError, match="expected its input in plain memory"):
            layer(x)


@pytest.mark.parametrize("name", LAYERS)
def test_batched_gradients_are_refused(name: str) -> None:
    build, shape = LAYERS[name]
    layer, _ = convert(build(), "sr")
    x = image(*shape).requires_grad_()
    y = layer(x)
    with pytest.raises(ConfigError, match="is_grads_batched"):
        torch.autograd.grad(y, x, torch.stack([torch.ones_like(y)] * 2), is_grads_batched=True)
    with pytest.raises(ConfigError, match=r"torch\.func"):
        torch.func.vmap(layer)(x.unsqueeze(1))
    with torch.autograd.forward_ad.dual_level(), pytest.raises(ConfigError, match="forward-mode"):
        layer(torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)))


@pytest.mark.parametrize("recipe", ["sr", "chain_rule", "forward_only", {"base": "sr", "attention": "fp4"}], ids=str)
@pytest.mark.parametrize("name", [*LAYERS, "attention"])
def test_second_derivatives_are_refused(name: str, recipe: Any) -> None:
    build, shape = LAYERS.get(name, (lambda: SABlock(32, 2), (1, 5, 32)))
    layer, _ = convert(build(), recipe)
    x = image(*shape)
    with pytest.raises(ConfigError, match="second derivative"):
        torch.autograd.functional.hvp(lambda x: layer(x).square().sum(), x, torch.ones_like(x))
    leaf = x.clone().requires_grad_()
    with pytest.raises(ConfigError, match="second derivative"):  # dy is a constant here, and needs no gradient
        torch.autograd.grad(layer(leaf).sum(), leaf, create_graph=True)
    set_active(layer, False)
    torch.autograd.grad(layer(leaf).square().sum(), leaf, create_graph=True)[0].square().sum().backward()
    assert leaf.grad is not None and leaf.grad.abs().max() > 0
