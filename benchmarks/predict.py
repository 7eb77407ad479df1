"""What predicting a study costs, beside MONAI's own inference code with the same network.

    python benchmarks/predict.py                       # a study of 240 x 240 x 155, swin_4m, slice by slice
    python benchmarks/predict.py --peak 512 512 600    # and the memory that a large volume takes

Both read one NIfTI file of one channel, normalise it, show the network its slices at ``image_size`` in batches of 64,
bring the answers back to the scan's size, threshold them and write a NIfTI mask. MONAI's part is `LoadImaged`,
`NormalizeIntensityd`, `Resized`, `SliceInferer`, `Invertd`, `AsDiscreted` and `SaveImaged`; ours is `Predictor`, which
also hashes the file, draws the preview and writes the report. They take turns. The network's weights are random: the
time does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from common import RESULTS, Results, default_device, in_turns
from monai.inferers import SliceInferer
from monai.transforms import AsDiscreted, Compose, Invertd, LoadImaged, NormalizeIntensityd, Resized, SaveImaged

from monai_fp4 import build_network
from monai_fp4.bundle import training_config
from monai_fp4.engines import autocast
from monai_fp4.inference import Ensemble, Predictor

CHUNK = 64


def write_run(folder: Path, options: argparse.Namespace) -> Path:
    """A run folder with random weights."""
    size = list(options.image_size)
    network = build_network(options.arch, options.scale, 1, 1, image_size=tuple(size), spatial_dims=2)
    folder.mkdir(parents=True)
    torch.save(network.state_dict(), folder / "model.pt")
    config = training_config(options.arch, options.scale, options.recipe) | {"image_size": size, "device": "cpu"}
    for name, content in (
        ("config", config),
        ("metrics", {"threshold": 0.5}),
        ("patients", {"channels": ["flair"]}),
    ):
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def write_scan(path: Path, shape: tuple[int, ...]) -> Path:
    """An ellipsoid of noise in noise, as whole numbers of 16 bits."""
    random = np.random.default_rng(0)
    grid = np.ogrid[tuple(slice(-1, 1, complex(0, edge)) for edge in shape)]
    inside = sum(axis**2 for axis in grid) < 0.8
    values = (random.normal(300, 40, shape).astype(np.float32) * inside + 20).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([1.0, 1.0, 1.0, 1.0])), path)
    return path


def by_monai(network: torch.nn.Module, source: Path, output: Path, options: argparse.Namespace) -> None:
    """The same through MONAI's own transforms and inferer."""
    device = torch.device(options.device)
    before = Compose(
        [
            LoadImaged("image", reader="NibabelReader", ensure_channel_first=True),
            NormalizeIntensityd("image", nonzero=True, channel_wise=True),
            Resized("image", (*options.image_size, -1), mode="area"),
        ]
    )
    after = Compose(
        [
            Invertd("pred", before, orig_keys="image", nearest_interp=False, to_tensor=True),
            AsDiscreted("pred", threshold=0.5),
            SaveImaged("pred", output_dir=output, output_postfix="mask", separate_folder=False, print_log=False),
        ]
    )
    inferer = SliceInferer(roi_size=tuple(options.image_size), sw_batch_size=CHUNK, spatial_dim=2, overlap=0.0)
    item = before({"image": str(source)})
    with torch.no_grad(), autocast(device, True):
        answer = torch.sigmoid(inferer(item["image"][None].to(device), network).float())[0].cpu()
    after({**item, "pred": answer})


def predict(ensemble: Ensemble, source: Path, output: Path) -> None:
    """The same through this package."""
    with redirect_stdout(StringIO()):
        Predictor(ensemble, str(source), str(output)).run()


def peak(run: Path, source: Path, output: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Peak memory of a process that predicts one study, and of one that has only loaded the network."""
    program = (
        "import sys, torch; from monai_fp4.inference import Ensemble, Predictor;"
        "from monai_fp4.handlers.peak_memory import peak_memory; here = torch.device('cpu');"
        f"e = Ensemble(sys.argv[1], flips=False, chunk={CHUNK}, device={options.device!r}); e.network;"
        "a = peak_memory(here); Predictor(e, sys.argv[2], sys.argv[3]).run(); print('PEAK', a, peak_memory(here))"
    )
    command = [sys.executable, "-W", "ignore", "-c", program, str(run), str(source), str(output)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    before, after = map(int, shown.split("PEAK")[1].split())
    return {"shape": list(options.peak), "bytes_network": before, "bytes_peak": after}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="swin")
    parser.add_argument("--scale", default="4m")
    parser.add_argument("--recipe", default="bf16")
    parser.add_argument("--image_size", type=int, nargs=2, default=(64, 64))
    parser.add_argument("--shape", type=int, nargs=3, default=(240, 240, 155))
    parser.add_argument("--peak", type=int, nargs=3, help="also measure the memory of a volume of this size")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default=default_device())
    parser.add_argument("--output", type=Path, default=RESULTS / "predict.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = ("arch", "scale", "recipe", "image_size", "shape", "repeats", "device")
    results = Results(options.output, options.device, {n: getattr(options, n) for n in names}, peers=("monai",))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        run, source = write_run(folder / "run", options), write_scan(folder / "scan.nii.gz", tuple(options.shape))
        ensemble = Ensemble(str(run), flips=False, chunk=CHUNK, device=options.device)
        network, turn = ensemble.network, iter(range(1000))
        seconds = in_turns(
            {
                "ours": lambda: predict(ensemble, source, folder / f"ours_{next(turn)}"),
                "MONAI": lambda: by_monai(network, source, folder / f"monai_{next(turn)}", options),
            },
            options.repeats,
            options.device,
        )
        rows = {name: {"seconds": statistics.median(each), "rounds": each} for name, each in seconds.items()}
        for name, row in rows.items():
            print(f"{name:6} {row['seconds']:.2f} s a study", flush=True)
        figures: dict[str, Any] = {"predict": rows}
        if options.peak:
            large = write_scan(folder / "large.nii.gz", tuple(options.peak))
            figures["peak"] = peak(run, large, folder / "large", options)
            print(f"peak   {figures['peak']['bytes_peak'] / 2**30:.2f} GiB", flush=True)
    results.write(figures)


if __name__ == "__main__":
    main()
