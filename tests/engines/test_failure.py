from __future__ import annotations

import gc
import weakref

import pytest
from ignite.engine import Engine, Events

from monai_fp4.engines import on_failure


def fail(_engine: Engine, _batch: int) -> None:
    raise KeyError("of the step")


def test_every_handler_sees_the_exception_and_the_last_word_is_raised() -> None:
    engine, seen = Engine(fail), []
    on_failure(engine, seen.append)
    on_failure(engine, lambda error: ValueError("in its place") if isinstance(error, KeyError) else None)
    on_failure(engine, seen.append)
    with pytest.raises(ValueError, match="in its place") as error:
        engine.run([0])
    assert isinstance(error.value.__cause__, KeyError)
    assert [type(each) for each in seen] == [KeyError, KeyError, ValueError, ValueError]


def test_without_another_word_the_exception_is_the_step_s() -> None:
    engine = Engine(fail)
    on_failure(engine, lambda _: None)
    with pytest.raises(KeyError, match="of the step"):
        engine.run([0])


def test_an_interrupt_is_seen_too() -> None:
    engine, seen = Engine(lambda _engine, _batch: None), []
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    on_failure(engine, seen.append)
    with pytest.raises(KeyboardInterrupt):
        engine.run([0])
    assert len(seen) == 1


def test_an_engine_is_not_kept_alive_by_what_reacts_to_its_failure() -> None:
    engine = Engine(fail)
    on_failure(engine, lambda _error, engine=engine: None)  # type: ignore[misc]
    kept = weakref.ref(engine)
    del engine
    gc.collect()
    assert kept() is None
