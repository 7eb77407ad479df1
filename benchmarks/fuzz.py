"""Nearly right files and options, by the thousand, for whatever reads them: the figures of docs/reliability.md.

    python benchmarks/fuzz.py

The readers and their inputs are those of tests/fuzzing.py, of which the tests try a few. Each input must be taken, or
be refused by one sentence of the package's own; anything else ends the script with the input that did it. It notes how
many were taken and refused, and the longest time and the most memory of one.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import resource
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, ROOT, Results
from hypothesis import HealthCheck, Phase, given, seed, settings

sys.path.insert(0, str(ROOT / "tests"))

from fuzzing import Target, targets


def attempt(target: Target, examples: int, number: int) -> dict[str, Any]:
    """Try many inputs, another sequence of them for each number."""
    counts = {"taken": 0, "refused": 0}
    longest = most = 0.0

    @seed(number)
    @settings(
        max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )  # fmt: skip
    @given(target.inputs)
    def take(value: Any) -> None:
        nonlocal longest, most
        pages, highest = int(Path("/proc/self/statm").read_text().split()[1]), _peak()
        begun = time.process_time()
        with contextlib.redirect_stdout(io.StringIO()):
            refused = target.refuses(value)
        counts["refused" if refused else "taken"] += 1
        longest = max(longest, time.process_time() - begun)
        if _peak() > highest:  # else it took no more than others before it
            most = max(most, _peak() - pages * resource.getpagesize() / 2**20)

    take()
    return counts | {"longest_seconds": round(longest, 3), "most_memory_mib": round(most, 1)}


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def main() -> None:
    """Try, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--of_a_report", type=int, default=200, help="as each of them reads a whole study")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="a part of the names of those to try again")
    parser.add_argument("--output", type=Path, default=RESULTS / "fuzz.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    results = Results(options.output, "cpu", {"seed": options.seed})
    kept = options.only and options.output.exists()  # figures of the others
    found: dict[str, Any] = json.loads(options.output.read_text())["inputs"] if kept else {}
    with tempfile.TemporaryDirectory() as name:
        for what, target in targets(Path(name)).items():
            if options.only in what:
                examples = options.of_a_report if what.endswith("reported") else options.examples
                found[what] = attempt(target, examples, options.seed)
                print(what, found[what], flush=True)
                results.write({"inputs": found})


if __name__ == "__main__":
    main()
