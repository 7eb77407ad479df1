"""Short trainings and sweeps, killed and given again, and evaluations: the figures of docs/reliability.md.

    python benchmarks/soak.py --minutes 60

A third of the time goes to runs (`soak_runs`): the command line of a run is started and ended by SIGKILL, SIGTERM or
SIGINT, at a random moment of its start or of its training, a file is damaged while nobody trains, a second start is
tried while one does, and the command is given again until the run has finished. Its weights and its history must then
be those of a run that nothing happened to, to the last bit. Then it is evaluated, which may be killed and given again
as well, and must say what the evaluation of the other run says. The second third goes to sweeps of two cells
(`soak_sweeps`), of which the driver, a cell or a cell's worker is ended. The last one goes to one process that trains
and evaluates over and over, whose memory, open files and threads are to stay flat: all are kept, one a training.

Whatever is otherwise ends the script with an error. Moments and the order of the faults follow from ``--seed``. None
comes a second time before each has come once, and none is left out: a short soak takes longer than ``--minutes``.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path
from statistics import linear_regression
from typing import Any

from common import RESULTS, ROOT, load_average, machine, write_whole
from soak_runs import BUNDLE, EVALUATION, OPTIONS, Runs
from soak_sweeps import Sweeps

WARM_UP = 3
"""Trainings in one process before its memory is looked at: caches fill."""


def write_manifest(path: Path) -> None:
    """One phantom patient a fold: a run is then short beside its start."""
    manifest = json.loads((ROOT / "data_manifests" / "phantom.json").read_text())
    manifest["patients"] = list({patient["fold"]: patient for patient in manifest["patients"]}.values())
    path.write_text(json.dumps(manifest))


def state_of_process() -> dict[str, int]:
    """Memory, open files and threads of this process."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "resident_bytes": pages * os.sysconf("SC_PAGE_SIZE"),
        "open_files": len(list(Path("/proc/self/fd").iterdir())) - 1,  # the folder itself is one
        "threads": threading.active_count(),
    }


def in_one_process(folder: Path, until: float) -> dict[str, Any]:
    """Train and evaluate over and over in this process."""
    import torch
    from monai.bundle import ConfigWorkflow

    torch.set_num_threads(1)
    states: list[dict[str, int]] = []
    more = {"dataset_dir": str(folder / "data"), "manifest": str(folder / "data.json"), "device": "cpu"}
    while time.monotonic() < until or len(states) < WARM_UP + 2:
        options = OPTIONS | more | {"epochs": 1, "image_size": [32, 32], "output_dir": str(folder / "run")}
        evaluated = more | {"run_dir": str(folder / "run"), "output_dir": str(folder / "evaluation"), "split": "val"}
        for bundle, changes in ((BUNDLE, options), (EVALUATION, evaluated)):
            flow = ConfigWorkflow(config_file=str(bundle), workflow_type="train", logging_file=False, **changes)
            flow.initialize()
            flow.run()
            flow.finalize()
            if bundle == BUNDLE:
                flow.parser.get_parsed_content("summary_writer").close()
            del flow
        for name in ("run", "evaluation"):
            shutil.rmtree(folder / name)
        states.append(state_of_process())
        print(json.dumps(states[-1]), file=sys.stderr, flush=True)
    held = {name: [state[name] for state in states] for name in states[0]}
    later = held["resident_bytes"][len(states) // 2 :]
    return {
        "trainings_and_evaluations": len(states),
        "after_warm_up": states[WARM_UP],
        "at_the_end": states[-1],
        "most": {name: max(values[WARM_UP:]) for name, values in held.items()},
        "bytes_a_training_in_the_second_half": round(linear_regression(range(len(later)), later).slope),
        "resident_mib": [round(value / 2**20) for value in held["resident_bytes"]],
    }


def main() -> None:
    """Run for as long as asked, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS / "soak.json")
    args = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has processes in the background ignore it
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    begun, load = time.monotonic(), load_average()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_manifest(folder / "data.json")
        rng = random.Random(args.seed)
        runs = Runs(folder, rng)
        runs.go(begun + args.minutes * 20)
        sweeps = Sweeps(runs, rng)
        sweeps.go(begun + args.minutes * 40)
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        one = in_one_process(folder, begun + args.minutes * 60)
    figures = {
        "protocol": {"bundle": BUNDLE.stem, "options": OPTIONS, "minutes": args.minutes, "seed": args.seed},
        "machine": machine(),
        "seconds": round(time.monotonic() - begun, 1),
        "load_average": {"before": load, "after": load_average()},
        "processes": dict(sorted((runs.counts + sweeps.counts).items())),
        "one_process": one,
    }
    write_whole(args.output, json.dumps(figures, indent=2) + "\n")
    print(f"{args.output} written")


if __name__ == "__main__":
    main()
