"""inference.json: scans without masks in, masks in the scans' own geometry out."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK
import torch
from ignite.engine import Events
from monai.bundle import ConfigWorkflow
from monai.inferers import SimpleInferer
from nibabel import orientations
from PIL import Image
from predicting import predict, prediction, read_json
from tiny_runs import BUNDLES, Dataset, contents, evaluation, item, metrics, refusal, write_lgg
from tiny_runs import scan as scan_of

from monai_fp4.engines import segment_pieces
from monai_fp4.errors import ConfigError, DataError
from monai_fp4.inference import Ensemble, Predictor
from monai_fp4.lock import FolderLock
from monai_fp4.networks import build_network, to_channels_last
from monai_fp4.quantization.conversion import convert
from monai_fp4.quantization.recipes import Recipe


def evaluated(run: Path, dataset: Dataset, output_dir: Path, **changes: Any) -> dict[str, np.ndarray]:
    """The probabilities that an evaluation scores, by patient."""
    flow = evaluation(run, dataset, output_dir, **({"split": "val"} | changes))
    flow.initialize()
    seen: dict[str, np.ndarray] = {}
    item(flow, "evaluator").add_event_handler(
        Events.ITERATION_COMPLETED,
        lambda engine: seen.update({o["patient"]: o["pred"][0].numpy() for o in engine.state.output}),
    )
    flow.run()
    return seen


def voxels(path: Path) -> np.ndarray:
    return np.asarray(nibabel.load(path).dataobj)


def scan(folder: Path) -> Path:
    return folder / "patient_0" / "flair.nii.gz"


def only(folder: Path) -> Path:
    """The one study of a prediction."""
    (found,) = (path for path in folder.iterdir() if path.is_dir())
    return found


def test_masks_are_those_of_an_evaluation_and_lie_where_the_scan_does(
    volume_run: Path, volumes: Dataset, tmp_path: Path
) -> None:
    scores = evaluated(volume_run, volumes, tmp_path / "evaluation", predictions=True)
    out = predict(volume_run, volumes.dataset_dir, tmp_path / "out", names="path", probabilities=True)
    threshold = metrics(volume_run)["threshold"]
    assert {path.name for path in out.iterdir()} == {
        "prediction.json",
        "summary.json",
        *(f"patient_{number}_flair" for number in range(4)),
    }
    for patient, score in scores.items():
        source = nibabel.load(volumes.dataset_dir / patient / "flair.nii.gz")
        mask = nibabel.load(out / f"{patient}_flair" / "mask.nii.gz")
        assert np.array_equal(mask.affine, source.affine) and mask.shape == source.shape
        assert np.array_equal(voxels(tmp_path / "evaluation" / "predictions" / patient / "mask.nii.gz"), mask.dataobj)

        def as_seen(image: Any) -> np.ndarray:
            return np.flip(nibabel.as_closest_canonical(image).get_fdata(), (0, 1)).transpose(1, 0, 2)

        assert as_seen(mask).any()
        assert np.array_equal(as_seen(mask), score >= np.float32(threshold))
        probability = nibabel.load(out / f"{patient}_flair" / "probability.nii.gz")
        assert np.array_equal(as_seen(probability).astype(np.float32), score)
        report = read_json(out / f"{patient}_flair" / "report.json")
        assert report["voxels"] == as_seen(mask).sum() == sum(lesion["voxels"] for lesion in report["lesions"])
        assert report["volume_ml"] == pytest.approx(report["voxels"] / 1000)
        assert report["threshold"] == threshold and "validation" in report["threshold_from"]
        assert report["models"][0]["recipe"]["name"] == "sr" and len(report["models"][0]["sha256"]) == 64
        assert report["warnings"] == []
        assert Image.open(out / f"{patient}_flair" / "preview.png").size[0] > 100


def test_slices_that_are_pictures(finished_run: Path, held_out: Dataset, tmp_path: Path) -> None:
    scores = evaluated(finished_run, held_out, tmp_path / "evaluation", split="auto")
    out = predict(finished_run, held_out.dataset_dir, tmp_path / "out", names="path")
    assert len(scores) == 2
    for patient, score in scores.items():
        (folder,) = (path for path in out.iterdir() if path.name.startswith(patient))
        masks = [np.asarray(Image.open(folder / f"mask_{number}.png")) for number in (1, 2, 3)]
        assert set(np.unique(masks)) == {0, 255}
        expected = score >= np.float32(metrics(finished_run)["threshold"])
        assert np.array_equal(np.stack(masks, axis=-1) == 255, expected)
        assert read_json(folder / "report.json")["volume_ml"] is None


AFFINES = {
    "plain": np.diag([1.0, 1.0, 2.0, 1.0]),
    "negated": np.array([[-0.7, 0, 0, 31.5], [0, -0.8, 0, -12.25], [0, 0, 2.5, 7], [0, 0, 0, 1]]),
    "sheared": np.array([[0.7, 0, 0.1, 1], [0, 0.8, 0.5, 2], [0, 0, 2.5, 3], [0, 0, 0, 1]]),
}
_C, _S = np.cos(0.31), np.sin(0.31)
AFFINES["oblique"] = np.array([[_C, -_S, 0, 5], [_S, _C, 0, -7], [0, 0, 1, 9], [0, 0, 0, 1]]) @ np.diag(
    [0.7, 0.9, 3, 1]
)


@pytest.mark.parametrize("name", AFFINES)
@pytest.mark.parametrize("axes", ["RAS", "LPS", "SAR", "AIL"])
def test_geometry_survives_whatever_the_order_of_axes(
    name: str, axes: str, volumes: Dataset, volume_run: Path, tmp_path: Path
) -> None:
    """The same scan with its axes stored in another order gets the same mask, in that order."""
    values = voxels(scan(volumes.dataset_dir))
    straight = nibabel.Nifti1Image(values, AFFINES[name])
    now = orientations.io_orientation(AFFINES[name])
    turned = straight.as_reoriented(orientations.ornt_transform(now, orientations.axcodes2ornt(axes)))
    masks = []
    for number, image in enumerate((straight, turned)):
        path = tmp_path / f"scan_{number}.nii.gz"
        nibabel.save(image, path)
        written = only(predict(volume_run, path, tmp_path / f"out_{number}")) / "mask.nii.gz"
        mask, source = nibabel.load(written), nibabel.load(path)
        corners = np.array(np.meshgrid(*[(0, edge - 1) for edge in source.shape], [1])).reshape(4, -1)
        assert np.abs(mask.affine @ corners - source.affine @ corners).max() < 1e-3
        for form in ("sform", "qform"):
            assert mask.header[f"{form}_code"] == source.header[f"{form}_code"]
        masks.append(mask)
    back = masks[1].as_reoriented(orientations.ornt_transform(orientations.axcodes2ornt(axes), now))
    assert masks[0].get_fdata().any() and np.array_equal(back.get_fdata(), masks[0].get_fdata())


@pytest.mark.parametrize("ending", [".nii", ".mha", ".nrrd"])
def test_a_picture_in_a_format_of_volumes_gets_a_mask_of_two_axes(
    ending: str, volume_run: Path, volumes: Dataset, tmp_path: Path
) -> None:
    values = voxels(scan(volumes.dataset_dir))[..., 5]
    path = tmp_path / f"scan{ending}"
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(values.T))
    image.SetSpacing([0.5, 0.75])
    image.SetOrigin([3, -4])
    SimpleITK.WriteImage(image, str(path))
    mask = SimpleITK.ReadImage(str(only(predict(volume_run, path, tmp_path / "out", threshold=0.0)) / f"mask{ending}"))
    assert mask.GetSize() == image.GetSize() and SimpleITK.GetArrayFromImage(mask).all()
    for get in ("GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(getattr(mask, get)(), getattr(image, get)(), atol=1e-6)


def test_both_forms_of_a_header_are_handed_on_and_its_texts_are_not(
    volume_run: Path, volumes: Dataset, tmp_path: Path
) -> None:
    values = voxels(scan(volumes.dataset_dir))
    image = nibabel.Nifti2Image(values, None)
    image.header.set_qform(AFFINES["oblique"], 1)
    image.header.set_sform(AFFINES["oblique"], 4)
    image.header["descrip"] = b"Jane Doe"
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension(6, b"Jane Doe"))
    nibabel.save(image, tmp_path / "scan.nii")
    mask = nibabel.load(only(predict(volume_run, tmp_path / "scan.nii", tmp_path / "out")) / "mask.nii")
    assert isinstance(mask, nibabel.Nifti2Image)
    assert (int(mask.header["qform_code"]), int(mask.header["sform_code"])) == (1, 4)
    assert np.array_equal(mask.get_qform(), image.get_qform()) and np.array_equal(mask.get_sform(), image.get_sform())
    assert b"Jane" not in mask.to_bytes()


def test_an_ensemble_is_the_mean_of_its_networks(
    volume_run: Path, other_run: Path, volumes: Dataset, tmp_path: Path
) -> None:
    source = scan(volumes.dataset_dir)
    single = [
        voxels(only(predict(run, source, tmp_path / str(n), probabilities=True)) / "probability.nii.gz")
        for n, run in enumerate((volume_run, other_run))
    ]
    out = only(predict(f"[{volume_run},{other_run}]", source, tmp_path / "both", probabilities=True))
    np.testing.assert_allclose(voxels(out / "probability.nii.gz"), np.mean(single, axis=0), atol=1e-6)
    np.testing.assert_allclose(voxels(out / "disagreement.nii.gz"), np.ptp(single, axis=0), atol=1e-6)
    threshold = np.mean([metrics(run)["threshold"] for run in (volume_run, other_run)])
    report = read_json(out / "report.json")
    assert report["threshold"] == pytest.approx(threshold) and len(report["models"]) == 2
    assert np.array_equal(voxels(out / "mask.nii.gz"), voxels(out / "probability.nii.gz") >= np.float32(threshold))
    for wrong in (f"[{volume_run},{volume_run}]", f"[{volume_run},{volume_run}/../{volume_run.name}]", "[]", ""):
        assert "run_dir" in str(refusal(lambda wrong=wrong: predict(wrong, source, tmp_path / "no")))


def test_one_bad_study_does_not_stop_the_others(
    volume_run: Path, volumes: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = tmp_path / "tree"
    good = scan(volumes.dataset_dir)
    for name, data in (
        ("Anna/flair.nii.gz", good.read_bytes()[:-700]),
        ("Bert/flair.nii.gz", good.read_bytes()),
        ("Carl/flair.nii", b""),
        ("Dora/flair.nii.gz", scan(volumes.dataset_dir).with_name("mask.nii.gz").read_bytes()),
    ):
        (tree / name).parent.mkdir(parents=True)
        (tree / name).write_bytes(data)
    nibabel.save(nibabel.Nifti1Image(np.full((8, 8, 4), np.nan, np.float32), np.eye(4)), tree / "Dora" / "x_flair.nii")
    nibabel.save(nibabel.Nifti1Image(np.zeros((8, 8, 4, 2), np.float32), np.eye(4)), tree / "Dora" / "y_flair.nii")
    flow = prediction(volume_run, tree, tmp_path / "out")
    flow.initialize()
    with pytest.raises(SystemExit) as stopped:
        flow.run()
    assert stopped.value.code == 1
    summary = read_json(tmp_path / "out" / "summary.json")
    assert summary["failed"] == 4 and [row["status"] for row in summary["studies"]].count("predicted") == 2
    shown = capsys.readouterr().out + str(summary)
    for word in ("truncated or damaged", "header is none", "finite numbers", "1 channels"):
        assert word in shown
    for name in ("Anna", "Bert", "Carl", "Dora"):
        assert name not in shown


def test_a_prediction_that_was_cut_short_goes_on(
    volume_run: Path, volumes: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """By a full disk at the third study, which the system reports while a file is flushed."""
    out, real, calls = tmp_path / "out", os.fsync, []

    def full(handle: int) -> None:
        if len([path for path in out.glob("study_*") if path.is_dir()]) == 2 and out.glob(".partial-*"):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    error = refusal(lambda: predict(volume_run, volumes.dataset_dir, out))
    assert isinstance(error, ConfigError) and "No space left" in str(error) and "make room" in str(error)
    monkeypatch.setattr(os, "fsync", real)
    finished = {path: data for path, data in contents(out).items() if path.startswith("study_")}
    assert len(finished) == 6 and not list(out.glob(".partial-*"))
    calls.clear()
    capsys.readouterr()
    predict(volume_run, volumes.dataset_dir, out)
    assert capsys.readouterr().out.count("there already") == 2
    assert finished.items() <= contents(out).items() and len(list(out.glob("study_*"))) == 4
    # Again, with nothing left to do; then with something else, which is refused.
    before = {path: data for path, data in contents(out).items() if path.startswith("study_")}
    predict(volume_run, volumes.dataset_dir, out)
    assert before.items() <= contents(out).items()
    for changes in ({"threshold": 0.9}, {"flips": False}, {"probabilities": True}, {"names": "path"}):
        assert "output_dir" in str(refusal(lambda c=changes: predict(volume_run, volumes.dataset_dir, out, **c)))


def test_results_are_not_written_over(volume_run: Path, volumes: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    assert "output_dir" in str(refusal(lambda: predict(volume_run, volumes.dataset_dir, out)))
    assert "is a file" in str(refusal(lambda: predict(volume_run, volumes.dataset_dir, out / "mine.txt")))
    # A study that changed since.
    tree, done = tmp_path / "tree", tmp_path / "done"
    shutil.copytree(volumes.dataset_dir / "patient_0", tree)
    predict(volume_run, tree, done, names="path")
    shutil.copy(volumes.dataset_dir / "patient_1" / "flair.nii.gz", tree / "flair.nii.gz")
    with pytest.raises(SystemExit):
        predict(volume_run, tree, done, names="path")
    assert "changed" in read_json(done / "summary.json")["studies"][0]["why"]


def test_what_lies_outside_of_the_training_is_said(volume_run: Path, volumes: Dataset, tmp_path: Path) -> None:
    values = voxels(scan(volumes.dataset_dir))
    cases = {
        "slices are 5 mm apart": (values, np.diag([1, 1, 5.0, 1])),
        "slices are sagittal": (values, np.array([[0, 0, 1.0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])),
        "channel 'flair'": (values * 9, np.eye(4)),
    }
    for number, (words, (data, affine)) in enumerate(cases.items()):
        path = tmp_path / f"case_{number}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(data, affine), path)
        warnings = read_json(only(predict(volume_run, path, tmp_path / f"out_{number}")) / "report.json")["warnings"]
        assert len(warnings) == 1 and words in warnings[0], warnings


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"threshold": 2}, "threshold"),
        ({"threshold": "high"}, "threshold"),
        ({"chunk": 0}, "chunk"),
        ({"flips": 3}, "flips"),
        ({"probabilities": "maybe"}, "probabilities"),
        ({"names": "patient"}, "names"),
        ({"input": "nowhere"}, "input"),
        ({"run_dir": "nowhere"}, "nowhere"),
        *(
            ({name: value}, f"{name} must be a path")
            for name in ("run_dir", "input", "output_dir")
            for value in ("x" * 5000, "a\0b", True, {"a": 1}, "")
        ),
        *(({"device": value}, "device") for value in (3.5, ["cpu"], {}, True, "nan")),
    ],
)
def test_wrong_options(changes: dict[str, Any], words: str, volume_run: Path, volumes: Dataset, tmp_path: Path) -> None:
    options = {"run_dir": str(volume_run), "input": str(volumes.dataset_dir)} | changes
    options = {"output_dir": str(tmp_path / "out"), "device": "cpu"} | options

    def run() -> None:
        flow = ConfigWorkflow(
            config_file=str(BUNDLES / "inference.json"), workflow_type="infer", logging_file=False, **options
        )
        flow.initialize()
        flow.run()

    error = refusal(run)
    assert words in str(error) and len(str(error)) < 400 and isinstance(error, ConfigError | DataError)
    assert not (tmp_path / "out").exists()


def test_a_tree_without_scans(volume_run: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    assert "found none" in str(refusal(lambda: predict(volume_run, tmp_path, tmp_path / "out")))


def test_colours_need_a_model_of_colours(volume_run: Path, tmp_path: Path) -> None:
    tree = write_lgg(tmp_path / "tree", 1)
    with pytest.raises(SystemExit):
        predict(volume_run, tree, tmp_path / "out")
    assert "found 3" in read_json(tmp_path / "out" / "summary.json")["studies"][0]["why"]


class CountingInferer(SimpleInferer):
    """Counts the slices of each forward pass."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, inputs: Any, network: Any, *args: Any, **options: Any) -> Any:
        self.batches.append(len(inputs))
        return super().__call__(inputs, network, *args, **options)


def test_slices_of_several_studies_share_a_forward_pass(finished_run: Path, tmp_path: Path) -> None:
    """Pictures of several sizes, one of them broken: the masks are those of each picture alone."""
    for number, shape in enumerate([(40, 48), (36, 36), (40, 48), (52, 40), (40, 48)]):
        image, _ = scan_of(number, shape, 1)
        Image.fromarray(image[..., 0]).save(tmp_path / f"{'abcde'[number]}.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "a.png").read_bytes()[:300])
    inferer = CountingInferer()
    ensemble = Ensemble(str(finished_run), device="cpu", flips=False, chunk=3)
    predictor = Predictor(ensemble, str(tmp_path), str(tmp_path / "out"), names="path", inferer=inferer)
    with pytest.raises(SystemExit):
        predictor.run()
    assert inferer.batches == [2, 3]  # the one between them cannot be read
    for name in "abcde":
        alone = Predictor(ensemble, str(tmp_path / f"{name}.png"), str(tmp_path / f"out_{name}"), names="path")
        alone.run()
        one, other = (
            np.asarray(Image.open(o / name / "mask.png")) for o in (tmp_path / "out", tmp_path / f"out_{name}")
        )
        assert np.array_equal(one, other)
    rows = read_json(tmp_path / "out" / "summary.json")["studies"]
    assert [row["study"] for row in rows] == ["a", "b", "broken", "c", "d", "e"]


def test_a_network_that_answers_nan_fails_the_study_that_it_answers_so_for(finished_run: Path, tmp_path: Path) -> None:
    for number in range(3):
        image, _ = scan_of(number, slices=1)
        Image.fromarray(image[..., 0]).save(tmp_path / f"{'abc'[number]}.png")

    class Nan(CountingInferer):
        def __call__(self, inputs: Any, network: Any, *args: Any, **options: Any) -> Any:
            answers = super().__call__(inputs, network, *args, **options)
            answers[1] = torch.nan
            return answers

    ensemble = Ensemble(str(finished_run), device="cpu", flips=False)
    predictor = Predictor(ensemble, str(tmp_path), str(tmp_path / "out"), names="path", inferer=Nan())
    with pytest.raises(SystemExit):
        predictor.run()
    rows = read_json(tmp_path / "out" / "summary.json")["studies"]
    assert [row["status"] for row in rows] == ["predicted", "failed", "predicted"]
    assert "finite numbers" in rows[1]["why"] and not (tmp_path / "out" / "b").exists()


@pytest.mark.parametrize("recipe", ["bf16", "sr"])
@pytest.mark.parametrize("arch", ["unet", "swin"])
def test_a_picture_has_one_answer_alone_and_in_any_company(arch: str, recipe: str) -> None:
    """To the last bit, also in FP4, where tensors that are scaled apart are rounded otherwise than one alone."""
    torch.manual_seed(0)
    network = build_network(arch, "500k", 1, 1, image_size=(64, 64), spatial_dims=2)
    network, _ = convert(network, Recipe.from_config(recipe), dtype=torch.bfloat16)
    network = to_channels_last(network, (64, 64)).eval()
    pictures = [torch.randn(1, 1, 64, 64) * (1 + number) for number in range(4)]

    def answers(scans: list[torch.Tensor]) -> list[torch.Tensor]:
        options = {"device": torch.device("cpu"), "inferer": SimpleInferer()}
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            return [piece for _, piece in segment_pieces(network, scans, [(64, 64)] * len(scans), **options)]

    together = answers(pictures)
    for picture, answer in zip(pictures, together, strict=True):
        assert torch.equal(answers([picture])[0], answer)
    assert torch.equal(answers([pictures[2], pictures[0]])[0], together[2])


def test_one_prediction_at_a_time_writes_into_a_folder(volume_run: Path, volumes: Dataset, tmp_path: Path) -> None:
    with FolderLock(tmp_path / "out" / ".lock", "prediction"):
        error = refusal(lambda: predict(volume_run, volumes.dataset_dir, tmp_path / "out"))
    assert "one prediction at a time" in str(error)
    predict(volume_run, volumes.dataset_dir, tmp_path / "out")
    assert not list((tmp_path / "out").glob(".*"))


def test_an_interrupted_prediction_goes_on(
    volume_run: Path, volumes: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Stopped(CountingInferer):
        def __call__(self, *args: Any, **options: Any) -> Any:
            if len(self.batches) == 1:
                raise KeyboardInterrupt
            return super().__call__(*args, **options)

    ensemble = Ensemble(str(volume_run), device="cpu", flips=False)
    predictor = Predictor(ensemble, str(volumes.dataset_dir), str(tmp_path / "out"), inferer=Stopped())
    with pytest.raises(SystemExit) as stopped:
        predictor.run()
    assert stopped.value.code == 130 and "goes on after the last finished study" in capsys.readouterr().err
    Predictor(ensemble, str(volumes.dataset_dir), str(tmp_path / "out")).run()
    assert "there already" in capsys.readouterr().out


def test_names_of_studies_that_no_folder_can_have(volume_run: Path, volumes: Dataset, tmp_path: Path) -> None:
    """Called like the prediction's own files, too long, or alike where large and small letters are not told apart."""
    data = [volumes.dataset_dir / f"patient_{n}" / "flair.nii.gz" for n in range(4)]
    names = ["summary.json.nii.gz", "/".join("x" * 90 for _ in range(3)) + ".nii.gz", "anna b.nii.gz", "Anna_B.nii.gz"]
    for source, name in zip(data, names, strict=True):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, tmp_path / "in" / name)
    predict(volume_run, tmp_path / "in", tmp_path / "out", names="path")
    found = {path.parent.name for path in (tmp_path / "out").glob("*/report.json")}
    assert found == {"summary.json_2", f"{'x' * 90}_{'x' * 90}_{'x' * 18}", "Anna_B", "anna_b_2"}


def test_a_mask_of_an_earlier_prediction_that_is_gone_or_cut_is_not_there_already(
    volume_run: Path, volumes: Dataset, tmp_path: Path
) -> None:
    source, out = scan(volumes.dataset_dir), tmp_path / "out"
    mask = only(predict(volume_run, source, out)) / "mask.nii.gz"
    mask.write_bytes(mask.read_bytes()[:-9])
    for _ in range(2):
        with pytest.raises(SystemExit):
            predict(volume_run, source, out)
        assert "mask.nii.gz of an earlier" in read_json(out / "summary.json")["studies"][0]["why"]
        mask.unlink(missing_ok=True)


def test_a_channel_without_anything_in_it_is_said(finished_run: Path, held_out: Dataset, tmp_path: Path) -> None:
    """Also where its mean and spread, 0 and 1, are those of scans that were normalised before."""
    run, source = tmp_path / "run", tmp_path / "in"
    shutil.copytree(finished_run, run)
    known = read_json(run / "training_data.json")
    (run / "training_data.json").write_text(json.dumps(known | {"mean": [[-1, 1]] * 3, "spread": [[0.9, 1.1]] * 3}))
    images = np.random.default_rng(0).normal(size=(3, 20, 22, 5)).astype(np.float32)
    images[1] = 0
    source.mkdir()
    for name, image in zip(metrics_channels(run), images, strict=True):
        nibabel.save(nibabel.Nifti1Image(image, np.eye(4)), source / f"{name}.nii.gz")
    warnings = read_json(only(predict(run, source, tmp_path / "out")) / "report.json")["warnings"]
    assert [each for each in warnings if "one value everywhere" in each] == [
        f"channel '{metrics_channels(run)[1]}' holds one value everywhere, as if it were missing"
    ]


def test_a_warning_of_several_studies_is_told_once_and_of_how_many(
    volume_run: Path, volumes: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(volume_run, run)
    (run / "training_data.json").unlink()
    out = predict(run, volumes.dataset_dir, tmp_path / "out")
    warning = "the run kept no training_data.json, so the scan was not compared with its training"
    told, studies = capsys.readouterr().out, read_json(out / "summary.json")["studies"]
    assert len(studies) > 1 and all(warning in study["warnings"] for study in studies)
    assert told.count(f"  warning: {warning}\n") == 1 and told.count(warning) == 2
    assert f"\nwarning of {len(studies)} studies: {warning}\n" in told


def metrics_channels(run: Path) -> list[str]:
    return read_json(run / "patients.json")["channels"]


def test_a_damaged_report_of_an_earlier_prediction(volume_run: Path, volumes: Dataset, tmp_path: Path) -> None:
    source, out = scan(volumes.dataset_dir), tmp_path / "out"
    (only(predict(volume_run, source, out)) / "report.json").write_text("{")
    with pytest.raises(SystemExit):
        predict(volume_run, source, out)
    assert "a damaged one; remove study_" in read_json(out / "summary.json")["studies"][0]["why"]


@pytest.mark.parametrize("content", ["{}", '{"spacing": 1, "planes": [], "mean": [], "spread": []}', "[]", "{", "null"])
def test_a_damaged_training_data_json(content: str, volume_run: Path, volumes: Dataset, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(volume_run, run)
    (run / "training_data.json").write_text(content)
    assert "training_data.json" in str(refusal(lambda: predict(run, scan(volumes.dataset_dir), tmp_path / "out")))


def test_a_run_of_an_earlier_version_knows_less_of_its_training(
    volume_run: Path, volumes: Dataset, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(volume_run, run)
    known = read_json(run / "training_data.json")
    earlier = {name: value for name, value in known.items() if name not in ("modalities", "slices")}
    (run / "training_data.json").write_text(json.dumps(earlier))
    out = predict(run, scan(volumes.dataset_dir), tmp_path / "out")
    assert read_json(only(out) / "report.json")["warnings"] == []


def test_slices_of_a_tilted_gantry_are_warned_of(volume_run: Path, volumes: Dataset, tmp_path: Path) -> None:
    values = voxels(scan(volumes.dataset_dir))
    nibabel.save(nibabel.Nifti1Image(values, AFFINES["sheared"]), tmp_path / "scan.nii.gz")
    report = read_json(only(predict(volume_run, tmp_path / "scan.nii.gz", tmp_path / "out")) / "report.json")
    assert any("shifted against each other" in warning for warning in report["warnings"])
