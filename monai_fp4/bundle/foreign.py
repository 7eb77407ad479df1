"""Whether a bundle of somebody else's may be run: read whole, and nothing of it evaluated.

A config is code: MONAI calls what it names and evaluates what begins with ``$``. `check_bundle` walks every value of
every file, used or not, and lists whatever is not known to be harmless: names that `monai_fp4.bundle.allowed` refuses,
and expressions that `monai_fp4.bundle.expressions` does. What is listed need not be malicious; a person has to read it.

>>> print(*check_config({"run": ["$@trainer.run()", "$__import__('os').system('id')"]}))
run::1: "$__import__('os').system('id')" calls what is not one of MONAI's methods that bundles need
"""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai_fp4.bundle.allowed import refusal_of
from monai_fp4.bundle.expressions import LONGEST, expression_problem
from monai_fp4.bundle.logging_file import logging_problems
from monai_fp4.bundle.running_config import SEPARATOR
from monai_fp4.errors import ConfigError, printable

__all__ = ["Finding", "check_bundle", "check_config", "read_config_file"]

_KINDS = (".json", ".yaml", ".yml")
_CODE = (".py", ".pyc", ".pyd", ".pth", ".so")
_LARGEST = 2**16
"""Bytes of a config file; the bundles of MONAI's model zoo hold up to 30 000."""
_DEEPEST, _LONGEST_ID = 40, 500
_MOST_MACROS, _MOST_TAKEN = 1000, 10**5
_MACROS = frozenset({"_target_", "_disabled_", "_requires_", "_desc_", "_mode_", "_meta_"})


@dataclass(frozen=True)
class Finding:
    """One thing in a bundle that has to be read by a person before it is run.

    Attributes:
        file: where it stands; empty for a config that is in no file.
        id: its id in the config.
        reason: what it is, and why it is listed.
    """

    file: str
    id: str
    reason: str

    def __str__(self) -> str:
        """``file: id: reason``."""
        return printable(": ".join(part for part in (self.file, self.id, self.reason) if part))


def check_bundle(path: str | os.PathLike[str]) -> list[Finding]:
    """List what a person must read before a bundle is run; nothing of it is evaluated or imported.

    Args:
        path: a config file, or the folder of a bundle: every config in it, logging files, and modules that MONAI would
            put on Python's path.

    Raises:
        ConfigError: when there is no such file or folder, or no config in it.
    """
    root = Path(path)
    if root.is_dir():
        files = [file for file in sorted(root.rglob("*")) if file.suffix.lower() in (*_KINDS, ".conf", *_CODE)]
        if not any(file.suffix.lower() in _KINDS for file in files):
            raise ConfigError(f"{root} must hold the config of a bundle, but has no .json or .yaml file; give another")
    elif os.path.lexists(root):
        files = [root]
    else:
        raise ConfigError(f"{root} must be a config file or the folder of a bundle, but does not exist; give another")
    findings = []
    for file in files:
        if file.suffix.lower() in _CODE:
            findings.append(Finding(str(file), "", "is code that Python may import from the folder of a bundle"))
        elif file.suffix.lower() == ".conf":
            findings += [Finding(str(file), "", reason) for reason in logging_problems(file)]
        else:
            findings += _check_file(file, root if root.is_dir() else root.parent)
    return findings


def _check_file(file: Path, folder: Path) -> list[Finding]:
    """As `check_bundle`, for one config file; other files that it takes in must not leave the bundle's folder."""
    try:
        config = read_config_file(file)
    except ConfigError as error:
        return [Finding(str(file), "", str(error))]
    return [Finding(str(file), each.id, each.reason) for each in check_config(config, folder)]


def check_config(config: Any, folder: Path | None = None) -> list[Finding]:
    """As `check_bundle`, for a config that has been read.

    Args:
        config: what the files hold, merged or not.
        folder: of the bundle; None where the config may take in no other file.
    """
    if not isinstance(config, Mapping):
        return [Finding("", "", f"a config must be a mapping of ids, but is a {type(config).__name__}")]
    return [Finding("", id, reason) for id, reason in _walk(config, "", _Macros(config, folder))]


def read_config_file(path: Path) -> dict[str, Any]:
    """Read a JSON or YAML file of a stranger, within bounds.

    Raises:
        ConfigError: for what is no regular file, too long, too deep, not JSON or YAML, has a key twice or an alias.
    """
    from monai.bundle import ConfigParser

    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > _LARGEST:
            raise ValueError(f"it is no regular file of at most {_LARGEST} bytes")
        if path.suffix.lower() in (".yaml", ".yml"):
            _check_yaml(path.read_text(encoding="utf-8"))
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # MONAI warns of a key that stands there twice
            config: dict[str, Any] = ConfigParser.load_config_file(str(path))
    except FileNotFoundError:
        raise ConfigError(f"expected a config file at {path}, found nothing there; correct the path") from None
    except Exception as error:  # json, yaml and MONAI each have their own
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise ConfigError(f"a config must be JSON or YAML, but {path} cannot be read ({reason}); correct it") from error
    return config


def _check_yaml(text: str) -> None:
    """Refuse what grows without end: aliases, and brackets, among which PyYAML takes the square of the time."""
    import yaml  # type: ignore[import-untyped]  # here, as MONAI does: without it there is no YAML to read

    depth = 0
    for event in yaml.parse(text):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent) or depth > _DEEPEST:
            raise ValueError(f"it has aliases, or more than {_DEEPEST} levels")


def _walk(value: Any, id: str, macros: _Macros, depth: int = 0) -> Iterator[tuple[str, str]]:
    if depth > _DEEPEST or len(id) > _LONGEST_ID:  # MONAI writes an id out wherever one is relative to it
        yield id[:80], f"lies deeper than {_DEEPEST} levels, or below keys of more than {_LONGEST_ID} characters"
    elif isinstance(value, str):
        yield from ((id, reason) for reason in _check_text(value, id, macros))
    elif isinstance(value, Mapping):
        yield from ((id, reason) for reason in _check_mapping(value, top=not id))
        for name, item in value.items():
            yield from _walk(item, f"{id}{SEPARATOR}{name}" if id else str(name), macros, depth + 1)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _walk(item, f"{id}{SEPARATOR}{number}", macros, depth + 1)
    elif not isinstance(value, (bool, int, float, type(None))):
        yield id, f"is a {type(value).__name__}, which no config file should hold"


def _check_mapping(section: Mapping[Any, Any], *, top: bool) -> Iterator[str]:
    # At the top, a file may name an id within a section ("train#trainer") and add to one ("+train").
    signs = "@$%" if top else "@$%#:"
    for name, value in section.items():
        if not isinstance(name, str) or any(sign in name for sign in signs) or name != name.strip():
            yield f"has the key {name!r:.80}, under which another id may hide"
        elif name.startswith("_") and name.endswith("_") and name not in _MACROS:
            yield f"has the key {name!r:.80}, which is none of MONAI's or starts its debugger"
        last = str(name).replace("#", SEPARATOR).rpartition(SEPARATOR)[2].removeprefix("+")
        if last == "_target_":
            if not isinstance(value, str) or value[:1] in ("@", "$", "%"):
                yield f"names what it calls by {value!r:.80}, which is known only when it is run"
            elif why := refusal_of(value):
                yield f"_target_ {value!r:.80}: {why:.200}"
        elif last == "_mode_" and value != "default":
            yield f"has the mode {value!r:.80}, which starts a debugger, or calls a class with arguments of its data"
        elif last == "compile_kwargs" and value:
            yield "hands options to the compiler of torch.compile, which starts the programs that they name"
        elif last == "trust_run_dir" and value not in (False, "@trust_run_dir"):
            yield "trusts a run folder, whose network may be any code"


def _check_text(text: str, id: str, macros: _Macros) -> Iterator[str]:
    from monai.bundle import ConfigParser

    shown = repr(text if len(text) < 80 else text[:77] + "...")
    try:
        absolute = ConfigParser.resolve_relative_ids(id.removeprefix("+").replace("#", SEPARATOR), text)
    except ValueError:
        yield f"{shown} refers to an id above the config"
        return
    if absolute.startswith("%"):
        yield from (f"{shown} {reason}" for reason in macros.check(absolute[1:]))
    elif absolute.startswith("$") and (problem := expression_problem(absolute)):
        yield f"{shown} {problem}"


class _Macros:
    """What the macros of a config take in: ``%id`` and ``%file::id``; each file is read and checked once."""

    def __init__(self, config: Mapping[str, Any], folder: Path | None) -> None:
        self.folder = folder
        self._configs: dict[Path | None, Mapping[str, Any]] = {None: config}
        self._count = self._taken = 0

    def check(self, macro: str) -> Iterator[str]:
        """Check what a macro takes in like the rest; it must take in nothing itself, and not grow without end."""
        from monai.bundle import ConfigParser

        self._count += 1
        if self._count > _MOST_MACROS or len(macro) > LONGEST:
            yield f"is one of more than {_MOST_MACROS} macros, or longer than {LONGEST} characters"
            return
        name, id = ConfigParser.split_path_id(macro)
        try:
            file = Path(name).resolve() if name else None
            inside = file is None or (self.folder is not None and file.is_relative_to(self.folder.resolve()))
        except (OSError, ValueError, RuntimeError):  # a null, half a character, a circle of links
            inside = False
        if not inside:
            yield "takes in a file that lies outside of the bundle"
            return
        if file is not None and file not in self._configs:
            try:
                self._configs[file] = read_config_file(file)
            except ConfigError as error:
                yield f"takes in a file that cannot be ({error})"
                return
            # Its own macros are of no account: what is taken in must have none.
            found = check_config(self._configs[file])
            yield from (f"takes in {finding}" for finding in found if "takes in" not in finding.reason)
        taken: Any = self._configs[file]
        try:  # as MONAI looks it up, but for its search for a name like it, which takes minutes among long ones
            for part in id.split(SEPARATOR) if id else ():
                taken = taken[int(part) if isinstance(taken, list) else part.strip()]
        except (LookupError, TypeError, ValueError):
            yield "takes in what is not there"
            return
        waiting = [taken]
        while waiting:
            part = waiting.pop()
            self._taken += 1
            if self._taken > _MOST_TAKEN:
                yield f"takes in more than {_MOST_TAKEN} values, with the others"
                return
            if isinstance(part, str) and part.startswith("%"):
                yield "takes in what takes in something itself"
                return
            waiting += part.values() if isinstance(part, Mapping) else part if isinstance(part, list) else ()
