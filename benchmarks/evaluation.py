"""What a validation of pictures costs beside a forward pass of as many training pictures.

    python benchmarks/evaluation.py

153 synthetic pictures of 338 x 316 pixels, seen by a network at 128 x 128, as a fold of the magnetic tiles is: the
passes alone (batches of 16 as in training, one patient at a time, patients together), and the whole validation with its
exact AUPRC, threshold and per-patient table. Medians of seconds of one core. Writes
benchmarks/results/evaluation.json.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, Results, in_turns
from monai.engines import SupervisedEvaluator
from monai.inferers import SimpleInferer

from monai_fp4 import convert
from monai_fp4.data import in_batches
from monai_fp4.engines import EvaluationStep
from monai_fp4.handlers import AUPRC
from monai_fp4.networks import build_network
from monai_fp4.networks.memory_format import channels_last, to_channels_last

SIZE, OWN_SIZE, BATCH = (128, 128), (338, 316), 16


def measure(arch: str, recipe: str, patients: list[dict[str, Any]], rounds: int) -> dict[str, float]:
    """One network under one recipe."""
    network = build_network(arch, "500k", 1, 1, image_size=SIZE, spatial_dims=2)
    network = to_channels_last(convert(network, recipe, dtype=torch.bfloat16)[0], SIZE).eval()
    images = torch.cat([patient["image"].movedim(-1, 0) for patient in patients])

    def forward() -> None:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            for batch in images.split(BATCH):
                network(channels_last(batch))

    def evaluate(batches: list[Any], **options: Any) -> None:
        SupervisedEvaluator(
            device=torch.device("cpu"), val_data_loader=batches, network=network, inferer=SimpleInferer(),
            iteration_update=EvaluationStep(image_size=SIZE), decollate=False, **options,
        ).run()  # fmt: skip

    together = list(in_batches(patients, lambda _: 1))
    steps: dict[str, Callable[[], object]] = {
        "forward_in_training_batches": forward,
        "passes_one_at_a_time": lambda: evaluate(patients),
        "passes_together": lambda: evaluate(together),
        "validation": lambda: evaluate(together, key_val_metric={"auprc": AUPRC()}),
    }
    return {name: round(statistics.median(times), 3) for name, times in in_turns(steps, rounds, "cpu").items()}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archs", nargs="+", default=("unet", "swin"))
    parser.add_argument("--pictures", type=int, default=153)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS / "evaluation.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    protocol = {
        "pictures": options.pictures, "image_size": SIZE, "own_size": OWN_SIZE, "training_batch": BATCH,
        "rounds": options.rounds,
    }  # fmt: skip
    results = Results(options.output, "cpu", protocol, peers=("monai",))
    generator = torch.Generator().manual_seed(0)
    patients = [
        {
            "image": torch.randn(1, *SIZE, 1, generator=generator),
            "label": (torch.rand(1, *OWN_SIZE, 1, generator=generator) < 0.02).to(torch.uint8),
            "patient": f"picture {number}",
        }
        for number in range(options.pictures)
    ]
    rows = {}
    for arch in options.archs:
        for recipe in ("bf16", "sr_rht_2d"):
            rows[f"{arch}_500k_{recipe}"] = seconds = measure(arch, recipe, patients, options.rounds)
            print(arch, recipe, seconds, flush=True)
    results.write({"unit": "seconds of one core for all pictures", "evaluation": rows})


if __name__ == "__main__":
    main()
