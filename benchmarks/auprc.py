"""The time of AUPRC on ten million pixels, beside scikit-learn's, MONAI's and torchmetrics', and a billion pixels.

    python benchmarks/auprc.py

All peers score the same pixels in the same process, in turns, each in one thread. The figure is the best of its
repeats, in seconds of processor time on a CPU (others may be at work on the machine) and of the clock on a GPU. Pixels
are those of a network at work: probabilities in float32, one in a hundred tumour. The billion is streamed through a
`ScoreHistogram` in pieces, and what the process's memory grew by meanwhile is written down.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from common import RESULTS, Results, clock_of, default_device

from monai_fp4.handlers.peak_memory import peak_memory
from monai_fp4.metrics import AUPRCMetric, ScoreHistogram, compute_auprc
from monai_fp4.metrics.native import library

MONAI = "monai.metrics.compute_average_precision"
PEERS = ("monai", "scikit-learn", "torchmetrics")  # whose versions are written down, installed or not


def pixels(count: int, seed: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities, float32, and labels, uint8."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.rand(count, generator=generator) < 0.01
    scores = torch.sigmoid(torch.randn(count, generator=generator) * 2 - 4 + 4 * labels)
    return scores.to(device), labels.to(device, torch.uint8)


def peers(scores: torch.Tensor, labels: torch.Tensor) -> dict[str, Callable[[], float]]:
    """Everybody who can be asked, ours first; each answers with the AUPRC, or raises ImportError if not installed."""

    def metric() -> float:
        counter = AUPRCMetric()
        counter(scores[None, None], labels[None, None])
        return float(counter.aggregate())

    return {
        "monai_fp4.metrics.compute_auprc": lambda: compute_auprc(scores, labels),
        "monai_fp4.metrics.ScoreHistogram": lambda: ScoreHistogram().add(scores, labels).auprc(),
        "monai_fp4.metrics.AUPRCMetric (pooled and per item)": metric,
        "sklearn.metrics.average_precision_score": lambda: _sklearn(scores, labels),
        MONAI: lambda: _monai(scores, labels),
        "torchmetrics": lambda: _torchmetrics(scores, labels),
    }


def _sklearn(scores: torch.Tensor, labels: torch.Tensor) -> float:
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(labels.cpu().numpy(), scores.cpu().numpy()))


def _monai(scores: torch.Tensor, labels: torch.Tensor) -> float:
    from monai.metrics import compute_average_precision

    # What monai.handlers.AveragePrecision calls at the end of an epoch; gathering the pixels before is not counted.
    return float(compute_average_precision(scores, labels.float()))


def _torchmetrics(scores: torch.Tensor, labels: torch.Tensor) -> float:
    from torchmetrics.functional.classification import binary_average_precision

    return float(binary_average_precision(scores, labels, validate_args=False))


def compare(options: argparse.Namespace) -> dict[str, object]:
    """Best seconds of each peer, and how much longer than ours it takes."""
    clock = clock_of(options.device)
    scores, labels = pixels(options.pixels, 0, options.device)
    asked = peers(scores, labels)
    seconds: dict[str, list[float]] = {name: [] for name in asked}
    answers: dict[str, float] = {}
    absent: list[str] = []
    for repeat in range(options.repeats):
        for name, ask in asked.items():
            if name in absent or (name == MONAI and repeat >= options.slow_repeats):
                continue
            begin = clock()
            try:
                answers[name] = ask()
            except ImportError:
                absent.append(name)
                continue
            seconds[name].append(clock() - begin)
            print(f"{name:46} {seconds[name][-1]:7.3f} s", flush=True)
    best = {name: min(times) for name, times in seconds.items() if times}
    ours = best["monai_fp4.metrics.compute_auprc"]
    reference = "sklearn.metrics.average_precision_score"
    reference = reference if reference in answers else "monai_fp4.metrics.compute_auprc"
    exact = answers[reference]
    rows: dict[str, dict[str, object]] = {
        name: {
            "seconds": best[name],
            "ratio_to_compute_auprc": best[name] / ours,
            "ratio_to_histogram": best[name] / best["monai_fp4.metrics.ScoreHistogram"],
            "auprc": answers[name],
            "error": abs(answers[name] - exact),
        }
        for name in best
    }
    for name, row in rows.items():
        print(f"{name:46} {best[name]:7.3f} s, {row['ratio_to_compute_auprc']:5.1f} x ours, error {row['error']:.1e}")
    for name in absent:
        print(f"{name:46} not installed")
        rows[name] = {"absent": "not installed"}
    return {"pixels": options.pixels, "errors_against": reference, "peers": rows}


def stream(options: argparse.Namespace) -> dict[str, object]:
    """Count very many pixels in pieces; a few pieces are made beforehand and shifted a little for each turn."""
    clock = clock_of(options.device)
    parts = [pixels(options.piece, seed, options.device) for seed in range(4)]
    histogram = ScoreHistogram()
    histogram.add(*parts[0]).fold()  # what any use needs is no growth
    histogram = ScoreHistogram()
    before, counting, done = peak(options.device), 0.0, 0
    growth = []
    while done < options.stream:
        scores, labels = parts[(done // options.piece) % len(parts)]
        scores = scores * (1 - 1e-7 * (done % 997))  # other numbers each time
        begin = clock()
        histogram.add(scores, labels)
        counting += clock() - begin
        done += options.piece
        growth.append(peak(options.device) - before)
    begin = clock()
    value, bounds = histogram.auprc(), histogram.auprc_bounds()
    counting += clock() - begin
    print(
        f"{done:.1e} pixels: {counting:.1f} s, {done / counting / 1e6:.0f} million a second; memory grew by "
        f"{growth[len(growth) // 10] / 2**20:.0f} MiB in the first tenth, {growth[-1] / 2**20:.0f} MiB in all"
    )
    return {
        "pixels": done,
        "piece": options.piece,
        "seconds": counting,
        "peak_growth_bytes_after_a_tenth": growth[len(growth) // 10],
        "peak_growth_bytes": growth[-1],
        "auprc": value,
        "auprc_bounds": bounds,
    }


def peak(device: str) -> int:
    """The most memory that this process ever held, in bytes: of the host, or of the device."""
    return peak_memory(torch.device(device))


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pixels", type=int, default=10**7)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--slow_repeats", type=int, default=1, help="of MONAI, which is the slowest; 0 leaves it out")
    parser.add_argument("--stream", type=int, default=10**9, help="pixels to stream; 0 leaves that out")
    parser.add_argument("--piece", type=int, default=2 * 10**6)
    parser.add_argument(
        "--device", default=default_device(), help="cuda counts on the GPU; the peers then copy to the host"
    )
    parser.add_argument("--output", type=Path, default=RESULTS / "auprc.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    kept = json.loads(options.output.read_text(encoding="utf-8")) if options.output.exists() else {}
    names = ("repeats", "slow_repeats", "device")
    protocol = {"threads": 1, "clock": "best of the repeats", **{name: getattr(options, name) for name in names}}
    results = Results(options.output, options.device, protocol, PEERS)
    figures: dict[str, object] = {"compiled": library() is not None}
    if options.stream:  # first: the peak of memory that the comparison leaves would hide what the stream adds
        figures["stream"] = stream(options)
        results.write(figures)
    elif "stream" in kept:  # the billion takes longer than the comparison, and may be measured apart
        figures["stream"] = {"kept_from": kept.get("run", {}).get("date", "an earlier run"), **kept["stream"]}
    if options.repeats:
        figures["comparison"] = compare(options)
    results.write(figures)


if __name__ == "__main__":
    main()
