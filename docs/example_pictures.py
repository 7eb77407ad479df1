"""Make the picture of a prediction that stands in README.md and docs/howto/predict.md, by the commands of these pages.

    python docs/example_pictures.py        # -> docs/assets/predict-preview.webp

`unet_500k_sr` is trained on the synthetic `phantom`, with its options but the size of the images, and predicts a
patient of the test split, whose slices are copied without their masks. Nothing here is of a real patient.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from monai_fp4.data import load_manifest, select_patients

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "assets" / "predict-preview.webp"
SIZE = "[128,128]"
PATIENT = "PHANTOM_NA_0021"


def bundle(config: str, *options: str) -> None:
    """Run a bundle as its page says."""
    words = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(ROOT / "bundles" / config), *options]
    subprocess.run(words, check=True)


def make(work: Path, epochs: int, picture: Path) -> None:
    """Train, predict and keep the preview.

    Args:
        work: an empty folder for data, run and predictions.
        epochs: of the training.
        picture: the file to write, WebP without loss.
    """
    data, run, scans, predictions = (work / name for name in ("phantom", "run", "scans", "predictions"))
    options = ["--dataset_dir", str(data), "--output_dir", str(run), "--image_size", SIZE, "--epochs", str(epochs)]
    bundle("unet_500k_sr.json", *options)
    (patient,) = (each for each in select_patients(load_manifest("phantom"), 0, "test") if each.id == PATIENT)
    for pair in patient.images:
        copy = scans / pair.image
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(data / pair.image, copy)
    bundle("inference.json", "--run_dir", str(run), "--input", str(scans), "--output_dir", str(predictions))
    (preview,) = predictions.rglob("preview.png")
    Image.open(preview).save(picture, lossless=True, method=6)


def main() -> None:
    """Make the picture in a folder that is removed afterwards."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        make(Path(work), args.epochs, args.picture)


if __name__ == "__main__":
    main()
