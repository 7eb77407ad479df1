"""Short trainings, killed and resumed, and evaluations, for as long as one likes: the figures of docs/reliability.md.

    python benchmarks/soak.py --minutes 60

Half of the time goes to processes: the command line of a run is started and ended at a random moment by SIGKILL,
SIGTERM or SIGINT, now and then a file is damaged while nobody trains, a second start is tried while one does, and the
command is given again until the run has finished. Its weights and its history must then be those of a run that
nothing happened to, to the last bit. The other half goes to one process that trains and evaluates over and over, whose
memory, open files and threads are to stay flat.

Whatever is otherwise ends the script with an error. Moments and faults follow from ``--seed``; how many there are, from
the speed of the machine.
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
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

from common import RESULTS, ROOT, load_average, machine, write_whole

EPOCHS = 6
OPTIONS = {"image_size": "[32,32]", "epochs": EPOCHS, "batch_size": 16, "num_workers": 0, "device": "cpu"}
BUNDLE = ROOT / "bundles" / "unet_500k_sr.json"
STATUSES = {
    signal.SIGKILL: {-signal.SIGKILL},
    # Before its first step, and after its last, a run is ended by the signal itself.
    signal.SIGTERM: {128 + signal.SIGTERM, -signal.SIGTERM},
    signal.SIGINT: {128 + signal.SIGINT, 1, -signal.SIGINT},
}
WARM_UP = 3
"""Trainings in one process before its memory is looked at: caches fill."""


def write_manifest(path: Path) -> None:
    """One phantom patient a fold: a run is then short beside its start."""
    manifest = json.loads((ROOT / "data_manifests" / "phantom.json").read_text())
    manifest["patients"] = list({patient["fold"]: patient for patient in manifest["patients"]}.values())
    path.write_text(json.dumps(manifest))


def words(folder: Path, data: Path) -> list[str]:
    """The command line of a run."""
    options = OPTIONS | {"output_dir": folder, "dataset_dir": data, "manifest": data.with_suffix(".json")}
    given = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(BUNDLE), *given]


def start(folder: Path, data: Path) -> subprocess.Popen[str]:
    """Start a run, or go on with it."""
    return subprocess.Popen(
        words(folder, data), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def outcome(folder: Path) -> dict[str, Any]:
    """What a finished run must have in common with one that nothing happened to."""
    from monai_fp4.bundle.archive import check_archive

    said = json.loads((folder / "metrics.json").read_text())
    timed = ("seconds", "input_wait")
    said["history"] = [{name: v for name, v in entry.items() if name not in timed} for entry in said["history"]]
    del said["peak_memory_bytes"]
    leftovers = [path.name for path in folder.iterdir() if path.suffix == ".tmp" or path.name == ".lock"]
    return {"metrics": said, "model": check_archive(folder / "model.pt"), "leftovers": leftovers}


def damage(folder: Path, rng: random.Random) -> str:
    """Cut a file, or flip one of its bits, as a disk would; only where another can take its place."""
    path, previous = folder / "checkpoint.pt", folder / "checkpoint.previous.pt"
    if not (path.exists() and previous.exists()) or path.samefile(previous):  # linked until the newer one is written
        return ""
    content = bytearray(path.read_bytes())
    how = rng.choice(["checkpoint cut", "checkpoint with a flipped bit", "checkpoint removed"])
    if how == "checkpoint removed":
        path.unlink()
        return how
    at = rng.randrange(len(content) // 4, len(content) // 2)
    if how == "checkpoint cut":
        content = content[:at]
    else:
        content[at] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    return how


def killed_run(folder: Path, data: Path, seconds: float, rng: random.Random, counts: Counter[str]) -> None:
    """One run to its end, with whatever happens on the way."""
    for _ in range(6):
        process = start(folder, data)
        number = rng.choice(list(STATUSES))
        try:
            said, _ = process.communicate(timeout=rng.uniform(0.2, 0.8) * seconds)
        except subprocess.TimeoutExpired:
            if (folder / ".lock").exists() and rng.random() < 0.4:
                process.send_signal(signal.SIGSTOP)  # or it might have finished before the second one asks
                second = subprocess.run(words(folder, data), capture_output=True, text=True, check=False)
                if (folder / ".lock").exists():
                    assert second.returncode == 1 and "one run at a time" in second.stderr, second.stderr
                    counts["second starts refused"] += 1
                process.send_signal(signal.SIGCONT)
            process.send_signal(number)
            said, _ = process.communicate(timeout=120)
            if process.returncode == 0:
                break
            assert process.returncode in STATUSES[number], (number, process.returncode, said)
            assert "Traceback" not in said or process.returncode != 128 + number, said
            counts[f"ended by {number.name}"] += 1
            if how := damage(folder, rng):
                counts[how] += 1
        else:
            assert process.returncode == 0, said
            break
        counts["resumed"] += 1
    else:
        said, _ = (process := start(folder, data)).communicate()
        assert process.returncode == 0, said
    counts["runs"] += 1


def in_processes(folder: Path, until: float, rng: random.Random) -> Counter[str]:
    """Kill and resume runs until the time is over; the first one is left alone."""
    counts: Counter[str] = Counter()
    data, begun = folder / "data", time.monotonic()
    said = subprocess.run(words(folder / "whole", data), capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    seconds, right = time.monotonic() - begun, outcome(folder / "whole")
    while time.monotonic() < until or not counts["runs"]:
        killed_run(folder / "run", data, seconds, rng, counts)
        assert outcome(folder / "run") == right, "a run that was killed ends with other numbers"
        shutil.rmtree(folder / "run")
    return counts


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
        evaluation = more | {"run_dir": str(folder / "run"), "output_dir": str(folder / "evaluation"), "split": "val"}
        for bundle, changes in ((BUNDLE, options), (ROOT / "bundles" / "evaluate.json", evaluation)):
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
    first, last = states[WARM_UP], states[-1]
    return {
        "trainings_and_evaluations": len(states),
        "after_warm_up": first,
        "at_the_end": last,
    }


def main() -> None:
    """Run for as long as asked, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS / "soak.json")
    args = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    begun, load = time.monotonic(), load_average()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_manifest(folder / "data.json")
        counts = in_processes(folder, begun + args.minutes * 30, random.Random(args.seed))
        print(dict(counts), file=sys.stderr, flush=True)
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        one = in_one_process(folder, begun + args.minutes * 60)
    figures = {
        "protocol": {"bundle": BUNDLE.stem, "options": OPTIONS, "minutes": args.minutes, "seed": args.seed},
        "machine": machine(),
        "seconds": round(time.monotonic() - begun, 1),
        "load_average": {"before": load, "after": load_average()},
        "processes": dict(sorted(counts.items())),
        "one_process": one,
    }
    write_whole(args.output, json.dumps(figures, indent=2) + "\n")
    print(f"{args.output} written")


if __name__ == "__main__":
    main()
