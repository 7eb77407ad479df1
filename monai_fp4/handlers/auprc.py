"""AUPRC as an Ignite metric for MONAI's evaluators, and what follows from the same counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from ignite.engine import Engine
from ignite.metrics.metric import reinit__is_reduced
from monai.handlers import IgniteMetricHandler

from monai_fp4.data.readers.masks import IGNORED
from monai_fp4.metrics import AUPRCMetric, Cohort

__all__ = ["AUPRC", "cohort_of", "from_patients"]


def cohort_of(engine: Engine) -> Cohort | None:
    """The counts of an evaluator's last run, which `AUPRC` left for other handlers.

    Every handler that asks does so here, at COMPLETED or later, so that the order in which handlers are attached does
    not matter.

    Returns:
        Counts, names and histograms of all ranks; before the first run an empty cohort, which knows the threshold
        already; None where no `AUPRC` is attached.
    """
    return getattr(engine.state, "cohort", None)


def from_patients(
    output: Sequence[Mapping[str, Any]],
) -> tuple[list[Any], list[Any], list[str] | None, list[float] | None]:
    """Take `(predictions, labels, patients, losses)` out of dicts; the last two are None if a dict lacks them.

    Voxels whose label says that they do not count are left out.
    """
    names = [str(item["patient"]) for item in output] if all("patient" in item for item in output) else None
    losses = [float(item["loss"]) for item in output] if all("loss" in item for item in output) else None
    counted = [_counted(item["pred"], item["label"]) for item in output]
    return [pred for pred, _ in counted], [label for _, label in counted], names, losses


def _counted(pred: torch.Tensor, label: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Predictions and labels ``[1, ...]`` without the voxels that do not count."""
    ignored = label == IGNORED
    return (pred[~ignored][None], label[~ignored][None]) if ignored.any() else (pred, label)


class AUPRC(IgniteMetricHandler):
    """AUPRC of a validation run; attach it under a name, as MONAI's metric handlers.

    Besides `state.metrics[name]`, the pooled AUPRC, it writes into `state.metrics`:

    - `<name>_per_patient`: the mean over patients with tumour,
    - `threshold`: the score of the highest pooled F-beta, and `dice`, `recall`, `precision` pooled at it,
      and `dice_per_patient`, `recall_per_patient`, `precision_per_patient`,
    - `distinct_scores`: how many different scores there were, and `val_loss` where the outputs have a `loss`.

    `state.metric_details[name]` is the AUPRC of every patient, `[patients, 1]`; `cohort_of` gives other handlers the
    counts, names and histograms of all ranks until the next run.

    Args:
        output_transform: from `state.output` to `(y_pred, y)`, `(y_pred, y, names)` or `(y_pred, y, names, losses)`,
            lists of channel-first tensors; the default takes "pred", "label", "patient" and "loss" from a list of
            dicts.
        beta: how many times recall counts as much as precision in choosing the threshold.
        threshold: use this threshold instead.
        save_details: write `state.metric_details`.

    Example:
        >>> import torch
        >>> from ignite.engine import Engine
        >>> item = {"pred": torch.tensor([[0.9, 0.2]]), "label": torch.tensor([[1, 0]]), "patient": "anna"}
        >>> engine = Engine(lambda engine, batch: [item])
        >>> AUPRC().attach(engine, "auprc")
        >>> metrics = engine.run([0]).metrics
        >>> metrics["auprc"], metrics["recall"], metrics["distinct_scores"]
        (1.0, 1.0, 2)
    """

    def __init__(
        self,
        output_transform: Callable = from_patients,
        beta: float = 2.0,
        threshold: float | None = None,
        save_details: bool = True,
    ) -> None:
        self.beta = beta
        metric = AUPRCMetric(keep_items=True, threshold=threshold)
        super().__init__(metric_fn=metric, output_transform=output_transform, save_details=save_details)

    @reinit__is_reduced
    def update(self, output: Sequence[Any]) -> None:
        """Count the output of one iteration."""
        self.metric_fn(*output)

    def compute(self) -> float:
        """Compute the pooled AUPRC, and leave the rest in the engine's state; ranks exchange their counts once."""
        assert self._engine is not None and self._name is not None  # attach() set both
        state = self._engine.state
        state.cohort = cohort = self.metric_fn.cohort  # type: ignore[attr-defined]
        if self.save_details:
            state.metric_details[self._name] = torch.tensor([p.auprc for p in cohort.patients]).reshape(-1, 1)
        state.metrics.update(cohort.summary(self._name, self.beta))
        return float(cohort.auprc)

    def attach(self, engine: Engine, name: str) -> None:  # type: ignore[override]
        """Attach to an engine under a name."""
        super().attach(engine, name)
        engine.state.cohort = Cohort(threshold=self.metric_fn.threshold)  # type: ignore[attr-defined]
