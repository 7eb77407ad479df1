"""The peer of `unet_500k_bf16`: a bare MONAI UNet in a plain FP32 loop, on the same fold of the LGG data.

    python benchmarks/bare_unet.py --dataset_dir /data/kaggle_3m --folds 0

What a competent user writes in an afternoon: MONAI's UNet (494,297 parameters, batch norm), Tversky + BCE, AdamW with a
one-cycle schedule, batch 32, the same augmentation, 12 epochs at 128 x 128, every epoch validated at the scans' own
size. Only the data come through this package, so that both see the same patients. Writes
benchmarks/results/bare_unet.json.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lgg import machine
from monai.losses import TverskyLoss
from monai.networks.nets import UNet
from torch.utils.data import DataLoader

from monai_fp4.bundle import augmentation
from monai_fp4.data import PatientDataset, SliceDataset, load_datalist
from monai_fp4.metrics import compute_auprc

SIZE = (128, 128)
RESULTS = Path(__file__).parent / "results" / "bare_unet.json"


@torch.no_grad()
def validate(network: torch.nn.Module, patients: PatientDataset) -> float:
    """AUPRC over all pixels of all patients, at the scans' own size."""
    network.eval()
    scores, labels = [], []
    for patient in patients:
        logits = network(patient["image"].movedim(-1, 0))
        native = patient["label"].movedim(-1, 0)
        scores.append(F.interpolate(logits, size=native.shape[2:], mode="bilinear").flatten())
        labels.append(native.flatten())
    network.train()
    return compute_auprc(torch.cat(scores), torch.cat(labels))


def train(dataset_dir: str, fold: int, epochs: int) -> dict[str, Any]:
    """Train on one fold; AUPRC and seconds by epoch."""
    torch.manual_seed(0)
    slices = SliceDataset(load_datalist("lgg", dataset_dir, fold, "train"), SIZE, augmentation())
    patients = PatientDataset(load_datalist("lgg", dataset_dir, fold, "val"), SIZE)
    loader = DataLoader(slices, batch_size=32, shuffle=True)
    network = UNet(2, 3, 1, channels=(16, 32, 64, 128, 160), strides=(2, 2, 2, 2), num_res_units=0, norm="batch")
    tversky = TverskyLoss(sigmoid=True, alpha=0.3, beta=0.7, batch=True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=epochs * len(loader), pct_start=0.21)
    auprc, seconds = [], []
    for epoch in range(1, epochs + 1):
        begin = time.perf_counter()
        slices.set_epoch(epoch)
        for batch in loader:
            logits = network(batch["image"])
            loss = F.binary_cross_entropy_with_logits(logits, batch["label"]) + tversky(logits, batch["label"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        auprc.append(validate(network, patients))
        seconds.append(round(time.perf_counter() - begin, 1))
        print(f"fold {fold} epoch {epoch}: AUPRC {auprc[-1]:.4f}, {seconds[-1]} s", flush=True)
    best = max(auprc)
    return {"fold": fold, "auprc": best, "auprc_by_epoch": auprc, "training_seconds": round(sum(seconds), 1)}


def main() -> None:
    """Train on every fold asked for and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset_dir", required=True, help="folder of the published TIFF files (kaggle_3m)")
    parser.add_argument("--folds", default="0")
    parser.add_argument("--epochs", type=int, default=12)
    arguments = parser.parse_args()
    cells = []
    for fold in map(int, arguments.folds.split(",")):
        cells.append(train(arguments.dataset_dir, fold, arguments.epochs))
        content = {"protocol": {"epochs": arguments.epochs, "image_size": SIZE}, "machine": machine(), "cells": cells}
        RESULTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
