"""Schedule of a run: seeds at the start of an epoch, precision before a step, validation after an epoch.

An epoch is reproducible from the seed and its number alone: everything random is seeded anew when it begins. So a run
that was cut off and resumed gives the numbers of the run that was not, with no generator's state to keep.
"""

from __future__ import annotations

import torch.distributed as dist
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator
from torch import nn

from monai_fp4.bundle.session import Session
from monai_fp4.data import SliceDataset
from monai_fp4.engines import seed_everything, unwrap_ddp
from monai_fp4.quantization.conversion import set_active

__all__ = ["EpochSeeder", "NegatedMetric", "PrecisionSchedule", "Validation"]


class EpochSeeder:
    """Seed the data order, the augmentation and torch at the start of every epoch.

    Args:
        session: the run; its seed and rank go into every seed.
        dataset: the training set; its items' augmentation follows seed, epoch and index.
    """

    def __init__(self, session: Session, dataset: SliceDataset) -> None:
        self.session = session
        self.dataset = dataset

    def attach(self, engine: Engine) -> None:
        """Seed at EPOCH_STARTED, before the first batch of the epoch is fetched."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Seed for the epoch that begins."""
        seed, epoch, rank = self.session.options.seed, engine.state.epoch, self.session.rank
        seed_everything(seed, epoch, rank)
        self.session.generator.manual_seed(seed * 1_000_003 + epoch)  # the loader's workers
        self.dataset.set_epoch(epoch)


class PrecisionSchedule:
    """Switch the FP4 layers to BF16 for the last share of the steps, as the recipe says.

    Args:
        session: the run, whose recipe holds ``bf16_last_share``.
        network: the converted network.
    """

    def __init__(self, session: Session, network: nn.Module) -> None:
        self.recipe = session.options.recipe
        self.network = network

    def attach(self, engine: Engine) -> None:
        """Decide before every step, so that a resumed run is in the right precision at once."""
        if self.recipe.quantizes and self.recipe.bf16_last_share > 0:
            engine.add_event_handler(Events.ITERATION_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Switch for the step that begins."""
        steps = engine.state.max_epochs * engine.state.epoch_length
        set_active(unwrap_ddp(self.network), not self.recipe.runs_in_bf16(step=engine.state.iteration - 1, steps=steps))


class Validation:
    """Validate every ``interval`` epochs and after the last.

    Under ``fold: all`` there is nothing to validate on: the evaluator then runs once, at the end, on the patients that
    were trained on, and only to choose the threshold.

    Args:
        session: the run.
        validator: the evaluator, over patients.
        interval: epochs between validations.
    """

    def __init__(self, session: Session, validator: SupervisedEvaluator, interval: int = 1) -> None:
        self.session = session
        self.held_out = session.options.fold != "all"
        self.validator = validator
        self.interval = interval

    def attach(self, engine: Engine) -> None:
        """Validate at EPOCH_COMPLETED."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Validate, if it is time."""
        epoch = engine.state.epoch
        due = self.held_out and epoch % self.interval == 0
        if due or epoch == engine.state.max_epochs:
            if self.session.world_size > 1:
                # After a step every rank has batch-norm statistics of its own; checkpoints hold those of rank 0.
                for buffer in unwrap_ddp(self.validator.network).buffers():
                    dist.broadcast(buffer, 0)
            self.validator.run(epoch)


class NegatedMetric:
    """The negative of a validation's metric, for a schedule that waits for what rises, of a loss, which falls.

    Args:
        evaluator: whose metrics are read.
        metric: name in its ``state.metrics``.
    """

    def __init__(self, evaluator: SupervisedEvaluator, metric: str) -> None:
        self.evaluator = evaluator
        self.metric = metric

    def __call__(self, _engine: Engine) -> float:
        """The last validation's value, negated."""
        return -float(self.evaluator.state.metrics[self.metric])
