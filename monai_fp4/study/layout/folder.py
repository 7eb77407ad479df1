"""The files of a study: where each is, how it is read, and what is said of a damaged one."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from monai_fp4.atomic import read_json, write_atomically
from monai_fp4.errors import ConfigError
from monai_fp4.study.layout.cell import Cell, CellRecord, CellStatus
from monai_fp4.study.layout.definition import StudyDefinition

__all__ = ["StudyFolder", "read_json", "write_json"]


class StudyFolder:
    """The files of a study.

    Args:
        path: the folder; it need not exist.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.definition_path = self.path / "study.json"
        self.cells_path = self.path / "cells"
        self.bundles_path = self.path / "bundles"
        self.lock_path = self.path / ".lock"

    def read_definition(self) -> StudyDefinition:
        """Read ``study.json``.

        Raises:
            ConfigError: when the folder holds no study, or a damaged one.
        """
        if not self.definition_path.is_file():
            raise ConfigError(
                f"{self.path} must be the folder of a study, but it holds no study.json; give the output_dir of a"
                " 'monai-fp4 sweep'"
            )
        return StudyDefinition.from_json(read_json(self.definition_path), str(self.definition_path))

    def write_definition(self, definition: StudyDefinition) -> None:
        """Write ``study.json``, whole or not at all."""
        write_json(self.definition_path, definition.to_json())

    def run_dir(self, cell: Cell) -> Path:
        """The cell's run folder."""
        return self.cells_path / cell.id

    def record(self, cell: Cell) -> CellRecord:
        """Read ``cell.json``; a cell without one is waiting.

        Raises:
            ConfigError: when the file is damaged.
        """
        path = self.run_dir(cell) / "cell.json"
        if not _is_there(path):
            return CellRecord()
        document = read_json(path)
        known = {item.name for item in fields(CellRecord)}
        try:
            values = {name: value for name, value in document.items() if name in known}
            record = CellRecord(**{**values, "status": CellStatus(document["status"])})
            return replace(record, seconds=float(record.seconds), attempts=int(record.attempts))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            raise ConfigError(
                f"{path} must hold a cell's 'status', 'seconds' and 'attempts', but does not; remove it and sweep again"
            ) from None

    def known_record(self, cell: Cell) -> CellRecord:
        """As `record`; a damaged one counts as none, since it is bookkeeping that the cell's next start begins anew."""
        try:
            return self.record(cell)
        except ConfigError:
            return CellRecord()

    def write_record(self, cell: Cell, record: CellRecord) -> None:
        """Write ``cell.json``, whole or not at all."""
        write_json(self.run_dir(cell) / "cell.json", asdict(record))

    def repair_record(self, cell: Cell, status: CellStatus, error: str = "") -> None:
        """Put right what a worker that was killed could not write any more."""
        record = self.known_record(cell)
        stale = record.status is CellStatus.RUNNING or status in (CellStatus.DONE, CellStatus.FAILED)
        there = self.path.is_dir()  # else the study was moved while its cells ran
        if there and stale and (record.status, record.error) != (status, error):
            with suppress(ConfigError):  # such as a full disk; the next sweep puts it right
                self.write_record(cell, replace(record, status=status, error=error))

    def finished(self, cell: Cell) -> bool:
        """Whether the cell's run reached its last epoch, which the run itself says.

        With a damaged ``metrics.json``, or that of another cell, it has not: started again, the run says what is wrong.
        """
        try:
            return (self.metrics(cell) or {}).get("finished") is True
        except ConfigError:
            return False

    def metrics(self, cell: Cell) -> dict[str, Any] | None:
        """The run's ``metrics.json`` as it is now, or None before its first epoch.

        Raises:
            ConfigError: when the file is damaged, or the folder holds the run of another cell.
        """
        path = self.run_dir(cell) / "metrics.json"
        if not _is_there(path):
            return None
        document = read_json(path)
        if not isinstance(document, dict):
            raise ConfigError(f"{path} must hold a JSON object, but holds a {type(document).__name__}; restore it")
        config: Any = {}
        with suppress(ConfigError):  # what is damaged tells nothing, and the run says so when it is started
            config = read_json(path.with_name("config.json"))
        if isinstance(config, dict) and (other := cell.differs_from(config)):
            raise ConfigError(
                f"{path.parent} must hold the run of this cell, but its config.json has another '{other}'; put the"
                " folders of the cells back, or remove this one and sweep again"
            )
        return document


def _is_there(path: Path) -> bool:
    """Whether there is such a file; one that the system does not let be looked at is, and reading it says why."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file, whole or not at all.

    Raises:
        ConfigError: when the system does not let it, such as on a full disk.
    """
    write_atomically(path, json.dumps(content, indent=2) + "\n")
