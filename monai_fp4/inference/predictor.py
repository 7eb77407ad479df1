"""Study after study: read, segment, write, and say how far it is.

Studies are looked for while others are predicted, so that the first result does not wait for the last file. The folder
of a study appears whole or not at all, so a prediction that was cut short, by a key or by a full disk, goes on with the
same command: studies that are there are not computed again. What has been written is never written over.
"""

from __future__ import annotations

import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path
from typing import Any

from monai.inferers import Inferer

from monai_fp4.bundle.options import flag, path_text
from monai_fp4.data.patient_batches import in_batches
from monai_fp4.data.records import Header, Reading
from monai_fp4.data.scans import Image, read_image
from monai_fp4.durations import format_seconds
from monai_fp4.errors import ConfigError, DataError, MonaiFP4Error, NumericsError, unknown_name
from monai_fp4.inference.acquired import stated_modalities, warnings_of_geometry
from monai_fp4.inference.ensemble import Ensemble, Segmented
from monai_fp4.inference.output import OutputFolder, row_of, size_in_words
from monai_fp4.inference.privacy import Redactor, without_quotes
from monai_fp4.inference.results import write_results
from monai_fp4.inference.studies import Studies
from monai_fp4.inference.study import WHOLE, Study, digest_of_study, format_of

__all__ = ["Predictor"]

_KEYS = ("checksum", "path")
_PICTURES = ("auto", "stack", "single")
_LONGEST = 200
"""Characters of a study's name; file systems take 255, and some names are made of it."""


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
        modality: what may be predicted, as DICOM calls it: ``"MR"``, or a list with one of each channel. None: what the
            run was trained on, as far as it says.
        pictures: whether numbered pictures are the slices of one study (``"stack"``) or a study each (``"single"``);
            ``"auto"``: as the run's training scans were.
        header: which part of a NIfTI header is believed where it contradicts itself, as in ``manifest build``.
        tolerance: how far the channels of a scan may lie apart at the corners, in voxels.
        inferer: MONAI's way to call a network; None calls it plainly.

    Raises:
        ConfigError: an unknown name, or a folder that holds something else.
        DataError: there is no such input.
    """

    def __init__(
        self,
        ensemble: Ensemble,
        input: str,
        output_dir: str,
        *,
        probabilities: Any = False,
        names: str = "checksum",
        modality: str | Sequence[str] | None = None,
        pictures: str = "auto",
        header: str = Header.AUTO,
        tolerance: float = Reading.tolerance,
        inferer: Inferer | None = None,
    ) -> None:
        for option, value, known in (
            ("names", names, _KEYS), ("pictures", pictures, _PICTURES), ("header", header, [*Header]),
        ):  # fmt: skip
            if value not in known:
                raise unknown_name(option, str(value), known)
        if isinstance(tolerance, bool) or not isinstance(tolerance, (int, float)) or not 0 <= tolerance < float("inf"):
            raise ConfigError(f"tolerance must be a number of voxels from 0 on, but {tolerance!r} was given")
        self.ensemble, self.names, self.inferer = ensemble, names, inferer
        self.probabilities = flag("probabilities", probabilities)
        self.root = Path(path_text("input", input)).expanduser()
        self.folder = Path(path_text("output_dir", output_dir))
        self.reading = Reading(header=Header(header), tolerance=float(tolerance))
        modalities = ensemble.modalities if modality is None else stated_modalities(modality, len(ensemble.channels))
        stacked = not ensemble.single_pictures if pictures == "auto" else pictures == "stack"
        settings = {
            **ensemble.description,
            "probabilities": self.probabilities,
            "names": names,
            "modalities": [sorted(each) for each in modalities],
            "pictures": "stack" if stacked else "single",
            "reading": self.reading.to_json(),
        }
        self.output = OutputFolder(self.folder, settings)
        self.studies = Studies(
            self.root, ensemble.channels, modalities=modalities, stacked=stacked, without=self.folder
        )
        self._keys = set(self.output.reserved)

    def run(self) -> None:
        """Predict all studies that are not there yet, then write the summary.

        Raises:
            SystemExit: with 1, when a study could not be predicted; the others have been. With 130, when interrupted.
            ConfigError: the output folder cannot be written to.
            DataError: there is no study.
        """
        studies = iter(self.studies)
        studies = chain([next(studies)], studies)  # nothing is written where there is none
        try:
            with self.output.opened():
                rows = self._predict(studies)
                self.output.write_summary(rows, self.studies.others, self.studies.unknown)
        except KeyboardInterrupt:
            print("\ninterrupted; the same command goes on after the last finished study", file=sys.stderr)
            raise SystemExit(130) from None
        total, others, unknown = len(rows), self.studies.others, self.studies.unknown
        failed = sum(row["status"] == "failed" for row in rows)
        beside = f"; {others} other image{'s' * (others != 1)} beside them (masks, channels, series)" if others else ""
        beside += f"; {unknown} file{'s' * (unknown != 1)} of no known format passed over" if unknown else ""
        path = self.output.summary_path
        print(f"{total - failed} of {total} predicted{beside}; {path} says of each what became of it.")
        if failed:
            raise SystemExit(1)

    def _predict(self, studies: Iterator[Study]) -> list[dict[str, Any]]:
        """Predict study after study, and say what became of each and how much time is left."""
        rows: list[dict[str, Any]] = []
        told: Counter[str] = Counter()
        files = self.studies.files
        print(f"Looking for studies in {files} file{'s' * (files != 1)}; results go to {self.folder}.", flush=True)
        started, there = time.monotonic(), 0
        for row in self._rows(studies):
            rows.append(row)
            passed = self.studies.passed
            if row["status"] == "there already":
                started, there = time.monotonic(), passed  # what was computed before tells nothing of the time left
            text = f"{len(rows)}: {row['study']}: {size_in_words(row)}"
            if there < passed < files:
                rest = (time.monotonic() - started) / (passed - there) * (files - passed)
                text += f"; {100 * passed // files} % of the files, {format_seconds(rest)} left"
            print(text, flush=True)
            for warning in row.get("warnings", ()):
                told[warning] += 1
                if told[warning] == 1:  # the same of many studies would hide the others
                    print(f"  warning: {warning}", flush=True)
        for warning, times in told.items():
            if times > 1:
                print(f"warning of {times} studies: {warning}")
        return rows

    def _rows(self, studies: Iterator[Study]) -> Iterator[dict[str, Any]]:
        """What becomes of each study, in order; studies of few slices share a forward pass."""
        for jobs in in_batches(self._jobs(studies), self._slices, self.ensemble.chunk):
            yield from self._finish(jobs)

    def _jobs(self, studies: Iterator[Study]) -> Iterator[_Job]:
        """Each study, read when its turn comes."""
        for number, study in enumerate(studies, 1):
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
            why = str(error) if error.__cause__ is None else without_quotes(str(error))
        except MemoryError:
            why = "expected a scan that fits into memory, found no room for it; crop it"
        except Exception as error:  # one bad study must not stop the others, whatever is wrong with it
            found = f"{type(error).__name__}: {without_quotes(str(error))}"
            why = f"expected a study that can be predicted, found {found}"
        redact = Redactor(self.root, job.study, job.study.place if self.names == "path" else "")
        job.row = {"status": "failed", "study": job.key, "why": redact(why)}

    def _read(self, job: _Job) -> None:
        if job.study.problem:
            raise DataError(job.study.problem)
        job.digest = digest_of_study(job.study)
        if self.names == "checksum":
            job.key = f"study_{job.digest[:12]}"
        if (known := self.output.report_of(job.key, job.digest)) is not None:
            job.row = row_of(known, "there already")
        else:
            job.scan = read_image(job.study.slices, self.reading)

    def _write(self, job: _Job) -> None:
        assert job.scan is not None
        if job.result is None:
            (job.result,) = self.ensemble([job.scan], maps=self.probabilities, inferer=self.inferer)
        if isinstance(job.result, NumericsError):
            raise job.result
        scan, warnings = job.scan, (*job.study.warnings, *job.result.warnings, *warnings_of_geometry(job.scan))
        result = replace(job.result, warnings=warnings)
        about = {"input_sha256": job.digest, **self.ensemble.description}
        source, kind = job.study.slices[0][0], format_of(job.study)
        report = self.output.store(
            job.key, lambda folder: write_results(folder, job.key, result, scan, source, kind, about)
        )
        job.row = row_of(report, "predicted")

    def _path_key(self, study: Study) -> str:
        safe = re.sub(r"[^A-Za-z0-9._-]+", "_", study.place).strip("._")[:_LONGEST] or WHOLE
        key = next(key for key in chain([safe], (f"{safe}_{n}" for n in count(2))) if key.lower() not in self._keys)
        self._keys.add(key.lower())  # some file systems do not tell large letters from small ones
        return key
