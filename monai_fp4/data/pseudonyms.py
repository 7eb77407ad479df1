"""Pseudonyms: a manifest that names nobody, and a key file that says who is who and where their files lie.

Folder names are patients' names in many hospitals, and a manifest holds them as ids and within paths. Built with
``--pseudonyms KEYFILE``, it holds pseudonyms in their places. Whoever trains with it names the key file in
``MONAI_FP4_KEYS``; runs, tables and reports then hold pseudonyms alone, and no run needs the names.

A pseudonym is an HMAC-SHA256 of the name under a secret of the key file (RFC 2104). So the same name has the same
pseudonym in every manifest built with that file, nobody can go through a telephone book without it, and an entry of the
file that was changed is noticed.

>>> keys = KeyFile(Path("keys.json"), secret=bytes(32))
>>> keys.pseudonym("Doe_Jane")
'pbf61f3fd51ca'
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

from monai_fp4.atomic import read_json_file, replacing
from monai_fp4.data.layouts import layout_of
from monai_fp4.data.readers import split_suffix
from monai_fp4.data.records import HeldOut, Manifest, Patient
from monai_fp4.errors import DataError
from monai_fp4.lock import FolderLock

__all__ = ["KEYS", "KeyFile", "located", "open_keys", "refuse_keys_within"]

KEYS = "MONAI_FP4_KEYS"
"""The environment variable that names the key file of a manifest with pseudonyms."""
_DIGITS = 12
_SECRET = 32
_FIELDS = {"secret", "patients", "files"}


@dataclass(frozen=True)
class KeyFile:
    """What leads from pseudonyms back to names.

    Attributes:
        path: the file.
        secret: what pseudonyms are made with.
        patients: names of patients and persons by pseudonym.
        files: paths below the data folder by the paths that stand in manifests.
    """

    path: Path
    secret: bytes = field(repr=False)
    patients: Mapping[str, str] = field(default_factory=dict, repr=False)
    files: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def fingerprint(self) -> str:
        """What a manifest keeps of the key file, to know it again: 16 hexadecimal digits."""
        return hashlib.sha256(b"fingerprint" + self.secret).hexdigest()[:16]

    def pseudonym(self, name: str) -> str:
        """The pseudonym of a patient or a person."""
        return f"p{self._token('patient', name)}"

    def _token(self, kind: str, text: str) -> str:
        return hmac.new(self.secret, f"{kind}:{text}".encode(), hashlib.sha256).hexdigest()[:_DIGITS]

    def hide(self, manifest: Manifest) -> tuple[Manifest, KeyFile]:
        """Put pseudonyms into the places of names; folds, groups and persons stay what they are.

        Returns:
            The manifest, sorted by pseudonym, and the key file with what it takes to go back.

        Raises:
            DataError: two patients share a pseudonym.
        """
        names = {each for patient in manifest.patients for each in (patient.id, patient.person) if each}
        files: dict[str, str] = {}
        numbered = layout_of(manifest.format).numbered
        hidden = []
        for patient in manifest.patients:
            images = []
            for number, pair in enumerate(patient.images, 1):
                ending = f"_{number}" if numbered else ""
                paths = [self._hidden_path(patient.id, path, ending) for path in (pair.image, pair.mask)]
                files |= zip(paths, (pair.image, pair.mask), strict=True)
                images.append(replace(pair, image=paths[0], mask=paths[1]))
            person = patient.person and self.pseudonym(patient.person)
            hidden.append(replace(patient, id=self.pseudonym(patient.id), person=person, images=tuple(images)))
        keys = self._with({self.pseudonym(name): name for name in sorted(names)}, files, len(names))
        splits = {
            name: HeldOut(*(tuple(sorted(map(self.pseudonym, ids))) for ids in (held_out.val, held_out.test)))
            for name, held_out in manifest.splits.items()
        }
        patients = tuple(sorted(hidden, key=lambda patient: patient.id))
        return replace(manifest, patients=patients, splits=splits, pseudonyms=self.fingerprint), keys

    def _hidden_path(self, patient: str, path: str, ending: str) -> str:
        suffix = (split_suffix(path) or ("", ""))[1].lower()
        return f"{self.pseudonym(patient)}/{self._token('file', path)}{ending}{suffix}"

    def _with(self, patients: Mapping[str, str], files: Mapping[str, str], names: int) -> KeyFile:
        clash = next((p for p, name in patients.items() if self.patients.get(p, name) != name), None)
        if clash is not None or len(patients) < names:
            raise DataError(
                f"expected a pseudonym for each patient, found that two share one under {self.path}; build with a new "
                "key file"
            )
        return replace(self, patients={**self.patients, **patients}, files={**self.files, **files})

    def save(self) -> None:
        """Write the file for its owner alone; what another build has added to it meanwhile is kept.

        Raises:
            ConfigError: it cannot be written, or another process writes it.
            DataError: another build has made a file with another secret meanwhile.
        """
        with FolderLock(self.path.with_name(f".{self.path.name}.lock"), "build with a key file"):
            present = _read(self.path) if self.path.exists() else self
            if present.secret != self.secret:
                raise DataError(
                    f"expected the key file {self.path} as it was, found that another build wrote it meanwhile; build "
                    "again"
                )
            content = {
                "secret": self.secret.hex(),
                "patients": {**present.patients, **self.patients},
                "files": {**present.files, **self.files},
            }
            with replacing(self.path) as file:
                Path(file.name).chmod(0o600)  # whatever else is shared
                file.write((json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())

    def located(self, patient: Patient) -> Patient:
        """The patient with the paths of its files.

        Raises:
            DataError: the key file knows none of them.
        """
        try:
            images = tuple(
                replace(pair, image=self.files[pair.image], mask=self.files[pair.mask]) for pair in patient.images
            )
        except KeyError:
            raise DataError(
                f"expected the files of patient {patient.id!r} in the key file {self.path}, found that it does not "
                "know them; give the key file that the manifest was built with"
            ) from None
        return replace(patient, images=images)


def open_keys(path: str | os.PathLike[str], manifest: str | os.PathLike[str]) -> KeyFile:
    """The key file for a new manifest: the one at ``path``, or a new one that `KeyFile.save` will write there.

    Raises:
        DataError: it lies with the manifest, others may read it, or it is damaged.
    """
    target = Path(path).expanduser()
    _refuse_within(target, Path(manifest).parent, "the manifest")
    if os.path.lexists(target):
        return _read(target)
    return KeyFile(target, secrets.token_bytes(_SECRET))


def located(manifest: Manifest, patient: Patient) -> Patient:
    """A patient of the manifest with the paths of its files, by the key file where the manifest holds pseudonyms.

    Raises:
        DataError: no key file is named, it is another manifest's, others may read it, or it is damaged.
    """
    return _keys_of(manifest).located(patient) if manifest.pseudonyms else patient


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
        keys = _read_once(target, target.stat().st_mtime_ns)
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
def _read_once(path: Path, _changed: int) -> KeyFile:
    return _read(path)


def _read(path: Path) -> KeyFile:
    """Read a key file.

    Raises:
        DataError: others may read it, or it is none.
    """
    try:
        if os.name == "posix" and path.stat().st_mode & 0o077:
            raise DataError(
                f"expected a key file that its owner alone can read, found that others may read or change {path}; "
                f"say chmod 600 to it, and move it where that holds"
            )
        content = read_json_file(path)
        return _checked(path, content)
    except (OSError, ValueError, TypeError) as error:
        if isinstance(error, DataError):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(
            f"expected a key file at {path}, found what is none or is damaged ({reason:.200}); restore it from your "
            "copy, or build with a new one"
        ) from None


def _checked(path: Path, content: object) -> KeyFile:
    if not isinstance(content, dict) or set(content) != _FIELDS:
        raise ValueError(f"it must hold {', '.join(sorted(_FIELDS))}")
    secret, patients, files = content["secret"], content["patients"], content["files"]
    if not isinstance(secret, str) or not re.fullmatch(rf"[0-9a-f]{{{2 * _SECRET}}}", secret):
        raise ValueError("its secret is none")
    for table in (patients, files):
        if not isinstance(table, dict) or not all(isinstance(name, str) for name in table.values()):
            raise ValueError("it must hold names by pseudonym")
    keys = KeyFile(path, bytes.fromhex(secret), patients, files)
    for pseudonym, name in patients.items():
        if keys.pseudonym(name) != pseudonym:
            raise ValueError(f"the name of {pseudonym:.40} was changed")
    for hidden, real in files.items():
        if hidden.partition("/")[2][:_DIGITS] != keys._token("file", real):
            raise ValueError(f"the path of {hidden:.40} was changed")
        if Path(real).is_absolute() or ".." in Path(real).parts:
            raise ValueError(f"the path of {hidden:.40} leads out of the data folder")
    return keys
