"""Pseudonyms: a manifest that names nobody, and a key file that says who is who and where their files lie.

Folder names are patients' names in many hospitals, and a manifest holds them as ids and within paths. Built with
``--pseudonyms KEYFILE``, it holds pseudonyms in their places. Whoever trains with it names the key file in
``MONAI_FP4_KEYS``; runs, tables and reports then hold pseudonyms alone, and no run needs the names.

>>> from monai_fp4.data import load_manifest
>>> hidden, keys = hide(load_manifest("nodules"), KeyFile(Path("keys.json"), secret=bytes(32)))
>>> hidden.patients[0].id, keys.patients[hidden.patients[0].id]
('p08946c7e695c', 'CHEST_HC_0024')
"""

from __future__ import annotations

import os
import secrets
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from monai_fp4.data.key_file import SECRET_BYTES, KeyFile, read_key_file
from monai_fp4.data.layouts import layout_of
from monai_fp4.data.readers import split_suffix
from monai_fp4.data.records import HeldOut, Manifest, Patient
from monai_fp4.errors import DataError

__all__ = ["KEYS", "KeyFile", "hide", "located", "open_keys", "refuse_keys_within"]

KEYS = "MONAI_FP4_KEYS"
"""The environment variable that names the key file of a manifest with pseudonyms."""


def hide(manifest: Manifest, keys: KeyFile) -> tuple[Manifest, KeyFile]:
    """Put pseudonyms into the places of names; folds, groups and persons stay what they are.

    Returns:
        The manifest, sorted by pseudonym, and the key file with what it takes to go back.

    Raises:
        DataError: two patients share a pseudonym.
    """
    names: set[str] = set()
    files: dict[str, str] = {}
    numbered = layout_of(manifest.format).numbered
    hidden = []
    for patient in manifest.patients:
        names |= {patient.id, patient.who}
        images = []
        for number, pair in enumerate(patient.images, 1):
            ends = [(f"_{number}" if numbered else "") + _suffix(path) for path in (pair.image, pair.mask)]
            image, mask = map(keys.hidden_path, (patient.id,) * 2, (pair.image, pair.mask), ends)
            files |= {image: pair.image, mask: pair.mask}
            images.append(replace(pair, image=image, mask=mask))
        person = patient.person and keys.pseudonym(patient.person)
        hidden.append(replace(patient, id=keys.pseudonym(patient.id), person=person, images=tuple(images)))
    splits = {
        name: HeldOut(*(tuple(sorted(map(keys.pseudonym, ids))) for ids in (held_out.val, held_out.test)))
        for name, held_out in manifest.splits.items()
    }
    patients = tuple(sorted(hidden, key=lambda patient: patient.id))
    manifest = replace(manifest, patients=patients, splits=splits, pseudonyms=keys.fingerprint)
    return manifest, keys.knowing(names, files)


def _suffix(path: str) -> str:
    return (split_suffix(path) or ("", ""))[1].lower()


def open_keys(path: str | os.PathLike[str], manifest: str | os.PathLike[str]) -> KeyFile:
    """The key file for a new manifest: the one at ``path``, or a new one that `KeyFile.save` will write there.

    Raises:
        DataError: it lies with the manifest, others may read it, or it is damaged.
    """
    target = Path(path).expanduser()
    _refuse_within(target, Path(manifest).parent, "the manifest")
    if os.path.lexists(target):
        return read_key_file(target)
    return KeyFile(target, secrets.token_bytes(SECRET_BYTES))


def located(manifest: Manifest, patient: Patient) -> Patient:
    """A patient of the manifest with the paths of its files, by the key file where the manifest holds pseudonyms.

    Raises:
        DataError: no key file is named, it is another manifest's, others may read it, or it is damaged.
    """
    if not manifest.pseudonyms:
        return patient
    keys = _keys_of(manifest)
    try:
        images = [replace(pair, image=keys.files[pair.image], mask=keys.files[pair.mask]) for pair in patient.images]
    except KeyError:
        raise DataError(
            f"expected the files of patient {patient.id!r} in the key file {keys.path}, found that it does not know "
            "them; give the key file that the manifest was built with"
        ) from None
    return replace(patient, images=tuple(images))


def refuse_keys_within(folder: str | os.PathLike[str], manifest: Manifest) -> None:
    """See that the key file does not lie in a folder of results, which are handed on.

    Raises:
        DataError: it does.
    """
    if manifest.pseudonyms and (path := os.environ.get(KEYS)):
        _refuse_within(Path(path).expanduser(), Path(folder), "results")


def _refuse_within(path: Path, folder: Path, what: str) -> None:
    if Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):  # which a link to itself does not stop
        raise DataError(
            f"expected the key file apart from {what}, which others are given, found {path} in {folder}; keep it "
            "elsewhere"
        )


def _keys_of(manifest: Manifest) -> KeyFile:
    path = os.environ.get(KEYS)
    if not path:
        raise DataError(
            f"expected the key file of manifest {manifest.name!r}, which holds pseudonyms, in {KEYS}, found none; set "
            "it to the file that 'manifest build --pseudonyms' wrote"
        )
    target = Path(path).expanduser()
    if not target.is_absolute():  # the cells of a sweep run in another folder
        raise DataError(f"expected an absolute path in {KEYS}, found {path!r}; give all of it")
    try:
        status = target.stat()  # whose date alone may be anything
        keys = _read_once(target, (status.st_ino, status.st_ctime_ns, status.st_mtime_ns))
    except OSError as error:
        raise DataError(
            f"expected a key file at {target}, which {KEYS} names, found that it cannot be read ({error.strerror}); "
            "correct the path"
        ) from None
    if keys.fingerprint != manifest.pseudonyms:
        raise DataError(
            f"expected the key file that manifest {manifest.name!r} was built with, found another in {target}; set "
            f"{KEYS} to the right one"
        )
    return keys


@lru_cache(maxsize=2)
def _read_once(path: Path, _changed: tuple[int, ...]) -> KeyFile:
    return read_key_file(path)
