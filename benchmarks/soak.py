"""Short trainings, killed and resumed, and evaluations, for as long as one likes: the figures of docs/reliability.md.

    python benchmarks/soak.py --minutes 60

Half of the time goes to processes: the command line of a run is started and ended at a random moment by SIGKILL,
SIGTERM or SIGINT, now and then a file is damaged while nobody trains, a second start is tried while one does, and the
command is given again until the run has finished. Its weights and its history must then be those of a run that
nothing happened to, to the last bit. Then it is evaluated, which may be killed and given again as well, and must say
what the evaluation of the other run says. The other half goes to one process that trains and evaluates over and over,
whose memory, open files and threads are to stay flat: all of them are kept, one a training.

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
from statistics import linear_regression
from typing import Any

from common import RESULTS, ROOT, load_average, machine, write_whole

EPOCHS = 6
OPTIONS = {"image_size": "[32,32]", "epochs": EPOCHS, "batch_size": 16, "num_workers": 0, "device": "cpu"}
BUNDLE = ROOT / "bundles" / "unet_500k_sr.json"
EVALUATION = ROOT / "bundles" / "evaluate.json"
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


def words(bundle: Path, **options: Any) -> list[str]:
    """The command line of a bundle."""
    given = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(bundle), *given]


def training(folder: Path, data: Path) -> list[str]:
    """The command line of a run."""
    return words(BUNDLE, **OPTIONS, output_dir=folder, dataset_dir=data, manifest=data.with_suffix(".json"))


def evaluation(folder: Path, data: Path) -> list[str]:
    """The command line of a run's evaluation, in a folder within the run's."""
    where = {"run_dir": folder, "output_dir": folder / "evaluation", "split": "val", "device": "cpu"}
    return words(EVALUATION, dataset_dir=data, manifest=data.with_suffix(".json"), **where)


def start(command: list[str]) -> subprocess.Popen[str]:
    """Start a command in a session of its own."""
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def whole(command: list[str]) -> float:
    """Let a command come to its end; its seconds."""
    begun = time.monotonic()
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stdout + said.stderr
    return time.monotonic() - begun


def outcome(folder: Path) -> dict[str, Any]:
    """What a finished run must have in common with one that nothing happened to."""
    from monai_fp4.bundle.archive import check_archive

    said = json.loads((folder / "metrics.json").read_text())
    timed = ("seconds", "input_wait")
    said["history"] = [{name: v for name, v in entry.items() if name not in timed} for entry in said["history"]]
    del said["peak_memory_bytes"]
    leftovers = [path.name for path in folder.iterdir() if path.suffix == ".tmp" or path.name == ".lock"]
    evaluated = json.loads((folder / "evaluation" / "metrics.json").read_text())
    del evaluated["source"]  # where the run is
    return {
        "metrics": said,
        "model": check_archive(folder / "model.pt"),
        "evaluation": evaluated,
        "leftovers": leftovers,
    }


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
    command = training(folder, data)
    for _ in range(6):
        process = start(command)
        number = rng.choice(list(STATUSES))
        try:
            said, _ = process.communicate(timeout=rng.uniform(0.2, 0.8) * seconds)
        except subprocess.TimeoutExpired:
            if (folder / ".lock").exists() and rng.random() < 0.4:
                process.send_signal(signal.SIGSTOP)  # or it might have finished before the second one asks
                second = subprocess.run(command, capture_output=True, text=True, check=False)
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
            counts[f"trainings ended by {number.name}"] += 1
            if how := damage(folder, rng):
                counts[how] += 1
        else:
            assert process.returncode == 0, said
            break
        counts["resumed"] += 1
    else:
        whole(command)
    counts["runs finished"] += 1


def killed_evaluation(folder: Path, data: Path, seconds: float, rng: random.Random, counts: Counter[str]) -> None:
    """Evaluate a finished run; half of the times at the second attempt, after a first one that was killed."""
    command = evaluation(folder, data)
    if rng.random() < 0.5:
        process = start(command)
        try:
            process.communicate(timeout=rng.uniform(0.4, 0.95) * seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            counts["evaluations ended by SIGKILL"] += 1
        if (folder / "evaluation" / "metrics.json").exists():
            counts["evaluations finished"] += 1
            return
    whole(command)
    counts["evaluations finished"] += 1


def in_processes(folder: Path, until: float, rng: random.Random) -> Counter[str]:
    """Kill and resume runs, and evaluate them, until the time is over; the first one is left alone."""
    counts: Counter[str] = Counter()
    data, untouched, run = folder / "data", folder / "whole", folder / "run"
    whole(training(untouched, data))  # which writes the patients too
    shutil.rmtree(untouched)
    seconds = whole(training(untouched, data)), whole(evaluation(untouched, data))
    right = outcome(untouched)
    while time.monotonic() < until or not counts["runs finished"]:
        killed_run(run, data, seconds[0], rng, counts)
        killed_evaluation(run, data, seconds[1], rng, counts)
        assert outcome(run) == right, "a run that was killed ends with other numbers"
        shutil.rmtree(run)
        print(dict(counts), file=sys.stderr, flush=True)
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
