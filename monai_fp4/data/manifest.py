"""A manifest: who is in which fold, which files are theirs, and what those files hash to.

A manifest is a JSON file that names no machine: paths are relative to the data folder, which is given apart. It
holds one entry a patient and, within it, one line an image. The rules of its fields are in ``manifest.schema.json``,
which lies beside the shipped manifests; :mod:`monai_fp4.data.checks` holds the rules that a schema cannot say, such
as "no patient twice".

Shipped manifests are found by name (``"phantom"``, ``"nodules"``, ``"lgg"``), all others by path.

>>> manifest = load_manifest("phantom")
>>> manifest.name, manifest.format, manifest.channels
('phantom', 'lgg', ('pre-contrast', 'FLAIR', 'post-contrast'))
>>> sorted({patient.split.value for patient in manifest.patients})
['test', 'train']
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match
from jsonschema.validators import extend

from monai_fp4.atomic import read_json_file, write_atomically
from monai_fp4.data.checks import check_patients
from monai_fp4.data.layouts import layout_of
from monai_fp4.data.records import HeldOut, ImagePair, Manifest, Patient, Reading, Split
from monai_fp4.errors import DataError, unknown_name

__all__ = ["SCHEMA_VERSION", "load_manifest", "manifest_dir", "refuse_existing", "save_manifest", "shipped_manifests"]

SCHEMA_VERSION = 1
"""The version of the schema that this package writes and reads."""
SCHEMA_FILE = "manifest.schema.json"
_FEW = 300
_LEFT_OUT = {"reading", "splits", "pseudonyms", "person", "voxels"}
"""Fields that are written only where there is something to say."""


def manifest_dir() -> Path:
    """The folder of the shipped manifests: inside an installed package, at the top of a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "_manifests"
    return installed if installed.is_dir() else package.parent / "data_manifests"


def shipped_manifests() -> tuple[str, ...]:
    """Names that :func:`load_manifest` takes in place of a path.

    >>> shipped_manifests()
    ('lgg', 'lgg_paper', 'nodules', 'phantom')
    """
    return tuple(sorted(path.stem for path in manifest_dir().glob("*.json") if path.name != SCHEMA_FILE))


def load_manifest(name_or_path: str | os.PathLike[str] | Manifest) -> Manifest:
    """Read and check a manifest.

    Args:
        name_or_path: the name of a shipped manifest, the path of a JSON file, or a manifest, which is returned as it
        is.

    Raises:
        DataError: no such name or file, not JSON, a field against the schema, or patients that contradict each other.
    """
    if isinstance(name_or_path, Manifest):
        return name_or_path
    path = _find(name_or_path)
    try:
        document = read_json_file(path, finite=True)
    except (OSError, ValueError) as error:
        raise DataError(
            f"expected a manifest in JSON in {path}, found what cannot be read ({error}); build it again"
        ) from error
    manifest = from_json(document, source=str(path))
    check_patients(manifest, source=str(path))
    return manifest


def _find(name_or_path: str | os.PathLike[str]) -> Path:
    path = Path(name_or_path)
    if path.is_file():
        return path
    names = shipped_manifests()
    if str(name_or_path) in names:
        return manifest_dir() / f"{name_or_path}.json"
    if path.suffix == ".json" or len(path.parts) > 1:
        raise DataError(
            f"expected a manifest at {path}, found no such file; give its path or one of the names {', '.join(names)}"
        )
    raise unknown_name("manifest", str(name_or_path), names, DataError)


@cache
def _validator() -> Any:
    # JSON schema takes 3.0 for an integer, Python does not.
    checker = Draft202012Validator.TYPE_CHECKER.redefine("integer", lambda _, value: type(value) is int)
    validator = extend(Draft202012Validator, type_checker=checker)
    return validator(json.loads((manifest_dir() / SCHEMA_FILE).read_text(encoding="utf-8")))


def from_json(document: Any, source: str) -> Manifest:
    """Turn parsed JSON into a manifest; ``source`` is the file that it comes from.

    Raises:
        DataError: a field that is missing, unknown, or not as the schema wants it.
    """
    version = document.get("schema_version") if isinstance(document, dict) else None
    if isinstance(version, int) and version != SCHEMA_VERSION:
        raise DataError(
            f"expected schema_version {SCHEMA_VERSION} in {source}, found {version}; "
            "build the manifest again with this version of monai-fp4"
        )
    error = best_match(_validator().iter_errors(document))
    if error is not None:
        field = error.json_path.removeprefix("$.").removeprefix("$") or "the whole file"
        raise DataError(
            f"expected {source} to follow {SCHEMA_FILE}, found at {field[-_FEW:]}: {error.message[:_FEW]}; correct it "
            "or build it again"
        )
    try:
        layout_of(document["format"])
    except DataError as error:
        raise DataError(f"{error}, in {source}; build the manifest again with this version of monai-fp4") from None
    patients = tuple(
        Patient(
            **entry
            | {
                "split": Split(entry["split"]),
                "images": tuple(ImagePair(**image) for image in entry["images"]),
                "voxels": tuple(entry.get("voxels", ())),
            }
        )
        for entry in document["patients"]
    )
    splits = {
        name: HeldOut(val=tuple(entry["val"]), test=tuple(entry["test"]))
        for name, entry in document.get("splits", {}).items()
    }
    fields = {name: value for name, value in document.items() if name != "schema_version"} | {
        "channels": tuple(document["channels"]),
        "patients": patients,
        "reading": Reading.from_json(document.get("reading", {})),
        "splits": splits,
    }
    return Manifest(**fields)


def to_json(manifest: Manifest) -> str:
    """The text of a manifest's file: ordinary JSON, set so that an image takes one line and a diff stays readable."""
    head = {"schema_version": SCHEMA_VERSION, **asdict(replace(manifest, patients=()))}
    head["reading"] = manifest.reading.to_json()
    lines = [
        f"  {json.dumps(name)}: {json.dumps(value, ensure_ascii=False)},"
        for name, value in head.items()
        if name != "patients" and (value or name not in _LEFT_OUT)
    ]
    blocks = []
    for patient in map(asdict, manifest.patients):
        images = ",\n".join(f"      {json.dumps(pair, ensure_ascii=False)}" for pair in patient.pop("images"))
        fields = {name: value for name, value in patient.items() if value or name not in _LEFT_OUT}
        blocks.append(f'    {json.dumps(fields, ensure_ascii=False)[:-1]}, "images": [\n{images}\n    ]}}')
    return "\n".join(["{", *lines, '  "patients": [', ",\n".join(blocks), "  ]", "}"]) + "\n"


def save_manifest(manifest: Manifest, path: str | os.PathLike[str], *, force: bool = False) -> Path:
    """Write a manifest as JSON, whole or not at all.

    Raises:
        DataError: ``path`` exists and ``force`` is not set, or its folder does not exist.
    """
    target = Path(path)
    if not force:
        refuse_existing(target)
    if not target.parent.is_dir():
        raise DataError(f"expected a folder for the manifest at {target.parent}, found none; create it first")
    write_atomically(target, to_json(manifest), shared=True)
    return target


def refuse_existing(path: str | os.PathLike[str], what: str = "manifest") -> None:
    """Raise if there is something at the path of a file to write already; ``what`` it is to be.

    Raises:
        DataError: there is.
    """
    if Path(path).exists():
        raise DataError(f"expected a new file for the {what}, found that {path} exists; choose another or add --force")
