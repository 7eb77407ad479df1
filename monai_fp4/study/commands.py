"""Write the files of a study's cells, and compose the command of a cell as a user would type it.

Paths in the command are relative to the study folder, so that a study can be moved and go on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from monai_fp4.atomic import write_atomically
from monai_fp4.bundle.earlier import brought_up_to_date
from monai_fp4.bundle.files import bundle_files, protocol_config
from monai_fp4.bundle.template import training_config
from monai_fp4.errors import ConfigError
from monai_fp4.study.layout import Cell, StudyDefinition, StudyFolder, read_json
from monai_fp4.study.variants import recipe_of

__all__ = ["OPTIMIZERS", "arguments_of", "epochs_of", "write_study"]

OPTIMIZERS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "adamw": {},
        "muon": {"_target_": "monai_fp4.optimizers.MuonAdamW", "params": "$@network.named_parameters()"},
        "sgd": {"_target_": "torch.optim.SGD", "momentum": 0.9, "nesterov": True},
    }
)
"""The axis ``optimizer``: what each changes in the bundle's section of that name, which is AdamW's."""

SGD_RATE = 30
"""What a bundle's learning rate, chosen for AdamW, is multiplied by for SGD. A rule of thumb, not tuned."""

_BESIDE = ("metadata.json", "logging.conf")
"""Files that MONAI looks for beside a bundle."""


def arguments_of(
    definition: StudyDefinition,
    cell: Cell,
    device: str | None = None,
    folder: StudyFolder | None = None,
    *,
    trusted: bool = False,
) -> list[str]:
    """Compose what follows ``python`` on the command line of a cell, run in the study folder.

    Args:
        definition: the study.
        cell: one of its cells.
        device: the bundle's option ``device``, unless the study sets it; None leaves it to the bundle.
        folder: of the study, whose bundles may hold another learning rate than the package's own, which None takes.
        trusted: run the bundle whatever it names, in the study folder; else it is checked first.

    Raises:
        ConfigError: a value would be taken for another option.
    """
    options: dict[str, Any] = {
        "manifest": definition.manifest,
        "dataset_dir": definition.dataset_dir,
        "output_dir": f"cells/{cell.id}",
        "fold": cell.fold,
        "seed": cell.seed,
    }
    recipe = recipe_of(definition.recipes[cell.recipe], cell.arch, cell.scale)
    if not isinstance(recipe, str):  # a named one stands in the bundle
        options["recipe"] = recipe
    if device is not None:
        options["device"] = device
    options |= definition.options
    further = {name: list(value) if isinstance(value, tuple) else value for name, value in cell.further}
    optimizer = str(further.pop("optimizer", "adamw"))
    options |= further
    if optimizer == "sgd":
        if (rate := options.get("learning_rate")) is None:
            rate = _config(folder, definition, cell)["learning_rate"]
        options["learning_rate"] = round(rate * SGD_RATE, 6)
    options |= {f"optimizer#{name}": value for name, value in OPTIMIZERS[optimizer].items()}
    # -P, since the working folder is the study, which may be a stranger's and hold a torch.py.
    command = ["-m", "monai.bundle", "run"] if trusted else ["-P", "-m", "monai_fp4", "run"]
    files = [f"bundles/{name}" for name in _config_files(definition, cell)]
    words = [*command, "--config_file", files[0] if len(files) == 1 else repr(files)]
    for name, value in options.items():
        text = value if isinstance(value, str) else repr(value)
        if re.match(r"-\D", text):  # a study may be a stranger's, and hold a value "--trust"
            raise ConfigError(f"'{name}' of a study must be a value, but {text!r} would be an option; correct it")
        words += [f"--{name}", text]
    return words


def epochs_of(folder: StudyFolder, definition: StudyDefinition, cell: Cell) -> int:
    """Count the epochs of a cell.

    Raises:
        ConfigError: its bundle in the study is damaged.
    """
    given = {**definition.options, **dict(cell.further)}.get("epochs")
    epochs = given or _config(folder, definition, cell).get("epochs")
    if type(epochs) is not int or epochs < 1:
        raise ConfigError(f"the bundle of {cell.id} must have a number of epochs, but {epochs!r} was found; restore it")
    return epochs


def _config_files(definition: StudyDefinition, cell: Cell) -> list[str]:
    """The configs that a cell runs, below the study's ``bundles/``: its bundle, and the protocol's overlay on it."""
    overlay = [f"protocols/{definition.protocol}.json"] if definition.protocol else []
    return [f"{definition.bundle(cell)}.json", *overlay]


def _config(folder: StudyFolder | None, definition: StudyDefinition, cell: Cell) -> dict[str, Any]:
    """What a cell runs, as it stands in the study folder; without one, as the package has it."""
    if folder is None:
        return training_config(cell.arch, cell.scale, "bf16") | protocol_config(definition.protocol)
    config: dict[str, Any] = {}
    for name in _config_files(definition, cell):
        config |= _read_bundle(folder.bundles_path / name)
    return config


def _read_bundle(path: Path) -> dict[str, Any]:
    config = read_json(path)
    if not isinstance(config, dict):
        raise ConfigError(f"{path} must hold a bundle, but holds a {type(config).__name__}; restore or remove it")
    return config


def write_study(
    folder: StudyFolder, definition: StudyDefinition, manifest: str, bundles_dir: Path | None = None
) -> list[str]:
    """Write everything that the cells need: the definition, its manifest and the bundles.

    A bundle that is there already is kept, as its cells began with it; names that have moved since are brought up to
    date.

    Args:
        folder: the study folder.
        definition: the study, with the manifest as it is to be called there.
        manifest: path or shipped name of the manifest.
        bundles_dir: take the bundles from here; None writes them from the package's template.

    Returns:
        What the user should know.

    Raises:
        ConfigError: when a bundle is missing from ``bundles_dir``, or the folder cannot be written to.
    """
    wanted = dict.fromkeys(name for cell in definition.cells() for name in _config_files(definition, cell))
    contents = _bundles(wanted, bundles_dir)
    differing = []
    for name, content in contents.items():
        path = folder.bundles_path / name
        if not path.exists():
            write_atomically(path, content)
            continue
        config = _read_bundle(path) if path.suffix == ".json" else {}
        kept = path.read_bytes()
        if (present := brought_up_to_date(config)) != config:
            kept = (json.dumps(present, indent=4) + "\n").encode()
            write_atomically(path, kept)
        if kept != content.encode():
            differing.append(name)
    copy = folder.path / definition.manifest
    if copy.suffix == ".json" and not copy.exists():
        write_atomically(copy, Path(manifest).read_bytes())
    folder.write_definition(definition)
    if not differing:
        return []
    source = bundles_dir or "this version of the package"
    return [f"{len(differing)} bundles are kept as the study began with them; {source} has others ({differing[0]})"]


def _bundles(names: Iterable[str], bundles_dir: Path | None) -> dict[str, str]:
    if bundles_dir is None:
        files = bundle_files(every=True)
        return {name: files[name] for name in (*names, *_BESIDE)}
    contents = {}
    for name in names:
        path = bundles_dir / name
        if not path.is_file():
            raise ConfigError(f"{bundles_dir} must hold the bundle of every cell, but it has no {name}; add it")
        contents[name] = path.read_text(encoding="utf-8")
    return contents | {name: (bundles_dir / name).read_text() for name in _BESIDE if (bundles_dir / name).is_file()}
