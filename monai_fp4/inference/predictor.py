"""Study after study: read, segment, write, and say how far it is.

The folder of a study appears whole or not at all, so a prediction that was cut short, by a key or by a full disk, goes
on with the same command: studies that are there are not computed again. What has been written is never written over.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai.inferers import Inferer

from monai_fp4.atomic import make_folder, write_atomically
from monai_fp4.bundle.options import flag
from monai_fp4.data.patient_batches import in_batches
from monai_fp4.data.patients import Image, read_image
from monai_fp4.data.readers import reader_of
from monai_fp4.data.readers.files import digest_of
from monai_fp4.data.records import Reading
from monai_fp4.durations import format_seconds
from monai_fp4.errors import ConfigError, DataError, MonaiFP4Error, NumericsError, unknown_name
from monai_fp4.inference.ensemble import Ensemble, Segmented
from monai_fp4.inference.privacy import Redactor
from monai_fp4.inference.results import write_results
from monai_fp4.inference.studies import Study, find_studies, format_of

__all__ = ["Predictor"]

_KEYS = ("checksum", "path")
_SETTINGS, _SUMMARY, _PARTIAL = "prediction.json", "summary.json", ".partial-"


@dataclass
class _Job:
    """A study on its way: read, segmented, and then its line in the summary."""

    study: Study
    key: str
    digest: str = ""
    scan: Image | None = None
    result: Segmented | NumericsError | None = None
    row: dict[str, Any] | None = None


class Predictor:
    """Predicts every study of a file or a tree, and writes a folder for each.

    Args:
        ensemble: the networks.
        input: a file, a folder of DICOM files, or a tree of studies.
        output_dir: a new folder, or one that the same prediction began.
        probabilities: write probabilities, and the disagreement of several networks.
        names: what studies are called in messages, pictures, reports and folders: ``"checksum"`` of their files, which
            tells nobody who they are, or their ``"path"`` below the input.
        inferer: MONAI's way to call a network; None calls it plainly.

    Raises:
        ConfigError: an unknown name, or a folder that holds something else.
        DataError: there is no study.
    """

    def __init__(
        self,
        ensemble: Ensemble,
        input: str,
        output_dir: str,
        *,
        probabilities: Any = False,
        names: str = "checksum",
        inferer: Inferer | None = None,
    ) -> None:
        if names not in _KEYS:
            raise unknown_name("names", names, _KEYS)
        self.ensemble, self.names, self.inferer = ensemble, names, inferer
        self.probabilities = flag("probabilities", probabilities)
        self.root, self.folder = Path(str(input)).expanduser(), Path(str(output_dir))
        self._settings = {**ensemble.description, "probabilities": self.probabilities, "names": names}
        self._check_folder()
        self.studies = find_studies(self.root, ensemble.channels, without=self.folder)

    def run(self) -> None:
        """Predict all studies that are not there yet, then write the summary.

        Raises:
            SystemExit: with 1, when a study could not be predicted; the others have been.
            ConfigError: the output folder cannot be written to.
        """
        make_folder(self.folder)
        for left in self.folder.glob(f"{_PARTIAL}*"):
            shutil.rmtree(left, ignore_errors=True)
        write_atomically(self.folder / _SETTINGS, json.dumps(self._settings, indent=2) + "\n")
        total, rows, computed = len(self.studies), [], 0
        started = time.monotonic()
        print(f"Predicting {total} {'study' if total == 1 else 'studies'} into {self.folder}.", flush=True)
        for row in self._rows():
            rows.append(row)
            computed += row["status"] != "there already"
            text = f"{len(rows)}/{total} {row['study']}: {_said(row)}"
            if computed and len(rows) < total:
                left = (time.monotonic() - started) / computed * (total - len(rows))
                text += f"; {format_seconds(left)} left"
            print(text, flush=True)
            for warning in row.get("warnings", ()):
                print(f"  warning: {warning}", flush=True)
        failed = [row for row in rows if row["status"] == "failed"]
        write_atomically(
            self.folder / _SUMMARY,
            json.dumps({"failed": len(failed), "studies": rows}, indent=2, allow_nan=False) + "\n",
        )
        print(f"{total - len(failed)} of {total} predicted; {self.folder / _SUMMARY} says of each what became of it.")
        if failed:
            raise SystemExit(1)

    def _rows(self) -> Iterator[dict[str, Any]]:
        """What becomes of each study, in order; studies of few slices share a forward pass."""
        for jobs in in_batches(self._jobs(), self._slices, self.ensemble.chunk):
            yield from self._finish(jobs)

    def _jobs(self) -> Iterator[_Job]:
        """Each study, read when its turn comes."""
        for number, study in enumerate(self.studies, 1):
            job = _Job(study, self._path_key(study) if self.names == "path" else f"study_{number}")
            self._attempt(job, self._read)
            yield job

    def _slices(self, job: _Job) -> int:
        flat = len(self.ensemble.members[0].image_size) == 2
        return self.ensemble.chunk if job.scan is None or not flat else job.scan.values.shape[3]

    def _finish(self, jobs: Sequence[_Job]) -> Iterator[dict[str, Any]]:
        read = [job for job in jobs if job.scan is not None]
        if len(read) > 1:
            try:
                found = self.ensemble(
                    [job.scan for job in read if job.scan], maps=self.probabilities, inferer=self.inferer
                )
                for job, result in zip(read, found, strict=True):
                    job.result = result
            except (MonaiFP4Error, MemoryError, RuntimeError):
                for job in read:  # one of them is to blame: each again, alone
                    job.scan = None
                    self._attempt(job, self._read)
        for job in jobs:
            if job.row is None:
                self._attempt(job, self._write)
            job.scan = job.result = None
            assert job.row is not None
            yield job.row

    def _attempt(self, job: _Job, step: Callable[[_Job], None]) -> None:
        """Take a step of a study; an error is that of the study, unless the disk is full, as it is for all others."""
        try:
            step(job)
            return
        except ConfigError:
            raise
        except MonaiFP4Error as error:
            why = str(error)
        except MemoryError:
            why = "expected a scan that fits into memory, found no room for it; crop it"
        except Exception as error:  # one bad study must not stop the others, whatever is wrong with it
            why = f"expected a study that can be predicted, found {type(error).__name__}: {error}"
        redact = Redactor(self.root, job.study, job.study.place if self.names == "path" else "")
        job.row = {"status": "failed", "study": job.key, "why": redact(why)}

    def _read(self, job: _Job) -> None:
        if job.study.problem:
            raise DataError(job.study.problem)
        job.digest = _digest(job.study)
        if self.names == "checksum":
            job.key = f"study_{job.digest[:12]}"
        report = self.folder / job.key / "report.json"
        if report.exists():
            known = json.loads(report.read_text())
            if known["input_sha256"] != job.digest:
                raise DataError("expected the files that were predicted before, found that they changed; predict anew")
            job.row = _row(known, "there already")
        else:
            job.scan = read_image(job.study.slices, Reading())

    def _write(self, job: _Job) -> None:
        assert job.scan is not None
        if job.result is None:
            (job.result,) = self.ensemble([job.scan], maps=self.probabilities, inferer=self.inferer)
        if isinstance(job.result, NumericsError):
            raise job.result
        partial = self.folder / f"{_PARTIAL}{job.key}"
        shutil.rmtree(partial, ignore_errors=True)
        about = {"input_sha256": job.digest, **self.ensemble.description}
        source, kind = job.study.slices[0][0], format_of(job.study)
        try:
            report = write_results(partial, job.key, job.result, job.scan, source, kind, about)
            if not (self.folder / job.key).exists():  # the same files may lie in the tree twice
                partial.rename(self.folder / job.key)
            job.row = _row(report, "predicted")
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _path_key(self, study: Study) -> str:
        safe = re.sub(r"[^A-Za-z0-9._-]+", "_", study.place).strip("._") or "study"
        same = [other for other in self.studies if re.sub(r"[^A-Za-z0-9._-]+", "_", other.place).strip("._") == safe]
        return safe if len(same) < 2 else f"{safe}_{same.index(study) + 1}"

    def _check_folder(self) -> None:
        folder, settings = self.folder, self.folder / _SETTINGS
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"output_dir must be a folder, but {folder} is a file; choose another output_dir")
        if settings.exists():
            try:
                known = json.loads(settings.read_text())
            except (OSError, ValueError):
                known = None
            differing = [n for n, v in self._settings.items() if not isinstance(known, dict) or known.get(n) != v]
            if differing:
                raise ConfigError(
                    f"output_dir must be a new folder, but {folder} holds predictions that differ in "
                    f"'{differing[0]}'; choose another output_dir"
                )
        elif folder.is_dir() and any(folder.iterdir()):
            raise ConfigError(
                f"output_dir must be a new folder, but {folder} holds files that no prediction wrote; choose another "
                "output_dir"
            )


def _digest(study: Study) -> str:
    """The SHA-256 of all files of a study."""
    digests = [digest_of(Path(path), reader_of(path)) for paths in study.slices for path in paths]
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _row(report: Mapping[str, Any], status: str) -> dict[str, Any]:
    names = ("study", "volume_ml", "voxels", "lesion_count", "warnings")
    return {"status": status, **{name: report[name] for name in names}}


def _said(row: Mapping[str, Any]) -> str:
    if row["status"] == "failed":
        return f"failed: {row['why']}"
    size = f"{row['voxels']} pixels" if row["volume_ml"] is None else f"{row['volume_ml']:.3g} ml"
    lesions = f"{row['lesion_count']} lesion{'' if row['lesion_count'] == 1 else 's'}"
    return f"{size} in {lesions}" + (", there already" if row["status"] == "there already" else "")
