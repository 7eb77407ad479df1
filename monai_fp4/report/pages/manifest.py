"""``monai-fp4 manifest report``: what a manifest's files hold, as one page that opens offline.

The page holds its style and pictures and no script, and a rule (Content-Security-Policy) by which a browser fetches
nothing for it. Patients are called by their keys in the manifest; paths and headers are on no page.
"""

from __future__ import annotations

import base64
import io
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from monai_fp4.atomic import make_folder, write_atomically
from monai_fp4.data.manifest import refuse_existing
from monai_fp4.data.records import Manifest
from monai_fp4.errors import ConfigError
from monai_fp4.report.figures import scans
from monai_fp4.report.figures.picture import picture_bytes
from monai_fp4.report.pages import manifest_tables as tables
from monai_fp4.report.pages.write import environment
from monai_fp4.report.survey import Copies, Survey, survey_manifest
from monai_fp4.report.survey.copies import SAME
from monai_fp4.report.survey.findings import channels_alike, findings, reasons
from monai_fp4.report.survey.placement import AGREE, BETTER, CLEARER, ENOUGH, FITS

__all__ = ["write_manifest_report"]

_PICTURED, _GALLERY = 40, 1000
"""Pairs of slices, and patients, that are shown as pictures at most."""
_RULES = {"same": SAME, "fits": FITS, "better": BETTER, "clearer": CLEARER, "enough": ENOUGH, "agree": AGREE}


def write_manifest_report(
    manifest: str | Path | Manifest, dataset_dir: str | Path, output: str | Path, *, force: bool = False
) -> Survey:
    """Read every patient of a manifest and write the page.

    Args:
        manifest: a shipped name, a path or a manifest.
        dataset_dir: the data folder.
        output: the page to write.
        force: write over an existing file.

    Returns:
        What was found; ``unreadable`` names the patients that could not be read.

    Raises:
        DataError: a manifest that cannot be read, no data folder, or ``output`` exists.
        ConfigError: ``output`` cannot be written.
    """
    path = Path(output)
    if not force:
        refuse_existing(path, "report")
    if path.is_dir():
        raise ConfigError(f"expected a file to write as output, found that {path} is a folder; name a file in it")
    make_folder(path.parent)  # before reading everything, not after
    found = survey_manifest(manifest, dataset_dir)
    write_atomically(path, _render(found))
    return found


def _render(found: Survey) -> str:
    measured = found.measured
    drawn = [scans.intensities(found), scans.lesion_volumes(found)]
    pictures = {each.name: (each, _uri("svg+xml", picture_bytes(each, "svg"))) for each in drawn if each is not None}
    noted = {*found.unusual, *found.placement.suspects, *(n for pair in found.copies for n in (pair.one, pair.other))}
    shown = sorted(range(len(measured)), key=lambda number: number not in noted)[:_GALLERY]
    template = environment().get_template("manifest.html.j2")
    return template.render(
        found=found,
        manifest=found.manifest,
        title=found.manifest.name,
        page={"title": "What the manifest holds"},
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        findings=findings(found),
        reasons=reasons(found),
        summary=tables.summary(found),
        parts=tables.parts(found),
        sizes=tables.common(measured, lambda each: f"{each.shape[0]} x {each.shape[1]}", "size"),
        depths=tables.depths(measured),
        spacings=tables.common(measured, tables.spacing, "spacing"),
        intensities=tables.intensities(found),
        unusual=tables.unusual(found),
        values=tables.mask_values(measured),
        empty=[each.patient.id for each in measured if not each.lesions],
        inverted=[each.patient.id for each in measured if each.examined.inverted],
        alike={names: [measured[n].patient.id for n in numbers] for names, numbers in channels_alike(found).items()},
        duplicates=tables.duplicates(found),
        pairs=[_pair(found, pair) for pair in found.pairs[:_PICTURED] if pair.pictures is not None],
        shifts=tables.mask_shifts(found),
        patients=tables.patients(found),
        gallery=[(measured[number], _uri("webp", measured[number].thumbnail.content)) for number in sorted(shown)],
        pictures=pictures,
        in_ml=all(each.lesion_ml is not None for each in measured),
        rules=_RULES,
    )


def _pair(found: Survey, pair: Copies) -> dict[str, Any]:
    assert pair.pictures is not None
    ids = [found.measured[number].patient.id for number in (pair.one, pair.other)]
    shown = [_uri("webp", _grey(picture)) for picture in pair.pictures]
    return {"ids": ids, "pictures": shown, "correlation": pair.correlation, "mirrored": pair.mirrored}


def _grey(picture: NDArray[np.float16]) -> bytes:
    low, high = np.percentile(picture.astype(np.float32), (1, 99))
    grey = np.clip((picture.astype(np.float32) - low) / max(high - low, 1e-6), 0, 1)
    content = io.BytesIO()
    Image.fromarray(np.rint(255 * grey).astype(np.uint8)).save(content, format="WEBP", quality=80)
    return content.getvalue()


def _uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
