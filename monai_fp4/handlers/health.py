"""``health.json``: what four bits do to a network while it trains, for the report and for TensorBoard.

An entry an epoch holds, as far as the run looked:

- ``layers``: layer -> operand -> ``snr_db``, ``underflow``, ``clipped``, of the epoch's first step;
- ``attention``: block -> ``entropy`` (nats) and ``entropy_share`` (of log(tokens)), of the first validation batch;
- ``scores``: how many lesion (``positives``) and background voxels (``negatives``) of the validation got a probability
  in each of 126 equal bins of [0, 1], and the ``mean_probability`` of all.

What is not finite (the signal to noise of an operand of zeros) is null. TensorBoard gets pictures of the training, one
a group of layers, and the worst layer as a number, rather than a chart for each layer:

- ``quantization/health_<group>``: a heat map of signal to noise over layers and epochs;
- ``quantization/worst_<snr_db, underflow, clipped>_<operand>``: of the layer that is worst, by epoch;
- ``quantization/attention`` and ``quantization/lowest_attention_entropy_share``: the same of attention blocks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator
from numpy.typing import NDArray
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from monai_fp4.bundle.run_folder import RunFolder
from monai_fp4.bundle.session import Session
from monai_fp4.engines import unwrap_ddp
from monai_fp4.errors import ConfigError
from monai_fp4.handlers.auprc import cohort_of
from monai_fp4.metrics.histogram import ScoreHistogram
from monai_fp4.quantization.monitor import AttentionEntropy, OperandHealth, attention_entropy, quantization_health
from monai_fp4.visualize import heat_map_figure, to_array

__all__ = ["HealthRecorder"]

_MEASURES = {"snr_db": min, "underflow": max, "clipped": max}
"""Measure -> which of the layers' values is the worst."""
_SNR_LIMITS = (10.0, 22.0)
"""Of the colours, in dB: Gaussian values have about 20, and ten times the noise 10."""
_OPERANDS = ("input", "weight", "gradient")
_BINS = 126
_PICTURES = 5  # a run at most: drawing one of sixty layers takes a second


class HealthRecorder:
    """Look at quantized layers, attention and predictions, and keep ``health.json``.

    Args:
        session: the run, whose first process writes.
        network: the network that trains.
        evaluator: the one that validates it; `monai_fp4.handlers.AUPRC` leaves the scores there.
        summary_writer: of the run's TensorBoard file; None draws nothing.
        every: look at the layers in the first step of every so many epochs; 0 never looks.
        charts: also write a TensorBoard chart for each layer, operand and measure, below ``quantization_layers/``; a
            Swin of 15 million weights has 600 of them.
    """

    def __init__(
        self,
        session: Session,
        network: nn.Module,
        evaluator: SupervisedEvaluator,
        summary_writer: SummaryWriter | None = None,
        *,
        every: int = 1,
        charts: bool = False,
    ) -> None:
        self.session = session
        self.network = unwrap_ddp(network)
        self.evaluator = evaluator
        self.writer = summary_writer
        self.every = every
        self.charts = charts
        self._epochs: dict[int, dict[str, Any]] = {}
        self._watching = ExitStack()
        self._layers: dict[str, dict[str, OperandHealth]] | None = None
        self._attention: dict[str, AttentionEntropy] = {}
        self._picture_is_due = False

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer, and to the evaluator."""
        if self.session.rank:
            return
        engine.add_event_handler(Events.EPOCH_STARTED, self._begin_epoch)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._after_step)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._end_epoch)
        engine.add_event_handler(Events.COMPLETED | Events.TERMINATE, lambda _: self._watching.close())
        self.evaluator.add_event_handler(Events.STARTED, self._begin_validation)
        self.evaluator.add_event_handler(Events.ITERATION_COMPLETED, lambda _: self._watching.close())
        self.evaluator.add_event_handler(Events.COMPLETED, self._end_validation)

    def _begin_epoch(self, engine: Engine) -> None:
        epoch, folder = engine.state.epoch, self.session.run_folder
        if not self._epochs and epoch > 1 and (folder.path / "health.json").exists():  # a resumed run goes on with it
            self._epochs = {entry["epoch"]: entry for entry in _read(folder) if entry["epoch"] < epoch}
        self._epochs[epoch] = {"epoch": epoch, "layers": {}}
        last = engine.state.max_epochs or epoch
        self._picture_is_due = epoch == last or epoch % math.ceil(last / _PICTURES) == 0
        if self.every and (epoch - 1) % self.every == 0:
            self._watching.close()
            self._layers = self._watching.enter_context(quantization_health(self.network))

    def _after_step(self, engine: Engine) -> None:
        if self._layers is None:
            return
        self._watching.close()
        self._epochs[engine.state.epoch]["layers"] = {
            layer: {
                operand: {measure: _plain(getattr(values, measure)) for measure in _MEASURES}
                for operand, values in operands.items()
            }
            for layer, operands in self._layers.items()
        }
        self._layers = None
        if self.writer is not None:
            self._draw_layers(self.writer, self._epochs[engine.state.epoch])

    def _begin_validation(self, _engine: Engine) -> None:
        self._watching.close()  # of a validation that failed before its first batch was through
        self._attention = self._watching.enter_context(attention_entropy(self.network))

    def _end_validation(self, engine: Engine) -> None:
        entry = self._epochs.setdefault(engine.state.epoch, {"epoch": engine.state.epoch, "layers": {}})
        entry["attention"] = {
            block: {"entropy": _plain(found.nats), "entropy_share": _plain(found.share)}
            for block, found in self._attention.items()
        }
        cohort = cohort_of(engine)
        if cohort is not None and cohort.pooled.total:
            entry["scores"] = score_bins(cohort.pooled)
        if self.writer is not None:
            self._draw_attention(self.writer, entry)
        self._save()  # here too, whichever of the trainer's handlers comes first

    def _end_epoch(self, _engine: Engine) -> None:
        self._save()
        if self.writer is not None:
            self.writer.flush()  # the recorder notes how long the file is

    def _save(self) -> None:
        self.session.run_folder.write_json("health.json", {"epochs": list(self._epochs.values())})

    def _draw_layers(self, writer: SummaryWriter, entry: dict[str, Any]) -> None:
        step, layers = entry["epoch"], entry["layers"]
        for measure, worst in _MEASURES.items():
            for operand in _OPERANDS:
                if known := _known(operands.get(operand, {}).get(measure) for operands in layers.values()):
                    writer.add_scalar(f"quantization/worst_{measure}_{operand}", worst(known), step)
        for layer, operands in layers.items() if self.charts else ():
            for operand, values in operands.items():
                self._draw_charts(writer, values, f"{layer}/{operand}", step)
        if not self._picture_is_due:
            return
        groups: dict[str, list[str]] = {}
        for layer in layers:
            groups.setdefault(layer.split(".")[0], []).append(layer)
        epochs = [epoch for epoch in self._epochs.values() if epoch["layers"]]
        for group, names in groups.items():
            panels = {
                operand: _table(
                    [epoch["layers"].get(name, {}).get(operand, {}).get("snr_db") for epoch in epochs] for name in names
                )
                for operand in _OPERANDS
            }
            drawn = {operand: values for operand, values in panels.items() if not np.isnan(values).all()}
            numbers = [epoch["epoch"] for epoch in epochs]
            if drawn:
                figure = heat_map_figure(
                    drawn, rows=names, epochs=numbers, label="signal-to-noise ratio, dB", limits=_SNR_LIMITS
                )
                writer.add_image(f"quantization/health_{group}", to_array(figure), step, dataformats="HWC")

    def _draw_attention(self, writer: SummaryWriter, entry: dict[str, Any]) -> None:
        step, blocks = entry["epoch"], entry["attention"]
        if shares := _known(found["entropy_share"] for found in blocks.values()):
            writer.add_scalar("quantization/lowest_attention_entropy_share", min(shares), step)
        for block, found in blocks.items() if self.charts else ():
            self._draw_charts(writer, {f"attention_{measure}": value for measure, value in found.items()}, block, step)
        if blocks and self._picture_is_due:
            epochs = [epoch for epoch in self._epochs.values() if epoch.get("attention")]
            table = _table([e["attention"].get(block, {}).get("entropy_share") for e in epochs] for block in blocks)
            numbers, label = [epoch["epoch"] for epoch in epochs], "0: one token, 1: all alike"
            panels = {"attention: entropy / log(tokens)": table}
            figure = heat_map_figure(panels, rows=list(blocks), epochs=numbers, label=label, limits=(0.0, 1.0))
            writer.add_image("quantization/attention", to_array(figure), step, dataformats="HWC")

    def _draw_charts(self, writer: SummaryWriter, values: dict[str, float | None], name: str, step: int) -> None:
        for measure, value in values.items():
            if value is not None:
                writer.add_scalar(f"quantization_layers/{measure}/{name}", value, step)


def _read(folder: RunFolder) -> list[dict[str, Any]]:
    content = folder.read_json("health.json")
    try:
        return [
            entry
            | {"epoch": int(entry["epoch"]), "layers": _numbers(entry["layers"], 3)}
            | {"attention": _numbers(entry.get("attention", {}), 2)}
            for entry in content["epochs"]
        ]
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        raise ConfigError(
            f"{folder.path / 'health.json'} must hold what the run measured by epoch, but holds something else; restore"
            " or remove it"
        ) from None


def _numbers(values: Any, depth: int) -> Any:
    """Numbers, or null, so many names deep."""
    if depth:
        return {name: _numbers(value, depth - 1) for name, value in values.items()}
    return None if values is None else float(values)


def score_bins(histogram: ScoreHistogram) -> dict[str, Any]:
    """The voxels of a histogram of probabilities in 126 equal bins of [0, 1], as ``health.json`` holds them.

    >>> bins = score_bins(ScoreHistogram().add([0.0, 0.5, 1.0], [0, 0, 1]))
    >>> bins["positives"][-1], bins["negatives"][0], bins["negatives"][63], bins["mean_probability"]
    (1, 1, 1, 0.5)
    """
    # Edges in FP32, as the scores are: one that lies on an edge belongs above it.
    edges = np.linspace(0, 1, _BINS + 1).astype(np.float32).astype(np.float64)
    positives, negatives = histogram.binned(edges)
    mass = histogram.cells.positives + histogram.cells.negatives
    mean = float(histogram.middles() @ mass) / histogram.total
    return {"positives": positives.tolist(), "negatives": negatives.tolist(), "mean_probability": mean}


def _plain(value: float) -> float | None:
    """Seven digits, as many as FP32 has; null for what is not finite."""
    return float(f"{value:.7g}") if math.isfinite(value) else None


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _table(rows: Iterable[list[float | None]]) -> NDArray[np.float64]:
    return np.array([[math.nan if value is None else value for value in row] for row in rows])
