from __future__ import annotations

import io
import re

import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator
from synthetic_patients import evaluator_of, synthetic_cohort
from torch.utils.data import DataLoader

from monai_fp4.handlers import AUPRC, Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """Ten seconds pass between two looks at it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 10
        return self.now


def trainer(losses=(1.0, 0.5, 0.25)) -> Engine:
    return Engine(lambda engine, batch: {"loss": losses[batch]})


def run(stream, *, evaluator=None, epochs=2, **options) -> str:
    engine = trainer()
    Progress(evaluator, stream=stream, **options).attach(engine)
    engine.run([0, 1, 2], max_epochs=epochs)
    return stream.getvalue()


def test_a_log_gets_one_line_an_epoch_with_loss_and_time_left():
    lines = run(io.StringIO(), every=1e9, clock=Clock()).splitlines()
    assert len(lines) == 2
    assert re.fullmatch(r"epoch 1/2, mean loss 0\.5833, [\d]+ .*left", lines[0])
    assert re.fullmatch(r"epoch 2/2, mean loss 0\.5833, took .*", lines[1])
    assert "\r" not in "".join(lines)


def test_a_long_epoch_speaks_every_so_many_seconds():
    lines = run(io.StringIO(), every=15, clock=Clock(), epochs=1).splitlines()
    steps = [line for line in lines if "step" in line]
    assert steps and steps[0].startswith("epoch 1/1 step 2/3, loss 0.5000, ") and steps[0].endswith("left")


def test_time_left_is_proportional_to_what_is_left():
    engine, stream, now = trainer(), io.StringIO(), [0.0]
    Progress(stream=stream, every=1e9, clock=lambda: now[0]).attach(engine)

    def tick(_engine: Engine) -> None:
        now[0] += 60

    engine.add_event_handler(Events.ITERATION_COMPLETED, tick)
    engine.run([0, 1, 2], max_epochs=3)
    assert stream.getvalue().splitlines()[0].endswith("6 min 00 s left")


def test_a_terminal_gets_a_bar_with_time_left_and_no_lines():
    text = run(Terminal())
    assert "\r" in text and "epoch 2/2" in text and "loss 0.2500" in text and "6/6" in text
    assert re.search(r"\d\d:\d\d<", text)


def test_validation_metric_stands_in_the_line_of_its_epoch():
    evaluator = Engine(lambda engine, batch: None)
    engine, stream = trainer(), io.StringIO()
    Progress(evaluator, stream=stream, every=1e9).attach(engine)

    def validate(trainer: Engine) -> None:
        evaluator.state.metrics = {"auprc": trainer.state.epoch / 10}

    engine.add_event_handler(Events.EPOCH_COMPLETED, validate)
    engine.run([0, 1, 2], max_epochs=2)
    first, second = stream.getvalue().splitlines()
    assert "AUPRC 0.1000" in first and "AUPRC 0.2000" in second


def test_an_evaluator_counts_patients():
    stream = io.StringIO()
    evaluator = evaluator_of(
        synthetic_cohort(),
        key_val_metric={"auprc": AUPRC()},
        val_handlers=[Progress(stream=stream, every=0, clock=Clock())],
    )
    evaluator.run()
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("patient 1/5, ") and lines[-1].startswith("5 patients, AUPRC 0.9")


def test_an_evaluator_whose_batches_hold_several_patients_counts_patients():
    stream, cohort = io.StringIO(), synthetic_cohort()
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(cohort, batch_sampler=[[0, 1], [2, 3], [4]], collate_fn=list),
        network=torch.nn.Identity(),
        iteration_update=lambda _, batch: batch,
        val_handlers=[Progress(stream=stream, every=0, clock=Clock())],
        decollate=False,
    )
    evaluator.run()
    lines = stream.getvalue().splitlines()
    assert [line.split(",")[0] for line in lines] == ["patient 2/5", "patient 4/5", "patient 5/5", "5 patients"]


def test_other_ranks_are_silent():
    assert run(io.StringIO(), active=False) == ""


@pytest.mark.filterwarnings("ignore")
def test_errors_pass_through_and_close_the_bar():
    stream, engine = Terminal(), trainer()
    progress = Progress(stream=stream)
    progress.attach(engine)
    with pytest.raises(IndexError):
        engine.run([0, 7], max_epochs=1)
    assert stream.getvalue().endswith("\n")


def resume(engine: Engine) -> None:
    """What a `Recorder` does at STARTED."""
    engine.state.epoch, engine.state.iteration = 4, 12


@pytest.mark.parametrize("recorder_first", [True, False])
def test_a_resumed_run_counts_from_where_it_goes_on(recorder_first):
    engine, stream, now = trainer(), io.StringIO(), [0.0]
    if recorder_first:
        engine.add_event_handler(Events.STARTED, resume)
    Progress(stream=stream, every=1e9, clock=lambda: now[0]).attach(engine)
    if not recorder_first:
        engine.add_event_handler(Events.STARTED, resume)
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda _: now.__setitem__(0, now[0] + 60))
    engine.run([0, 1, 2], max_epochs=6)
    first, last = stream.getvalue().splitlines()
    assert first.startswith("epoch 5/6") and first.endswith("3 min 00 s left") and last.endswith("took 6 min 00 s")


def test_a_resumed_bar_begins_where_the_run_goes_on():
    engine, stream = trainer(), Terminal()
    Progress(stream=stream).attach(engine)
    engine.add_event_handler(Events.STARTED, resume)
    engine.run([0, 1, 2], max_epochs=6)
    assert "18/18" in stream.getvalue() and "13/18" not in stream.getvalue().split("\r")[0]


@pytest.mark.parametrize(("share", "said"), [(0.0199, False), (0.02, True), (0.314, True)])
def test_waiting_for_data_is_said_from_2_percent_on(share, said):
    engine, stream = trainer(), io.StringIO()
    Progress(stream=stream, every=1e9).attach(engine)
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e: e.state.metrics.update(input_wait=share))
    engine.run([0, 1, 2])
    assert (f"{share:.0%} of the time waiting for data" in stream.getvalue()) == said


def test_the_last_step_is_not_the_end_of_the_run():
    engine, stream, now = trainer(), io.StringIO(), [0.0]
    Progress(stream=stream, every=0, clock=lambda: now[0]).attach(engine)
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda _: now.__setitem__(0, now[0] + 60))
    engine.run([0, 1], max_epochs=1)
    assert ["took" in line for line in stream.getvalue().splitlines()] == [False, False, True]
