"""Progress of a training: a bar with the time left in a terminal, plain lines in a log.

A bar redraws its line with carriage returns, which fills a log file with thousands of half lines. So where standard
error is not a terminal, one line is written an epoch, and one every so many seconds within it.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping, Sized
from typing import Any, TextIO

from ignite.engine import Engine, Events
from monai.engines import Evaluator
from tqdm import tqdm

from monai_fp4.durations import format_seconds
from monai_fp4.engines import on_failure

__all__ = ["Progress"]

_DISPLAY = {"auprc": "AUPRC"}
_WORTH_SAYING = 0.02
"""Below this share of an epoch spent waiting for data, there is nothing for the user to do."""


class Progress:
    """Shows epoch, loss, the last validation's metric, speed and time left of a trainer; or an evaluator's patients.

    Where `InputWait` finds that a training waits for its data for 2 % of the time or more, an epoch's line says so.

    Args:
        evaluator: whose `state.metrics` to show beside the loss; None takes the engine's own.
        metrics: names of the metrics to show.
        every: seconds between two lines within an epoch, where there is no terminal.
        stream: where to write; None is standard error.
        active: False writes nothing, for all ranks but the first.
        clock: seconds; for tests.
    """

    def __init__(
        self,
        evaluator: Engine | None = None,
        *,
        metrics: tuple[str, ...] = ("auprc",),
        every: float = 30.0,
        stream: TextIO | None = None,
        active: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.evaluator = evaluator
        self.metrics = tuple(metrics)
        self.every = every
        self.stream = stream
        self.active = active
        self.clock = clock
        self._bar: tqdm[Any] | None = None
        self._started = self._spoken = 0.0
        self._first_iteration: int | None = None
        self._epoch_iterations = 0
        self._losses: list[float] = []
        self._unit = "step"

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer; an epoch's line is written when the next begins, so that its validation is in it."""
        if not self.active:
            return
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_STARTED, self._begin_epoch)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._iterate)
        engine.add_event_handler(Events.COMPLETED, self._end)
        on_failure(engine, self._fail)

    def _start(self, _engine: Engine) -> None:
        self._first_iteration, self._epoch_iterations = None, 0

    def _open(self, engine: Engine) -> None:
        """Begin where the run does, at its first epoch: a `Recorder` that resumes a run says where at STARTED."""
        self._started = self._spoken = self.clock()
        self._unit = "patient" if isinstance(engine, Evaluator) else "step"
        self._first_iteration = engine.state.iteration
        stream = self.stream if self.stream is not None else sys.stderr
        if stream.isatty():
            self._bar = tqdm(
                total=_total(engine), initial=engine.state.iteration, file=stream, unit="step", dynamic_ncols=True
            )

    def _begin_epoch(self, engine: Engine) -> None:
        if self._first_iteration is None:
            self._open(engine)
        self._epoch_line(engine, engine.state.epoch - 1)
        self._losses, self._epoch_iterations = [], 0
        if self._bar is not None and self._unit == "step":
            self._bar.set_description(f"epoch {engine.state.epoch}/{engine.state.max_epochs}", refresh=False)

    def _iterate(self, engine: Engine) -> None:
        output = engine.state.output
        loss = float(output["loss"]) if isinstance(output, Mapping) and "loss" in output else None
        if loss is not None:
            self._losses.append(loss)
        self._epoch_iterations += len(output) if self._unit == "patient" else 1  # a batch may hold several patients
        words = [] if loss is None else [f"loss {loss:.4f}"]
        if self._bar is not None:
            self._bar.set_postfix_str(" ".join([*words, *self._metric_words(engine)]), refresh=False)
            self._bar.update()
        elif self.clock() - self._spoken >= self.every:
            length = engine.state.epoch_length or 0
            at = (engine.state.iteration - 1) % length + 1 if length else engine.state.iteration
            if self._unit == "patient":
                at, length = self._epoch_iterations, _patients(engine) or 0
            where = f"{self._unit} {at}/{length}" if length else f"{self._unit} {at}"
            if self._unit == "step":
                where = f"epoch {engine.state.epoch}/{engine.state.max_epochs} {where}"
            self._say(", ".join([where, *words]), engine)

    def _epoch_line(self, engine: Engine, epoch: int) -> None:
        if self._bar is None and self._epoch_iterations:
            words = [f"epoch {epoch}/{engine.state.max_epochs}"]
            if self._unit == "patient":
                words = [f"{self._epoch_iterations} patients"]
            if self._losses:
                words.append(f"mean loss {math.fsum(self._losses) / len(self._losses):.4f}")
            if (waited := engine.state.metrics.get("input_wait", 0.0)) >= _WORTH_SAYING:
                words.append(f"{waited:.0%} of the time waiting for data")
            self._say(", ".join([*words, *self._metric_words(engine)]), engine, ended=True)

    def _metric_words(self, engine: Engine) -> list[str]:
        known = (self.evaluator if self.evaluator is not None else engine).state.metrics
        return [f"{_DISPLAY.get(name, name)} {float(known[name]):.4f}" for name in self.metrics if name in known]

    def _say(self, text: str, engine: Engine, *, ended: bool = False) -> None:
        assert self._first_iteration is not None
        done, now = engine.state.iteration - self._first_iteration, self.clock()
        self._spoken = now
        total = _total(engine)
        if total is not None and done:
            left = (now - self._started) / done * (total - engine.state.iteration)
            if left > 0:
                text += f", {format_seconds(left)} left"
            elif ended:  # the last step is not the end: a validation follows
                text += f", took {format_seconds(now - self._started)}"
        print(text, file=self.stream if self.stream is not None else sys.stderr, flush=True)

    def _end(self, engine: Engine) -> None:
        self._epoch_line(engine, engine.state.epoch)
        self._close()

    def _fail(self, _error: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _patients(engine: Engine) -> int | None:
    """How many patients an evaluator will have seen, where its data tell."""
    loader = getattr(engine, "data_loader", None)
    data = getattr(loader, "dataset", loader)
    return len(data) if isinstance(data, Sized) else None


def _total(engine: Engine) -> int | None:
    length, epochs = engine.state.epoch_length, engine.state.max_epochs
    return length * epochs if length and epochs else None
