"""The share of an epoch that is spent waiting for batches, on a clock of our own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from ignite.engine import Engine, Events

from monai_fp4.handlers import InputWait


class Loader:
    """Two batches, which take so many seconds each of a clock that nothing else moves."""

    def __init__(self, now: list[float], seconds: float) -> None:
        self.now, self.seconds = now, seconds

    def __len__(self) -> int:
        return 2

    def __iter__(self) -> Iterator[int]:
        for batch in range(2):
            self.now[0] += self.seconds
            yield batch


def engine_with(now: list[float], step: float) -> Engine:
    def update(_engine: Engine, _batch: int) -> None:
        now[0] += step

    engine = Engine(update)
    InputWait(clock=lambda: now[0]).attach(engine)
    return engine


@pytest.mark.parametrize(
    ("fetch", "step", "share"), [(1.0, 3.0, 0.25), (0.0, 3.0, 0.0), (1.0, 0.0, 1.0), (0.0, 0.0, 0.0)]
)
def test_share_of_an_epoch(fetch: float, step: float, share: float) -> None:
    now = [100.0]
    assert engine_with(now, step).run(Loader(now, fetch)).metrics["input_wait"] == pytest.approx(share)


def test_every_epoch_has_its_own_and_validation_is_no_part_of_it() -> None:
    now, shares = [0.0], []
    loader = Loader(now, 1.0)
    engine = engine_with(now, 1.0)

    def validate(engine: Engine) -> None:
        shares.append(engine.state.metrics["input_wait"])
        now[0] += 1000
        loader.seconds = 3.0

    engine.add_event_handler(Events.EPOCH_COMPLETED, validate)
    engine.run(loader, max_epochs=2)
    assert shares == pytest.approx([0.5, 0.75])


def test_whoever_asks_at_the_end_of_an_epoch_has_the_whole_epoch_s_in_any_order() -> None:
    now, shares = [0.0], []
    engine = Engine(lambda _engine, _batch: now.__setitem__(0, now[0] + 3.0))
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda e: shares.append(e.state.metrics["input_wait"]))
    InputWait(clock=lambda: now[0]).attach(engine)
    engine.run(Loader(now, 1.0), max_epochs=2)
    assert shares == pytest.approx([0.25, 0.25])
