from __future__ import annotations

import errno
import json
import math

import pytest
from PIL import Image
from sklearn.metrics import average_precision_score
from synthetic_patients import evaluator_of, synthetic_cohort

from monai_fp4.errors import ConfigError, DataError
from monai_fp4.handlers import AUPRC
from monai_fp4.handlers.evaluation_report import EvaluationReport, plain


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    result = tmp_path_factory.mktemp("evaluation") / "deep" / "inside"
    evaluate(result, synthetic_cohort())
    return result


def evaluate(folder, patients, threshold=0.4, auprc=True) -> None:
    key = {"auprc": AUPRC()} if auprc else None
    handlers = [EvaluationReport(folder, threshold, resamples=100)]
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
        EvaluationReport(folder, 0.5)
    assert (folder / "metrics.json").read_bytes() == before


@pytest.mark.parametrize("threshold", [-0.1, 1.5, math.nan])
def test_a_threshold_that_is_no_probability_is_refused(tmp_path, threshold):
    with pytest.raises(ConfigError, match="threshold from 0 to 1"):
        EvaluationReport(tmp_path, threshold)


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
    json.dumps(plain({"a": [math.inf, {"b": math.nan}], "c": True}), allow_nan=False)
