"""What the light decoder saves: the training step of the straightforward Swin + FPN beside ours, and what each learns.

    python benchmarks/decoder.py                                     # step times
    python benchmarks/decoder.py --dataset_dir /data/kaggle_3m       # and a short training on real scans (minutes)

``naive`` is a bare MONAI SwinTransformer (patch 2, 16 channels, one block a stage) with a feature pyramid whose levels
are each brought to full resolution and smoothed there by two 3 x 3 convolutions. ``mixed`` is our encoder with that
pyramid, so that naive / mixed is what the encoder saves and mixed / ours what the decoder does. A step is forward and
backward. The networks take turns, one step each, so that other load falls on all of them; the ratio is that of the
medians of CPU time, which other processes disturb less than they do the clock.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from monai.networks.nets.swin_unetr import SwinTransformer
from PIL import Image
from torch import Tensor, nn

from monai_fp4.losses import TverskyBCELoss
from monai_fp4.metrics import compute_auprc
from monai_fp4.networks import build_network

RESULTS = Path(__file__).parent / "results" / "decoder.json"
SIZE = (128, 128)


def _conv(width: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()


class FullResolutionFPN(nn.Module):
    """The decoder to beat: top-down pyramid, every level upsampled to the image's size and smoothed there twice."""

    def __init__(self, channels: Sequence[int], width: int, out_channels: int = 1) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
        self.smooth = nn.ModuleList(nn.Sequential(*_conv(width), *_conv(width)) for _ in channels)
        self.head = nn.Sequential(*_conv(width), nn.Conv2d(width, out_channels, 1))

    def forward(self, image: Tensor, features: Sequence[Tensor]) -> Tensor:
        """Decode features, channels first and finest first, to logits of the image's size."""
        size = image.shape[2:]
        level: Tensor | None = None
        total = image.new_zeros(())
        for lateral, smooth, feature in zip(self.laterals[::-1], self.smooth[::-1], features[::-1], strict=True):
            x = lateral(feature)
            level = x if level is None else x + F.interpolate(level, size=x.shape[2:], mode="nearest")
            total = total + smooth(F.interpolate(level, size=size, mode="bilinear"))
        return self.head(total)


class NaiveSwin(nn.Module):
    """MONAI's SwinTransformer as it is, and the full-resolution pyramid; about 514k parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = SwinTransformer(3, 16, (8, 8), (2, 2), (1, 1, 1, 1), (1, 2, 4, 8), spatial_dims=2)
        self.decoder = FullResolutionFPN([16 * 2**level for level in range(5)], 24)

    def forward(self, x: Tensor) -> Tensor:
        """Segment ``[B, 3, h, w]`` into logits ``[B, 1, h, w]``."""
        return self.decoder(x, self.encoder(x))


class MixedSwin(nn.Module):
    """Our encoder with the full-resolution pyramid."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = build_network("swin", "500k", image_size=SIZE).encoder
        self.decoder = FullResolutionFPN([32, 64, 128], 24)

    def forward(self, x: Tensor) -> Tensor:
        """Segment ``[B, 3, h, w]`` into logits ``[B, 1, h, w]``."""
        return self.decoder(x, [feature.movedim(-1, 1) for feature in self.encoder(x)])


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "naive": NaiveSwin,
    "mixed": MixedSwin,
    "ours": lambda: build_network("swin", "500k", image_size=SIZE),
    "vit": lambda: build_network("vit", "500k", image_size=SIZE),
    "unet": lambda: build_network("unet", "500k", image_size=SIZE),
}


def step_times(batch_size: int, steps: int) -> dict[str, dict[str, float]]:
    """Median milliseconds of CPU of one step, by precision and network."""
    image = torch.randn(batch_size, 3, *SIZE)
    results: dict[str, dict[str, float]] = {}
    for precision in ("fp32", "bf16"):
        networks = {name: build() for name, build in NETWORKS.items()}
        times: dict[str, list[float]] = {name: [] for name in networks}
        for _ in range(steps + 1):
            for name, network in networks.items():
                begin = time.process_time()
                with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                    logits = network(image)
                logits.float().square().mean().backward()
                times[name].append(1e3 * (time.process_time() - begin))
        results[precision] = {name: round(statistics.median(values[1:]), 1) for name, values in times.items()}
    return results


def read_slices(patients: Sequence[Path]) -> tuple[Tensor, Tensor]:
    """Slices at half size, each volume normalised over its head: images ``[N, 3, h, w]`` and masks ``[N, 1, h, w]``."""
    images, masks = [], []
    for patient in patients:
        files = sorted(patient.glob("*_mask.tif"), key=lambda path: int(path.stem.split("_")[-2]))
        mask = torch.stack([torch.from_numpy(np.array(Image.open(file))) for file in files])[:, None].float() / 255
        image = torch.stack([torch.from_numpy(np.array(Image.open(str(f).replace("_mask", "")))) for f in files])
        image = F.avg_pool2d(image.movedim(-1, 1).float(), 2)
        head = image.movedim(1, 0)[:, image.mean(1) > 10]
        images.append((image - head.mean(1).view(1, -1, 1, 1)) / head.std(1).view(1, -1, 1, 1))
        masks.append((F.avg_pool2d(mask, 2) >= 0.5).float())
    return torch.cat(images), torch.cat(masks)


def learn(
    network: nn.Module, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], epochs: int
) -> dict[str, list]:
    """AUPRC on unseen patients and CPU seconds of training so far, after each epoch."""
    images, labels = train
    order = torch.Generator().manual_seed(0)
    loss_function = TverskyBCELoss()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-2)
    steps = len(images) // 16
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps * epochs, pct_start=0.2)
    curve: dict[str, list] = {"auprc": [], "cpu_seconds": []}
    spent = 0.0
    for _ in range(epochs):
        begin = time.process_time()
        network.train()
        for index in torch.randperm(len(images), generator=order)[: steps * 16].view(steps, 16):
            x, y = images[index], labels[index]
            if torch.rand((), generator=order) < 0.5:
                x, y = x.flip(-1), y.flip(-1)
            with torch.autocast("cpu", torch.bfloat16):
                logits = network(x)
            optimizer.zero_grad()
            loss_function(logits.float(), y).backward()
            optimizer.step()
            schedule.step()
        spent += time.process_time() - begin
        network.eval()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            scores = torch.cat([network(x).float() for x in test[0].split(32)])
        curve["auprc"].append(round(compute_auprc(scores, test[1]), 4))
        curve["cpu_seconds"].append(round(spent, 1))
    return curve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=7, help="timed steps, after one that is not counted")
    parser.add_argument("--dataset_dir", type=Path, help="the LGG layout; without it nothing is trained")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--patients", type=int, nargs=2, default=(20, 10), help="to train on, to test on")
    parser.add_argument("--learn", nargs="+", choices=list(NETWORKS), default=["naive", "ours"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    times = step_times(options.batch_size, options.steps)
    result = {
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "threads": options.threads,
        "batch": [options.batch_size, 3, *SIZE],
        "parameters": {name: sum(p.numel() for p in build().parameters()) for name, build in NETWORKS.items()},
        "step_cpu_ms": times,
        "naive_to_ours": {name: round(row["naive"] / row["ours"], 2) for name, row in times.items()},
    }
    for precision, row in times.items():
        print(precision, "  ".join(f"{name} {ms:.0f} ms ({row['naive'] / ms:.1f}x)" for name, ms in row.items()))
    if options.dataset_dir is not None:
        folders = sorted(path for path in options.dataset_dir.iterdir() if path.is_dir())
        order = torch.randperm(len(folders), generator=torch.Generator().manual_seed(0)).tolist()
        train_on, test_on = options.patients
        train = read_slices([folders[i] for i in order[:train_on]])
        test = read_slices([folders[i] for i in order[train_on : train_on + test_on]])
        result["lgg"] = {"train_slices": len(train[0]), "test_slices": len(test[0]), "precision": "bf16 autocast"}
        for name in options.learn:
            torch.manual_seed(0)
            result["lgg"][name] = curve = learn(NETWORKS[name](), train, test, options.epochs)
            print(f"{name}: AUPRC {curve['auprc']} after {curve['cpu_seconds']} s of CPU")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
