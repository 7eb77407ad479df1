"""Every synthetic data set: the bytes that its manifest names, whole or not there, and nobody's files written over."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from script_modules import imported

from monai_fp4.data import load_manifest, prepare_data, select_patients, shipped_manifests, write_nodules, write_phantom
from monai_fp4.data.manifest import manifest_dir
from monai_fp4.data.phantoms import nodules, phantom
from monai_fp4.data.phantoms.generators import GENERATORS
from monai_fp4.errors import DataError

WRITERS = {
    "phantom": (write_phantom, phantom, "make_patient"),
    "nodules": (write_nodules, nodules, "make_nodules_patient"),
}
every_generator = pytest.mark.parametrize("name", GENERATORS)


@every_generator
def test_bytes_are_those_of_the_shipped_manifest(name, request):
    folder = request.getfixturevalue(name)
    written = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    named = {}
    for patient in load_manifest(name).patients:
        for pair in patient.images:
            named[pair.image], named[pair.mask] = pair.sha256, pair.mask_sha256
    assert named.keys() == written.keys()
    for file, digest in named.items():
        assert hashlib.sha256(written[file].read_bytes()).hexdigest() == digest, file


@every_generator
def test_shipped_manifest_has_not_drifted(name):
    with imported(["shipped_manifests"]) as scripts:
        assert scripts["shipped_manifests"].generated_manifest(name) == load_manifest(name)


def test_every_generator_has_its_manifest_and_its_place_in_the_schema():
    schema = json.loads((manifest_dir() / "manifest.schema.json").read_text(encoding="utf-8"))
    assert [*GENERATORS, None] == schema["properties"]["generator"]["enum"]
    shipped = {load_manifest(name).generator for name in shipped_manifests()} - {None}
    assert shipped == set(GENERATORS) == set(WRITERS)
    for name, generator in GENERATORS.items():
        manifest = load_manifest(name)
        assert (manifest.format, manifest.description) == (generator.format, generator.description)
        assert tuple(p.id for p in select_patients(manifest, 0, "test")) == tuple(sorted(generator.test_patients))


@every_generator
def test_a_second_use_writes_nothing(name, request):
    folder = request.getfixturevalue(name)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert prepare_data(name, folder) == folder
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert [path.name for path in folder.parent.iterdir()] == [name]


@every_generator
def test_an_empty_folder_is_filled_and_a_full_one_refused(name, tmp_path):
    write = WRITERS[name][0]
    (tmp_path / "empty").mkdir()
    assert len(list(write(tmp_path / "empty", patients=2, size=24).iterdir())) == 2
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match=rf"empty one at .*mine for the {name}, found files"):
        write(tmp_path / "mine")
    with pytest.raises(DataError, match=rf"manifest '{name}' .*found none of them"):
        prepare_data(name, tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


@every_generator
def test_a_place_that_cannot_be_written(name, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=f"to write the {name} to"):
        WRITERS[name][0](tmp_path / "file" / name, patients=1, size=16)


@every_generator
def test_an_interrupted_write_leaves_nothing(name, tmp_path, monkeypatch):
    write, module, drawn = WRITERS[name]
    draw = getattr(module, drawn)

    def fail_at_the_third(index: int, **options: int) -> object:
        if index == 2:
            raise KeyboardInterrupt
        return draw(index, **options)

    monkeypatch.setattr(module, drawn, fail_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        write(Path(tmp_path / name), size=24)
    assert list(tmp_path.iterdir()) == []
