"""Let several handlers see the exception that ends an engine.

Ignite swallows an exception for which somebody listens to EXCEPTION_RAISED, unless that handler raises it again; and
the first that does keeps it from the others. So all of ours are called by one handler, and it alone raises.

>>> import logging
>>> engine = Engine(lambda engine, batch: 1 / batch)
>>> on_failure(engine, lambda error: print("closed"))
>>> on_failure(engine, lambda error: ValueError("a zero"))
>>> logging.getLogger("ignite").setLevel(logging.CRITICAL)
>>> engine.run([1, 0])
Traceback (most recent call last):
ValueError: a zero
"""

from __future__ import annotations

from collections.abc import Callable
from weakref import WeakKeyDictionary

from ignite.engine import Engine, Events

__all__ = ["on_failure"]

Reaction = Callable[[BaseException], BaseException | None]
_reactions: WeakKeyDictionary[Engine, list[Reaction]] = WeakKeyDictionary()


def on_failure(engine: Engine, react: Reaction) -> None:
    """Call ``react`` with the exception that ends ``engine``; what it returns, if anything, is raised in its place."""
    if engine not in _reactions:
        _reactions[engine] = []
        engine.add_event_handler(Events.EXCEPTION_RAISED, _failed)
    _reactions[engine].append(react)


def _failed(engine: Engine, error: BaseException) -> None:
    ended = error
    for react in _reactions[engine]:
        ended = react(error) or ended
    raise ended from (error if ended is not error else error.__cause__)
