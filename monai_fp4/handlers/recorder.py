"""Write a run's files as it goes (``metrics.json``, checkpoint, best weights and their curve), and resume from them."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from monai_fp4.atomic import Replacements, name_beside
from monai_fp4.bundle.archive import check_archive, checksum
from monai_fp4.bundle.checkpoint import check_checkpoint, check_run
from monai_fp4.bundle.session import Session
from monai_fp4.bundle.state import without_scalars
from monai_fp4.bundle.tensor_files import fitting_weights, load_tensors, save_tensors
from monai_fp4.data import SliceDataset
from monai_fp4.engines import nonfinite_tensors, unwrap_ddp, what_is_kept
from monai_fp4.errors import ConfigError, NumericsError
from monai_fp4.handlers.auprc import cohort_of
from monai_fp4.handlers.best_epoch import BestEpoch
from monai_fp4.handlers.early_end import EarlyEnd
from monai_fp4.handlers.peak_memory import peak_memory
from monai_fp4.metrics.cohort import Cohort
from monai_fp4.quantization.conversion import quantized_layers

__all__ = ["Recorder"]

_PR_POINTS = 500
_OF_A_PATIENT = ("patient", "auprc", "recall", "dice")


class Recorder:
    """Write the run folder as the run goes, and resume from it.

    Args:
        session: the run.
        network: the network that trains.
        optimizer: its optimizer.
        lr_scheduler: its schedule, stepped every iteration.
        evaluator: the evaluator whose ``key_metric`` decides what the best weights are.
        key_metric: name of that metric in the evaluator's ``state.metrics``.
        lower_is_better: whether it is one of those, such as ``val_loss``.
        min_gain: by how much an epoch has to be better than the best before it.
        patience: end the run after so many epochs without a better one; None never does.
        warm_up: but not before this epoch has passed; those before it count as waited.
        scaler: what scales the loss, whose state resuming needs too.

    An epoch's entry in ``metrics.json`` holds its number, ``train_loss``, ``learning_rate``, ``fp4``, ``seconds``
    (with its validation), ``input_wait`` where :class:`monai_fp4.handlers.InputWait` is attached, and what the
    validation said.

    Of the best epoch alone it keeps ``per_patient`` (``patient``, ``auprc``, ``recall`` and ``dice``, the latter two at
    the run's threshold, null where undefined) in ``metrics.json``, and ``pr_curve.json``; of the whole run, over all
    its attempts, ``peak_memory_bytes`` (see `peak_memory`).

    Nothing that is not finite is written over what is. ``checkpoint.pt`` goes to the disk first, then ``model.pt``,
    which it can replace if it is of the same epoch, then ``metrics.json`` with the checksum of ``model.pt``: a run
    that is cut off between any two of them goes on as if it had not been.
    """

    def __init__(
        self,
        session: Session,
        network: nn.Module,
        optimizer: Optimizer,
        lr_scheduler: LRScheduler,
        evaluator: SupervisedEvaluator,
        key_metric: str = "auprc",
        lower_is_better: bool = False,
        min_gain: float = 0.0,
        patience: int | None = None,
        warm_up: int = 0,
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        self.session = session
        self.folder = session.run_folder
        self.network = network
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.evaluator = evaluator
        self.key_metric = key_metric
        # Where no patient is held out, no score says which epoch is better.
        scored = key_metric if session.options.fold != "all" else None
        self.choice = BestEpoch(scored, lower_is_better, min_gain, patience, warm_up)
        self.scaler = torch.amp.GradScaler(enabled=False) if scaler is None else scaler
        self.history: list[dict[str, Any]] = []
        self.per_patient: list[dict[str, Any]] = []
        self.peak_memory_bytes = 0
        # Such as a mask of the network, or the best score before there is one.
        self._infinite_by_design = nonfinite_tensors(
            {"network": unwrap_ddp(network).state_dict(), "lr_scheduler": lr_scheduler.state_dict()}
        )
        self._model_checksum: str | None = None
        self._fingerprints: dict[str, str] = {}
        self._checkpoint_is_good = True
        self._losses: list[float] = []
        self._learning_rate = math.nan
        self._started = 0.0

    def attach(self, engine: SupervisedTrainer) -> None:
        """Resume at STARTED, record after every epoch and its validation, finish at COMPLETED."""
        engine.add_event_handler(Events.STARTED, lambda _: self.session.hold())
        engine.add_event_handler(Events.STARTED, self.resume)
        engine.add_event_handler(Events.STARTED, self._record_last)
        engine.add_event_handler(Events.STARTED, self._record_data)
        engine.add_event_handler(Events.EPOCH_STARTED, self._start_epoch)
        engine.add_event_handler(Events.ITERATION_STARTED, self._start_iteration)
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e: self._losses.append(e.state.output["loss"]))
        engine.add_event_handler(Events.TERMINATE, lambda _: self.folder.settle())
        engine.add_event_handler(Events.COMPLETED, self.finish)
        EarlyEnd(self.session).attach(engine, self.evaluator)

    def _record_last(self, engine: Engine) -> None:
        # When the run begins and not when this is attached: behind the validation wherever that stands in the list.
        if not engine.has_event_handler(self.record, Events.EPOCH_COMPLETED):
            engine.add_event_handler(Events.EPOCH_COMPLETED, self.record)

    def _record_data(self, engine: Engine) -> None:
        dataset = getattr(engine.state.dataloader, "dataset", None)
        if self.session.rank == 0 and isinstance(dataset, SliceDataset):  # not a data set of the user's own
            self.folder.write_json("training_data.json", dataset.summary())

    def resume(self, engine: Engine) -> None:
        """Take up a run where its checkpoint left it.

        Raises:
            ConfigError: when the checkpoint, and the one before it, are damaged or of another network, or ``model.pt``
                is not what they tell of.
        """
        self._fingerprints = self.folder.fingerprints()  # once, since a config is long
        paths = [path for path in (self.folder.checkpoint_path, self.folder.previous_path) if path.exists()]
        if not paths:
            if engine.state.iteration:
                raise ConfigError(
                    f"{self.folder.checkpoint_path} must exist for a training to go on, but none was written before it"
                    " failed; make the trainer and its network anew, and run them"
                )
            self._say_what_is_lost()
            return
        try:
            path, checkpoint = paths[0], self._load(paths[0], engine)
        except ConfigError as error:
            if len(paths) == 1:
                raise
            path, checkpoint = paths[1], self._load(paths[1], engine)
            self._say(f"note: {error}; this run takes the one before it")
        self._checkpoint_is_good = path == self.folder.checkpoint_path
        unwrap_ddp(self.network).load_state_dict(checkpoint["network"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.lr_scheduler.load_state_dict(checkpoint["lr_scheduler"])
        self.scaler.load_state_dict(checkpoint["scaler"])
        self.history = checkpoint["history"]
        self.per_patient = checkpoint["per_patient"]
        self.peak_memory_bytes = checkpoint["peak_memory_bytes"]
        self._model_checksum = checkpoint["model_checksum"]
        engine.state.epoch = checkpoint["epoch"]
        engine.state.iteration = checkpoint["epoch"] * engine.state.epoch_length
        self._say(f"Resuming {self.folder.path} after epoch {checkpoint['epoch']} of {engine.state.max_epochs}.")
        if self.session.rank == 0:
            self.folder.events.cut(checkpoint.get("events", self.folder.events.sizes()))  # earlier versions
            self._check_model(engine)
        if self.choice.has_waited(self.history):  # and was killed between its last epoch and its end
            engine.terminate()

    def _load(self, path: Path, engine: Engine) -> dict[str, Any]:
        checkpoint = load_tensors(path, self.session.device)
        try:
            check_run(checkpoint, self._fingerprints)
            weights = fitting_weights(unwrap_ddp(self.network), checkpoint["network"], path)
            checked = check_checkpoint(
                checkpoint,
                optimizer=self.optimizer,
                lr_scheduler=self.lr_scheduler,
                scaler=self.scaler,
                patients=self.session.validation_patients,
                max_epochs=engine.state.max_epochs,
                epoch_length=engine.state.epoch_length,
            )
        except ConfigError:  # which is a ValueError, and says all itself
            raise
        except ValueError as error:
            raise ConfigError(
                f"{path} must be a checkpoint of this run, but {error}; remove it to start again, or restore it"
            ) from None
        return checked | {"network": weights}

    def _say_what_is_lost(self) -> None:
        if self.session.rank == 0:
            self.folder.events.cut({})
            if self.folder.metrics_path.exists():
                self._say(f"note: {self.folder.checkpoint_path} is missing, so this run starts again with epoch 1")

    def _say(self, sentence: str) -> None:
        if self.session.rank == 0:
            print(sentence)

    def _check_model(self, engine: Engine) -> None:
        """See that model.pt is whole and the best epoch's; a network that still has its weights writes it anew."""
        path, best = self.folder.model_path, self.best["epoch"]
        said = self.folder.read_json("metrics.json") if self.folder.metrics_path.exists() else {}
        described = said.get("best_epoch") == best
        wrong = ""
        try:
            found = check_archive(path)
            # Where an older checkpoint had to serve, model.pt may be of an epoch that is still to be trained again.
            known = described or "best_epoch" not in said
            if described and said.get("model_checksum", found) != found:  # earlier versions wrote none
                wrong = f"it is another file than {self.folder.metrics_path} describes"
            elif known and self._model_checksum not in (None, found):
                wrong = f"it is another file than {self.folder.checkpoint_path} was written with"
            self._model_checksum = found if known else None
        except (OSError, ValueError) as error:
            wrong = getattr(error, "strerror", None) or str(error)
        if best * engine.state.epoch_length == engine.state.iteration:  # and none was terminated since
            if wrong or not described:
                self._save_model(unwrap_ddp(self.network).state_dict())
        elif wrong:
            raise ConfigError(
                f"{path} must hold the weights of epoch {best}, but {wrong}; restore it, or remove"
                f" {self.folder.checkpoint_path} to train again"
            )

    def _start_epoch(self, _engine: Engine) -> None:
        self._losses = []
        self._started = time.perf_counter()

    def _start_iteration(self, _engine: Engine) -> None:
        self.folder.settle(wait=False)
        # Here, because after the epoch's last step the optimizer holds what the next epoch begins with.
        self._learning_rate = self.optimizer.param_groups[0]["lr"]

    def record(self, engine: Engine) -> None:
        """Append the epoch to the history, then write checkpoint.pt, model.pt if it is the best, and metrics.json.

        Raises:
            NumericsError: when a weight, a statistic or the optimizer's state is not finite; nothing is written then.
        """
        epoch = engine.state.epoch
        entry: dict[str, Any] = {"epoch": epoch, "train_loss": _number(sum(self._losses) / max(len(self._losses), 1))}
        entry["learning_rate"] = self._learning_rate
        # What the weights were validated in, and what they are to be evaluated in: a schedule may end in BF16.
        entry["fp4"] = any(layer.active for _, layer in quantized_layers(unwrap_ddp(self.network)))
        entry["seconds"] = round(time.perf_counter() - self._started, 3)
        if (waited := engine.state.metrics.get("input_wait")) is not None:
            entry["input_wait"] = round(waited, 4)
        validated = self.evaluator.state.epoch == epoch and bool(self.evaluator.state.metrics)
        if validated:
            entry |= {name: _number(value) for name, value in self.evaluator.state.metrics.items() if _is_number(value)}
        self.history.append(entry)
        self.peak_memory_bytes = max(self.peak_memory_bytes, peak_memory(self.session.device))
        if self.session.rank == 0:
            state = {
                "network": dict(unwrap_ddp(self.network).state_dict()),  # without the versions of all its modules
                "optimizer": without_scalars(self.optimizer.state_dict()),
                "lr_scheduler": self.lr_scheduler.state_dict(),
                "scaler": self.scaler.state_dict(),
            }
            if names := nonfinite_tensors(state, self._infinite_by_design):
                raise NumericsError(
                    f"a checkpoint must be finite, but after step {engine.state.iteration} (epoch {epoch}) NaN or"
                    f" infinity stands in '{names[0]}'; {what_is_kept(epoch)}; lower learning_rate or check the scans"
                )
            with self.folder.replacements() as files:
                if self.best is entry:
                    self._keep_best(cohort_of(self.evaluator) if validated else None, entry, files)
                checkpoint = state | {
                    "run": self._fingerprints,
                    "epoch": epoch,
                    "history": self.history,
                    "per_patient": self._without_names(),
                    "peak_memory_bytes": self.peak_memory_bytes,
                    "events": self.folder.events.sizes(),
                    # Of an earlier epoch; this one's weights are in here.
                    "model_checksum": None if self.best is entry else self._model_checksum,
                }
                kept_at = self.folder.previous_path if self._checkpoint_is_good else None
                save_tensors(self.folder.checkpoint_path, checkpoint, files, kept_at)
                self._checkpoint_is_good = True
                if self.best is entry:
                    self._save_model(state["network"], files)
                self._write_metrics(finished=False, files=files)
        if self.choice.has_waited(self.history):
            engine.terminate()
        if engine.should_terminate or epoch == engine.state.max_epochs:
            self.folder.settle()  # for whoever looks at them when the training is completed

    def _without_names(self) -> list[dict[str, Any]]:
        """Results by patient with numbers, since checkpoints are handed on; a patient of no manifest keeps its id."""
        numbers = {patient: number for number, patient in enumerate(self.session.validation_patients, 1)}
        return [row | {"patient": numbers.get(row["patient"], row["patient"])} for row in self.per_patient]

    def _save_model(self, weights: Mapping[str, Any], files: Replacements | None = None) -> None:
        save_tensors(self.folder.model_path, weights, files)
        path = self.folder.model_path
        self._model_checksum = checksum(path if files is None else name_beside(path))

    def _keep_best(self, cohort: Cohort | None, entry: dict[str, Any], files: Replacements) -> None:
        """Write the curve of the best epoch, and remember its patients."""
        threshold = entry.get("threshold")
        rows = cohort.per_patient(threshold) if cohort is not None and threshold is not None else []
        self.per_patient = [{name: row[name] for name in _OF_A_PATIENT} for row in rows]
        if cohort is not None and cohort.pooled.positives:
            curve = cohort.pooled.pr_curve(points=_PR_POINTS)
            columns = {
                "thresholds": curve.thresholds.tolist(),  # FP32 numbers are exact as Python's floats
                "tp": curve.tp.tolist(),
                "fp": curve.fp.tolist(),
            }
            totals = {"positives": int(curve.positives), "negatives": int(curve.negatives)}
            text = json.dumps({"epoch": entry["epoch"]} | totals | columns) + "\n"  # which nobody reads line by line
            with files.open(self.folder.path / "pr_curve.json") as file:
                file.write(text.encode())

    @property
    def best(self) -> dict[str, Any]:
        """The epoch whose weights model.pt holds."""
        return self.choice.of(self.history)

    def finish(self, engine: Engine) -> None:
        """See that model.pt is there and whole, and write the final metrics.json.

        Raises:
            ConfigError: when it is not, and the latest epoch is not the best, so that it cannot be written anew; when
                no epoch has ended.
        """
        if not self.history:
            raise ConfigError(
                f"a run keeps what an epoch has trained, but the one in {self.folder.path} was terminated in its first;"
                " terminate it later"
            )
        if self.session.rank == 0:
            self._check_model(engine)
            self._write_metrics(finished=True)
            self.folder.previous_path.unlink(missing_ok=True)
            best = self.best
            score = best.get(self.key_metric)
            said = f"{self.key_metric} {score:.4f} at epoch {best['epoch']}" if score is not None else "not validated"
            print(f"Finished: {said}; the run is in {self.folder.path}.")
        self.session.wait()

    def _write_metrics(self, finished: bool, files: Replacements | None = None) -> None:
        options, best = self.session.options, self.best
        measured_on = "training patients (fold: all holds none out)" if options.fold == "all" else "validation patients"
        summary = {
            name: value
            for name, value in best.items()
            if name not in ("epoch", "train_loss", "learning_rate", "seconds", "input_wait")
        }
        self.folder.write_json(
            "metrics.json",
            {
                "finished": finished,
                "measured_on": measured_on,
                "best_epoch": best["epoch"],
                "model_checksum": self._model_checksum,
            }
            | summary
            | {"peak_memory_bytes": self.peak_memory_bytes, "per_patient": self.per_patient, "history": self.history},
            files,
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) or (isinstance(value, torch.Tensor) and value.numel() == 1)


def _number(value: Any) -> float | int | None:
    number = value.item() if isinstance(value, torch.Tensor) else value
    return None if isinstance(number, float) and not math.isfinite(number) else number
