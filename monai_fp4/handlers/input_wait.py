"""Measure how long the training waits for its data: the share of an epoch between asking for a batch and having it.

A share near zero says that the network is the bottleneck, whatever the loader does meanwhile. A large one says that
the augmentation, the workers or the disk are, and that a faster network or device would gain nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from ignite.engine import Engine, Events

__all__ = ["InputWait"]


class InputWait:
    """Keeps the share of the epoch's training time that was spent waiting for batches in `state.metrics["input_wait"]`.

    It is that of the epoch so far, after every iteration, so that whoever reads it at EPOCH_COMPLETED has the whole
    epoch's, in whatever order the handlers were attached. The first batch of an epoch counts too, validation does not.
    Asking is timed on the host: where batches come from another device without waiting for it, what is left of that
    copy is part of the step.

    Args:
        clock: seconds; for tests.

    Example:
        >>> engine = Engine(lambda engine, batch: time.sleep(0.01))
        >>> InputWait().attach(engine)
        >>> 0 <= engine.run([1, 2, 3]).metrics["input_wait"] < 0.5
        True
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self._asked = self._waited = self._begun = 0.0

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._begin)
        engine.add_event_handler(Events.GET_BATCH_STARTED, self._ask)
        engine.add_event_handler(Events.GET_BATCH_COMPLETED, self._get)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._share)

    def _begin(self, _engine: Engine) -> None:
        self._waited, self._begun = 0.0, self.clock()

    def _ask(self, _engine: Engine) -> None:
        self._asked = self.clock()

    def _get(self, _engine: Engine) -> None:
        self._waited += self.clock() - self._asked

    def _share(self, engine: Engine) -> None:
        whole = self.clock() - self._begun
        engine.state.metrics["input_wait"] = self._waited / whole if whole > 0 else 0.0
