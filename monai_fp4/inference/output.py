"""The folder of a prediction: one settings file, a folder a study that appears whole or not at all, and a summary.

======================  ============================================================================
``prediction.json``     the models and the options; another prediction is refused
``<study>/``            the files of a study (`monai_fp4.inference.results`)
``summary.json``        what became of each study
======================  ============================================================================

One process at a time may write there; a second one is refused.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from monai_fp4.atomic import read_json, write_atomically
from monai_fp4.data.readers.files import sha256_of
from monai_fp4.errors import ConfigError, DataError
from monai_fp4.lock import FolderLock

__all__ = ["OutputFolder", "row_of", "size_in_words"]

_SETTINGS, _SUMMARY, _PARTIAL, _LOCK = "prediction.json", "summary.json", ".partial-", ".lock"
_ROW = ("study", "volume_ml", "voxels", "lesion_count", "warnings")


class OutputFolder:
    """A new folder, or one that the same prediction began.

    Args:
        path: the folder; it need not exist.
        settings: the models and the options, as plain JSON.

    Attributes:
        summary_path: where the summary goes.

    Raises:
        ConfigError: it is a file, or holds something else.
    """

    reserved = frozenset({_SETTINGS, _SUMMARY})
    """What no study may be called."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path, self.settings, self.summary_path = path, settings, path / _SUMMARY
        if path.exists() and not path.is_dir():
            raise ConfigError(f"output_dir must be a folder, but {path} is a file; choose another output_dir")
        if (path / _SETTINGS).exists():
            known = read_json(path / _SETTINGS)
            differing = [n for n, v in settings.items() if not isinstance(known, dict) or known.get(n) != v]
            if differing:
                raise ConfigError(
                    f"output_dir must be a new folder, but {path} holds predictions that differ in '{differing[0]}'; "
                    "choose another output_dir"
                )
        elif path.is_dir() and any(each.name != _LOCK for each in path.iterdir()):
            raise ConfigError(
                f"output_dir must be a new folder, but {path} holds files that no prediction wrote; choose another "
                "output_dir"
            )

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Hold the folder for this process; what a killed one left half-written is removed.

        Raises:
            ConfigError: another process predicts into it, or it cannot be written to.
        """
        with FolderLock(self.path / _LOCK, "prediction"):
            for left in self.path.glob(f"{_PARTIAL}*"):
                shutil.rmtree(left, ignore_errors=True)
            write_atomically(self.path / _SETTINGS, json.dumps(self.settings, indent=2) + "\n")
            yield

    def report_of(self, key: str, digest: str) -> dict[str, Any] | None:
        """The report of a study that is there already.

        Args:
            key: what the study is called.
            digest: the SHA-256 of its files.

        Raises:
            DataError: it is of other files, or damaged, or its files are.
        """
        path = self.path / key / "report.json"
        if not path.exists():
            return None
        try:
            known = read_json(path)
        except ConfigError:
            known = None
        if not isinstance(known, dict) or not known.keys() >= {"input_sha256", *_ROW}:
            raise DataError(
                f"expected the report of an earlier prediction in {path}, found a damaged one; remove {key}"
            )
        files = known["files"] if isinstance(known.get("files"), dict) else {}
        for name in files:
            file = path.with_name(Path(name).name)
            if not file.exists() or sha256_of(file) != files[name]:
                raise DataError(
                    f"expected {file.name} of an earlier prediction beside {path}, found that it is gone or another; "
                    f"remove {key}"
                )
        if known["input_sha256"] != digest:
            raise DataError("expected the files that were predicted before, found that they changed; predict anew")
        return known

    def store(self, key: str, write: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
        """Let a study's files be written, and move them into place when all of them are there.

        Args:
            key: what the study is called.
            write: writes the files into the folder that it is given, and returns their report.
        """
        partial = self.path / f"{_PARTIAL}{key}"
        shutil.rmtree(partial, ignore_errors=True)
        try:
            report = write(partial)
            if not (self.path / key).exists():  # the same files may lie in the tree twice
                partial.rename(self.path / key)
            return report
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def write_summary(self, rows: Sequence[Mapping[str, Any]], others: int, unknown: int) -> None:
        """Write what became of each study, and how many other images, and files of no known format, lay beside them."""
        failed = sum(row["status"] == "failed" for row in rows)
        summary = {"failed": failed, "other_images": others, "other_files": unknown, "studies": rows}
        write_atomically(self.summary_path, json.dumps(summary, indent=2, allow_nan=False) + "\n")


def row_of(report: Mapping[str, Any], status: str) -> dict[str, Any]:
    """A study's row of the summary."""
    return {"status": status, **{name: report[name] for name in _ROW}}


def size_in_words(row: Mapping[str, Any]) -> str:
    """What a row says was found, in a few words."""
    if row["status"] == "failed":
        return f"failed: {row['why']}"
    size = f"{row['voxels']} pixels" if row["volume_ml"] is None else f"{row['volume_ml']:.3g} ml"
    lesions = f"{row['lesion_count']} lesion{'' if row['lesion_count'] == 1 else 's'}"
    return f"{size} in {lesions}" + (", there already" if row["status"] == "there already" else "")
