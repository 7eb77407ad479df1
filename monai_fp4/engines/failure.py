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

from ignite.engine import Engine, Events

__all__ = ["on_failure"]

Reaction = Callable[[BaseException], BaseException | None]


def on_failure(engine: Engine, react: Reaction) -> None:
    """Call ``react`` with the exception that ends ``engine``; what it returns, if anything, is raised in its place.

    Ignite looks at an error within an epoch twice, there and in the run around it: ``react`` then sees the error, and
    what became of it.
    """
    # Kept by the engine, since reactions know it: a table of them all would keep every engine alive.
    reactions: list[Reaction] = vars(engine).setdefault("_reactions_to_failure", [])
    if not reactions:
        engine.add_event_handler(Events.EXCEPTION_RAISED, _failed)
    reactions.append(react)


def _failed(engine: Engine, error: BaseException) -> None:
    ended = error
    for react in vars(engine)["_reactions_to_failure"]:
        ended = react(error) or ended
    raise ended from (error if ended is not error else error.__cause__)
