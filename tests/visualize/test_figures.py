from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar
from PIL import Image
from synthetic_patients import synthetic_cohort

from monai_fp4.metrics import ScoreHistogram
from monai_fp4.metrics.bootstrap import Interval
from monai_fp4.visualize import (
    Overlay,
    Reason,
    SliceGallery,
    overlay_figure,
    pr_curve_figure,
    probabilities_figure,
    save_figure,
    to_array,
)


@pytest.fixture(scope="module")
def histogram() -> ScoreHistogram:
    result = ScoreHistogram()
    for patient in synthetic_cohort():
        result.add(patient["pred"], patient["label"])
    return result


def texts(figure) -> str:
    found = [axes.get_title() for axes in figure.axes]
    for holder in (*figure.axes, figure):
        for legend in [holder.get_legend()] if hasattr(holder, "get_legend") else holder.legends:
            found += [text.get_text() for text in legend.get_texts()] if legend else []
    return "\n".join(found)


def test_pr_curve_draws_the_steps_whose_area_it_names(histogram):
    figure = pr_curve_figure(histogram, threshold=0.4, interval=Interval(value=0.9, low=0.8, high=0.95))
    assert f"AUPRC {histogram.auprc():.3f} (95 % interval 0.800 to 0.950)" in texts(figure)
    line = figure.axes[0].lines[0]
    recall, precision = line.get_data()
    assert float(np.diff(recall) @ precision[1:]) == pytest.approx(histogram.auprc(), abs=2e-3)
    counts = histogram.confusion(0.4)
    point = figure.axes[0].lines[-1].get_data()
    assert (float(point[0][0]), float(point[1][0])) == (counts.recall, counts.precision)


def test_pr_curve_without_interval_or_threshold(histogram):
    text = texts(pr_curve_figure(histogram, threshold=math.nan))
    assert "interval" not in text and "threshold" not in text


def test_probabilities_name_the_number_of_distinct_values(histogram):
    assert f"{histogram.distinct:,} distinct" in texts(probabilities_figure(histogram, threshold=0.4))
    merged = histogram.with_capacity(256)
    assert "more than" in texts(probabilities_figure(merged, threshold=0.4))


def test_overlays_name_patient_slice_and_misses():
    gallery = SliceGallery(1, 0.4)
    for patient in synthetic_cohort():
        gallery.add(patient)
    overlays = [overlay for slices in gallery.chosen(0.4).values() for overlay in slices]
    figure = overlay_figure(overlays, threshold=0.4, title="x")
    text = texts(figure)
    missed = overlays[1]
    count = int((missed.label & (missed.probability < 0.4)).sum())
    assert f"patient {missed.number}\nslice {missed.index + 1}: Dice 0.00, recall 0.00" in text
    assert f"{missed.label.sum()} lesion voxels: {count} missed" in text
    assert to_array(figure).ndim == 3


def test_the_same_figure_gives_the_same_file(histogram, tmp_path):
    for name in ("a.png", "b.png"):
        save_figure(probabilities_figure(histogram, threshold=0.4), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "b.png"]
    with Image.open(tmp_path / "a.png") as image:
        assert image.size[0] > 500


def test_legends_stand_beside_the_curves(histogram):
    for figure in (pr_curve_figure(histogram, threshold=0.4), probabilities_figure(histogram, threshold=0.4)):
        to_array(figure)  # draws
        (legend,) = figure.legends
        assert not legend.get_window_extent().overlaps(figure.axes[0].get_window_extent())


def test_a_picture_shows_a_number_and_no_name(tmp_path):
    overlay = Overlay(
        patient="Doe_Jane",
        number=7,
        index=0,
        reason=next(iter(Reason)),
        amount=0.0,
        image=np.zeros((8, 8)),
        label=np.zeros((8, 8), bool),
        probability=np.zeros((8, 8)),
    )
    figure = overlay_figure([overlay], threshold=0.5)
    save_figure(figure, tmp_path / "x.png")
    assert "patient 7\n" in texts(figure) and "Doe" not in texts(figure) and (tmp_path / "x.png").exists()


def test_a_mask_of_all_pixels_is_outlined_and_wide_slices_stand_close():
    full = np.ones((20, 60), bool)
    shown = Overlay(
        patient="anna", number=1, index=0, reason=Reason.LARGEST, amount=1.0, image=np.zeros((20, 60), np.float32),
        label=full, probability=full.astype(np.float32),
    )  # fmt: skip
    wide = overlay_figure([shown], threshold=0.5)
    picture = to_array(wide).astype(int)
    green = (np.abs(picture - (0, 230, 118)).sum(-1) < 120).any(0)
    assert np.flatnonzero(green)[-1] - np.flatnonzero(green)[0] > 150  # around the picture, and not in the legend alone
    above = [axes for axes in wide.axes if axes.images and axes.get_title()]
    assert all(axes.get_xlim() == (-0.5, 59.5) and axes.get_ylim() == (19.5, -0.5) for axes in above[:2])
    assert wide.get_figheight() < 5


def test_sides_scale_and_pixels_that_are_no_squares_are_drawn_where_they_are_known():
    known = {"patient": "a", "number": 1, "index": 0, "reason": Reason.LARGEST, "amount": 1.0}
    known |= {"image": np.zeros((40, 60), np.float32), "label": np.ones((40, 60), bool)}
    shown = Overlay(**known, probability=np.ones((40, 60), np.float32), spacing=(3.0, 1.0))
    figure = overlay_figure([shown], threshold=0.5)
    above = figure.axes[0]
    words = {text.get_text(): text.get_position()[0] for text in above.texts}
    assert words["R"] < 0.5 < words["L"] and above.get_aspect() == 3
    (bar,) = (each for each in above.artists if isinstance(each, AnchoredSizeBar))
    assert bar.txt_label.get_text() == "20 mm" and bar.size_bar.get_children()[0].get_width() == 20
    unknown = overlay_figure([replace(shown, spacing=None)], threshold=0.5)
    assert not unknown.axes[0].texts and unknown.axes[0].get_aspect() == 1
