"""What it costs to write a checkpoint that cannot be lost, beside one that is only written.

    python benchmarks/checkpoint.py

Both write the same network and AdamW's moments into the same folder, flushed to the disk. Beside that, a run looks
whether all of it is finite, keeps the checkpoint before, and notes the checksum of the weights. They take turns;
seconds are of processor time, which leaves out the waiting for the disk, so the true share is smaller. A step costs
nothing more: it looks at the loss and the norm of the gradient, as before.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, Results, in_turns

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

        seconds = in_turns({"only written": only_written, "not lost": not_lost}, repeats, "cpu")
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    share = statistics.median(
        ours / theirs for ours, theirs in zip(seconds["not lost"], seconds["only written"], strict=True)
    )
    return {"seconds": seconds, "median_seconds": medians, "ratio": share}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["unet_500k", "swin_15m"])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--output", type=Path, default=RESULTS / "checkpoint.json")
    options = parser.parse_args()
    torch.set_num_threads(1)  # for in_turns to read processor time
    results = Results(options.output, "cpu", {"repeats": options.repeats})
    cells = {}
    for network in options.networks:
        cells[network] = measure(checkpoint(*network.split("_")), options.repeats)
        print(network, cells[network]["median_seconds"], f"ratio {cells[network]['ratio']:.3f}", flush=True)
        results.write({"cells": cells})


if __name__ == "__main__":
    main()
