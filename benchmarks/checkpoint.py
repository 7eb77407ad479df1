"""What it costs to write a checkpoint that cannot be lost, beside one that is only written.

    python benchmarks/checkpoint.py

Both write the same network and AdamW's moments into the same folder, flushed to the disk. Beside that, a run looks
whether all of it is finite, keeps the checkpoint before, and notes the checksum of the weights. They take turns; both
the clock, which waits for the disk, and processor time are read, and the least of the rounds counts, since other
processes only ever add to it. A step costs nothing more: it looks at the loss and the norm of the gradient, as before.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, Results

from monai_fp4 import build_network
from monai_fp4.bundle import RunFolder
from monai_fp4.bundle.archive import checksum
from monai_fp4.engines import nonfinite_tensors


def checkpoint(arch: str, scale: str) -> dict[str, Any]:
    """A network and its optimizer after a step."""
    network = build_network(arch, scale)
    optimizer = torch.optim.AdamW(network.parameters())
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return {"network": network.state_dict(), "optimizer": optimizer.state_dict()}


def measure(state: dict[str, Any], repeats: int) -> dict[str, Any]:
    """Write it both ways, in turns."""
    with tempfile.TemporaryDirectory(dir=".") as name:  # not in memory, where the system's temporary folder may be
        folder = RunFolder(name)

        def only_written() -> None:
            folder.save(folder.checkpoint_path, state)
            folder.save(folder.model_path, state["network"])

        def not_lost() -> None:
            assert not nonfinite_tensors(state)
            folder.event_sizes()
            folder.keep_checkpoint()
            folder.save(folder.checkpoint_path, state)
            folder.save(folder.model_path, state["network"])
            checksum(folder.model_path)

        rounds: dict[str, list[tuple[float, float]]] = {"only written": [], "not lost": []}
        for number in range(-1, repeats):
            for name, write in (("only written", only_written), ("not lost", not_lost)):
                clock, processor = time.perf_counter(), time.process_time()
                write()
                if number >= 0:
                    rounds[name].append((time.perf_counter() - clock, time.process_time() - processor))
    return {
        name: {"clock": min(clock for clock, _ in each), "processor": min(busy for _, busy in each), "rounds": each}
        for name, each in rounds.items()
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["unet_500k", "swin_15m"])
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--output", type=Path, default=RESULTS / "checkpoint.json")
    options = parser.parse_args()
    torch.set_num_threads(1)  # for in_turns to read processor time
    results = Results(options.output, "cpu", {"repeats": options.repeats})
    cells = {}
    for network in options.networks:
        cells[network] = measure(checkpoint(*network.split("_")), options.repeats)
        for name, seconds in cells[network].items():
            print(f"{network} {name:12} {seconds['clock']:.4f} s, {seconds['processor']:.4f} s of processor time")
        results.write({"cells": cells})


if __name__ == "__main__":
    main()
