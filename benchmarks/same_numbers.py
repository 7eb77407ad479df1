"""Train the same bundles with the code of two checkouts, and say whether every metric has the same bits.

What a refactoring has to show: ``make demo``'s training, and each architecture under ``bf16`` and ``sr_rht_2d``.

    python benchmarks/same_numbers.py train /path/to/before results/before
    python benchmarks/same_numbers.py train /path/to/after results/after
    python benchmarks/same_numbers.py compare results/before results/after

Trainings run one after the other, on one thread, from the checkout's own ``bundles/``; times are left out of the
comparison, and so is the peak of memory, which is no result of the arithmetic.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

BUNDLES = (
    "swin_15m_sr",  # make demo
    *(f"{arch}_500k_{recipe}" for arch in ("unet", "swin", "vit") for recipe in ("bf16", "sr_rht_2d")),
    "swinunetr_15m_sr_rht_2d",
)
NO_RESULT = {"seconds", "input_wait", "peak_memory_bytes"}


def train(checkout: Path, results: Path, bundles: list[str]) -> None:
    """Train each bundle of ``checkout`` into a folder of ``results``; a finished one is not trained again."""
    environment = os.environ | {"PYTHONPATH": str(checkout.resolve()), "OMP_NUM_THREADS": "1"}
    results = results.resolve()
    for name in bundles:
        command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", f"bundles/{name}.json"]
        command += ["--dataset_dir", str(results / "phantom"), "--output_dir", str(results / name), "--device", "cpu"]
        if name.startswith("swinunetr"):
            command += ["--epochs", "1", "--image_size", "[64,64]"]
        subprocess.run(command, cwd=checkout, env=environment, check=True, stdout=subprocess.DEVNULL)
        print(f"{name}: {digest(results / name)}", flush=True)


def digest(run: Path) -> str:
    """Hash of everything in ``metrics.json`` that the arithmetic decides; JSON keeps every bit of a float."""
    metrics = _results(json.loads((run / "metrics.json").read_text()))
    return hashlib.sha256(json.dumps(metrics, sort_keys=True).encode()).hexdigest()[:16]


def _results(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _results(item) for key, item in value.items() if key not in NO_RESULT}
    return [_results(item) for item in value] if isinstance(value, list) else value


def compare(before: Path, after: Path) -> int:
    """Print a line a bundle; 1 if any differs or is missing on one side."""
    names = sorted({path.parent.name for folder in (before, after) for path in folder.glob("*/metrics.json")})
    different = 0
    for name in names:
        digests = [digest(f / name) if (f / name / "metrics.json").exists() else "missing" for f in (before, after)]
        same = digests[0] == digests[1] != "missing"
        different += not same
        print(f"{name:28} {digests[0]} {digests[1]} {'same' if same else 'DIFFERENT'}")
    print(f"{len(names) - different} of {len(names)} have the same bits")
    return int(different > 0 or not names)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    trained = actions.add_parser("train", help="train every bundle with the code of a checkout")
    trained.add_argument("checkout", type=Path)
    trained.add_argument("results", type=Path)
    trained.add_argument("--bundles", nargs="+", default=list(BUNDLES))
    compared = actions.add_parser("compare", help="hold two folders of trainings against each other")
    compared.add_argument("before", type=Path)
    compared.add_argument("after", type=Path)
    arguments = parser.parse_args()
    if arguments.action == "train":
        train(arguments.checkout, arguments.results, arguments.bundles)
    else:
        raise SystemExit(compare(arguments.before, arguments.after))
