"""A run writes one folder, and this module is the only one that knows its files.

==========================  ==========================================================================
``config.json``             the run's whole config; an overlay that runs it again
``environment.json``        versions, machine and backend that it ran on
``conversion.json``         what became of every layer: swapped, padded or left, and why
``patients.json``           which patients trained, validated and were held out; channels, and hashes of images
``training_data.json``      the range of the training scans: spacing, slice planes, intensities
``init_from.json``          which weights were taken from elsewhere, and which were not
``checkpoint.pt``           everything that resuming needs, replaced after every epoch
``checkpoint.previous.pt``  the one before, kept until an epoch was trained from the newer; gone at the end
``model.pt``                the weights of the best validation AUPRC (the last ones under ``fold: all``)
``metrics.json``            what the validation said; written as it goes, ``"finished": true`` at the end
``pr_curve.json``           precision-recall curve behind ``model.pt``: thresholds from high to low, with true and false
                            positives at or above each
``health.json``             by epoch: health of the quantized layers, entropy of attention, histogram of probabilities
``events.out.tfevents.*``   one TensorBoard file
==========================  ==========================================================================

Every file is written beside its place and then moved into it, so that a run that is killed leaves whole files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from monai_fp4.atomic import (
    Replacements,
    read_json,
    remove_leftovers,
    write_atomically,
)
from monai_fp4.bundle.archive import check_archive
from monai_fp4.bundle.earlier import brought_up_to_date
from monai_fp4.bundle.event_files import EventFiles
from monai_fp4.bundle.options import NOT_OF_A_RUN, differences
from monai_fp4.bundle.running_config import value_at
from monai_fp4.errors import ConfigError

__all__ = ["RunFolder"]

_WRITTEN = (
    "checkpoint.pt", "checkpoint.previous.pt", "model.pt", "metrics.json", "pr_curve.json", "patients.json",
    "conversion.json", "environment.json", "health.json", "training_data.json", "init_from.json",
)  # fmt: skip


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
        self.previous_path = self.path / "checkpoint.previous.pt"
        self.metrics_path = self.path / "metrics.json"
        self.events = EventFiles(self.path)
        self.check_place: Callable[[], None] = lambda: None
        """Called before anything is written: raises an error when the folder is this run's no more."""
        self._replaced: Future[None] | None = None

    def check(self, config: Mapping[str, Any], patients: Mapping[str, Any]) -> None:
        """See that the folder is free, or holds this very run; nothing is written.

        Args:
            config: the run's whole config.
            patients: ids of the patients by what they are for, and what their files hold (`content_of`).

        Raises:
            ConfigError: when the folder holds another run, the run of other patients, or what no training wrote.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"output_dir must be a folder, but {self.path} is a file; choose another output_dir")
        if self.config_path.exists():
            found = self.read_config()
            known = self.read_json("patients.json") if (self.path / "patients.json").exists() else patients
            differing = differences(found, config)
            if "content" in known:  # which says more than the path under which the manifest lies
                differing = [name for name in differing if name != "manifest"]
            if differing:
                said = "; ".join(
                    f"{n} is {value_at(found, n)!r} there and {value_at(config, n)!r} here" for n in differing[:3]
                )
                raise ConfigError(f"{self.path} holds the run of another config ({said}); choose another output_dir")
            # Earlier versions kept the patients' ids alone.
            moved = [part for part, value in patients.items() if part in known and value != known[part]]
            if moved:
                what = "files, masks or folds" if moved[0] in ("content", "images") else f"'{moved[0]}'"
                raise ConfigError(
                    f"{self.path} holds the run of other patients ({what} of the manifest changed since);"
                    " restore the manifest, or choose another output_dir"
                )
            return
        for name in _WRITTEN:
            if (self.path / name).exists():
                raise ConfigError(f"{self.path} holds a {name} but no config.json of a run; choose another output_dir")

    def claim(self, config: Mapping[str, Any], patients: Mapping[str, Any]) -> None:
        """Take the folder for this run, or find that it already holds it.

        Raises:
            ConfigError: as `check`, or when the folder cannot be written to.
        """
        self.check(config, patients)
        remove_leftovers(self.path)
        self.events = EventFiles(self.path)
        if not self.config_path.exists():
            self.write_json("config.json", config)
        self.write_json("patients.json", patients)

    def write_json(self, name: str, content: Mapping[str, Any], files: Replacements | None = None) -> None:
        """Write one of the folder's JSON files, whole or not at all, at once or with the files that are given."""
        self.check_place()
        text = json.dumps(content, indent=2) + "\n"
        if files is None:
            write_atomically(self.path / name, text)
        else:
            with files.open(self.path / name) as file:
                file.write(text.encode())

    def read_json(self, name: str) -> dict[str, Any]:
        """Read one of the folder's JSON files.

        Raises:
            ConfigError: when it is missing or not JSON.
        """
        path = self.path / name
        if not os.path.lexists(path):
            raise ConfigError(f"{path} must exist, but it does not; give the folder that a run wrote")
        content = read_json(path)
        if not isinstance(content, dict):
            raise ConfigError(f"{path} must hold a JSON object, but holds a {type(content).__name__}; restore it")
        return content

    def read_config(self) -> dict[str, Any]:
        """Read the run's whole config, in today's names if an earlier version of the package wrote it.

        Raises:
            ConfigError: as `read_json`.
        """
        try:
            config: dict[str, Any] = brought_up_to_date(self.read_json("config.json"))
        except RecursionError:
            raise ConfigError(f"{self.config_path} must be a config, but is nested too deep; restore it") from None
        return config

    def fingerprints(self) -> dict[str, str]:
        """A hash of each part of the config, and of the patients, that makes this run another than its neighbours.

        A checkpoint bears them, since one of the same network with another seed or recipe fits into its place. Empty
        where there is no config.
        """
        if not self.config_path.exists():
            return {}
        config = self.read_json("config.json")  # as it was written, whatever later versions call its parts
        parts = {name: value for name, value in config.items() if name not in NOT_OF_A_RUN and name != "manifest"}
        if (self.path / "patients.json").exists():
            patients = self.read_json("patients.json")
            parts["patients"] = {part: patients.get(part) for part in ("train", "val", "test")}
        texts = {name: json.dumps(value, sort_keys=True) for name, value in parts.items()}
        return {name: sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16] for name, text in texts.items()}

    @property
    def finished(self) -> bool:
        """Whether the run reached its last epoch."""
        said = self.read_json("metrics.json") if self.metrics_path.exists() else {}
        return said.get("finished") is True and bool(said.get("history"))

    @contextmanager
    def replacements(self) -> Iterator[Replacements]:
        """Open files that take their places together, in a thread that waits for the disk while the training goes on.

        The thread does no more than flush and rename: it holds nothing that a process which is forked meanwhile needs.

        Raises:
            ConfigError: when those before could not take theirs, see `settle`.
        """
        self.settle()
        self.check_place()
        files = Replacements()
        try:
            yield files
        except BaseException:
            files.discard()
            raise
        thread = ThreadPoolExecutor(1)
        try:
            self._replaced = thread.submit(files.take_places)
        except RuntimeError:  # the system gives no more threads
            files.take_places()
        thread.shutdown(wait=False)

    def settle(self, *, wait: bool = True) -> None:
        """See that all `replacements` are in their places.

        Args:
            wait: False looks whether that has failed by now, and waits for nothing.

        Raises:
            ConfigError: when the folder cannot be written to.
        """
        if self._replaced is not None and (wait or self._replaced.done()):
            futures.wait([self._replaced])
            done, self._replaced = self._replaced, None
            done.result()

    def check_model(self, said: Mapping[str, Any] | None = None) -> None:
        """See that ``model.pt`` is whole, and the file that ``metrics.json`` describes where it describes one.

        Args:
            said: what ``metrics.json`` held when it was read; a run that trains replaces both. None reads it.

        Raises:
            ConfigError: when it is missing, damaged or another run's.
        """
        if said is None:
            said = self.read_json("metrics.json") if self.metrics_path.exists() else {}
        try:
            found = check_archive(self.model_path)
            if said.get("model_checksum", found) == found:  # earlier versions wrote none
                return
            wrong = f"it is another file than {self.metrics_path} describes"
        except (OSError, ValueError) as error:
            wrong = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"{self.model_path} must hold the weights of this run, but {wrong}; restore it, or remove {self.path} to"
            " train again"
        )
