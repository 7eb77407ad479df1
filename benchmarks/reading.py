"""What it costs to read all patients before the first epoch, beside a pipeline of MONAI's own transforms.

    python benchmarks/reading.py --manifest lgg --dataset_dir /data/kaggle_3m

Both decode, normalise and resize the same files and keep them in memory: `SliceDataset`, and MONAI's `CacheDataset` of
`LoadImaged`, `NormalizeIntensityd` and `Resized`, an item a slice (a patient for NIfTI). They take turns on a few
patients. Ours does more: it checks the SHA-256 of every file, and normalises a patient's slices together, over the
foreground. Seconds are of processor time, of all threads and of the system on their behalf: less disturbed by other
processes than the clock, but not undisturbed, since they share caches and memory.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, Results, in_turns
from monai.data import CacheDataset
from monai.transforms import Compose, LoadImaged, NormalizeIntensityd, Resized

from monai_fp4.data import SliceDataset, load_datalist, prepare_data

KEYS = ("image", "label")


def by_monai(data: Sequence[dict[str, Any]], image_size: Sequence[int]) -> CacheDataset:
    """The same patients through MONAI's transforms."""
    nifti = data[0]["format"] == "nifti"
    if nifti:  # the channels of a patient are files of their own
        items: list[dict[str, Any]] = [
            {"image": [pair["image"] for pair in patient["images"]], "label": patient["images"][0]["mask"]}
            for patient in data
        ]
    else:
        items = [{"image": pair["image"], "label": pair["mask"]} for patient in data for pair in patient["images"]]
    transform = Compose(
        [
            LoadImaged(KEYS, reader="NibabelReader" if nifti else "PILReader", ensure_channel_first=True),
            NormalizeIntensityd("image", channel_wise=True),
            Resized(KEYS, (*image_size, -1) if nifti else tuple(image_size), mode="area"),
        ]
    )
    return CacheDataset(items, transform, num_workers=None, progress=False)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", default="phantom")
    parser.add_argument("--dataset_dir", type=Path, default=Path("data/phantom"))
    parser.add_argument("--patients", type=int, default=8, help="the first of fold 0's training patients")
    parser.add_argument("--image_size", type=int, nargs=2, default=(128, 128))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS / "reading.json")
    options = parser.parse_args()
    torch.set_num_threads(1)  # for in_turns to read processor time; both have threads of their own for patients
    names = ("manifest", "image_size", "repeats")
    results = Results(options.output, "cpu", {name: getattr(options, name) for name in names}, peers=("monai",))
    prepare_data(options.manifest, options.dataset_dir)
    data = load_datalist(options.manifest, options.dataset_dir, 0, "train")[: options.patients]
    contestants: dict[str, Callable[[], object]] = {
        "ours": lambda: SliceDataset(data, options.image_size, progress=False),
        "MONAI": lambda: by_monai(data, options.image_size),
    }
    rows = {}
    for name, seconds in in_turns(contestants, options.repeats, "cpu").items():
        each = [second / len(data) for second in seconds]
        rows[name] = {"seconds_a_patient": statistics.median(each), "rounds": each}
        print(f"{name:6} {rows[name]['seconds_a_patient']:.3f} s of processor time a patient", flush=True)
    results.write({"patients": len(data), "reading": rows})


if __name__ == "__main__":
    main()
