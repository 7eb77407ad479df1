"""How fast batches are made, and how long a training waits for them.

    python benchmarks/input.py --manifest lgg --dataset_dir /data/kaggle_3m

First the pipeline alone, in slices a second (of processor time on a CPU, of the clock on a GPU, which has then done
what it was asked): the batch-wise augmentation of `SliceDataset`, and
MONAI's transforms applied to the same slices one by one. Then each architecture trains a few steps with MONAI's
trainer, `BackgroundLoader` and `InputWait`, and beside it with a plain `DataLoader`; the share of waiting is that of an
epoch after the first.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, Results, clock_of, default_device
from monai.data import DataLoader
from monai.engines import SupervisedTrainer

from monai_fp4 import build_network
from monai_fp4.bundle import augmentation
from monai_fp4.data import BackgroundLoader, SliceDataset, load_datalist, prepare_data
from monai_fp4.engines import TrainingStep
from monai_fp4.handlers import InputWait
from monai_fp4.losses import TverskyBCELoss
from monai_fp4.networks import to_channels_last


def pipeline(options: argparse.Namespace, data: list[dict[str, Any]]) -> tuple[SliceDataset, dict[str, Any]]:
    """Slices a second, both ways, and the time to read the patients; the data set is what the trainings use."""
    wall, begin = time.perf_counter(), time.process_time()
    dataset = SliceDataset(data, options.image_size, augmentation(), progress=False, device=options.device)
    reading = {
        "patients": len(data),
        "slices": len(dataset),
        "wall_seconds": time.perf_counter() - wall,
        "processor_seconds": time.process_time() - begin,
    }
    starts = range(0, 8 * options.batch_size, options.batch_size)
    batches = [list(range(start, start + options.batch_size)) for start in starts]
    batches = [[index % len(dataset) for index in batch] for batch in batches]
    dataset.__getitems__(batches[0])
    clock = clock_of(options.device) if options.device.startswith("cuda") else time.process_time
    rates = {"whole batches": best_rate(dataset, batches, options.repeats, clock)}
    # What the data set does with transforms that it does not know: MONAI's own calls, on the host, where it then lies.
    before = dataset._batched, dataset._images, dataset._labels
    dataset._batched = None
    dataset._images, dataset._labels = ([each.cpu() for each in tensors] for tensors in before[1:])
    rates["one by one, MONAI's calls"] = best_rate(dataset, batches, options.repeats, clock)
    dataset._batched, dataset._images, dataset._labels = before
    for name, rate in rates.items():
        print(f"{name:28} {rate:7.0f} slices a second")
    print(f"reading {reading['patients']} patients: {reading['wall_seconds']:.1f} s")
    return dataset, {"slices_per_second": rates, "reading": reading}


def best_rate(
    dataset: SliceDataset, batches: list[list[int]], repeats: int, clock: Callable[[], float] = time.process_time
) -> float:
    """Slices a second by the clock, in the best of the repeats."""
    best = 0.0
    for _ in range(repeats):
        begin = clock()
        for batch in batches:
            dataset.__getitems__(batch)
        best = max(best, sum(map(len, batches)) / (clock() - begin))
    return best


def waiting(
    arch: str, options: argparse.Namespace, dataset: SliceDataset, loader: type[DataLoader]
) -> dict[str, float]:
    """Train; the share of waiting, and seconds a step, in the last epoch."""
    torch.manual_seed(0)
    network = build_network(arch, options.scale, in_channels=3, image_size=tuple(options.image_size))
    network = to_channels_last(network.to(options.device), options.image_size)
    wait = InputWait()
    trainer = SupervisedTrainer(
        device=torch.device(options.device),
        max_epochs=options.epochs,
        epoch_length=options.steps,
        train_data_loader=loader(dataset, batch_size=options.batch_size),
        network=network,
        optimizer=torch.optim.AdamW(network.parameters(), lr=1e-4),
        loss_function=TverskyBCELoss(),
        iteration_update=TrainingStep(),
        train_handlers=[wait],
        decollate=False,
    )
    trainer.run()
    seconds = trainer.state.times["EPOCH_COMPLETED"] / options.steps
    return {"input_wait": trainer.state.metrics["input_wait"], "seconds_a_step": seconds}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", default="phantom")
    parser.add_argument("--dataset_dir", type=Path, default=Path("data/phantom"))
    parser.add_argument("--patients", type=int, default=20, help="the first of fold 0's training patients")
    parser.add_argument("--arch", nargs="+", default=["unet", "swin", "vit"])
    parser.add_argument("--scale", default="500k")
    parser.add_argument("--image_size", type=int, nargs=2, default=(128, 128))
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8, help="of an epoch")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default=default_device())
    parser.add_argument("--output", type=Path, default=RESULTS / "input.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    names = ("manifest", "patients", "scale", "image_size", "batch_size", "epochs", "steps", "device")
    results = Results(options.output, options.device, {name: getattr(options, name) for name in names})
    prepare_data(options.manifest, options.dataset_dir)
    data = load_datalist(options.manifest, options.dataset_dir, 0, "train")[: options.patients]
    dataset, figures = pipeline(options, data)
    rows = []
    for arch in options.arch:
        row: dict[str, Any] = {"arch": arch}
        for name, loader in (("BackgroundLoader", BackgroundLoader), ("DataLoader", DataLoader)):
            row[name] = waiting(arch, options, dataset, loader)
            print(f"{arch}_{options.scale} {name:16} waits {row[name]['input_wait']:.2%} of the time", flush=True)
        rows.append(row)
        results.write({**figures, "training": rows})


if __name__ == "__main__":
    main()
