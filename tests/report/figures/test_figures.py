"""Figures of the report: one look, what they leave out, and the same bytes again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.colors import to_hex
from synthetic_study import EPOCHS, definition, tables_of, write_study

from monai_fp4.quantization import RECIPES
from monai_fp4.report.figures import (
    GROUP,
    describe_cells,
    effects,
    health,
    look,
    not_drawn,
    outputs,
    quality,
    save_picture,
)
from monai_fp4.report.figures.cost import memory, time
from monai_fp4.report.statistics import against_baseline, cost, paired
from monai_fp4.report.tables import StudyTables, collect
from monai_fp4.study.layout import Cell, CellStatus


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> StudyTables:
    return collect(write_study(tmp_path_factory.mktemp("study")).path)


def test_no_two_recipes_look_alike_with_or_without_colour() -> None:
    looks = [look(name) for name in RECIPES]
    assert len({one.colour for one in looks}) == len({one.marker for one in looks}) == len(RECIPES)
    own = [look(name, [*RECIPES, "a", "b", "c"]) for name in ("a", "b", "c")]
    assert len({one.marker for one in [*looks, *own]}) == len(RECIPES) + 3


def test_a_recipe_looks_the_same_in_panels_and_legends_whatever_is_finished(tmp_path: Path) -> None:
    """The greys of a study's own recipes follow from the study, and not from which of them have cells so far."""
    recipes = {"bf16": "bf16", "mine": {"base": "sr", "bf16_last_share": 0.1}, "yours": {"base": "rht"}}
    study = definition(archs=("unet",), recipes=recipes, seeds=(0, 1))
    partial = lambda cell: CellStatus.WAITING if cell.recipe == "mine" else CellStatus.DONE  # noqa: E731
    tables = collect(write_study(tmp_path, study, status=partial).path)
    colour = look("yours", list(recipes)).colour
    picture = outputs.pr_curves(tables)
    assert picture is not None
    labels = {line.get_label(): line.get_color() for line in picture.figure.legends[0].get_lines()}
    assert labels == {"bf16": "#000000", "yours": colour}
    assert {line.get_color() for axes in picture.figure.axes for line in axes.lines} == {"#000000", colour}
    bars = time(tables, cost(tables))
    assert bars is not None
    assert colour in {to_hex(bar.get_facecolor()) for axes in bars.figure.axes for bar in axes.patches}


def test_the_shaded_group_is_one_piece_of_the_fixed_order() -> None:
    places = [list(RECIPES).index(name) for name in GROUP]
    assert places == list(range(places[0], places[0] + 7))


def test_the_same_figure_gives_the_same_bytes(tables: StudyTables, tmp_path: Path) -> None:
    for folder in ("first", "second"):
        picture = quality.percent_of_baseline(tables, paired(tables))
        assert picture is not None
        save_picture(picture, tmp_path / folder)
    for kind in ("png", "svg"):
        files = [(tmp_path / folder / f"percent_auprc.{kind}").read_bytes() for folder in ("first", "second")]
        assert files[0] == files[1]


def test_dots_are_the_numbers(tables: StudyTables) -> None:
    picture = quality.percent_of_baseline(tables, paired(tables))
    assert picture is not None
    panel = next(axes for axes in picture.figure.axes if axes.get_title() == "unet 500k")
    drawn = sorted(y for line in panel.lines for y in line.get_ydata() if line.get_markersize() == 2.6)
    done = tables.done.set_index(["arch", "recipe", "seed"])["auprc"]
    names = [(recipe, seed) for recipe in ("full", "chain_rule", "sr") for seed in (0, 1, 2)]
    expected = sorted(100 * done["unet", recipe, seed] / done["unet", "bf16", seed] for recipe, seed in names)
    assert drawn == pytest.approx(expected)


def test_every_cell_has_its_curve(tables: StudyTables) -> None:
    picture = quality.curves(tables, "train_loss")
    assert picture is not None
    thin = [line for axes in picture.figure.axes for line in axes.lines if line.get_linewidth() == 0.7]
    assert len(thin) == len(tables.cells)


@pytest.mark.parametrize("epochs", [1, 2, 4])
def test_there_is_no_half_epoch(tables: StudyTables, epochs: int) -> None:
    few = replace(
        tables,
        epochs=tables.epochs[tables.epochs["epoch"] <= epochs],
        health=tables.health[tables.health["epoch"] <= epochs],
    )
    for picture in (quality.curves(few, "train_loss"), health.over_time(few, "snr_db")):
        assert picture is not None
        picture.figure.canvas.draw()
        low, high = picture.figure.axes[0].get_xlim()
        shown = [tick for tick in picture.figure.axes[0].get_xticks() if low <= tick <= high]
        assert shown and all(tick == round(tick) for tick in shown)


def test_an_interval_of_two_seeds_does_not_set_an_axis(tmp_path: Path) -> None:
    """Two seeds that differ by 0.2 have an interval of 2.5, which would leave all the others a line."""
    wide = tables_of(definition(seeds=(0, 1)), lambda cell: 0.2 * cell.seed * (cell.recipe == "sr"))
    pairs = paired(wide)
    drawn = (
        (quality.auprc_by_scale(wide), 0.75, 1.0),
        (quality.percent_of_baseline(wide, pairs), 90, 130),
        (effects.differences(wide, against_baseline(wide, pairs), "auprc", 0.01), -0.05, 0.25),
    )
    for picture, low, high in drawn:
        assert picture is not None and "may run off the frame" in picture.caption
        for axes in picture.figure.axes:
            limits = axes.get_xlim() if picture.name.startswith("difference") else axes.get_ylim()
            assert low <= limits[0] < limits[1] <= high, picture.name


def test_an_interval_of_three_seeds_lies_within_the_frame() -> None:
    tables = tables_of(definition(seeds=(0, 1, 2)), lambda cell: 0.02 * cell.seed * (cell.recipe == "sr"))
    picture = effects.differences(tables, against_baseline(tables, paired(tables)), "auprc", 0.01)
    assert picture is not None
    for axes in picture.figure.axes:
        (low, high), ends = axes.get_xlim(), [x for line in axes.collections for x in line.get_segments()[0][:, 0]]
        assert len(ends) == 2 * 3 and low < min(ends) < max(ends) < high


def test_captions_say_what_they_are_of(tables: StudyTables) -> None:
    said = describe_cells(tables.done)
    assert said == ("n = 24 finished cells; 3 seeds; fold 0; epochs 4; image size 64x64; code version 0.1.0+synthetic.")
    assert describe_cells(tables.done.iloc[:0]) == "No finished cell."


def test_folds_are_the_dots_where_there_is_one_seed(tmp_path: Path) -> None:
    write_study(tmp_path, definition(folds=(0, 1, 2), seeds=(0,)), health=False)
    tables = collect(tmp_path)
    picture = quality.percent_of_baseline(tables, paired(tables))
    assert picture is not None and "every fold a dot" in picture.caption
    assert quality.five_folds(tables) is not None


def test_what_there_is_nothing_of_is_not_drawn(tables: StudyTables, tmp_path: Path) -> None:
    assert quality.five_folds(tables) is None, "one fold"
    assert health.attention(tables) is None and memory(tables, cost(tables)) is None
    write_study(tmp_path, status=lambda cell: CellStatus.WAITING)
    empty = collect(tmp_path)
    drawings = (outputs.pr_curves, outputs.probabilities, outputs.reliability_curves)
    more = (outputs.distinct_levels, quality.auprc_by_scale)
    assert [draw(empty) for draw in (*drawings, *more)] == [None] * 5
    assert quality.percent_of_baseline(empty, paired(empty)) is None
    assert quality.curves(empty, "val_loss") is None and time(empty, cost(empty)) is None


def test_the_runs_own_curve_reaches_the_highest_scores(tmp_path: Path) -> None:
    folder = write_study(tmp_path, definition(archs=("vit",), recipes={"bf16": "bf16"}, seeds=(0,)))
    (cell,) = folder.read_definition().cells()
    curve = {"thresholds": [0.999, 0.995, 0.2], "tp": [10, 12, 20], "fp": [0, 4, 60], "positives": 20, "negatives": 60}
    (folder.run_dir(cell) / "pr_curve.json").write_text(json.dumps({"epoch": EPOCHS} | curve))
    fine = outputs.pr_curves(collect(tmp_path))
    assert fine is not None and "500 thresholds" in fine.caption
    recall, precision = fine.figure.axes[0].lines[0].get_data()
    assert list(recall) == [0.5, 0.6, 1.0] and list(precision) == [1.0, 0.75, 0.25]


def test_the_lowest_point_of_a_reliability_curve_lies_where_the_scores_do(tables: StudyTables) -> None:
    """Nearly all voxels are close to 0: the middle of their bin, 1 / 252, would be far off."""
    low = tables.scores.assign(positives=0, negatives=0)
    low.loc[low["bin"] == 0, "negatives"] = 1000
    small = replace(tables, cells=tables.cells.assign(mean_probability=1e-3), scores=low)
    picture = outputs.reliability_curves(small)
    assert picture is not None
    line = picture.figure.axes[0].lines[1]
    assert list(line.get_xdata()) == pytest.approx([1e-3], abs=1e-9)


def test_layers_of_a_cell_on_its_way_do_not_stand_beside_finished_ones(tmp_path: Path) -> None:
    def state(cell: Cell) -> CellStatus:
        return CellStatus.RUNNING if cell.recipe == "sr" else CellStatus.DONE

    tables = collect(write_study(tmp_path, definition(archs=("unet",), seeds=(0,)), status=state).path)
    assert "sr" in set(tables.health["recipe"])
    picture = health.by_layer(tables, "unet 500k")
    assert picture is not None and "n = 2 finished cells" in picture.caption
    assert {label.get_text() for label in picture.figure.axes[0].get_xticklabels()} == {"full", "chain_rule"}


def test_recipes_without_a_finished_cell_are_named(tmp_path: Path) -> None:
    def state(cell: Cell) -> CellStatus:
        return CellStatus.WAITING if cell.recipe == "sr" else CellStatus.DONE

    tables = collect(write_study(tmp_path, definition(archs=("unet",)), status=state, health=False).path)
    drawn = (quality.auprc_by_scale(tables), outputs.distinct_levels(tables))
    for picture in (*drawn, time(tables, cost(tables))):
        assert picture is not None and "No finished cell yet of sr." in picture.caption
    assert not_drawn(tables, tables.recipes) == ""


def record_attention(run: Path, epoch: int, values: dict[str, float]) -> None:
    content = json.loads((run / "health.json").read_text())
    content["epochs"][epoch - 1]["attention"] = {"encoder.0": values}
    (run / "health.json").write_text(json.dumps(content))


def test_attention_and_memory_are_drawn_once_they_are_recorded(tmp_path: Path) -> None:
    folder = write_study(tmp_path, definition(archs=("vit",), seeds=(0,)))
    for cell in folder.read_definition().cells():
        record_attention(folder.run_dir(cell), 1, {"entropy": 2.5})
        environment = folder.run_dir(cell) / "environment.json"
        environment.write_text('{"backend": "emulated", "peak_memory_bytes": 1073741824}')
    tables = collect(tmp_path)
    entropy, peak = health.attention(tables), memory(tables, cost(tables))
    assert entropy is not None and entropy.title == "Attention entropy"
    assert entropy.figure.axes[0].get_ylabel() == "attention entropy"
    for cell in folder.read_definition().cells():
        record_attention(folder.run_dir(cell), 3, {"entropy_share": 0.5})
    share = health.attention(collect(tmp_path))
    assert share is not None and share.figure.axes[0].get_ylabel() == "attention entropy / log(tokens)"
    assert [list(axis) for axis in share.figure.axes[0].lines[0].get_data()] == [[3], [0.5]]
    assert peak is not None and peak.figure.axes[0].patches[0].get_width() == 1.0, "GiB"
