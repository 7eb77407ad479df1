"""From a command line to a grid, and every way in which it can be wrong."""

from __future__ import annotations

import fcntl
import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from study_cells import Scripted, done, finish, write_metrics
from tiny_runs import Dataset, contents

from monai_fp4.cli import build_parser, main
from monai_fp4.errors import ConfigError, DataError, MonaiFP4Error
from monai_fp4.lock import FolderLock
from monai_fp4.quantization.recipes import RECIPES, Format, FourOverSix, Recipe
from monai_fp4.study.check import check, extend_study
from monai_fp4.study.cli import run_sweep
from monai_fp4.study.commands import write_study
from monai_fp4.study.estimate import Estimate, time_left
from monai_fp4.study.grid import definition_of, numbers, seeds_of
from monai_fp4.study.layout import CellRecord, CellStatus, StudyFolder
from monai_fp4.study.variants import ADDITIONS, grid_recipes, recipe_of

SMALL = ["--archs", "unet", "--scales", "500k", "--recipes", "bf16,sr", "--epochs", "2", "--image_size", "32,32"]


def parsed(*words: str) -> Any:
    return build_parser().parse_args(["sweep", "--output_dir", "study", *words])


def test_the_grid_of_the_paper() -> None:
    words = ["--archs", "unet,swin,vit", "--scales", "500k,4m,15m", "--recipes", "all", "--seeds", "10"]
    words += ["--folds", "0", "--manifest", "lgg"]
    defined, manifest = definition_of(parsed(*words))
    assert len(defined.cells()) == 3 * 3 * 11 * 10 and manifest == "lgg"
    assert tuple(defined.recipes) == tuple(RECIPES) and defined.seeds == tuple(range(10))
    assert Path(defined.dataset_dir).is_absolute()
    assert check(defined, manifest) == []


def test_the_help_names_every_addition(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build_parser().parse_args(["sweep", "--help"])
    words = capsys.readouterr().out.replace(",", " ").split()
    assert {f"+{addition}" for addition in ADDITIONS} <= set(words)


@pytest.mark.parametrize("text", ["32,64", "[32,64]", "[32, 64]"])
def test_an_image_size_is_read_with_brackets_and_without(text: str) -> None:
    defined, _ = definition_of(parsed(*SMALL[:-2], "--image_size", text))
    assert list(defined.options["image_size"]) == [32, 64]


@given(st.lists(st.integers(0, 50), min_size=1, max_size=6))
def test_numbers_are_read_as_written(values: list[int]) -> None:
    assert numbers("folds", ",".join(map(str, values))) == tuple(dict.fromkeys(values))
    low, high = min(values), max(values)
    assert numbers("folds", f"{low}-{high}") == tuple(range(low, high + 1))


@pytest.mark.parametrize("text", ["", ",", "a", "-1", "1.5", "3-", "2-x"])
def test_what_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="whole number"):
        numbers("folds", text)


def test_a_number_of_seeds_or_a_list_of_them() -> None:
    assert seeds_of("3") == (0, 1, 2) and seeds_of("3,") == (3,) and seeds_of("5-7,1") == (5, 6, 7, 1)


def test_recipes_and_their_variants() -> None:
    chosen = grid_recipes("bf16,all+attention,sr+last10+ends")
    assert len(chosen) == 1 + 10 + 1 and "bf16+attention" not in chosen
    for arch, scale in (("unet", "4m"), ("swin", "500k"), ("vit", "15m"), ("swinunetr", "15m")):
        for name, config in chosen.items():
            assert Recipe.from_config(recipe_of(config, arch, scale)).name == name
    variant = Recipe.from_config(recipe_of(chosen["sr+last10+ends"], "swin", "4m"))
    assert variant.bf16_last_share == 0.1 and variant.stochastic_rounding
    assert variant.precision_of("encoder.layers4.0.blocks.1.mlp.linear1") == "bf16"
    assert variant.precision_of("encoder.layers4.0.blocks.0.mlp.linear1") == "fp4"
    own = grid_recipes("mine", {"mine": {"base": "rht", "bf16_last_share": 0.5}})
    assert Recipe.from_config(own["mine"]).bf16_last_share == 0.5 and Recipe.from_config(own["mine"]).name == "mine"


@pytest.mark.parametrize("arch", ["unet", "swin", "vit", "swinunetr"])
def test_first_and_last_blocks_are_there(arch: str) -> None:
    from monai_fp4 import build_network, convert

    network = build_network(arch, "15m" if arch == "swinunetr" else "500k", image_size=(64, 64))
    scale = "15m" if arch == "swinunetr" else "500k"
    _, report = convert(network, Recipe.from_config(recipe_of(grid_recipes("sr+ends")["sr+ends"], arch, scale)))
    assert not [note for note in report.notes if "matches no" in note], report.notes


def test_attention_crosses_what_quantizes() -> None:
    names = list(definition_of(parsed("--recipes", "bf16,sr", "--attention", "high_precision,fp4"))[0].recipes)
    assert names == ["bf16", "sr", "sr+attention"]
    names = list(definition_of(parsed("--recipes", "all", "--attention", "fp4"))[0].recipes)
    assert len(names) == 11 and names[0] == "bf16" and all(name.endswith("+attention") for name in names[1:])


def test_further_axes() -> None:
    defined, manifest = definition_of(parsed(*SMALL[:-2], "--axis", "image_size=[32,32],[64,64]", "--axis", "amp=True"))
    assert defined.further == {"image_size": ((32, 32), (64, 64)), "amp": (True,)}
    assert check(defined, manifest) == [] and len(defined.cells()) == 4
    assert definition_of(parsed("--axis", "learning_rate=0.001,3e-3"))[0].further == {"learning_rate": (0.001, 0.003)}


BAD: list[tuple[list[str], str]] = [
    (["--archs", "unet,swim"], "'swim' is not known; the nearest names are 'swin'"),
    (["--archs", ""], "archs must be at least one"),
    (["--scales", "50k"], "'500k'"),
    (["--recipes", "sr_rth"], "'sr_rht'"),
    (["--recipes", "sr+atention"], "'attention'"),
    (["--recipes", "bf16+attention"], "contradicts itself"),
    (["--recipes", "bf16+ends"], "must quantize"),
    (["--attention", "fp8"], "'fp4'"),
    (["--seeds", "0"], "at least one seed"),
    (["--folds", "5"], "expected fold to be one of 0, 1, 2"),
    (["--folds", "first"], "folds must be whole numbers"),
    (["--manifest", "phantm"], "'phantom'"),
    (["--epochs", "0"], "epochs must be"),
    (["--image_size", "33,33"], "nearest size"),
    (["--image_size", "32x32"], "such as [128, 128], but '32x32' was given"),
    (["--image_size", "(32,32)"], "image_size must be two or three whole numbers"),
    (["--image_size", "32"], "image_size must be two or three whole numbers"),
    (["--axis", "colour=red"], "'colour' is not known"),
    (["--axis", "batch_size"], "OPTION=VALUES"),
    (["--axis", "epochs=1,2"], "both were given"),
    (["--axis", "seed=1,2"], "'seed' is not known"),
    (["--archs", "swinunetr"], "exists at scale '15m' only"),
    (["--only", "vit*"], "matches no cell"),
    (["--retries", "-1"], "retries must be"),
    (["--gpus_per_cell", "3"], "gpus_per_cell must fit on a machine"),
    (["--cpus_per_cell", "64"], "cpus_per_cell must fit on a machine"),
    (["--recipes_file", "/nowhere.json"], "/nowhere.json"),
    (["--dataset_dir", "/nowhere"], "/nowhere"),
]


@pytest.mark.parametrize(("words", "said"), BAD, ids=[" ".join(words) for words, _ in BAD])
def test_bad_input_is_one_sentence_and_writes_nothing(
    words: list[str], said: str, tiny: Dataset, tmp_path: Path
) -> None:
    given_words = [*SMALL, "--dataset_dir", str(tiny.dataset_dir), "--manifest", str(tiny.manifest), *words]
    args = build_parser().parse_args(["sweep", "--output_dir", str(tmp_path / "study"), *given_words])
    with pytest.raises(MonaiFP4Error) as error:
        run_sweep(args, StudyFolder(args.output_dir), lambda: Scripted(done))
    assert said in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "study").exists()


@pytest.fixture
def command(tiny: Dataset, tmp_path: Path) -> Any:
    """Runs a sweep of scripted cells; returns its exit code and its executor."""

    def run(*words: str, script: Any = done) -> tuple[int, Scripted]:
        executor = Scripted(script)
        given_words = [*SMALL, "--dataset_dir", str(tiny.dataset_dir), "--manifest", str(tiny.manifest), *words]
        args = build_parser().parse_args(["sweep", "--output_dir", str(tmp_path / "study"), *given_words])
        return run_sweep(args, StudyFolder(args.output_dir), lambda: executor), executor

    return run


def test_a_study_says_by_itself_what_it_is(command: Any, tiny: Dataset, tmp_path: Path) -> None:
    assert command("--seeds", "2")[0] == 0
    folder = StudyFolder(tmp_path / "study")
    defined = folder.read_definition()
    assert defined.manifest == "manifest.json" and defined.version and defined.created
    assert (folder.path / "manifest.json").read_bytes() == tiny.manifest.read_bytes()
    shipped = Path(__file__).parents[2] / "bundles"
    for path in folder.bundles_path.iterdir():
        assert path.read_bytes() == (shipped / path.name).read_bytes(), path.name
    assert {path.name for path in folder.bundles_path.iterdir()} == {
        *("unet_500k_bf16.json", "unet_500k_sr.json", "metadata.json", "logging.conf")
    }


def test_the_same_command_again_runs_nothing(command: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command()
    before = {name: data for name, (_, data) in contents(tmp_path / "study").items()}
    code, executor = command()
    said = f"All 2 cells are done: monai-fp4 report {shlex.quote(str(tmp_path / 'study'))}"
    assert code == 0 and not executor.started and said in capsys.readouterr().out
    assert {name: data for name, (_, data) in contents(tmp_path / "study").items()} == before
    folder = StudyFolder(tmp_path / "study")
    for cell in folder.read_definition().cells():  # as a worker leaves it that was killed when its cell had just ended
        folder.write_record(cell, CellRecord(status=CellStatus.RUNNING))
    command()
    assert {folder.record(cell).status for cell in folder.read_definition().cells()} == {CellStatus.DONE}


def test_a_study_may_grow(command: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command("--seeds", "1")
    created = StudyFolder(tmp_path / "study").read_definition().created
    code, executor = command("--seeds", "2", "--recipes", "bf16,sr,full")
    assert code == 0 and len(executor.started) == 4
    assert "recipes also full" in capsys.readouterr().err
    assert StudyFolder(tmp_path / "study").read_definition().created == created


HALF = {"base": "sr", "bf16_last_share": 0.5}


@pytest.mark.parametrize(
    "redefined",
    [
        {"base": "sr", "bf16_last_share": 0.25},
        {"base": "sr"},
        {"base": "rht", "bf16_last_share": 0.5},
        {**HALF, "overrides": [{"pattern": "model.0.*", "precision": "bf16"}]},
        "sr",
    ],
    ids=["another value", "a field less", "another base", "a field more", "another recipe by name"],
)
def test_a_recipe_redefined_in_a_growing_study_is_refused(command: Any, tmp_path: Path, redefined: Any) -> None:
    """The cells of one name would be of two recipes."""
    own = tmp_path / "own.json"
    own.write_text(json.dumps({"half": HALF}))
    words = ["--recipes", "bf16,half", "--recipes_file", str(own)]
    assert command("--seeds", "1", *words)[0] == 0
    before = contents(tmp_path / "study")
    own.write_text(json.dumps({"half": redefined}))
    for seeds in ("1", "2"):
        with pytest.raises(ConfigError, match=r"'recipe half' is \{.*'bf16_last_share': 0.5.* there"):
            command("--seeds", seeds, *words)
    assert contents(tmp_path / "study") == before
    own.write_text(json.dumps({"half": HALF}))
    assert command("--seeds", "2", *words)[0] == 0


def test_a_recipe_of_ones_own_may_not_take_a_shipped_name(command: Any, tmp_path: Path) -> None:
    (tmp_path / "own.json").write_text(json.dumps({"sr": {"base": "full"}}))
    with pytest.raises(ConfigError, match=r"own\.json must give recipes names of their own, but 'sr' is"):
        command("--recipes", "bf16,sr", "--recipes_file", str(tmp_path / "own.json"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--epochs", "3"], "'epochs' is 2 there and 3 here"),
        (["--batch_size", "3"], "'batch_size' is None there"),
        (["--manifest", "phantom"], "'manifest'"),
        (["--recipes", "sr"], "'recipes'"),
        (["--seeds", "1-2"], "--only"),
        (["--archs", "vit"], "'archs'"),
        (["--axis", "learning_rate=0.1"], "'axes'"),
    ],
)
def test_the_folder_of_another_study_is_refused(command: Any, tmp_path: Path, words: list[str], said: str) -> None:
    command("--seeds", "2")
    before = contents(tmp_path / "study")
    with pytest.raises(ConfigError) as error:
        command("--seeds", "2", *words)
    assert said in str(error.value)
    assert contents(tmp_path / "study") == before


def test_a_manifest_of_other_patients_is_another_study(command: Any, tiny: Dataset, tmp_path: Path) -> None:
    command()
    other = json.loads(tiny.manifest.read_text())
    other["patients"][0]["fold"] = (other["patients"][0]["fold"] + 1) % other["folds"]
    (tmp_path / "other.json").write_text(json.dumps(other))
    with pytest.raises(ConfigError, match=r"'manifest' is 'sha256"):
        command("--manifest", str(tmp_path / "other.json"))


def test_where_a_cell_runs_may_change(command: Any) -> None:
    command("--seeds", "1")
    assert command("--seeds", "2", "--num_workers", "1", "--device", "cpu")[0] == 0


def test_a_folder_of_something_else_is_refused(command: Any, tmp_path: Path) -> None:
    write_metrics(tmp_path / "study", 1)
    with pytest.raises(ConfigError, match=r"holds metrics\.json"):
        command()


def test_two_sweeps_in_one_folder(command: Any) -> None:
    def second(task: Any, attempt: int) -> Any:
        with pytest.raises(ConfigError, match="one sweep at a time"):
            command()
        return done(task)

    assert command(script=second)[0] == 0
    assert command()[0] == 0  # the lock went with the sweep


def test_a_refused_sweep_leaves_a_folder_that_was_there(command: Any, tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    with pytest.raises(MonaiFP4Error):
        command("--dataset_dir", "/nowhere")
    assert (tmp_path / "study").is_dir()
    assert command()[0] == 0


def test_a_lock_that_a_refused_sweep_removes_is_taken_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, take = tmp_path / "study" / ".lock", fcntl.flock

    def after_the_other_one(file: Any, operation: int) -> None:  # which ends between the opening and the locking here
        monkeypatch.setattr("fcntl.flock", take)
        path.unlink()
        path.parent.rmdir()
        take(file, operation)

    monkeypatch.setattr("fcntl.flock", after_the_other_one)
    with FolderLock(path, "sweep"):
        assert "process" in path.read_text()
        with pytest.raises(ConfigError, match="one sweep at a time"), FolderLock(path, "sweep"):
            pass


def test_a_part_of_the_grid(command: Any, capsys: pytest.CaptureFixture[str]) -> None:
    code, executor = command("--seeds", "3", "--only", "*/sr/*seed1")
    assert code == 0 and executor.started == ["unet_500k/sr/fold0_seed1"]
    assert "1 of 1 cells" in capsys.readouterr().out


def test_failures_are_listed_with_their_log(command: Any, capsys: pytest.CaptureFixture[str]) -> None:
    code, _ = command(script=lambda task, n: {"status": "failed", "error": "no luck", "seconds": 1.0})
    said = capsys.readouterr().err
    assert code == 1 and "2 cells failed" in said and "unet_500k/sr/fold0_seed0: no luck (log: " in said


def test_a_dry_run_prints_the_cells_and_the_time(
    command: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    code, executor = command("--seeds", "2", "--dry_run")
    said = capsys.readouterr().out.splitlines()
    assert code == 0 and not executor.started and not (tmp_path / "study").exists()
    assert said[0] == "unet_500k/bf16/fold0_seed0  waiting, time unknown" and said[4] == "4 cells, 0 of them done"
    assert "unknown" in said[5]
    command("--seeds", "1")
    folder = StudyFolder(tmp_path / "study")
    for cell, seconds in zip(folder.read_definition().cells(), (100.0, 300.0), strict=True):
        finish(folder, cell, seconds)
    command("--seeds", "2", "--dry_run", "--cpus_per_cell", "1")
    said = capsys.readouterr().out
    assert "unet_500k/sr/fold0_seed0  done" in said and "unet_500k/sr/fold0_seed1  waiting, about 5 min 00 s" in said
    assert ("4 cells, 2 of them done" in said and "Time: about 5 min 00 s" in said) or "Time: about 6 min" in said


def test_without_ray_there_is_a_sentence(
    tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    data = ["--dataset_dir", str(tiny.dataset_dir), "--manifest", str(tiny.manifest)]
    assert main(["sweep", *SMALL, *data, "--output_dir", str(tmp_path / "study")]) == 1
    said = capsys.readouterr().err
    assert "pip install 'monai-fp4[sweep]'" in said and said.count("\n") == 1
    assert not (tmp_path / "study" / "study.json").exists()


positive = st.floats(0.1, 1e4)


@settings(deadline=None)
@given(st.lists(positive, min_size=2, max_size=4), st.lists(positive, min_size=2, max_size=4))
def test_a_product_of_network_and_recipe_is_recovered(networks: list[float], recipes: list[float]) -> None:
    cost = {(f"n{i}", f"r{j}"): [a * b] for i, a in enumerate(networks) for j, b in enumerate(recipes)}
    last = (f"n{len(networks) - 1}", f"r{len(recipes) - 1}")
    known = {key: value for key, value in cost.items() if key != last}
    assert Estimate(known).seconds(*last) == pytest.approx(cost[last][0], rel=1e-6)
    assert Estimate(cost).seconds(*last) == pytest.approx(cost[last][0])


def test_an_unknown_network_is_not_guessed_at_and_an_unknown_recipe_is_average() -> None:
    estimate = Estimate({("a", "x"): [10.0, 30.0], ("a", "y"): [5.0]})
    assert estimate.seconds("b", "x") is None and estimate.seconds("a", "x") == 20.0
    assert estimate.seconds("a", "z") == pytest.approx(10.0)  # the geometric mean of 20 and 5
    assert Estimate({}).seconds("a", "x") is None and time_left([], 3) == 0.0


def test_number_formats_are_additions() -> None:
    chosen = grid_recipes("all+four_over_six,all+mxfp4,sr+four_over_six_all+last10")
    assert len(chosen) == 2 * (len(RECIPES) - 1) + 1
    assert Recipe.from_config(chosen["sr_rht_2d+mxfp4"]) == replace(
        RECIPES["sr_rht_2d"], name="sr_rht_2d+mxfp4", format=Format.MXFP4
    )
    assert Recipe.from_config(chosen["rht+four_over_six"]).four_over_six is FourOverSix.WEIGHTS
    assert Recipe.from_config(chosen["sr+four_over_six_all+last10"]).four_over_six is FourOverSix.ALL
    for impossible in ("rht+four_over_six_all", "sr+mxfp4+four_over_six"):
        with pytest.raises(ConfigError, match=f"'{re.escape(impossible)}' contradicts itself"):
            grid_recipes(impossible)


def test_every_addition_is_a_recipe() -> None:
    for name in ADDITIONS:
        config = recipe_of(grid_recipes(f"sr+{name}")[f"sr+{name}"], "vit", "500k")
        assert Recipe.from_config(config) != RECIPES["sr"]


PAPER = ["--protocol", "paper", "--archs", "paper_swin,paper_cnn", "--scales", "500k", "--recipes", "bf16,full"]


def test_a_protocol_s_own_values_hold_unless_others_are_given() -> None:
    defined, manifest = definition_of(parsed(*PAPER))
    assert (manifest, defined.folds, defined.seeds, defined.protocol) == ("lgg_paper", ("holdout",), (2026,), "paper")
    assert defined.dataset_dir == "/data/kaggle_3m" and defined.options == {}
    assert check(defined, manifest) == []
    defined, _ = definition_of(parsed(*PAPER, "--folds", "holdout,0-4", "--seeds", "3", "--epochs", "15"))
    assert defined.folds == ("holdout", 0, 1, 2, 3, 4) and defined.seeds == (0, 1, 2)
    assert defined.options == {"epochs": 15} and check(defined, "lgg_paper") == []
    plain, manifest = definition_of(parsed(*SMALL))
    assert (manifest, plain.folds, plain.seeds, plain.protocol) == ("phantom", (0,), (0,), "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--protocol", "papre"], "protocol.*'paper'"),
        (["--image_size", "100,100"], "image_size"),  # no patch of 16 times a power of two
        (["--image_size", "64,64,64"], "spatial_dims of paper_swin_500k must be 2, found 3"),
        (["--manifest", "nodules"], "holdout"),
        (["--optimizers", "sgd"], "optimizer_name=adamw,adamax"),
        (["--axis", "optimiser_name=adamax"], "optimizer_name"),
        (["--folds", "all,0"], "whole numbers"),
    ],
)
def test_what_does_not_fit_the_paper_s_protocol_is_one_sentence(words: list[str], said: str) -> None:
    with pytest.raises(MonaiFP4Error, match=said):
        check(*definition_of(parsed(*PAPER, *words)))


def test_a_protocol_that_tests_wants_patients_to_test_on(tiny: Dataset) -> None:
    words = ["--manifest", str(tiny.manifest), "--folds", "0"]
    assert check(*definition_of(parsed(*SMALL, *words))) == []
    with pytest.raises(DataError, match=r"expected patients to test on, found none.*--split_rule paper"):
        check(*definition_of(parsed(*PAPER, *words)))


def test_what_a_protocol_adds_can_be_an_axis() -> None:
    defined, manifest = definition_of(parsed(*PAPER, "--axis", "optimizer_name=adamw,adamax"))
    assert check(defined, manifest) == [] and len(defined.cells()) == 8


def test_a_study_keeps_its_protocol(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "study")
    defined, manifest = definition_of(parsed(*PAPER))
    write_study(folder, defined, manifest)
    assert folder.read_definition() == defined
    assert (folder.bundles_path / "protocols" / "paper.json").is_file()
    with pytest.raises(ConfigError, match="'protocol' is 'paper' there and '' here"):
        extend_study(folder, definition_of(parsed(*PAPER[2:], "--manifest", "lgg_paper", "--folds", "0"))[0], manifest)
    older = json.loads(folder.definition_path.read_text())
    del older["protocol"]
    folder.definition_path.write_text(json.dumps(older))
    assert folder.read_definition() == replace(defined, protocol="")
