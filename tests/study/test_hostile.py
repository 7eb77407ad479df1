"""A study folder of somebody hostile: its cells run checked bundles, and import nothing from it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from synthetic_study import definition
from tiny_runs import REPOSITORY, Dataset

from monai_fp4.errors import ConfigError
from monai_fp4.study.commands import arguments_of, write_study
from monai_fp4.study.layout import StudyDefinition, StudyFolder

CODE = "__import__('pathlib').Path('PWNED').touch()"


@pytest.mark.parametrize(
    "change",
    [
        {"recipes": {"x": {"base": "../../evil"}}},
        {"recipes": {"x": "../../evil"}},
        {"recipes": {"x": {"base": ["sr"]}}},
        {"recipes": {"x": 5}},
        {"recipes": {"x": None}},
        {"recipes": {"x": ["sr"]}},
        {"recipes": ["sr"]},
        {"further": {"learning_rate": 5}},
        {"further": {"learning_rate": "abc"}},
        {"further": []},
        {"options": 5},
        {"archs": [["unet"]]},
        {"archs": "unet"},
        {"scales": [{}]},
        {"seeds": [True]},
        {"folds": [[]]},
        {"created": 5},
        {"manifest": ["x"]},
        {"protocol": {}},
    ],
    ids=repr,
)
def test_a_study_of_other_types_is_one_sentence(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"its field '{next(iter(change))}' is missing or wrong"):
        StudyDefinition.from_json(definition(archs=("unet",), recipes={"sr": "sr"}).to_json() | change)


@pytest.mark.parametrize("name", ["..", ".", "...", "../..", "/", "a/../.."])
def test_a_recipe_s_name_leads_nowhere(name: str) -> None:
    found = StudyDefinition.from_json(definition(archs=("unet",), recipes={name: "sr"}).to_json())
    assert all(part.strip(".") for cell in found.cells() for part in cell.id.split("/"))


@pytest.mark.parametrize(
    "change",
    [
        {"dataset_dir": "--trust"},
        {"dataset_dir": "-P"},
        {"dataset_dir": "--config_file=hostile.json"},
        {"options": {"epochs": "--trust"}},
        {"options": {"init_from": "--logging_file"}},
        {"further": {"learning_rate": [0.1, "--trust"]}},
        {"options": {"trust": True}},
        {"options": {"trust ": True}},
        {"options": {"-trust": True}},
        {"options": {"epochs=3 --trust": 1}},
        {"options": {"": 1}},
        {"options": {"loss#_target_": "os.system"}},
        {"options": {"loss::_target_": "os.system"}},
        {"further": {"trust": [True]}},
        {"further": {"a\nb": [True]}},
    ],
    ids=repr,
)
def test_a_study_says_no_option_of_the_command_that_runs_its_cells(change: dict[str, Any]) -> None:
    document = definition(archs=("unet",), recipes={"sr": "sr"}).to_json() | change

    def compose() -> None:
        found = StudyDefinition.from_json(document)
        for cell in found.cells():
            arguments_of(found, cell)

    with pytest.raises(ConfigError) as caught:
        compose()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "section", "refused"),
    [
        ({"epochs": 1}, {}, False),
        ({"epochs": f"${CODE}"}, {}, True),
        ({"epochs": 1, "hostile": f"${CODE}"}, {}, True),
        ({"epochs": 1}, {"loss": {"_target_": "os.system", "command": "touch PWNED"}}, True),
        ({"epochs": 1}, {"initialize": [f"${CODE}", "$@session.begin()"]}, True),
    ],
)
def test_a_cell_runs_nothing_else(
    tiny: Dataset, tmp_path: Path, options: dict[str, Any], section: dict[str, Any], refused: bool
) -> None:
    folder = StudyFolder(tmp_path / "study")
    small = {"image_size": [32, 32], "batch_size": 6, "device": "cpu"}
    data = {"manifest": "manifest.json", "dataset_dir": str(tiny.dataset_dir)}
    defined = definition(archs=("unet",), recipes={"sr": "sr"}, seeds=(0,), options=small | options, **data)
    write_study(folder, defined, str(tiny.manifest))
    bundle = folder.bundles_path / "unet_500k_sr.json"
    bundle.write_text(json.dumps(json.loads(bundle.read_text()) | section))
    for name in ("torch.py", "monai.py", "monai_fp4.py", "bundles/scipy.py"):
        (folder.path / name).write_text(f"{CODE}\nraise SystemExit(77)")
    [cell] = defined.cells()
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments_of(defined, cell, "cpu", folder)],
        cwd=folder.path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert not list(folder.path.rglob("PWNED")) and done.returncode == int(refused), done.stderr
    assert folder.finished(cell) is not refused


def test_an_overlay_is_checked_like_the_bundle(tiny: Dataset, tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "study")
    data = {"manifest": "manifest.json", "dataset_dir": str(tiny.dataset_dir), "protocol": "lgg"}
    small = {"image_size": [32, 32], "batch_size": 6, "device": "cpu", "epochs": 1}
    defined = definition(archs=("unet",), recipes={"sr": "sr"}, seeds=(0,), options=small, **data)
    write_study(folder, defined, str(tiny.manifest))
    overlay = folder.bundles_path / "protocols" / "lgg.json"
    [cell] = defined.cells()
    command = [sys.executable, *arguments_of(defined, cell, "cpu", folder)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    kept = json.loads(overlay.read_text())
    for section in ({"loss": {"_target_": "os.system", "command": "touch PWNED"}}, {"learning_rate": f"${CODE}"}):
        overlay.write_text(json.dumps(kept | section))
        done = subprocess.run(command, cwd=folder.path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 1 and not list(folder.path.rglob("PWNED")), done.stderr
        assert not folder.finished(cell)
    overlay.write_text(json.dumps(kept))
    done = subprocess.run(command, cwd=folder.path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and folder.finished(cell), done.stderr
