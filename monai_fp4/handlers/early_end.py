"""End a training before its time, and leave its folder so that the same command goes on.

SIGINT (Ctrl-C) and SIGTERM (SLURM, Kubernetes, Ray, ``kill``) end it after the step that is being computed: with one
sentence, and the exit status that shells use, 128 and the signal's number. A second one ends it at once, as the system
does. ``checkpoint.pt`` then holds the last finished epoch: an epoch is what is reproduced bit by bit on resuming.

A full or read-only disk, and a run folder that was moved or removed, are one sentence whoever meets them first, be it
TensorBoard's thread.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from ignite.engine import Engine, Events

from monai_fp4.atomic import not_writable
from monai_fp4.bundle.session import Session
from monai_fp4.engines import on_failure, what_is_kept
from monai_fp4.errors import ConfigError

__all__ = ["EarlyEnd"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


class EarlyEnd:
    """Listen to signals while a trainer runs, and give up the run folder when it ends, however it does.

    Args:
        session: the run.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.number = 0
        """The signal that has come; 0 for none."""
        self._before: dict[int, Any] = {}
        self._process = 0

    def attach(self, engine: Engine, evaluator: Engine) -> None:
        """Attach to a trainer, and to the evaluator that it runs."""
        engine.add_event_handler(Events.STARTED, self._listen)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._after_step, engine)
        engine.add_event_handler(Events.COMPLETED, self._restore)
        on_failure(engine, lambda error: self._failed(engine, error))
        if self.session.world_size == 1:  # processes have not equally many patients, and could not agree
            evaluator.add_event_handler(Events.ITERATION_COMPLETED, self._after_patient, engine)

    def _listen(self, _engine: Engine) -> None:
        if threading.current_thread() is not threading.main_thread():  # the others get no signals
            return
        self.number, self._process = 0, os.getpid()
        # A shell has a process in the background ignore Ctrl-C, and it goes on to.
        heard = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._heard) for number in heard}

    def _heard(self, number: int, _frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # processes that load data: the one that they work for ends them
            return
        self.number = number
        for each in self._before:
            signal.signal(each, signal.SIG_DFL)
        if self.session.rank == 0:  # a print could meet one that it interrupts
            os.write(
                2, f"\n{signal.Signals(number).name}: ending after this step; a second one ends at once\n".encode()
            )

    def _after_step(self, engine: Engine) -> None:
        number = self.number
        if self.session.world_size > 1:  # signals reach the processes in different steps, which are to end in one
            shared = torch.tensor(number, device=self.session.device)
            dist.all_reduce(shared, dist.ReduceOp.MAX)
            number = int(shared.item())
        if number:
            raise self._end(engine, number)

    def _after_patient(self, engine: Engine) -> None:
        if self.number:
            raise self._end(engine, self.number)

    def _end(self, engine: Engine, number: int) -> SystemExit:
        self.session.run_folder.settle()
        state = engine.state
        if self.session.rank == 0:
            print(
                f"ended by {signal.Signals(number).name} after step {state.iteration} (epoch {state.epoch});"
                f" {what_is_kept(state.epoch)}; the same command goes on from there",
                file=sys.stderr,
            )
        return SystemExit(128 + number)

    def _failed(self, engine: Engine, error: BaseException) -> BaseException | None:
        ended: BaseException | None = None
        try:
            self.session.run_folder.settle()
        except ConfigError as lost:  # what another error says is kept is not
            ended = lost
        self._restore(engine)
        if ended is not None:
            return ended
        if isinstance(error, OSError) and (error.errno in _DISK or self._of_the_run(error.filename)):
            ended = not_writable(self.session.run_folder.path, error)
        elif self.number and isinstance(error, RuntimeError):
            # The same signal ended a process that loads data, or one that this process was exchanging numbers with.
            ended = self._end(engine, self.number)
        if isinstance(ended or error, SystemExit):
            self.session.close()  # gloo aborts a process that ends without
        return ended

    def _of_the_run(self, name: Any) -> bool:
        """Whether a file is one of the run folder, which somebody may have moved or removed."""
        if not isinstance(name, (str, bytes)):
            return False
        return Path(os.fsdecode(name)).resolve().is_relative_to(self.session.run_folder.path.resolve())

    def _restore(self, _engine: Engine) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
        self.session.release()
