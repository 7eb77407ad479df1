"""Read a grid from a command line: the study's definition that it asks for.

An axis is a list (``unet,swin``), and for whole numbers also a range (``0-4``); ``--seeds 10`` is how many:

>>> numbers("folds", "0,2-4"), seeds_of("3"), seeds_of("7,")
((0, 2, 3, 4), (0, 1, 2), (7,))
>>> seeds_of("0")
Traceback (most recent call last):
    ...
monai_fp4.errors.ConfigError: seeds must be at least one seed, but '0' was given; write how many, or a list as 0,1,2
"""

from __future__ import annotations

import json
import re
import subprocess
from argparse import Namespace
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import monai_fp4
from monai_fp4.bundle.files import protocol_config
from monai_fp4.bundle.options import OPTIONS, defaults
from monai_fp4.errors import ConfigError, unknown_name
from monai_fp4.networks import ARCHITECTURES, SCALES
from monai_fp4.quantization.recipes import FURTHER_RECIPES, RECIPES, AttentionPrecision
from monai_fp4.study.commands import OPTIMIZERS
from monai_fp4.study.layout import StudyDefinition, read_json
from monai_fp4.study.variants import grid_recipes

__all__ = ["COMMON", "code_version", "definition_of", "folds_of", "names", "now", "numbers", "parse_value", "seeds_of"]

_OWN = ("recipe", "arch", "scale", "fold", "seed", "output_dir", "manifest", "dataset_dir")
COMMON = tuple(option for option in OPTIONS if option.name not in _OWN)
"""Options of the bundles that a grid sets for all of its cells, or takes as a further axis."""


def names(axis: str, text: str, known: Iterable[str]) -> tuple[str, ...]:
    """Read a list of names.

    Raises:
        ConfigError: for a name that is not known, with the nearest ones.
    """
    known = list(known)
    chosen = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    for name in chosen:
        if name not in known:
            raise unknown_name(axis, name, known)
    if not chosen:
        raise ConfigError(f"{axis} must be at least one of {', '.join(known)}, but {text!r} was given; name one")
    return chosen


def numbers(axis: str, text: str) -> tuple[int, ...]:
    """Read a list of whole numbers and ranges, ends included.

    Raises:
        ConfigError: when it is none.
    """
    found: list[int] = []
    for word in (part.strip() for part in text.split(",") if part.strip()):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", word, re.ASCII)
        if match is None:
            raise ConfigError(f"{axis} must be whole numbers such as 0,2-4, but {word!r} was given; correct it")
        found += range(int(match[1]), int(match[2] or match[1]) + 1)
    if not found:
        raise ConfigError(f"{axis} must be at least one whole number, but {text!r} was given; write one such as 0")
    return tuple(dict.fromkeys(found))


def seeds_of(text: str) -> tuple[int, ...]:
    """Read ``--seeds``: how many, or a list or a range of them.

    Raises:
        ConfigError: when it is neither, or none.
    """
    if text.strip().isdecimal():
        if int(text) == 0:
            raise ConfigError(
                f"seeds must be at least one seed, but {text!r} was given; write how many, or a list as 0,1,2"
            )
        return tuple(range(int(text)))
    return numbers("seeds", text)


def folds_of(text: str) -> tuple[int | str, ...]:
    """Read ``--folds``: numbers and ``holdout``, or ``all`` alone, under which nobody is held out.

    >>> folds_of("0-2"), folds_of("holdout,0"), folds_of("all")
    ((0, 1, 2), ('holdout', 0), ('all',))
    """
    words = [word.strip() for word in text.split(",")]
    if words == ["all"]:
        return ("all",)
    numbered = ",".join(word for word in words if word != "holdout")
    if "holdout" not in words:
        return numbers("folds", numbered)
    return ("holdout", *(numbers("folds", numbered) if numbered.strip(",") else ()))


def parse_value(text: str) -> Any:
    """Read an option's value as the command line of a bundle does: JSON where it is JSON, else a text.

    >>> parse_value("3"), parse_value("[128, 128]"), parse_value("128,128"), parse_value("adamw"), parse_value("True")
    (3, [128, 128], [128, 128], 'adamw', True)
    """
    if text in ("True", "False"):
        return text == "True"
    for written in (text, f"[{text}]") if "," in text else (text,):
        with suppress(ValueError):
            return json.loads(written)
    return text


def definition_of(args: Namespace, version: str = "") -> tuple[StudyDefinition, str]:
    """The grid that a command line asks for, and where its manifest is now.

    Raises:
        ConfigError: for a name that is not known, or a number that is none.
    """
    own = read_json(args.recipes_file) if args.recipes_file else {}
    if not isinstance(own, dict):
        raise ConfigError(f"{args.recipes_file} must hold a mapping of names to recipes, but does not; correct it")
    if taken := sorted({*RECIPES, *FURTHER_RECIPES} & set(own)):
        raise ConfigError(
            f"{args.recipes_file} must give recipes names of their own, but {taken[0]!r} is one of the package's;"
            " rename it"
        )
    further: dict[str, tuple[Any, ...]] = {}
    for text in args.axis:
        name, equals, values = text.partition("=")
        if not equals or not values:
            raise ConfigError(f"--axis must be OPTION=VALUES such as learning_rate=0.001,0.003, but {text!r} was given")
        further[name] = _axis_values(values)
    if args.optimizers is not None:
        further["optimizer"] = names("optimizers", args.optimizers, OPTIMIZERS)
    options = {
        option.name: parse_value(getattr(args, option.name))
        for option in COMMON
        if getattr(args, option.name) is not None
    }
    protocol = protocol_config(args.protocol)
    otherwise = defaults() | protocol
    named = otherwise["manifest"] if args.manifest is None else args.manifest
    dataset_dir = otherwise["dataset_dir"] if args.dataset_dir is None else args.dataset_dir
    path = Path(named)
    # A manifest of the user's is copied, so that the study says by itself who was in which fold.
    kept = "manifest.json" if path.is_file() else named
    definition = StudyDefinition(
        archs=names("archs", args.archs, ARCHITECTURES),
        scales=names("scales", args.scales, SCALES),
        recipes=grid_recipes(_with_attention(args.recipes, args.attention), own),
        folds=folds_of(str(otherwise["fold"]) if args.folds is None else args.folds),
        seeds=seeds_of(f"{otherwise['seed']}," if args.seeds is None else args.seeds),
        further=further,
        manifest=kept,
        dataset_dir=str(Path(dataset_dir).expanduser().resolve()),
        options=options,
        protocol=args.protocol,
        version=version,
        created=now(),
    )
    return StudyDefinition.from_json(definition.to_json()), str(path.resolve()) if path.is_file() else named


def _axis_values(text: str) -> tuple[Any, ...]:
    """``0.001,0.003`` or ``[64,64],[128,128]``: the commas outside of brackets divide."""
    whole = parse_value(f"[{text}]")
    values = whole if isinstance(whole, list) else [parse_value(word.strip()) for word in text.split(",")]
    return tuple(dict.fromkeys(tuple(value) if isinstance(value, list) else value for value in values))


def _with_attention(recipes: str, attention: str | None) -> str:
    """Cross the recipes with the precision inside attention."""
    if attention is None:
        return recipes
    chosen = names("attention", attention, [str(value) for value in AttentionPrecision])
    words = [word.strip() for word in recipes.split(",")]
    # What does not quantize stays as it is, once: it is the baseline of both.
    plain = [word for word in words if word in RECIPES and not RECIPES[word].quantizes]
    plain += ["bf16"] if "all" in words and "bf16" not in plain else []
    others = [word for word in words if word not in plain]
    suffixes = ["+attention" if precision == AttentionPrecision.FP4 else "" for precision in chosen]
    return ",".join([*plain, *(f"{word}{suffix}" for suffix in suffixes for word in others)])


def code_version() -> str:
    """The package's version, with the commit where it runs from a checkout: ``0.1.0 (97518c7)``."""
    root = Path(monai_fp4.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return monai_fp4.__version__
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=7", "--exclude=*"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return monai_fp4.__version__
    return f"{monai_fp4.__version__} ({said})"


def now() -> str:
    """The time as the study's files write it."""
    return datetime.now(UTC).isoformat(timespec="seconds")
