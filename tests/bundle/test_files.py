"""The bundle files: complete, without drift, as MONAI's tools want them, and able to stand alone."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from pydoc import locate
from typing import Any

import pytest
from monai.bundle import ConfigParser
from monai.bundle.config_item import ComponentLocator
from monai.bundle.properties import TrainProperties
from monai.utils import BundleProperty, BundlePropertyConfig
from tiny_runs import BUNDLES, Dataset, metrics, train, workflow

from monai_fp4.bundle import OPTIONS, RunOptions, bundle_files, check_bundles, write_bundles
from monai_fp4.errors import ConfigError
from monai_fp4.quantization.recipes import RECIPES

CELLS = [f"{arch}_{scale}" for arch, scale in product(("swin", "unet", "vit"), ("500k", "4m", "15m"))]
TRAINING = [f"{cell}_{recipe}" for cell in [*CELLS, "swinunetr_15m"] for recipe in RECIPES]


def test_nothing_has_drifted() -> None:
    check_bundles(BUNDLES)


def test_all_the_files_are_there() -> None:
    assert len(TRAINING) == 110
    names = {f"{name}.json" for name in TRAINING}
    assert set(bundle_files()) == names | {
        "evaluate.json",
        "inference.json",
        "protocols/lgg.json",
        "protocols/paper.json",
        "metadata.json",
        "logging.conf",
    }


@pytest.mark.parametrize("change", ["edit", "remove", "damage"])
def test_drift_is_found(tmp_path: Path, change: str) -> None:
    folder = tmp_path / "bundles"
    assert write_bundles(folder) == 116 and write_bundles(folder) == 0
    check_bundles(folder)
    path = folder / "unet_4m_rht.json"
    if change == "edit":
        path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    elif change == "remove":
        path.unlink()
    else:
        path.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=rf"1 files differ or are missing \({path.name}\)"):
        check_bundles(folder)
    assert write_bundles(folder) == 1
    check_bundles(folder)


def test_a_users_own_files_are_left_alone(tmp_path: Path) -> None:
    write_bundles(tmp_path)
    own = {"mine.json": b"{}", "unet_4m_mine.json": b"not JSON", "protocols/mine.json": b"\xff", "notes.txt": b"x"}
    for name, content in own.items():
        (tmp_path / name).write_bytes(content)
    check_bundles(tmp_path)
    assert write_bundles(tmp_path) == 0
    assert {name: (tmp_path / name).read_bytes() for name in own} == own


def test_a_folder_that_cannot_be_written_to_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="must be writable"):
        write_bundles(tmp_path / "file")
    with pytest.raises(ConfigError, match="116 files differ or are missing"):
        check_bundles(tmp_path / "file")


@pytest.mark.parametrize("name", TRAINING)
def test_a_training_bundle_begins_with_its_options(name: str) -> None:
    config = json.loads((BUNDLES / f"{name}.json").read_text())
    names = [option.name for option in OPTIONS]
    assert list(config)[: len(names)] == names
    options = RunOptions.from_config(**{key: config[key] for key in names})
    assert f"{options.arch}_{options.scale}_{options.recipe.name}" == name
    assert options.manifest == "phantom" and options.output_dir == f"runs/{name}"


def test_recipes_of_one_cell_differ_in_the_recipe_alone() -> None:
    for cell in [*CELLS, "swinunetr_15m"]:
        configs = [json.loads((BUNDLES / f"{cell}_{recipe}.json").read_text()) for recipe in RECIPES]
        for config in configs:
            del config["recipe"], config["output_dir"]
        assert all(config == configs[0] for config in configs), cell


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for each in value.values():
            yield from strings(each)
    elif isinstance(value, list):
        for each in value:
            yield from strings(each)
    elif isinstance(value, str):
        yield value


def targets(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if "_target_" in value:
            yield value["_target_"]
        for each in value.values():
            yield from targets(each)
    elif isinstance(value, list):
        for each in value:
            yield from targets(each)


def test_every_target_exists() -> None:
    names = {n for path in BUNDLES.rglob("*.json") for n in targets(json.loads(path.read_text()))}
    assert len(names) > 20
    # A short name is looked up as MONAI does, and must mean one class only.
    table = ComponentLocator()
    for name in names:
        found = locate(name) if "." in name else table.get_component_module_name(name)
        assert found is not None and not isinstance(found, list), name


def test_files_are_complete_and_references_lead_somewhere() -> None:
    for path in BUNDLES.glob("*.json"):
        config = json.loads(path.read_text())
        parser = ConfigParser(config)
        for text in strings(config):
            assert not text.startswith("%"), path
            for reference in re.findall(r"@([\w#]+)", text):
                assert reference in parser, (path.name, text)


@pytest.mark.parametrize("name", TRAINING)
def test_a_training_bundle_holds_the_ids_of_the_model_zoo(name: str) -> None:
    parser = ConfigParser(json.loads((BUNDLES / f"{name}.json").read_text()))
    parser.update({"_meta_": json.loads((BUNDLES / "metadata.json").read_text())})
    for key, described in TrainProperties.items():
        if described[BundleProperty.REQUIRED]:
            assert described[BundlePropertyConfig.ID].replace("::", "#") in parser, key


def test_monai_finds_every_property(tiny: Dataset, tmp_path: Path) -> None:
    flow = workflow(tiny, tmp_path / "run")
    flow.initialize()
    assert flow.check_properties() == []


def test_a_copied_file_runs_elsewhere(
    tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished_run: Path
) -> None:
    copied = Path(shutil.copy(BUNDLES / "unet_500k_bf16.json", tmp_path / "mine.json"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    folder = train(tiny, Path("runs/mine"), copied, epochs=1)
    assert metrics(folder)["finished"] is True
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "mine.json"]


def test_the_protocol_overlays_any_bundle() -> None:
    overlay = json.loads((BUNDLES / "protocols" / "lgg.json").read_text())
    assert overlay["manifest"] == "lgg" and overlay["image_size"] == [256, 256]
    merged = ConfigParser.load_config_files([BUNDLES / "vit_4m_full.json", BUNDLES / "protocols" / "lgg.json"])
    options = RunOptions.from_config(**{option.name: merged[option.name] for option in OPTIONS})
    assert (options.manifest, options.image_size, options.arch) == ("lgg", (256, 256), "vit")
