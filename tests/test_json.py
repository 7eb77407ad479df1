"""JSON of strangers: each text that Python's parser passes or stumbles over is refused by our readers in a sentence."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from monai_fp4.atomic import parse_json, read_json
from monai_fp4.bundle.run_folder import RunFolder
from monai_fp4.data import load_manifest
from monai_fp4.errors import ConfigError, DataError

TEXTS = {
    "a key twice": ('{"a": {"b": 1, "b": 1}}', "'b' stands twice"),
    "5000 digits": ('{"a": ' + "9" * 5000 + "}", "5000 digits"),
    "65 bits": ('{"a": 18446744073709551616}', "64 bits"),
    "deep lists": ('{"a": ' + "[" * 200_000 + "]" * 200_000 + "}", "deeper than 64"),
    "deep objects": ('{"a":' * 70 + "1" + "}" * 70, "deeper than 64"),
    "deeper objects": ('{"a":' * 100_000 + "1" + "}" * 100_000, "deeper than 64"),
    "half a character": (r'{"a": "\ud800"}', "half a character"),
    "half a character in a key": (r'{"\udfff": 1}', "half a character"),
    "no JSON": ("{", "line 1"),
    "nothing": ("", "line 1"),
    "bytes": ("\udcff", "utf-8"),
}


def readers(path: Path) -> list:
    return [
        (DataError, lambda: load_manifest(path)),
        (ConfigError, lambda: read_json(path)),
        (ConfigError, lambda: RunFolder(path.parent).read_json(path.name)),
    ]


@pytest.mark.parametrize("name", TEXTS)
def test_texts(name: str, tmp_path: Path) -> None:
    text, reason = TEXTS[name]
    path = tmp_path / "m.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    for kind, read in readers(path):
        with pytest.raises(kind, match=reason) as refused:
            read()
        assert len(str(refused.value)) < 500 and str(refused.value).isprintable()


def test_pipes_and_devices(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "zeros.json").symlink_to("/dev/zero")
    (tmp_path / "large.json").touch()
    os.truncate(tmp_path / "large.json", 2**31)
    for path in tmp_path.iterdir():
        for kind, read in readers(path):
            with pytest.raises(kind, match=r"no regular file|no such file"):
                read()


def test_what_is_right_is_parsed() -> None:
    assert parse_json('{"a": [1, -2.5, null, "é😀", 18446744073709551615]}') == {"a": [1, -2.5, None, "é😀", 2**64 - 1]}
    assert parse_json('"\\ud83d\\ude00"') == "😀"
    assert parse_json("[NaN]") != []
    for text in ("[NaN]", "[1e999]", "[-Infinity]"):
        with pytest.raises(ValueError, match="no number"):
            parse_json(text, finite=True)
