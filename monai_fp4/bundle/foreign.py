"""Whether a bundle of somebody else's may be run: read whole, and nothing of it evaluated.

A config is code: MONAI calls what it names and evaluates what begins with ``$``. `check_bundle` walks every value of
every file, used or not, and lists whatever is not on a list of what is known to be harmless: names that
`monai_fp4.bundle.allowed` refuses, and expressions that are more than references, a few attributes, arithmetic,
comparisons, and calls of a few named methods. What is listed need not be malicious; it has to be read by a person.

>>> print(*check_config({"run": ["$@trainer.run()", "$__import__('os').system('id')"]}))
run::1: "$__import__('os').system('id')" calls what is not one of MONAI's methods that bundles need
"""

from __future__ import annotations

import ast
import os
import stat
import warnings
from collections.abc import Iterator, Mapping
from configparser import ConfigParser as IniParser
from configparser import Error as IniError
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from monai_fp4.bundle.allowed import refusal_of
from monai_fp4.bundle.running_config import SEPARATOR
from monai_fp4.errors import ConfigError, printable

__all__ = ["Finding", "check_bundle", "check_config", "read_config_file"]

_KINDS = (".json", ".yaml", ".yml")
_CODE = (".py", ".pyc", ".pyd", ".pth", ".so")
_LARGEST = 2**20
"""Bytes of a config file; the bundles of MONAI's model zoo hold up to 30 000."""
_DEEPEST, _LONGEST = 40, 1000
_MOST_MACROS, _MOST_TAKEN = 1000, 10**6

_METHODS = frozenset(
    {"begin", "buffers", "close", "eval", "get", "items", "keys", "named_parameters", "parameters", "run", "share",
     "state_dict", "train", "values"}
)  # fmt: skip
"""Methods that an expression may call, on whatever; none of them runs code or opens a file in an allowed class."""
_ATTRIBUTES = frozenset(
    {"amp", "autocast_dtype", "batch_size", "datalist", "device", "generator", "image_size", "in_channels", "manifest",
     "network", "normalization", "options", "rank", "source", "threshold", "type", "validation_part", "world_size"}
)  # fmt: skip
"""Attributes that an expression may read: those of our own objects that bundles need.

Not every one that is public: from ``DataLoader.multiprocessing_context`` it is four steps to ``os.system``.
"""
_FUNCTIONS = frozenset({"float", "int", "len", "max", "min", "round"})
_SYNTAX = (
    ast.Expression, ast.Constant, ast.Load, ast.UnaryOp, ast.USub, ast.UAdd, ast.Not, ast.BinOp, ast.Add, ast.Sub,
    ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.BoolOp, ast.And, ast.Or, ast.Compare, ast.cmpop, ast.IfExp, ast.List,
    ast.Tuple, ast.Dict, ast.keyword,
)  # fmt: skip
_LOGGING: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        **dict.fromkeys(("loggers", "handlers", "formatters"), frozenset({"keys"})),
        "logger": frozenset({"level", "handlers", "qualname", "propagate"}),
        "handler": frozenset({"class", "level", "formatter", "args"}),
        "formatter": frozenset({"format", "datefmt", "style"}),
    }
)
"""What the sections of a logging file may say, by the beginning of their names."""
_REFERENCES = "__local_refs"
"""The name under which MONAI hands an expression the objects that it refers to."""
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


class _AnyReference(dict[str, Any]):
    """Knows every id, so that MONAI itself writes an expression as it would be evaluated."""

    def __contains__(self, _key: object) -> bool:
        return True


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
            findings += [Finding(str(file), "", reason) for reason in _check_logging(file)]
        else:
            findings += check_file(file, root if root.is_dir() else root.parent)
    return findings


def check_file(file: Path, folder: Path) -> list[Finding]:
    """As `check_bundle`, for one config file.

    Args:
        file: of the config.
        folder: of the bundle, which other files that it takes in must not leave.
    """
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
            raise ConfigError(
                f"a config must be a regular file of at most {_LARGEST} bytes, but {path} is not; leave it alone"
            )
        if path.suffix.lower() in (".yaml", ".yml"):
            import yaml  # type: ignore[import-untyped]  # here, as MONAI does: without it there is no YAML to read

            if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(path.read_text(encoding="utf-8"))):
                raise ConfigError(
                    f"a config must have no YAML aliases, which can grow without end, but {path} has one; write it out"
                )
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # MONAI warns of a key that stands there twice
            config: dict[str, Any] = ConfigParser.load_config_file(str(path))
    except ConfigError:
        raise
    except Exception as error:  # json, yaml and MONAI each have their own
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise ConfigError(
            f"a config must be JSON or YAML, but {path} cannot be read ({reason}); leave it alone"
        ) from error
    return config


def _walk(value: Any, id: str, macros: _Macros, depth: int = 0) -> Iterator[tuple[str, str]]:
    if depth > _DEEPEST:
        yield id, f"lies deeper than {_DEEPEST} levels"
        return
    if isinstance(value, str):
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
    for name, value in section.items():
        # At the top, a file may name an id within a section ("train#trainer") and add to one ("+train").
        if (
            not isinstance(name, str)
            or any(sign in name for sign in ("@$%" if top else "@$%#:"))
            or name != name.strip()
        ):
            yield f"has the key {name!r}, under which another id may hide"
        elif name.startswith("_") and name.endswith("_") and name not in _MACROS:
            yield f"has the key {name!r}, which is none of MONAI's or starts its debugger"
        last = str(name).replace("#", SEPARATOR).rpartition(SEPARATOR)[2].removeprefix("+")
        if last == "_target_":
            if not isinstance(value, str) or value[:1] in ("@", "$", "%"):
                yield f"names what it calls by {value!r}, which is known only when it is run"
            elif why := refusal_of(value):
                yield f"_target_ {value!r}: {why}"
        elif last == "_mode_" and value not in ("default", "callable"):
            yield f"has the mode {value!r}, which may start a debugger"
        elif last == "compile_kwargs" and value:
            yield "hands options to the compiler of torch.compile, which starts the programs that they name"
        elif last == "trust_run_dir" and value not in (False, "@trust_run_dir"):
            yield "trusts a run folder, whose network may be any code"


def _check_text(text: str, id: str, macros: _Macros) -> Iterator[str]:
    from monai.bundle import ConfigParser, ReferenceResolver

    shown = repr(text if len(text) < 80 else text[:77] + "...")
    try:
        absolute = ConfigParser.resolve_relative_ids(id.removeprefix("+").replace("#", SEPARATOR), text)
    except ValueError:
        yield f"{shown} refers to an id above the config"
        return
    if absolute[:1] in ("%", "$") and len(absolute) > _LONGEST:  # MONAI's patterns take the square of that
        yield f"{shown} is longer than {_LONGEST} characters"
    elif absolute.startswith("%"):
        yield from (f"{shown} {reason}" for reason in macros.check(absolute[1:]))
    elif absolute.startswith("$"):
        evaluated = ReferenceResolver.update_refs_pattern(absolute, _AnyReference())[1:]
        if reason := _expression_problem(evaluated):
            yield f"{shown} {reason}"


class _Macros:
    """What the macros of a config take in: ``%id`` and ``%file::id``; each file is read and checked once.

    Args:
        config: the config.
        folder: of the bundle, which the files must not leave; None where there may be none.
    """

    def __init__(self, config: Mapping[str, Any], folder: Path | None) -> None:
        self.folder = folder
        self._configs: dict[Path | None, Mapping[str, Any]] = {None: config}
        self._count = self._taken = 0

    def check(self, macro: str) -> Iterator[str]:
        """Check what a macro takes in like the rest; it must take in nothing itself, and not grow without end."""
        from monai.bundle import ConfigParser

        self._count += 1
        if self._count > _MOST_MACROS:
            yield f"is one of more than {_MOST_MACROS} macros"
            return
        name, id = ConfigParser.split_path_id(macro)
        file = Path(name).resolve() if name else None
        if file is not None and (self.folder is None or not file.is_relative_to(self.folder.resolve())):
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
        try:
            taken = ConfigParser(dict(self._configs[file])).get(id)  # as MONAI will, which knows more than one spelling
        except (LookupError, TypeError, ValueError):
            return  # nothing is there
        for part in _parts(taken):
            self._taken += 1
            if self._taken > _MOST_TAKEN:
                yield f"takes in more than {_MOST_TAKEN} values, with the others"
                return
            if isinstance(part, str) and part.startswith("%"):
                yield "takes in what takes in something itself"
                return


def _parts(value: Any) -> Iterator[Any]:
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    yield value
    for item in items:
        yield from _parts(item)


def _expression_problem(text: str) -> str | None:
    """Why Python must not evaluate an expression; None where it may."""
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return "is an import, or no expression"
    harmless = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call) and _may_be_called(node.func)}
    references = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Subscript) and _is_index(node.slice)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if id(node.func) not in harmless:
                return "calls what is not one of MONAI's methods that bundles need"
        elif isinstance(node, ast.Name):
            if not (id(node) in harmless or (node.id == _REFERENCES and id(node) in references)):
                return f"uses the name '{node.id}'"
        elif isinstance(node, ast.Attribute):
            if node.attr not in _ATTRIBUTES and id(node) not in harmless:
                return f"reaches for the attribute '{node.attr}', which bundles do not need"
        elif isinstance(node, ast.Subscript):
            if id(node.value) not in references:
                return "takes an item by something other than a constant"
        elif not isinstance(node, _SYNTAX):
            return f"holds what bundles do not need ({type(node).__name__})"
    return None


def _may_be_called(function: ast.expr) -> bool:
    if isinstance(function, ast.Name):
        return function.id in _FUNCTIONS
    return isinstance(function, ast.Attribute) and function.attr in _METHODS


def _is_index(index: ast.expr) -> bool:
    return isinstance(index, ast.Constant) and isinstance(index.value, (str, int))


def _check_logging(file: Path) -> Iterator[str]:
    """Python's logging evaluates what such a file says of its handlers."""
    ini = IniParser(interpolation=None)
    try:
        if not stat.S_ISREG(file.stat().st_mode) or file.stat().st_size > _LARGEST:
            raise ValueError("no regular file, or too long")
        ini.read_string(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, IniError) as error:
        yield f"is no file for Python's logging ({str(error).splitlines()[0]})"
        return
    for name in ini.sections():
        section = ini[name]
        kind, arguments = section.get("class", "StreamHandler"), section.get("args", "()")
        if kind != "StreamHandler" or arguments.replace(" ", "") not in ("()", "(sys.stderr,)", "(sys.stdout,)"):
            yield f"[{name}] logs to something other than the terminal ({kind}{arguments})"
        if others := sorted({*section, *ini.defaults()} - _LOGGING.get(name.partition("_")[0], frozenset())):
            yield f"[{name}] says '{others[0]}', which Python may import or evaluate"
