"""A run and a study of an earlier version (commit b5c345a, before the rooms got MONAI's names), taken up by this one.

`fixtures/old_run` was stopped after the first of two epochs: `unet_500k_sr.json` with a network of 6,269 parameters in
``network_def``, on the phantom data. `fixtures/old_study` is a finished sweep of four cells, without its weights and
event files. Both were written by that version's own commands.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigWorkflow
from tiny_runs import BUNDLES, contents, metrics, refusal

from monai_fp4.bundle import RunFolder, brought_up_to_date, evaluate_network, network_of_run, training_config
from monai_fp4.cli import main
from monai_fp4.data import write_phantom
from monai_fp4.errors import ConfigError
from monai_fp4.study.commands import write_study
from monai_fp4.study.layout import StudyFolder

FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantom")
    write_phantom(folder)
    return folder


@pytest.fixture
def old_run(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FIXTURES / "old_run", tmp_path / "old_run"))


@pytest.fixture
def old_study(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FIXTURES / "old_study", tmp_path / "old_study"))


def resume(run: Path, phantom: Path, **changes: Any) -> ConfigWorkflow:
    written = json.loads((FIXTURES / "old_run" / "config.json").read_text())
    options: dict[str, Any] = {name: written[name] for name in ("network_def", "epochs", "image_size", "backend")}
    options |= {"device": "cpu", "dataset_dir": str(phantom), "output_dir": str(run)} | changes
    flow = ConfigWorkflow(
        config_file=str(BUNDLES / "unet_500k_sr.json"), workflow_type="train", logging_file=False, **options
    )
    flow.initialize()
    return flow


def test_the_fixtures_are_old() -> None:
    texts = [path.read_text() for path in (FIXTURES / "old_run" / "config.json", *FIXTURES.rglob("bundles/unet*.json"))]
    assert len(texts) == 3
    for text in texts:
        for name in ("monai_fp4.session.Session", "monai_fp4.loop.Recorder", '"$@session"'):
            assert name in text


def test_an_old_run_is_resumed(old_run: Path, phantom: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = metrics(old_run)["history"][0]
    flow = resume(old_run, phantom)
    flow.run()
    flow.finalize()
    assert "after epoch 1 of 2" in capsys.readouterr().out
    found = metrics(old_run)
    assert found["finished"] is True and [entry["epoch"] for entry in found["history"]] == [1, 2]
    assert found["history"][0] == first


def test_an_old_run_of_another_config_is_still_refused(old_run: Path, phantom: Path) -> None:
    error = refusal(lambda: resume(old_run, phantom, epochs=3))
    assert "(epochs is 2 there and 3 here)" in str(error)


def test_an_old_run_is_evaluated(old_run: Path, phantom: Path, tmp_path: Path) -> None:
    options = {"run_dir": str(old_run), "dataset_dir": str(phantom), "output_dir": str(tmp_path / "evaluation")}
    flow = ConfigWorkflow(
        config_file=str(BUNDLES / "evaluate.json"), workflow_type="train", logging_file=False,
        device="cpu", flips=False, split="val", trust_run_dir=True, **options,  # its network is MONAI's own UNet
    )  # fmt: skip
    flow.initialize()
    flow.run()
    # The validation patients, with the same weights, threshold and steps as the run's own validation.
    was, found = metrics(old_run), metrics(tmp_path / "evaluation")
    assert found["threshold"] == was["threshold"]
    assert found["auprc"] == pytest.approx(was["auprc"], abs=1e-6)
    assert len(found["per_patient"]) == len(was["per_patient"]) == 4


def test_the_network_of_an_old_bundle_is_built(old_study: Path) -> None:
    config = json.loads((old_study / "bundles" / "unet_500k_sr.json").read_text())
    network = network_of_run(brought_up_to_date(config), 3)
    assert sum(parameter.numel() for parameter in network.parameters()) == 495_321


@pytest.mark.parametrize("target", ["monai_fp4.loop.NoSuchThing", "no_such_module.Network", "torch.nn.NoSuchLayer"])
def test_a_network_whose_class_has_gone_is_one_sentence(old_run: Path, target: str) -> None:
    config = json.loads((old_run / "config.json").read_text()) | {"network_def": {"_target_": target}}
    (old_run / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"'network_def' must be buildable.*") as error:
        evaluate_network(RunFolder(old_run).read_config(), 3)
    assert target.rsplit(".", 1)[-1] in str(error.value) and "\n" not in str(error.value)


def test_old_configs_are_those_of_today_in_other_words(old_study: Path) -> None:
    for recipe in ("bf16", "sr"):
        old = json.loads((old_study / "bundles" / f"unet_500k_{recipe}.json").read_text())
        assert old != training_config("unet", "500k", recipe)
        assert brought_up_to_date(old) == training_config("unet", "500k", recipe)
    present = training_config("vit", "4m", "full")
    assert brought_up_to_date(present) == present


def test_an_old_study_is_reported(old_study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(old_study), "--output_dir", str(tmp_path / "report")]) == 0
    assert "All 4 cells are finished." in capsys.readouterr().out
    assert "unet" in (tmp_path / "report" / "index.html").read_text()


def test_an_old_study_goes_on(old_study: Path) -> None:
    """Its bundles are brought up to date, so that the cells that are still to come can be run."""
    folder = StudyFolder(old_study)
    [note] = write_study(folder, folder.read_definition(), "phantom")
    assert note.startswith("1 bundles are kept as the study began with them") and "metadata.json" in note
    for recipe in ("bf16", "sr"):
        written = json.loads((old_study / "bundles" / f"unet_500k_{recipe}.json").read_text())
        assert written == training_config("unet", "500k", recipe)
    before = contents(old_study)
    words = ["sweep", "--archs", "unet", "--scales", "500k", "--recipes", "bf16,sr", "--seeds", "2", "--folds", "0"]
    words += ["--epochs", "2", "--image_size", "[32,32]", "--device", "cpu", "--output_dir", str(old_study)]
    assert main(words) == 0
    assert contents(old_study).keys() - before.keys() <= {".lock"}


def test_an_edited_bundle_of_an_old_study_stays_edited(old_study: Path) -> None:
    path = old_study / "bundles" / "unet_500k_sr.json"
    path.write_text(path.read_text().replace('"alpha": 0.3', '"alpha": 0.4'))
    folder = StudyFolder(old_study)
    assert "2 bundles are kept" in write_study(folder, folder.read_definition(), "phantom")[0]
    assert json.loads(path.read_text())["loss"]["alpha"] == 0.4 and "monai_fp4.loop" not in path.read_text()


@pytest.mark.parametrize("dataset", ["@validate#dataset", "@dataset"])
def test_patients_that_came_one_at_a_time_come_in_the_batches_of_their_data_set(dataset: str) -> None:
    loader = {"_target_": "torch.utils.data.DataLoader", "dataset": dataset}
    today = {"_target_": "monai_fp4.data.PatientLoader", "dataset": dataset}
    assert brought_up_to_date({"dataloader": {**loader, "batch_size": None}}) == {"dataloader": today}
    own = {"dataloader": {**loader, "batch_size": 4}}
    assert brought_up_to_date(own) == own
