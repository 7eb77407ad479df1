"""What a training step and a checkpoint cost, beside what they cost before anything was done for them not to be lost.

    python benchmarks/checkpoint.py

The commit before is taken out of the repository's history. Both train the same bundle on the same phantom patients, in
processes of their own that take turns; a step is measured between Ignite's events, and a checkpoint is all that
``Recorder`` does after an epoch: it looks whether everything is finite, keeps the checkpoint before, and writes
``checkpoint.pt``, the weights and the JSON files. Each epoch is made the best one, so ``model.pt`` is always among
them. The clock says how long the training waits, processor time is that of its thread; the thread that flushes the
files to the disk meanwhile, which before the system did later, stands apart. The least of all counts, since other
processes only ever add to it.
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

BEFORE = "b5c345a"
OPTIONS = {"image_size": [64, 64], "batch_size": 4, "num_workers": 0, "device": "cpu"}


class Timed:
    """Clock and processor time of whatever happens between `begin` and `end`."""

    def __init__(self) -> None:
        self.seconds: list[tuple[float, float]] = []

    def begin(self, *_: Any) -> None:
        """Remember the time."""
        self._clock, self._processor = time.perf_counter(), time.thread_time()

    def end(self, *_: Any) -> None:
        """Add what has passed."""
        self.seconds.append((time.perf_counter() - self._clock, time.thread_time() - self._processor))

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, timed."""

        @functools.wraps(call)
        def timed(*args: Any, **options: Any) -> Any:
            self.begin()
            result = call(*args, **options)
            self.end()
            return result

        return timed


def train(bundle: str, folder: Path, epochs: int) -> dict[str, list[tuple[float, float]]]:
    """Train with whatever version of the package stands on the path; runs in a process of its own."""
    import torch
    from ignite.engine import Events
    from monai.bundle import ConfigWorkflow

    was_in = "monai_fp4.loop"
    Recorder = import_module(was_in if find_spec(was_in) else "monai_fp4.handlers").Recorder  # noqa: N806
    torch.set_num_threads(1)
    steps, checkpoints, flushes = Timed(), Timed(), Timed()
    Recorder.record = checkpoints.around(Recorder.record)
    if find_spec("monai_fp4.atomic"):
        Replacements = import_module("monai_fp4.atomic").Replacements  # noqa: N806
        here, beside = Replacements.take_places, flushes.around(Replacements.take_places)
        in_main = lambda: threading.current_thread() is threading.main_thread()  # noqa: E731
        Replacements.take_places = lambda files: here(files) if in_main() else beside(files)
    Recorder.best = property(lambda recorder: recorder.history[-1])
    given = OPTIONS | {"dataset_dir": str(folder / "data"), "output_dir": str(folder / "run"), "epochs": epochs}
    given["manifest"] = str(folder / "data.json")
    flow = ConfigWorkflow(config_file=bundle, workflow_type="train", logging_file=False, **given)
    flow.initialize()
    trainer = flow.parser.get_parsed_content("train#trainer")
    trainer.add_event_handler(Events.ITERATION_STARTED, steps.begin)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, steps.end)
    flow.run()
    measured = {"step": steps.seconds, "checkpoint": checkpoints.seconds, "flush": flushes.seconds}
    return {what: seconds for what, seconds in measured.items() if seconds}


def measured(version: Path, bundle: str, epochs: int) -> dict[str, list[list[float]]]:
    """What `train` measures, with the package as it is in the folder ``version``."""
    with tempfile.TemporaryDirectory(dir=".") as name:  # not in memory, where the system's temporary folder may be
        manifest = json.loads((version / "data_manifests" / "phantom.json").read_text())
        one_a_fold = list({patient["fold"]: patient for patient in manifest["patients"]}.values())
        Path(name, "data.json").write_text(json.dumps(manifest | {"patients": one_a_fold}))
        config = str(version / "bundles" / f"{bundle}.json")
        command = [sys.executable, __file__, "--train", config, "--folder", name, "--epochs", str(epochs)]
        environment = os.environ | {"PYTHONPATH": str(version), "OMP_NUM_THREADS": "1"}
        said = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if said.returncode:
            raise SystemExit(said.stdout + said.stderr)
        seconds: dict[str, list[list[float]]] = json.loads(said.stdout.splitlines()[-1])
        return seconds


def compare(bundle: str, before: Path, rounds: int, epochs: int) -> dict[str, Any]:
    """Measure both versions in turns; the least clock and processor time of each."""
    from common import ROOT

    each: dict[str, dict[str, list[list[float]]]] = {}
    for _ in range(rounds):
        for name, version in (("before", before), ("now", ROOT)):
            for what, seconds in measured(version, bundle, epochs).items():
                each.setdefault(what, {}).setdefault(name, []).extend(seconds)
    return {
        what: {
            name: {"clock": min(pair[0] for pair in pairs), "processor": min(pair[1] for pair in pairs)}
            for name, pairs in by_name.items()
        }
        | {"counted": {name: len(pairs) for name, pairs in by_name.items()}}
        for what, by_name in each.items()
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundles", nargs="+", default=["unet_500k_sr", "swin_15m_bf16"])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--output", type=Path, default=None)
    parser.add_argument("--train", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        print(json.dumps(train(options.train, options.folder, options.epochs)))
        return
    import torch
    from common import RESULTS, ROOT, Results

    torch.set_num_threads(1)  # as in those that train
    protocol = OPTIONS | {"before": BEFORE, "rounds": options.rounds, "epochs": options.epochs}
    results, cells = Results(options.output or RESULTS / "checkpoint.json", "cpu", protocol), {}
    with tempfile.TemporaryDirectory() as name:
        archive = subprocess.run(["git", "archive", BEFORE], cwd=ROOT, capture_output=True, check=True).stdout
        with tarfile.open(fileobj=io.BytesIO(archive)) as files:
            files.extractall(name, filter="data")
        for bundle in options.bundles:
            cells[bundle] = compare(bundle, Path(name), options.rounds, options.epochs)
            for what, cell in cells[bundle].items():
                numbers = [f"{v:.4f} s {k} {n}" for n in ("before", "now") for k, v in cell.get(n, {}).items()]
                print(bundle, what, ", ".join(numbers), flush=True)
            results.write({"cells": cells})


if __name__ == "__main__":
    main()
