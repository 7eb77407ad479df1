from __future__ import annotations

import errno
import json
import math

import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score
from synthetic_patients import evaluator_of, synthetic_cohort

from monai_fp4.errors import ConfigError, DataError
from monai_fp4.handlers import AUPRC, EvaluationReport, evaluation_report
from monai_fp4.metrics import Cohort


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    result = tmp_path_factory.mktemp("evaluation") / "deep" / "inside"
    evaluate(result, synthetic_cohort())
    return result


def evaluate(folder, patients, threshold=0.4, auprc=True) -> None:
    key = {"auprc": AUPRC(threshold=threshold)} if auprc else None
    handlers = [EvaluationReport(folder, resamples=100)]
    evaluator_of(patients, key_val_metric=key, val_handlers=handlers).run()


def numbers(folder) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def test_writes_every_file_whole(folder):
    names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    assert names == [
        "metrics.json",
        "overlays/largest_lesions.png",
        "overlays/worst_false_alarms.png",
        "overlays/worst_misses.png",
        "pr_curve.png",
        "probabilities.png",
    ]
    for name in names[1:]:
        with Image.open(folder / name) as image:
            image.load()


def test_says_where_it_is(tmp_path, capsys):
    evaluate(tmp_path / "here", synthetic_cohort())
    said = capsys.readouterr().out
    assert f"The evaluation is in {tmp_path / 'here'}:" in said and "Of 4 lesions, 1 missed altogether." in said


def test_each_patient_is_counted_exactly_at_the_given_threshold(folder):
    for patient, row in zip(synthetic_cohort(), numbers(folder)["per_patient"], strict=True):
        truth, called = patient["label"] == 1, patient["pred"] >= 0.4
        assert row["patient"] == patient["patient"]
        assert row["missed_voxels"] == int((truth & ~called).sum())
        assert row["false_alarm_voxels"] == int((called & ~truth).sum())
        if truth.any():
            expected = average_precision_score(truth.flatten(), patient["pred"].flatten())
            assert row["auprc"] == pytest.approx(expected, abs=1e-12)
            assert row["dice"] == pytest.approx(2 * int((truth & called).sum()) / int(truth.sum() + called.sum()))


def test_pooled_numbers_follow_from_the_patients(folder):
    result, patients = numbers(folder), synthetic_cohort()
    assert result["voxels"] == 5 * 48 * 48 * 6
    assert result["tumour_voxels"] == sum(int(p["label"].sum()) for p in patients)
    missed = sum(row["missed_voxels"] for row in result["per_patient"])
    assert result["recall"] == pytest.approx(1 - missed / result["tumour_voxels"])
    each = [row["auprc"] for row in result["per_patient"] if row["auprc"] is not None]
    assert result["auprc_per_patient"] == pytest.approx(sum(each) / len(each))
    assert result["threshold"] == 0.4


def test_intervals_hold_their_values(folder):
    for name, interval in numbers(folder)["intervals"].items():
        assert interval["low"] <= interval["value"] <= interval["high"], name
    assert "100 resamples" in numbers(folder)["interval_method"]


def test_missed_and_healthy_patients_are_named(folder):
    result = numbers(folder)
    assert result["missed_patients"] == ["missed"]
    assert result["patients_without_tumour"] == ["healthy"]
    assert (result["patients"], result["patients_with_tumour"]) == (5, 4)
    assert result["undefined"]["auprc"]["patients"] == ["healthy"]
    assert result["per_patient"][4]["auprc"] is None and result["per_patient"][4]["recall"] is None


def test_a_lesion_that_was_overlooked_beside_a_large_one_is_counted(folder, tmp_path):
    item = synthetic_cohort()[0]
    item["label"][0, 2:4, 2:4, 0], item["pred"][0, 2:4, 2:4, 0] = 1, 0.1
    evaluate(tmp_path, [item, *synthetic_cohort()[1:]])
    before, after = numbers(folder), numbers(tmp_path)
    assert (
        (after["lesions"], after["missed_lesions"]) == (before["lesions"] + 1, before["missed_lesions"] + 1) == (5, 2)
    )
    assert after["missed_patients"] == ["missed"] and after["per_patient"][0]["recall"] > 0.9
    assert [row["missed_lesions"] for row in after["per_patient"]] == [1, 0, 0, 1, 0]


@pytest.mark.filterwarnings("ignore::monai_fp4.metrics.histogram.NoPositivesWarning")
def test_a_cohort_without_tumour_is_reported_and_not_an_error(tmp_path):
    evaluate(tmp_path, synthetic_cohort()[4:], threshold=1.0)
    result = numbers(tmp_path)
    assert result["auprc"] is None and result["intervals"]["auprc"]["low"] is None
    assert set(result["undefined"]) == {"auprc", "recall", "precision", "dice"}
    assert not (tmp_path / "pr_curve.png").exists() and (tmp_path / "probabilities.png").exists()


def test_the_same_evaluation_gives_the_same_files(folder, tmp_path):
    evaluate(tmp_path, synthetic_cohort())
    for path in folder.rglob("*.*"):
        assert path.read_bytes() == (tmp_path / path.relative_to(folder)).read_bytes(), path.name


def test_an_evaluation_is_not_written_over(folder):
    before = (folder / "metrics.json").read_bytes()
    with pytest.raises(ConfigError, match="another output_dir"):
        EvaluationReport(folder)
    assert (folder / "metrics.json").read_bytes() == before


@pytest.mark.parametrize("threshold", [-0.1, 1.5, math.nan, None])
def test_a_threshold_that_is_no_probability_is_refused_before_anybody_is_evaluated(tmp_path, threshold):
    patients = iter(synthetic_cohort())
    with pytest.raises(ConfigError, match=f"threshold from 0 to 1, found {threshold}"):
        evaluate(tmp_path, patients, threshold)
    assert len(list(patients)) == 5


def test_says_when_auprc_is_not_on_the_evaluator(tmp_path):
    with pytest.raises(ConfigError, match=r"handlers\.AUPRC"):
        evaluate(tmp_path, synthetic_cohort()[:1], auprc=False)


def test_a_patient_given_twice_ends_the_evaluation(tmp_path):
    with pytest.raises(DataError, match="twice"):
        evaluate(tmp_path, synthetic_cohort()[:1] * 2)
    assert not (tmp_path / "metrics.json").exists()


def test_a_folder_that_cannot_be_made_is_said_before_anybody_is_evaluated(tmp_path):
    (tmp_path / "file").write_text("")
    patients = iter(synthetic_cohort())
    with pytest.raises(ConfigError, match=r"must be writable.*another output_dir"):
        evaluate(tmp_path / "file" / "below", patients)
    assert len(list(patients)) == len(synthetic_cohort())


def test_a_disk_that_gets_full_is_a_sentence(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ConfigError, match=r"No space left on device.*make room"):
        evaluate(tmp_path, synthetic_cohort()[:1])
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_plain_leaves_no_nan():
    json.dumps(evaluation_report.to_json_value({"a": [math.inf, {"b": math.nan}], "c": True}), allow_nan=False)


def test_a_voxel_at_the_threshold_is_called_tumour(tmp_path):
    pred, label = (torch.tensor(v)[..., None] for v in ([[0.25, 0.5], [0.5, 0.75]], [[0, 1], [0, 1]]))
    item = synthetic_cohort()[0] | {"image": pred[None].repeat(3, 1, 1, 1), "pred": pred[None], "label": label[None]}
    evaluate(tmp_path, [item], threshold=0.5)
    (row,) = numbers(tmp_path)["per_patient"]
    assert (row["missed_voxels"], row["false_alarm_voxels"], row["precision"]) == (0, 1, pytest.approx(2 / 3))


def test_resamples_and_seed_reach_the_intervals(tmp_path):
    cohort = Cohort(threshold=0.4)
    for patient in synthetic_cohort():
        cohort.add(patient["patient"], patient["pred"], patient["label"])
    found = {}
    for number, options in enumerate(({}, {"seed": 7}, {"resamples": 30})):
        options = {"resamples": 50, "seed": 3} | options
        handlers = [EvaluationReport(tmp_path / str(number), **options)]
        key = {"auprc": AUPRC(threshold=0.4)}
        evaluator_of(synthetic_cohort(), key_val_metric=key, val_handlers=handlers).run()
        found[number] = numbers(tmp_path / str(number))
        expected = {name: vars(interval) for name, interval in cohort.bootstrap(0.4, **options).items()}
        assert found[number]["intervals"] == expected
        said = f"95 % percentile bootstrap over patients, {options['resamples']} resamples, seed {options['seed']}"
        assert found[number]["interval_method"] == said
    assert found[0]["intervals"] != found[1]["intervals"] != found[2]["intervals"] != found[0]["intervals"]


def test_figures_show_the_numbers_that_are_written(tmp_path, monkeypatch):
    shown = {}
    for name in ("pr_curve_figure", "probabilities_figure"):
        drawn = getattr(evaluation_report, name)
        monkeypatch.setattr(
            evaluation_report, name, lambda *a, name=name, drawn=drawn, **k: shown.update({name: k}) or drawn(*a, **k)
        )
    titles, draw = [], evaluation_report.overlay_figure
    monkeypatch.setattr(
        evaluation_report,
        "overlay_figure",
        lambda *a, **k: titles.append((k["threshold"], k["title"])) or draw(*a, **k),
    )
    handlers = [EvaluationReport(tmp_path, resamples=20, title="a run", source={"run_dir": "r"})]
    evaluator_of(synthetic_cohort(), key_val_metric={"auprc": AUPRC(threshold=0.4)}, val_handlers=handlers).run()
    result = numbers(tmp_path)
    assert result["source"] == {"run_dir": "r"}
    assert vars(shown["pr_curve_figure"].pop("interval")) == result["intervals"]["auprc"]
    assert shown["pr_curve_figure"] == shown["probabilities_figure"] == {"threshold": 0.4, "title": "a run"}
    assert [threshold for threshold, _ in titles] == [0.4] * 3
    assert {title.replace(" ", "_") for _, title in titles} == {path.stem for path in (tmp_path / "overlays").iterdir()}


def test_a_threshold_of_0_calls_every_voxel(tmp_path):
    evaluate(tmp_path, synthetic_cohort()[:1], threshold=0.0)
    (row,) = numbers(tmp_path)["per_patient"]
    assert row["recall"] == 1 and row["false_alarm_voxels"] == row["voxels"] - row["tumour_voxels"]


def test_defaults_are_a_thousand_resamples_of_seed_0_and_four_slices_of_a_kind(tmp_path):
    found = EvaluationReport(tmp_path)
    assert (found.resamples, found.seed, found.overlays) == (1000, 0, 4)


def test_several_processes_are_refused_before_anybody_is_evaluated(tmp_path, monkeypatch):
    monkeypatch.setattr("ignite.distributed.get_world_size", lambda: 2)
    patients = iter(synthetic_cohort())
    with pytest.raises(ConfigError, match="one process, found 2"):
        evaluate(tmp_path, patients)
    assert len(list(patients)) == 5
