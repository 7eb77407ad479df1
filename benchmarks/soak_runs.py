"""The part of benchmarks/soak.py that ends runs and evaluations in processes of their own, and gives them again."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from common import ROOT

EPOCHS = 6
OPTIONS = {"image_size": "[32,32]", "epochs": EPOCHS, "batch_size": 16, "num_workers": 0, "device": "cpu"}
BUNDLE = ROOT / "bundles" / "unet_500k_sr.json"
EVALUATION = ROOT / "bundles" / "evaluate.json"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
LONG = 600.0
"""Seconds that no process takes, however busy the machine is."""


class Faults:
    """Faults in an order of chance, none a second time before each has happened once.

    Args:
        names: the faults.
        rng: draws the order.
    """

    def __init__(self, names: Iterable[str], rng: random.Random) -> None:
        self.names, self.counts = tuple(names), Counter[str]()
        self._rng, self._left = rng, list[str]()
        self._shuffle()

    def _shuffle(self) -> None:
        self._left = self._rng.sample(self.names, len(self.names))

    @property
    def next(self) -> str:
        """The fault to try now; it stays the next one until it has happened."""
        return self._left[-1]

    def happened(self) -> None:
        """Count it."""
        self.counts[self._left.pop()] += 1
        if not self._left:
            self._shuffle()

    @property
    def all_tried(self) -> bool:
        """Whether each has happened."""
        return all(self.counts[name] for name in self.names)


def epochs_done(folder: Path) -> int:
    """Epochs of a run that stand in its ``metrics.json``."""
    with contextlib.suppress(OSError, ValueError):
        return len(json.loads((folder / "metrics.json").read_text())["history"])
    return 0


def start(command: list[str], said: Path) -> subprocess.Popen[bytes]:
    """Start a command in a session of its own; what it says goes to a file, which nobody has to read meanwhile."""
    with said.open("wb") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)


def whole(command: list[str]) -> float:
    """Let a command come to its end; its seconds."""
    begun = time.monotonic()
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stdout + said.stderr
    return time.monotonic() - begun


def run_outcome(folder: Path) -> dict[str, Any]:
    """What a finished run must have in common with one that nothing happened to."""
    from monai_fp4.bundle.archive import check_archive

    said = json.loads((folder / "metrics.json").read_text())
    timed = ("seconds", "input_wait")
    said["history"] = [{name: v for name, v in entry.items() if name not in timed} for entry in said["history"]]
    del said["peak_memory_bytes"]
    leftovers = [path.name for path in folder.iterdir() if path.suffix == ".tmp"]
    return {"metrics": said, "model": check_archive(folder / "model.pt"), "leftovers": leftovers}


class Runs:
    """Runs that are ended and given again, and evaluated, until the time is over; the first one is left alone.

    Args:
        folder: where all of it lies.
        rng: draws faults and moments.
    """

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self.data, self.manifest, self.run, self.said = (folder / name for name in ("data", "data.json", "run", "said"))
        self.rng, self.counts = rng, Counter[str]()
        ended = [f"runs ended by {number.name} {when}" for number in SIGNALS for when in ("while they start", "later")]
        self.ends = Faults([*ended, "second starts refused"], rng)
        self.damages = Faults(["checkpoints cut", "checkpoints with a flipped bit", "checkpoints removed"], rng)
        self.evaluations = Faults(["evaluations ended by SIGKILL"], rng)
        untouched = folder / "whole"
        whole(self.training(untouched))  # which writes the patients too
        shutil.rmtree(untouched)
        self.seconds = whole(self.training(untouched)), whole(self.evaluation(untouched))
        self.right = self.outcome(untouched)

    def words(self, bundle: Path, **options: Any) -> list[str]:
        """The command line of a bundle."""
        options |= {"dataset_dir": self.data, "manifest": self.manifest}
        given = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        return [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(bundle), *given]

    def training(self, folder: Path) -> list[str]:
        """The command line of a run."""
        return self.words(BUNDLE, **OPTIONS, output_dir=folder)

    def evaluation(self, folder: Path) -> list[str]:
        """The command line of a run's evaluation, in a folder within the run's."""
        return self.words(EVALUATION, run_dir=folder, output_dir=folder / "evaluation", split="val", device="cpu")

    def outcome(self, folder: Path) -> dict[str, Any]:
        """What a run and its evaluation say."""
        evaluated = json.loads((folder / "evaluation" / "metrics.json").read_text())
        del evaluated["source"]  # where the run is
        return run_outcome(folder) | {"evaluation": evaluated, "locked": (folder / ".lock").exists()}

    def go(self, until: float) -> None:
        """Run after run, until the time is over and each fault has happened."""
        kinds = (self.ends, self.damages, self.evaluations)
        while time.monotonic() < until or not all(faults.all_tried for faults in kinds):
            while not self._ended_by_itself():
                self.counts["runs resumed"] += 1
            self._evaluate()
            assert self.outcome(self.run) == self.right, "a run that was ended early ends with other numbers"
            shutil.rmtree(self.run)
            self.counts |= self.ends.counts | self.damages.counts | self.evaluations.counts
            print(dict(self.counts), file=sys.stderr, flush=True)

    def _ended_by_itself(self) -> bool:
        """Start the run and let the next fault happen; whether it came to its end before."""
        command, before, fault = self.training(self.run), epochs_done(self.run), self.ends.next
        process = start(command, self.said)
        later = not fault.endswith("start")
        begun = time.monotonic()
        while later and process.poll() is None and epochs_done(self.run) == before:
            assert time.monotonic() - begun < LONG, self.said.read_text()
            time.sleep(0.01)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(self.rng.uniform(0, 0.05 if later else 0.6) * self.seconds[0])
        if process.poll() is None and fault == "second starts refused":
            self._start_a_second_one(process, command)
        elif process.poll() is None and not self._goes_on(process, next(n for n in SIGNALS if n.name in fault)):
            self._damage()
            return False
        assert process.wait(LONG) == 0, self.said.read_text()
        self.counts["runs finished"] += 1
        return True

    def _start_a_second_one(self, process: subprocess.Popen[bytes], command: list[str]) -> None:
        process.send_signal(signal.SIGSTOP)  # or it might have finished before the second one asks
        second = subprocess.run(command, capture_output=True, text=True, check=False)
        if (self.run / ".lock").exists():
            assert second.returncode == 1 and "one run at a time" in second.stderr, second.stderr
            self.ends.happened()
        process.send_signal(signal.SIGCONT)

    def _goes_on(self, process: subprocess.Popen[bytes], number: signal.Signals) -> bool:
        """Send a signal; whether it came too late."""
        process.send_signal(number)
        status, said = process.wait(LONG), self.said.read_text()
        if status == 0:
            return True
        # Before its first step, and after its last, a run is ended by the signal itself; or, while Python imports a
        # library in C, by what that makes of KeyboardInterrupt.
        known = {signal.SIGKILL: (), signal.SIGTERM: (128 + number,), signal.SIGINT: (128 + number, 1)}[number]
        assert status in (-number, *known), (number, status, said)
        assert "Traceback" not in said or status != 128 + number, said
        self.ends.happened()
        return False

    def _damage(self) -> None:
        """Cut a file, or flip one of its bits, as a disk would; only where another can take its place."""
        path, previous = self.run / "checkpoint.pt", self.run / "checkpoint.previous.pt"
        if not (path.exists() and previous.exists()) or path.samefile(previous):  # linked until the newer one is there
            return
        content = bytearray(path.read_bytes())
        at = self.rng.randrange(len(content) // 4, len(content) // 2)
        content[at] ^= 1 << self.rng.randrange(8)
        if self.damages.next == "checkpoints removed":
            path.unlink()
        else:
            path.write_bytes(content[:at] if self.damages.next == "checkpoints cut" else content)
        self.damages.happened()

    def _evaluate(self) -> None:
        """Evaluate a finished run; half of the times at the second attempt, after a first one that was killed."""
        process = start(self.evaluation(self.run), self.said)
        if not self.evaluations.all_tried or self.rng.random() < 0.5:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(self.rng.uniform(0.4, 0.95) * self.seconds[1])
            process.kill()
            if process.wait() != 0:
                self.evaluations.happened()
                if (self.run / "evaluation" / "metrics.json").exists():  # the last thing that it writes
                    self.counts["evaluations finished"] += 1
                    return
                process = start(self.evaluation(self.run), self.said)
        assert process.wait(LONG) == 0, self.said.read_text()
        self.counts["evaluations finished"] += 1
