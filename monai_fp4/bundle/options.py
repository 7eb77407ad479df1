"""The options that stand at the top of every bundle: one table, validated once.

A bundle's config begins with these plain names, because they are what people change, in the file or on the command line
(`--epochs 12 --image_size "[128,128]"`). The table drives the bundle template, the check of the command line, the
documentation and the tests; :class:`RunOptions` is what the rest of the package sees.

>>> options = RunOptions.from_config(**(defaults() | {"arch": "unet", "fold": "all", "image_size": [128, 128]}))
>>> options.fold, options.image_size, options.recipe.name
('all', (128, 128), 'bf16')
>>> RunOptions.from_config(**(defaults() | {"epochs": 0}))
Traceback (most recent call last):
    ...
monai_fp4.errors.ConfigError: epochs must be a whole number from 1 on, but 0 was given
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_fp4.bundle.running_config import differing_ids
from monai_fp4.data.image_size import check_size
from monai_fp4.errors import ConfigError, unknown_name
from monai_fp4.networks import ARCHITECTURES
from monai_fp4.quantization.recipes import Recipe

if TYPE_CHECKING:
    import torch

__all__ = ["NOT_OF_A_RUN", "OPTIONS", "Option", "RunOptions", "defaults", "differences", "flag", "path_text"]


@dataclass(frozen=True)
class Option:
    """One top-level name of a bundle: its default and one line of help."""

    name: str
    default: Any
    help: str
    starts_a_new_run: bool = True
    """Whether a run folder written with another value belongs to another run."""


OPTIONS: tuple[Option, ...] = (
    Option("recipe", "bf16", "precision recipe: a name of the table, or its fields written out"),
    Option("arch", "unet", f"architecture: {', '.join(ARCHITECTURES)}"),
    Option("scale", "500k", "size of the network: 500k, 4m or 15m parameters"),
    Option(
        "manifest", "phantom", "who is in which fold: a path, or the name of a shipped manifest (phantom, nodules, lgg)"
    ),
    Option("dataset_dir", "data/phantom", "folder that holds the scans of the manifest", starts_a_new_run=False),
    Option("output_dir", "runs/unet_500k_bf16", "run folder; started again with the same one, a run resumes", False),
    Option(
        "fold",
        0,
        "fold to validate on; holdout, where the manifest has one; all: train on all who are not in the test split",
    ),
    Option("seed", 0, "seed of weights, data order and augmentation; the same for every recipe that is compared"),
    Option("init_from", None, "weights to begin with: folder of a run, model.pt or MONAI checkpoint; null: the seed's"),
    Option("epochs", 12, "passes over the training slices"),
    Option("batch_size", 16, "slices a step, over all processes together"),
    Option("learning_rate", 0.003, "peak of the one-cycle schedule"),
    Option(
        "image_size",
        [64, 64],
        "height and width the network sees, such as [128,128]; metrics are at the scan's own size",
    ),
    Option("val_interval", 1, "epochs between validations"),
    Option("num_workers", 0, "processes that load data; slices are cached in memory, so 0 is usually quickest", False),
    Option("amp", True, "BF16 autocast, on CPU and CUDA"),
    Option("backend", "auto", "implementation of FP4: auto, emulated, transformer_engine or transformer_engine_im2col"),
    Option("device", "auto", "auto, cpu, cuda or cuda:1", starts_a_new_run=False),
)
"""Every option of a bundle, in the order in which its file has them."""

_NAMES = tuple(option.name for option in OPTIONS)


def defaults() -> dict[str, Any]:
    """Every option's default, by name."""
    return {option.name: option.default for option in OPTIONS}


@dataclass(frozen=True)
class RunOptions:
    """The validated options of one run; see :data:`OPTIONS` for what each means."""

    recipe: Recipe
    arch: str
    scale: str
    manifest: str
    dataset_dir: str
    output_dir: str
    fold: int | str
    seed: int
    init_from: str | None
    epochs: int
    batch_size: int
    learning_rate: float
    image_size: tuple[int, ...]
    val_interval: int
    num_workers: int
    amp: bool
    backend: str
    device: str

    @classmethod
    def from_config(cls, **config: Any) -> RunOptions:
        """Validate what a config says.

        Raises:
            ConfigError: for an unknown or missing option, an unknown recipe or architecture, or a value out of range.
        """
        for name in config:
            if name not in _NAMES:
                raise unknown_name("option", name, _NAMES)
        missing = [name for name in _NAMES if name not in config]
        if missing:
            raise ConfigError(f"the config must set every option, but {', '.join(missing)} is missing; add it")
        return cls(
            recipe=Recipe.from_config(config["recipe"]),
            arch=str(config["arch"]),
            scale=str(config["scale"]),
            manifest=path_text("manifest", config["manifest"]),
            dataset_dir=path_text("dataset_dir", config["dataset_dir"]),
            output_dir=path_text("output_dir", config["output_dir"]),
            fold=_fold(config["fold"]),
            seed=_seed(config["seed"]),
            init_from=None if config["init_from"] is None else path_text("init_from", config["init_from"]),
            epochs=_whole("epochs", config["epochs"], 1),
            batch_size=_whole("batch_size", config["batch_size"], 1),
            learning_rate=_positive("learning_rate", config["learning_rate"]),
            image_size=check_size(config["image_size"]),
            val_interval=_whole("val_interval", config["val_interval"], 1),
            num_workers=_whole("num_workers", config["num_workers"], 0),
            amp=flag("amp", config["amp"]),
            backend=_text("backend", config["backend"]),
            device=_text("device", config["device"]),
        )

    @classmethod
    def of_run(cls, config: Mapping[str, Any]) -> RunOptions:
        """Take the options out of a run's whole ``config.json``."""
        return cls.from_config(**{name: value for name, value in config.items() if name in _NAMES})

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype that layers compute in: BF16 under autocast, else what the parameters are stored in."""
        import torch  # here, since a sweep reads options without it

        return torch.bfloat16 if self.amp else torch.float32

    def to_config(self) -> dict[str, Any]:
        """The options as JSON-ready values; `from_config` takes them back."""
        config = {field.name: getattr(self, field.name) for field in fields(self)}
        return config | {"recipe": self.recipe.to_config(), "image_size": list(self.image_size)}


NOT_OF_A_RUN = frozenset(option.name for option in OPTIONS if not option.starts_a_new_run) | {"bundle_root"}
"""Ids of a config that may change while a run stays the same one."""


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Name the ids in which two whole configs belong to different runs.

    >>> differences({"seed": 0, "device": "cpu"}, {"seed": 1, "device": "cuda"})
    ['seed']
    """
    before, after = ({n: value for n, value in config.items() if n not in NOT_OF_A_RUN} for config in (first, second))
    return list(differing_ids(before, after))


def _text(name: str, value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):  # --dataset_dir 2024, which a shell cannot quote
        value = str(value)
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{name} must be a text, but {value!r} was given")
    return value


def path_text(name: str, value: Any) -> str:
    """Read an option that is a path, or a name in place of one; a folder called 2024 comes as a number.

    >>> path_text("input", 2024)
    '2024'

    Raises:
        ConfigError: it is no text, empty, or none that a file system takes.
    """
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        raise ConfigError(f"{name} must be a path, but {value!r} was given")
    try:
        Path(str(value)).stat()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass  # who needs it to be there says so
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{name} must be a path, but {str(value)[:80]!r} is none ({reason})") from None
    return str(value)


def _whole(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} must be a whole number from {least} on, but {value!r} was given")
    return value


def _positive(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise ConfigError(f"{name} must be a number above 0, but {value!r} was given")
    return float(value)


def _seed(value: Any) -> int:
    if _whole("seed", value, 0) >= 2**32:
        raise ConfigError(f"seed must be below 2**32, which is all that NumPy takes, but {value!r} was given")
    return int(value)


def flag(name: str, value: Any) -> bool:
    """Read an option that is true or false; ``--amp true`` comes from the command line as a text.

    >>> flag("amp", "true"), flag("amp", False)
    (True, False)

    Raises:
        ConfigError: for anything else.
    """
    if str(value).lower() in ("true", "false"):
        return str(value).lower() == "true"
    raise ConfigError(f"{name} must be true or false, but {value!r} was given")


def _fold(value: Any) -> int | str:
    if value in ("all", "holdout"):
        return str(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ConfigError(f"fold must be a whole number from 0 on, 'holdout' or 'all', but {value!r} was given")
    return value
