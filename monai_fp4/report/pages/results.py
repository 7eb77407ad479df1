"""The pages of results: quality, statistics, outputs, quantization health, cost."""

from __future__ import annotations

from monai_fp4.report.analyse import Analysis
from monai_fp4.report.figures import cost, effects, health, outputs, quality
from monai_fp4.report.pages.blocks import Column, Page, heading, note, pictures, table, text
from monai_fp4.report.statistics import TESTED
from monai_fp4.report.tables import metric_name

__all__ = ["cost_page", "health_page", "outputs_page", "quality_page", "statistics_page"]

_MODEL_AND_RECIPE = [Column("model", "Model"), Column("recipe", "Recipe")]
_TEST = [
    Column("unit", "Pairs"),
    Column("n", "n", "whole"),
    Column("mean", "Difference", "signed"),
    Column("low", "95 % from", "signed"),
    Column("high", "to", "signed"),
    Column("percent", "% of BF16", "percent"),
    Column("p", "p", "p"),
    Column("p_holm", "p, Holm", "p"),
    Column("p_sign_flip", "p, sign flip", "p"),
    Column("p_margin_holm", "p, loss < margin, Holm", "p"),
]
_BRIEF = [column for column in _TEST if column.source not in ("percent", "p_margin_holm")]


def quality_page(found: Analysis) -> Page:
    """AUPRC by scale, relative to BF16 and by fold, and the loss curves."""
    tables = found.tables
    curves = [quality.curves(tables, measure) for measure in ("train_loss", "val_loss", "auprc")]
    blocks = [
        heading("By scale"),
        *pictures(quality.auprc_by_scale(tables), missing="No finished cell."),
        heading("Relative to BF16"),
        *pictures(
            quality.percent_of_baseline(tables, found.frames["paired"]),
            quality.percent_of_baseline(tables, found.frames["paired"], "recall"),
            missing="No finished cell has a finished BF16 cell of its seed beside it.",
        ),
        heading("By fold"),
        *pictures(quality.five_folds(tables), missing="The study has finished cells of one fold only."),
        heading("Loss curves"),
        *pictures(*curves, missing="No cell has finished an epoch."),
    ]
    return Page(
        "quality",
        "Quality",
        "The paper's figures: AUPRC by scale, relative to BF16, by fold, and every loss curve.",
        blocks,
    )


def statistics_page(found: Analysis) -> Page:
    """Paired tests, variance explained, recipes among each other."""
    tables, frames = found.tables, found.frames
    comparisons, pairs, patients = frames["comparisons"], frames["recipe_pairs"], frames["patient_comparisons"]
    blocks = [heading("Every recipe against BF16")]
    drawn = [effects.differences(tables, comparisons, metric, found.margin) for metric in ("recall", "auprc")]
    blocks += pictures(*drawn, missing="No finished cell has a finished BF16 cell of its seed beside it.")
    if comparisons["p"].isna().any():
        blocks.append(
            note(
                "A dash is a number that cannot be computed: an interval and a p need two pairs or more, and pairs that"
                " do not all differ by the same."
            )
        )
    so_far = " so far, and grows with the study" if len(tables.done) < len(tables.cells) else ""
    for metric in TESTED:
        own = comparisons[comparisons["metric"] == metric]
        if len(own):
            caption = (
                f"{metric_name(metric)}: paired differences to BF16, margin {found.margin:g}; Holm's correction is for"
                f" {len(own)} comparisons{so_far}"
            )
            blocks.append(table(own, [*_MODEL_AND_RECIPE, *_TEST], caption, data="comparisons", filtered=len(own) > 15))
    blocks.append(heading("Patient by patient"))
    if len(patients):
        columns = [
            *_MODEL_AND_RECIPE,
            Column("patients", "Patients", "whole"),
            Column("trainings", "Trainings", "whole"),
            Column("mean", "Difference", "signed"),
            Column("low", "95 % from", "signed"),
            Column("high", "to", "signed"),
        ]
        caption = (
            "AUPRC per patient, finished cells: mean difference to BF16, with a bootstrap interval over patients for"
            " these very trainings; another seed may lead elsewhere"
        )
        blocks.append(table(patients, columns, caption, data="patient_comparisons"))
    else:
        blocks.append(
            note(
                "Not recorded: no cell holds results by patient. An evaluation written into a cell's folder, as"
                " evaluation/, adds them."
            )
        )
    blocks.append(heading("What explains the variance"))
    blocks += pictures(
        effects.variance_explained(tables, frames["variance"], found.variance_words),
        missing=found.variance_words,
    )
    if len(frames["variance"]):
        columns = [
            Column("source", "Source"),
            Column("df", "df", "whole"),
            Column("eta_squared", "Share", "fixed"),
            Column("f", "F", "seconds"),
            Column("p", "p", "p"),
        ]
        blocks.append(table(frames["variance"], columns, "Analysis of variance of AUPRC, split plot", data="variance"))
        blocks.append(
            text(
                "A seed of one model is a plot on which every recipe was tried: effects without the recipe are tested"
                " against seeds within models, those with it against the remainder. The shares describe these cells;"
                " they grow with the range of architectures and scales that somebody chose to try."
            )
        )
    if len(frames.get("axes", ())):
        named = [Column("arch", "Arch"), Column("scale", "Scale"), Column("recipe", "Recipe")]
        columns = [*named, Column("variant", "First"), Column("other", "Second"), *_BRIEF]
        count = len(frames["axes"])
        caption = f"AUPRC of the second less the first; Holm's correction is for {count} comparisons{so_far}"
        blocks += [heading("Further axes"), table(frames["axes"], columns, caption, data="axes", filtered=True)]
    blocks.append(heading("Recipes among each other"))
    if len(pairs):
        columns = [
            Column("model", "Model"),
            Column("recipe", "First"),
            Column("other", "Second"),
            *_BRIEF,
        ]
        caption = f"AUPRC of the second less the first; Holm's correction is for {len(pairs)} comparisons{so_far}"
        blocks.append(table(pairs, columns, caption, data="recipe_pairs", filtered=True))
    else:
        blocks.append(note("No two quantized recipes are finished with the same seed."))
    return Page(
        "statistics",
        "Statistics",
        "What the paper lacks: paired tests, correction for many comparisons, variance explained.",
        blocks,
    )


def outputs_page(found: Analysis) -> Page:
    """Page on the networks' predictions."""
    tables = found.tables
    missing = "Not recorded: no finished cell has a health.json with the probabilities of its best epoch."
    ece = found.frames["calibration"]
    blocks = [
        heading("Precision and recall"),
        *pictures(outputs.pr_curves(tables), missing="Not recorded: no finished cell has a curve."),
        heading("Probabilities"),
        *pictures(outputs.probabilities(tables), missing=missing),
        heading("How many levels"),
        *pictures(outputs.distinct_levels(tables), missing="No finished cell."),
        heading("Attention"),
        *pictures(health.attention(tables), missing="Not recorded by these runs."),
        heading("Calibration"),
        *pictures(outputs.reliability_curves(tables), missing=missing),
    ]
    if len(ece):
        summary = ece.groupby(["model", "recipe"], sort=False).agg(
            ece=("ece", "mean"), ece_above=("ece_above", "mean"), n=("ece", "size")
        )
        columns = [
            *_MODEL_AND_RECIPE,
            Column("n", "Cells", "whole"),
            Column("ece", "ECE, all voxels", "fixed"),
            Column("ece_above", "ECE above 0.07", "fixed"),
        ]
        order = {model: place for place, model in enumerate(tables.models)}
        summary = summary.reset_index().sort_values("model", key=lambda s: s.map(order), kind="stable")
        caption = (
            "Expected calibration error in 14 bins, mean over the finished cells: over all voxels, nearly all of them"
            " background, and over"
        )
        blocks.append(
            table(
                summary,
                columns,
                f"{caption} those with a predicted probability above the lowest bin",
                data="calibration",
            )
        )
    return Page(
        "outputs", "Outputs", "What the networks predict: curves, probabilities, distinct levels, calibration.", blocks
    )


def health_page(found: Analysis) -> Page:
    """Page on what four bits do to each layer."""
    tables = found.tables
    missing = "Not recorded: no cell has a health.json with the health of quantized layers."
    over_time = [health.over_time(tables, measure) for measure in ("snr_db", "underflow", "clipped")]
    by_layer = [health.by_layer(tables, model) for model in tables.models]
    blocks = [
        heading("Over the training"),
        *pictures(*over_time, missing=missing),
        heading("By layer"),
        *pictures(*by_layer, missing=missing),
    ]
    return Page(
        "health", "Quantization health", "How well four bits represent each layer's input, weight and gradient.", blocks
    )


def cost_page(found: Analysis) -> Page:
    """Seconds and memory."""
    costs = found.frames["cost"]
    blocks = [
        heading("Time"),
        *pictures(cost.time(found.tables, costs), missing="No finished cell."),
        heading("Memory"),
        *pictures(cost.memory(found.tables, costs), missing="Not recorded by these runs."),
    ]
    if len(costs):
        columns = [
            *_MODEL_AND_RECIPE,
            Column("cells", "Cells", "whole"),
            Column("epoch_seconds", "Seconds per epoch", "seconds"),
            Column("times_baseline", "Times BF16", "fixed"),
            Column("train_seconds", "Seconds, all cells", "seconds"),
            Column("peak_memory_bytes", "Peak memory, GiB", "bytes"),
        ]
        order = {model: place for place, model in enumerate(found.tables.models)}
        costs = costs.sort_values("model", key=lambda s: s.map(order), kind="stable")
        blocks.append(table(costs, columns, "Cost of every model and recipe, finished cells", data="cost"))
    return Page("cost", "Time and memory", "What the trainings took on the machines that ran them.", blocks)
