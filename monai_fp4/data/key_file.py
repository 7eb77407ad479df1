"""The key file: the secret that pseudonyms are made with, and what leads from them back to names and paths.

A pseudonym is an HMAC-SHA256 of the name under the secret (RFC 2104). So the same name has the same pseudonym in every
manifest built with that file, nobody can go through a telephone book without it, and an entry of the file that was
changed is noticed.

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
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from monai_fp4.atomic import read_json_file, replacing
from monai_fp4.errors import DataError
from monai_fp4.lock import FolderLock

__all__ = ["SECRET_BYTES", "KeyFile", "read_key_file"]

SECRET_BYTES = 32
"""Length of the secret that pseudonyms are derived with."""
_DIGITS = 12
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

    def hidden_path(self, patient: str, path: str, ending: str) -> str:
        """What stands in a manifest for a path below the data folder."""
        return f"{self.pseudonym(patient)}/{self._token('file', path)}{ending}"

    def _token(self, kind: str, text: str) -> str:
        return hmac.new(self.secret, f"{kind}:{text}".encode(), hashlib.sha256).hexdigest()[:_DIGITS]

    def knowing(self, names: set[str], files: Mapping[str, str]) -> KeyFile:
        """The key file with more names and paths.

        Raises:
            DataError: two patients share a pseudonym.
        """
        patients = {self.pseudonym(name): name for name in sorted(names)}
        if len(patients) < len(names) or any(self.patients.get(p, name) != name for p, name in patients.items()):
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
            present = read_key_file(self.path) if self.path.exists() else self
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


def read_key_file(path: Path) -> KeyFile:
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
        return _checked(path, read_json_file(path))
    except (OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(
            f"expected a key file at {path}, found what is none or is damaged ({reason:.200}); restore it from your "
            "copy, or build with a new one"
        ) from None


def _checked(path: Path, content: object) -> KeyFile:
    # Not by a schema, whose words quote what is wrong: names, or the secret itself.
    if not isinstance(content, dict) or set(content) != _FIELDS:
        raise ValueError(f"it must hold {', '.join(sorted(_FIELDS))}")
    secret, patients, files = content["secret"], content["patients"], content["files"]
    if not isinstance(secret, str) or not re.fullmatch(rf"[0-9a-f]{{{2 * SECRET_BYTES}}}", secret):
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
