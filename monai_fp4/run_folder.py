"""A run writes one folder, and this module is the only one that knows its files.

========================  ==========================================================================
``config.json``           the run's whole config; an overlay that runs it again
``environment.json``      versions, machine and backend that it ran on
``conversion.json``       what became of every layer: swapped, padded or left, and why
``patients.json``         which patients trained, validated and were held out
``checkpoint.pt``         everything that resuming needs, replaced after every epoch
``model.pt``              the weights of the best validation AUPRC (the last ones under ``fold: all``)
``metrics.json``          what the validation said; written as it goes, ``"finished": true`` at the end
``pr_curve.json``         precision-recall curve behind ``model.pt``: thresholds from high to low, with true and false
                          positives at or above each
``events.out.tfevents.*`` one TensorBoard file
========================  ==========================================================================

Every file is written beside its place and then moved into it, so that a run that is killed leaves whole files.
"""

from __future__ import annotations

import errno
import json
import os
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_fp4.errors import ConfigError
from monai_fp4.options import differences
from monai_fp4.running_config import value_at

if TYPE_CHECKING:
    import torch

__all__ = ["RunFolder", "describe_environment", "make_folder", "write_atomically"]

_WRITTEN = (
    "checkpoint.pt", "model.pt", "metrics.json", "pr_curve.json", "patients.json", "conversion.json",
    "environment.json",
)  # fmt: skip
_PACKAGES = ("monai-fp4", "monai", "torch", "pytorch-ignite", "transformer-engine", "numpy", "nibabel", "SimpleITK")


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write ``content`` to ``path`` so that a reader sees the old file or the whole new one.

    Raises:
        ConfigError: when the folder cannot be written to (no space, no permission).
    """
    data = content.encode() if isinstance(content, str) else content
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    make_folder(path.parent)
    try:
        beside.write_bytes(data)
        beside.replace(path)
    except OSError as error:
        with suppress(OSError):  # such as that it was not even begun
            beside.unlink()
        raise _not_writable(path, error) from error


def make_folder(path: Path) -> None:
    """Make a folder, with those above it, unless it is there.

    Raises:
        ConfigError: when the system does not let it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_writable(path, error) from error


def _not_writable(path: Path, error: OSError) -> ConfigError:
    reason = error.strerror or str(error)
    remedy = "make room" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else "make it writable"
    return ConfigError(
        f"{path} must be writable, but the system says '{reason}'; {remedy} and start again, or choose another"
        " output_dir"
    )


def _system_error(error: BaseException) -> OSError:
    """What the system said behind torch's own words, which name a line of its source code and no reason."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError):
            return seen
        seen = seen.__cause__ or seen.__context__
    return OSError(0, str(error).splitlines()[0] if str(error) else type(error).__name__)


class RunFolder:
    """The files of one run.

    Args:
        path: the folder; it need not exist.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.config_path = self.path / "config.json"
        self.model_path = self.path / "model.pt"
        self.checkpoint_path = self.path / "checkpoint.pt"
        self.metrics_path = self.path / "metrics.json"

    def check(self, config: Mapping[str, Any], patients: Mapping[str, Sequence[str]]) -> None:
        """See that the folder is free, or holds this very run; nothing is written.

        Args:
            config: the run's whole config.
            patients: ids of the patients by what they are for.

        Raises:
            ConfigError: when the folder holds another run, the run of other patients, or what no training wrote.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"output_dir must be a folder, but {self.path} is a file; choose another output_dir")
        if self.config_path.exists():
            found = self.read_json("config.json")
            differing = differences(found, config)
            if differing:
                said = "; ".join(
                    f"{n} is {value_at(found, n)!r} there and {value_at(config, n)!r} here" for n in differing[:3]
                )
                raise ConfigError(f"{self.path} holds the run of another config ({said}); choose another output_dir")
            known = self.read_json("patients.json") if (self.path / "patients.json").exists() else patients
            moved = [part for part in patients if list(patients[part]) != known.get(part)]
            if moved:
                raise ConfigError(
                    f"{self.path} holds the run of other patients ('{moved[0]}' of the manifest has changed since);"
                    " restore the manifest, or choose another output_dir"
                )
            return
        for name in _WRITTEN:
            if (self.path / name).exists():
                raise ConfigError(f"{self.path} holds a {name} but no config.json of a run; choose another output_dir")

    def claim(self, config: Mapping[str, Any], patients: Mapping[str, Sequence[str]]) -> None:
        """Take the folder for this run, or find that it already holds it.

        Raises:
            ConfigError: as `check`, or when the folder cannot be written to.
        """
        self.check(config, patients)
        if not self.config_path.exists():
            self.write_json("config.json", config)
        self.write_json("patients.json", patients)

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write one of the folder's JSON files, whole or not at all."""
        write_atomically(self.path / name, json.dumps(content, indent=2) + "\n")

    def read_json(self, name: str) -> dict[str, Any]:
        """Read one of the folder's JSON files.

        Raises:
            ConfigError: when it is missing or not JSON.
        """
        path = self.path / name
        try:
            content = json.loads(path.read_text())
        except FileNotFoundError:
            raise ConfigError(f"{path} must exist, but it does not; give the folder that a run wrote") from None
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{path} must hold JSON, but reading it failed ({error}); restore or remove it"
            ) from error
        if not isinstance(content, dict):
            raise ConfigError(f"{path} must hold a JSON object, but holds a {type(content).__name__}; restore it")
        return content

    @property
    def finished(self) -> bool:
        """Whether the run reached its last epoch."""
        return self.metrics_path.exists() and self.read_json("metrics.json").get("finished") is True

    def save(self, path: Path, content: Mapping[str, Any]) -> None:
        """Save tensors and plain values so that ``torch.load(weights_only=True)`` reads them back.

        Raises:
            ConfigError: when the folder cannot be written to (no space, no permission).
        """
        import torch  # here, since a sweep reads and writes folders without it

        beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with beside.open("wb") as file:  # given a path, torch would keep the system's reason to itself
                torch.save(dict(content), file)
            beside.replace(path)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
            with suppress(OSError):
                beside.unlink()
            raise _not_writable(path, _system_error(error)) from error

    def load(self, path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
        """Load what :meth:`save` wrote.

        Raises:
            ConfigError: when the file is missing or damaged.
        """
        import torch

        try:
            content: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        except FileNotFoundError:
            raise ConfigError(f"{path} must exist, but it does not; let the run finish an epoch first") from None
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ConfigError(
                f"{path} must be a checkpoint of this package, but it cannot be read ({reason}); "
                "remove it to start again, or restore it"
            ) from error
        return content

    def load_weights(self, network: torch.nn.Module, weights: Mapping[str, Any], source: Path) -> None:
        """Load weights into the network, strictly.

        Raises:
            ConfigError: when they are those of another network.
        """
        own = network.state_dict()
        missing = [name for name in own if name not in weights]
        extra = [name for name in weights if name not in own]
        shapes = [n for n in own if n in weights and own[n].shape != weights[n].shape]
        if missing or extra or shapes:
            first = (missing or extra or shapes)[0]
            raise ConfigError(
                f"{source} holds the weights of another network: {len(missing)} tensors are missing, {len(extra)}"
                f" unknown and {len(shapes)} of another shape, '{first}' the first; use the arch, scale,"
                " image_size and image channels that it was trained with"
            )
        network.load_state_dict(dict(weights))


def describe_environment(device: torch.device, backend: str) -> dict[str, Any]:
    """Say what a run ran on: enough to know whether two runs may be compared."""
    import torch

    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "versions": versions | {"python": platform.python_version()},
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "backend": backend,
    }
