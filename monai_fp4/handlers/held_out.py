"""The patients of a fold that are tested on, evaluated once with the weights that validation chose."""

from __future__ import annotations

from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator
from torch import nn

from monai_fp4.bundle.session import Session
from monai_fp4.bundle.tensor_files import load_tensors, load_weights
from monai_fp4.engines import unwrap_ddp
from monai_fp4.handlers.auprc import cohort_of
from monai_fp4.handlers.evaluation_report import to_json_value

__all__ = ["HeldOutTest"]


class HeldOutTest:
    """Evaluate the test patients when training ends, into ``test.json`` of the run folder.

    What depends on a threshold is measured at the one that validation chose.

    List it before `monai_fp4.handlers.Recorder`, so that a run that is called finished has been tested.

    Args:
        session: the run.
        network: the network that trains; it ends with the weights of ``model.pt``.
        evaluator: over the test patients, with the same metrics as the validation's.
    """

    def __init__(self, session: Session, network: nn.Module, evaluator: SupervisedEvaluator) -> None:
        self.session, self.network, self.evaluator = session, network, evaluator

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        engine.add_event_handler(Events.COMPLETED, self.run)

    def run(self, _engine: Engine) -> None:
        """Load the chosen weights, evaluate, write."""
        folder = self.session.run_folder
        self.session.wait()  # for the first process, which wrote the weights
        weights = load_tensors(folder.model_path, self.session.device)
        load_weights(unwrap_ddp(self.network), weights, folder.model_path)
        self.evaluator.run()
        cohort = cohort_of(self.evaluator)
        if self.session.rank != 0 or cohort is None:
            return
        validated = folder.read_json("metrics.json")
        cohort.threshold = validated.get("threshold")  # chosen on the validation patients, as any threshold must be
        metrics = self.evaluator.state.metrics | cohort.summary()
        metrics["loss"] = metrics.pop("val_loss", None)
        said = {"measured_on": "test patients of the fold", "patients": len(cohort.patients)}
        said["weights_of_epoch"] = validated["best_epoch"]
        folder.write_json("test.json", to_json_value(said | metrics))
