"""Images a second of a BF16 training step of each architecture, against stock MONAI code in a bare loop.

    python benchmarks/networks.py --arch unet swin vit --scales 500k 15m

Four contestants take turns, one step each, so that whatever else the machine does falls on all of them:

``ours``        the network of a bundle, run by the bundle's own TrainingStep (channels last, BF16 autocast, gradient
                clipping, the checks for NaN, the events of MONAI's trainer); all but the reading of data.
``stock_bf16``  the same network, with the same parameters, from MONAI's own modules, in a bare loop as one writes it
                in an afternoon (forward under autocast, MONAI's Tversky loss and cross-entropy, backward, AdamW):
                MONAI's UNet; MONAI's Swin stages with their own window attention and a mask made in every pass;
                MONAI's ViT blocks with their own attention. Swin and ViT have our decoder, which is made of MONAI's
                convolutions, for MONAI has none that small.
``stock_fp32``  that network in that loop without autocast.
``monai_bf16``  at 15m, a whole network of MONAI's with about as many parameters: SwinUNETR beside Swin, UNETR beside
                ViT.

On a CPU the time of a step is the processor time of this process, which with one thread is what the clock would show
on a quiet machine; on a GPU it is the clock's. Images a second are those of the median step, and the speed of ours is
the median over the rounds of the ratio within a round, since the two steps of a round saw the same machine. Writes
benchmarks/results/networks.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from common import RESULTS, Results, default_device, in_turns
from monai.engines import SupervisedTrainer
from monai.losses import TverskyLoss
from monai.networks.blocks import SABlock
from monai.networks.nets import UNETR, SwinUNETR
from monai.networks.nets.swin_unetr import SwinTransformer
from torch import Tensor, nn

from monai_fp4.engines import TrainingStep, build_and_seed
from monai_fp4.losses import TverskyBCELoss
from monai_fp4.networks import channels_last, find_cell, to_channels_last

Step = Callable[[], object]


class StockSwinEncoder(nn.Module):
    """MONAI's SwinTransformer, stage by stage as it is; only the merging after a stage is called apart from it."""

    def __init__(self, arch: str, scale: str) -> None:
        super().__init__()
        config = find_cell(arch, scale).config
        swin = SwinTransformer(
            3, config.width, (config.window_size,) * 2, (config.patch_size,) * 2, config.depths, config.num_heads,
            mlp_ratio=config.mlp_ratio, spatial_dims=2, downsample="mergingv2",
        )  # fmt: skip
        stages = [stage for layers in (swin.layers1, swin.layers2, swin.layers3, swin.layers4) for stage in layers]
        self.patch_embed, self.stages = swin.patch_embed, nn.ModuleList(stages)
        self.mergings = nn.ModuleList(stage.downsample for stage in stages[:-1])
        for stage in stages:
            stage.downsample = None

    def forward(self, x: Tensor) -> list[Tensor]:
        """Encode; channels last, as the decoder wants them."""
        x = self.patch_embed(x)
        outputs = []
        for number, stage in enumerate(self.stages):
            last = stage(x).movedim(1, -1)
            outputs.append(F.layer_norm(last, last.shape[-1:]))
            if number < len(self.mergings):
                x = self.mergings[number](last).movedim(-1, 1)
        return outputs


def stock(arch: str, scale: str, size: tuple[int, int]) -> nn.Module:
    """Our network with every class of ours, but the decoder, taken back to MONAI's."""
    network = build_and_seed(arch, scale, seed=0, in_channels=3, out_channels=1, image_size=size)
    for module in network.modules():
        if isinstance(module, nn.PReLU):
            module.__class__ = nn.PReLU
        if isinstance(module, SABlock):
            module.__class__, module.use_flash_attention = SABlock, False
    if arch == "swin":
        network.encoder = StockSwinEncoder(arch, scale)
    return network


def whole(arch: str, size: tuple[int, int]) -> nn.Module:
    """The network of MONAI's nearest to ours of 15m."""
    if arch == "swin":
        config = find_cell("swinunetr", "15m").config
        return SwinUNETR(
            3, 1, feature_size=config.feature_size, depths=config.depths, num_heads=config.num_heads, window_size=8,
            spatial_dims=2,
        )  # fmt: skip
    return UNETR(3, 1, size, feature_size=24, hidden_size=288, mlp_dim=1152, num_heads=9, spatial_dims=2)


def bare_step(network: nn.Module, images: Tensor, labels: Tensor, amp: bool) -> Step:
    """One step of a plain training loop."""
    network.train()
    tversky = TverskyLoss(sigmoid=True, alpha=0.3, beta=0.7, batch=True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, weight_decay=0.01)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(images.device.type, torch.bfloat16, enabled=amp):
            logits = network(images)
        logits = logits.float()
        (F.binary_cross_entropy_with_logits(logits, labels) + tversky(logits, labels)).backward()
        optimizer.step()

    return step


def bundle_step(network: nn.Module, images: Tensor, labels: Tensor) -> Step:
    """One step as a bundle's trainer makes it."""
    network = to_channels_last(network, images.shape[2:])
    step = TrainingStep(amp=True)
    batch = {"image": channels_last(images), "label": labels}
    trainer = SupervisedTrainer(
        device=images.device,
        max_epochs=1,
        train_data_loader=[batch],
        network=network,
        optimizer=torch.optim.AdamW(network.parameters(), lr=1e-4, weight_decay=0.01),
        loss_function=TverskyBCELoss(bce_weight=1.0, tversky_weight=1.0),
        iteration_update=step,
        decollate=False,
    )
    return lambda: step(trainer, batch)


def measure(arch: str, scale: str, options: argparse.Namespace) -> list[dict[str, object]]:
    """Time the contestants of one architecture at one scale."""
    size, device = tuple(options.image_size), options.device
    torch.manual_seed(0)
    images = torch.rand(options.batch_size, 3, *size, device=device)
    labels = (torch.rand(options.batch_size, 1, *size, device=device) > 0.97).float()
    ours = build_and_seed(arch, scale, seed=0, in_channels=3, out_channels=1, image_size=size).to(device)
    networks = {"ours": ours, "stock_bf16": stock(arch, scale, size).to(device)}
    networks["stock_fp32"] = stock(arch, scale, size).to(device)
    if scale == "15m" and arch != "unet":
        networks["monai_bf16"] = whole(arch, size).to(device)
    steps = {
        name: bundle_step(network, images, labels)
        if name == "ours"
        else bare_step(network, images, labels, name.endswith("bf16"))
        for name, network in networks.items()
    }
    seconds = in_turns(steps, options.steps, device)
    return [
        {
            "arch": arch,
            "scale": scale,
            "contestant": name,
            "parameters": sum(p.numel() for p in networks[name].parameters()),
            "steps": options.steps,
            "median_seconds": round(statistics.median(times), 6),
            "fastest_seconds": round(min(times), 6),
            "images_per_second": round(options.batch_size / statistics.median(times), 2),
            "speed_of_ours": round(statistics.median(a / b for a, b in zip(times, seconds["ours"], strict=True)), 2),
        }
        for name, times in seconds.items()
    ]


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", default=["unet", "swin", "vit"])
    parser.add_argument("--scales", nargs="+", default=["500k", "15m"])
    parser.add_argument("--image_size", type=int, nargs=2, default=(256, 256))
    parser.add_argument("--batch_size", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each, after one that is not counted")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default=default_device())
    parser.add_argument("--output", type=Path, default=RESULTS / "networks.json")
    parser.add_argument("--keep", action="store_true", help="keep the cells of the file that are not measured now")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    protocol = {name: getattr(options, name) for name in ("image_size", "batch_size", "steps", "device")}
    results = Results(options.output, options.device, protocol)
    cells = kept(options.output) if options.keep else []
    for arch in options.arch:
        for scale in options.scales:
            new = measure(arch, scale, options)
            cells = [cell for cell in cells if (cell["arch"], cell["scale"]) != (arch, scale)] + new
            for cell in new:
                print(
                    f"{arch}_{scale:5} {cell['contestant']:11} {cell['parameters'] / 1e6:6.2f}M"
                    f" {cell['images_per_second']:8.2f} images/s, {cell['median_seconds']:.3f} s median,"
                    f" ours is {cell['speed_of_ours']:.2f} times as fast",
                    flush=True,
                )
            results.write({"cells": cells})


def kept(path: Path) -> list[dict[str, object]]:
    """The cells of an earlier run, each with the day that it is from."""
    if not path.exists():
        return []
    content = json.loads(path.read_text(encoding="utf-8"))
    date = content.get("run", {}).get("date", "before dates were written")
    return [{"kept_from": date, **cell} for cell in content["cells"]]


if __name__ == "__main__":
    main()
