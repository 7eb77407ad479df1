"""What a stranger's ``logging.conf`` may say: Python's logging evaluates such a file, so it may log to the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from configparser import ConfigParser, Error
from pathlib import Path
from stat import S_ISREG
from types import MappingProxyType

__all__ = ["logging_problems"]

_LARGEST = 2**14
"""Bytes; the files of MONAI's model zoo hold up to 500."""
_SECTIONS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        **dict.fromkeys(("loggers", "handlers", "formatters"), frozenset({"keys"})),
        "logger": frozenset({"level", "handlers", "qualname", "propagate"}),
        "handler": frozenset({"class", "level", "formatter", "args"}),
        "formatter": frozenset({"format", "datefmt", "style"}),
    }
)
"""What the sections of a logging file may say, by the beginning of their names."""


def logging_problems(file: Path) -> Iterator[str]:
    """What in a file for Python's logging could do more than log to the terminal.

    Args:
        file: what `logging.config.fileConfig` would read.
    """
    ini = ConfigParser(interpolation=None)
    try:
        if not S_ISREG(file.stat().st_mode) or file.stat().st_size > _LARGEST:
            raise ValueError("no regular file, or too long")
        ini.read_string(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, Error) as error:
        yield f"is no file for Python's logging ({str(error).splitlines()[0]:.200})"
        return
    for name in ini.sections():
        section = ini[name]
        kind, arguments = section.get("class", "StreamHandler"), section.get("args", "()")
        if kind != "StreamHandler" or arguments.replace(" ", "") not in ("()", "(sys.stderr,)", "(sys.stdout,)"):
            yield f"[{name:.80}] logs to something other than the terminal ({kind:.80}{arguments:.80})"
        if others := sorted({*section, *ini.defaults()} - _SECTIONS.get(name.partition("_")[0], frozenset())):
            yield f"[{name:.80}] says '{others[0]:.80}', which Python may import or evaluate"
