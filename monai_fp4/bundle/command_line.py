"""What a command that runs a bundle does about its words, its errors and its signals, whoever started it.

MONAI adds any ``--name`` to the config, wraps errors in its own, and knows no signals; so a misspelt option is refused
here, our errors are one sentence on the terminal, and SIGTERM ends a process with one.
"""

from __future__ import annotations

import inspect
import logging
import os
import signal
import sys
import threading
import traceback
from ast import literal_eval
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow, scripts

from monai_fp4.bundle.options import OPTIONS
from monai_fp4.errors import MonaiFP4Error, unknown_name

__all__ = ["check_command_line", "check_options", "error_in_chain", "install_error_hook", "listen_to_sigterm"]

logger = logging.getLogger("monai_fp4")


def check_command_line(argv: Sequence[str]) -> None:
    """Refuse an option that no bundle has; MONAI adds any ``--name`` to the config and would run on without a word.

    Raises:
        ConfigError: for a plain option that is not in the config files, with the nearest names.
    """
    if not argv or not argv[0].replace("\\", "/").endswith("monai/bundle/__main__.py"):
        return
    listen_to_sigterm()  # in a process that ends with its run; in a notebook it would stay
    known = _top_level_ids(argv)
    command = getattr(scripts, argv[1] if argv[1:] else "run", scripts.run)
    parameters = [p for call in (command, ConfigWorkflow) for p in inspect.signature(call).parameters.values()]
    arguments = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
    check_options([word[2:].split("=", 1)[0] for word in argv[1:] if word.startswith("--")], known, arguments)


def check_options(names: Iterable[str], known: Mapping[str, Any], arguments: Sequence[str] = ()) -> None:
    """Refuse a name that is neither an id at the config's top nor an argument of the command.

    Raises:
        ConfigError: naming the nearest.
    """
    for name in names:
        # An id within a section, such as --train#trainer#max_epochs, is MONAI's business.
        if name.isidentifier() and name not in {*known, *arguments}:
            # Nobody means a whole section, or an expression, by a misspelt option.
            plain = [n for n, value in known.items() if not isinstance(value, dict) and "$" not in str(value)]
            raise unknown_name("option", f"--{name}", [f"--{n}" for n in dict.fromkeys([*plain, *arguments])])


def _top_level_ids(argv: Sequence[str]) -> dict[str, Any]:
    """Ids that the config files of a command line define at their top; a user's own ids count too."""
    words = [word for argument in argv for word in argument.split("=", 1)]
    given = words[words.index("--config_file") + 1] if "--config_file" in words[:-1] else ""
    files = literal_eval(given) if given[:1] in ("[", "(") else [given]
    if not given or not all(Path(file).is_file() for file in files):  # they may stand in an --args_file
        return {option.name: option.default for option in OPTIONS} | {"run_dir": None, "split": None}
    return dict(ConfigParser.load_config_files(files))


def error_in_chain(error: BaseException | None) -> MonaiFP4Error | None:
    """Find our own error behind the ones that MONAI and Ignite wrap around it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, MonaiFP4Error):
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None


def install_error_hook() -> None:
    """Print the user's errors as one sentence rather than a traceback; ``MONAI_FP4_DEBUG=1`` shows all of it.

    MONAI instantiates the config, so it stands between our errors and the terminal; the hook is set only once a bundle
    has begun to run and leaves every other exception as it was.
    """
    previous = sys.excepthook
    if getattr(previous, "is_monai_fp4", False):
        return

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        own = error_in_chain(error)
        if issubclass(kind, KeyboardInterrupt) and not os.environ.get("MONAI_FP4_DEBUG"):
            print("\ninterrupted; the same command goes on after the last finished epoch", file=sys.stderr)
        elif own is None or os.environ.get("MONAI_FP4_DEBUG"):
            previous(kind, error, trace)
        else:
            where = traceback.extract_tb(own.__traceback__)[-1:]
            logger.debug("raised in %s", where)
            print(f"error: {own}", file=sys.stderr)

    hook.is_monai_fp4 = True  # type: ignore[attr-defined]
    sys.excepthook = hook
    of_threads = threading.excepthook

    def thread_hook(args: threading.ExceptHookArgs) -> None:
        # On a full disk, whoever next hands something to TensorBoard's thread is told, and says it to the user.
        of_tensorboard = type(args.thread).__module__.startswith("tensorboard.")
        if not (of_tensorboard and isinstance(args.exc_value, OSError)) or os.environ.get("MONAI_FP4_DEBUG"):
            of_threads(args)

    threading.excepthook = thread_hook


def listen_to_sigterm() -> Callable[[], None]:
    """Have SIGTERM end a process that runs a bundle with a sentence, wherever it is, until what is returned is called.

    Several processes wait for each other within the system, where Python hears nothing: there the system's way is
    quicker. Somebody else's handler, such as Ray's, stays.
    """
    alone = int(os.environ.get("WORLD_SIZE", 1)) == 1 and threading.current_thread() is threading.main_thread()
    if not alone or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        return lambda: None
    process = os.getpid()

    def end(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)  # a second one ends at once
        if os.getpid() != process:  # a process that loads data
            os.kill(os.getpid(), number)
        os.write(2, b"\nended by SIGTERM; the same command starts again, or goes on after the last finished epoch\n")
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, end)

    def put_back() -> None:
        if signal.getsignal(signal.SIGTERM) is end:  # not that of whoever came later
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    return put_back
