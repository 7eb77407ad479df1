"""The ratios that the project promises something about, from the results files; one that is missing is left out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STEP_GOAL = {"cpu": 1.6, "cuda": 1.5}


@dataclass(frozen=True)
class Ratio:
    """One figure.

    Attributes:
        name: what over what.
        value: the ratio.
        goal: the promise, if there is one.
        at_most: whether the goal is an upper bound rather than a lower one.
    """

    name: str
    value: float
    goal: float | None = None
    at_most: bool = True

    @property
    def met(self) -> bool:
        """Whether the promise is kept; so is one that was not made."""
        if self.goal is None:
            return True
        return self.value <= self.goal if self.at_most else self.value >= self.goal

    def goal_text(self) -> str:
        """The promise, and whether it is kept."""
        if self.goal is None:
            return ""
        bound = "at most" if self.at_most else "at least"
        return f"{bound} {self.goal:g}{'' if self.met else ', MISSED'}"


def load(folder: Path, name: str) -> dict[str, Any] | None:
    """A results file, or None."""
    path = folder / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def collect(folder: Path) -> list[Ratio]:
    """Every ratio that the files in a folder tell."""
    readers = {
        "quantize": quantize,
        "training_step": training_step,
        "compiled_step": compiled_step,
        "paper_epoch": paper_epoch,
        "networks": networks,
        "auprc": auprc,
        "input": input_wait,
        "predict": predict,
    }
    return [ratio for name, read in readers.items() if (content := load(folder, name)) for ratio in read(content)]


def predict(content: Mapping[str, Any]) -> Iterator[Ratio]:
    """Our prediction of a study over MONAI's."""
    seconds = {name: row["seconds"] for name, row in content["predict"].items()}
    yield Ratio("predict: a study, ours / MONAI's", seconds["ours"] / seconds["MONAI"], 1.0)


def quantize(content: Mapping[str, Any]) -> Iterator[Ratio]:
    """Our quantizers over a clone, and each peer over ours."""
    milliseconds = {name: entry["ms"] for name, entry in content["results"].items() if "ms" in entry}
    clone, ours = milliseconds["x.clone()"], milliseconds["ours, rows, nearest"]
    for name, value in milliseconds.items():
        if name.startswith("ours"):
            yield Ratio(f"quantize: {name} / clone", value / clone, 3.0 if name == "ours, rows, nearest" else None)
    for name, value in milliseconds.items():
        if not name.startswith(("ours", "x.clone")):
            yield Ratio(f"quantize: {name} / ours", value / ours, 1.0 if "magic" in name else None, at_most=False)


def training_step(content: Mapping[str, Any]) -> Iterator[Ratio]:
    """Every recipe over BF16."""
    device = "cuda" if content["protocol"]["device"].startswith("cuda") else "cpu"
    for cell in content["cells"]:
        if cell["recipe"] == "bf16":
            continue
        bound = None if "plain" in cell["recipe"] or content["protocol"]["scale"] != "15m" else STEP_GOAL[device]
        name = cell["bundle"].removesuffix("_" + cell["recipe"].split(",")[0])
        yield Ratio(f"step: {name}, {cell['recipe']} / bf16", cell["ratio"], bound)


def compiled_step(content: Mapping[str, Any]) -> Iterator[Ratio]:
    """A compiled step over the eager one, and over compiled BF16."""
    for cell in content["cells"]:
        name = f"compiled step: {cell['network']}, {cell['recipe']}"
        yield Ratio(f"{name} / eager", cell["compiled_over_eager"], None)
        if cell["recipe"] != "bf16":
            yield Ratio(f"{name} / compiled bf16", cell["compiled_over_compiled_bf16"], None)


def paper_epoch(content: Mapping[str, Any]) -> Iterator[Ratio]:
    """The paper's Swin: each recipe over BF16, and BF16 over plain torch in a bare loop."""
    for cell in content["cells"]:
        if cell["ratio"] is not None:
            goal = 1.4 if cell["beside"] == "bf16" else 1.0
            yield Ratio(f"epoch: paper_swin, {cell['name']} / {cell['beside']}", cell["ratio"], goal)


def networks(content: Mapping[str, Any]) -> Iterator[Ratio]:
    """Images a second of ours over each contestant's."""
    for cell in content["cells"]:
        if cell["contestant"] != "ours":
            goal = 1.0 if cell["contestant"] == "stock_bf16" else None
            name = f"images/s: {cell['arch']}_{cell['scale']}, ours / {cell['contestant']}"
            yield Ratio(name, cell["speed_of_ours"], goal, at_most=False)


def auprc(content: Mapping[str, Any]) -> Iterator[Ratio]:
    """Each peer's time over ours."""
    goals = {"monai.metrics.compute_average_precision": 20.0, "sklearn.metrics.average_precision_score": 10.0}
    for name, row in content.get("comparison", {}).get("peers", {}).items():
        if "seconds" in row and not name.startswith("monai_fp4."):
            short = name.rsplit(".", 1)[0] if "." in name else name
            yield Ratio(f"AUPRC: {short} / ours", row["ratio_to_compute_auprc"], goals.get(name), at_most=False)


def input_wait(content: Mapping[str, Any]) -> Iterator[Ratio]:
    """The share of an epoch, after the first, that training waits."""
    for row in content["training"]:
        for loader in ("BackgroundLoader", "DataLoader"):
            yield Ratio(f"input: {row['arch']}, share of waiting, {loader}", row[loader]["input_wait"])
