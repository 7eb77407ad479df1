"""The tables of the studies, written from what benchmarks/study.py leaves in benchmarks/results/study_<name>.json.

A study has a table of each kind below, under ``study_<name>_<kind>``. Whatever is not finished is said to be: a mean of
fewer seeds than planned says of how many, and a cell that was not run is "not run".
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from result_tables import NOT_RUN, RESULTS, markdown, measured

STUDIES = ("lgg_500k", "lgg_500k_attention", "lgg_unet_scales", "nodules_500k", "lgg_paper_500k_excerpt")
"""Studies that the pages speak of, run or not."""
_MEANINGS = {
    "open": "neither a loss beyond the margin nor its absence is shown",
    "hint of loss": "lower, but not certain once the number of comparisons is counted",
    "supported": "recall and AUPRC are shown to lose less than the margin",
    "advised against": "one of them is shown to lose",
}
_NAMED = 5
"""A verdict of no more comparisons than this names them."""
_METRICS = {"recall": "Recall", "auprc": "AUPRC", "distinct_scores": "distinct levels"}


def _models(content: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(cell["model"] for cell in content["cells"]))


def _of(content: Mapping[str, Any], model: str, recipe: str) -> list[dict[str, Any]]:
    return [cell for cell in content["cells"] if (cell["model"], cell["recipe"]) == (model, recipe)]


def _listed(values: list[Any]) -> str:
    return ", ".join(map(str, values)) or "not recorded"


def protocol(content: Mapping[str, Any], name: str) -> str:
    """What was run, on what, by which code, and how much of it is finished."""
    p = content["protocol"]
    options = ", ".join(f"{k} {' x '.join(map(str, v)) if isinstance(v, list) else v}" for k, v in p["options"].items())
    states = ", ".join(f"{count} {status}" for status, count in sorted(p["statuses"].items()))
    done = p["statuses"].get("done", 0)
    whole = "All" if done == p["cells"] else "**Partial:**"
    rows = [
        ["Data", f"`{p['data_set']}`, {_listed(p['train_patients'])} patients to train on, "
         f"{_listed(p['val_patients'])} to validate on"],
        ["Grid", f"{_listed(p['archs'])}; {_listed(p['scales'])}; {len(p['recipes'])} recipes; seeds "
         f"{_listed(p['seeds'])}; folds {_listed(p['folds'])}"],
        ["Finished", f"{whole} {done} of {p['cells']} cells" + ("" if done == p["cells"] else f" ({states})")],
        ["Options", f"{options}; {_otherwise(p)} otherwise"],
        ["Code", f"{_listed(p['versions'])}; backend {_listed(p['backend'])} on {_listed(p['device'])}"],
        ["Machine", p["cpu"]],
    ]  # fmt: skip
    if found := content.get("repeated"):
        rows.append(
            [
                "Repeated",
                f"{found['cells']} of the cells had been run before, by {_listed(found['versions'])}: "
                f"{found['identical']} of them have the same metrics to the last of six digits",
            ]
        )
    source = f"From `benchmarks/results/study_{name}.json`, by `benchmarks/study.py`."
    return markdown(["What", "Value"], rows) + "\n\n" + source


def _otherwise(plan: Mapping[str, Any]) -> str:
    return f"those of the protocol `{plan['protocol']}`" if plan.get("protocol") else "the bundles' own"


def quality(content: Mapping[str, Any], name: str, metric: str) -> str:
    """Mean and standard deviation over the seeds, and the share of BF16: a row a recipe, a column a model."""
    models = _models(content)
    shares = {(c["model"], c["recipe"]): c["percent"] for c in content["comparisons"] if c["metric"] == metric}

    def entry(model: str, recipe: str) -> str:
        cells = _of(content, model, recipe)
        values = [cell[metric] for cell in cells if cell["status"] == "done" and metric in cell]
        if not cells:
            return "not planned"
        if not values:
            return "not run"
        said = f"{statistics.fmean(values):.3f}"
        said += f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
        said += f", {shares[model, recipe]:.1f} %" if (model, recipe) in shares else ""
        return said if len(values) == len(cells) else f"{said} ({len(values)} of {len(cells)})"

    rows = [[f"`{recipe}`", *(entry(model, recipe) for model in models)] for recipe in content["protocol"]["recipes"]]
    words = (
        f"{_METRICS[metric]}: mean ± standard deviation over the seeds, and the mean over BF16 of the same seed; in "
        "brackets how many of the planned seeds are finished, where it is not all of them."
    )
    if any(cell["status"] != "done" for cell in content["cells"]):
        words += " While seeds are missing, only the percentages compare: two means may be of different seeds."
    return markdown([f"{_METRICS[metric]}", *models], rows) + "\n\n" + words


def summary(content: Mapping[str, Any], name: str) -> str:
    """The study in a few sentences: how its comparisons end, between what they lie, what explains the variance."""
    pairs = [c for c in content["comparisons"] if c["metric"] == "auprc"]
    verdicts: dict[str, list[str]] = {}
    for pair in pairs:
        verdicts.setdefault(pair.get("advice", "no verdict"), []).append(f"{pair['model']} `{pair['recipe']}`")
    counts = sorted(verdicts.items(), key=lambda item: -len(item[1]))
    ends = "; ".join(
        f"{len(which)} *{verdict}*" + (f" ({', '.join(which)})" if len(which) <= _NAMED else "")
        for verdict, which in counts
    )
    said = [f"Of {len(pairs)} comparisons with BF16: {ends}."]
    meanings = [f"*{verdict}*: {_MEANINGS[verdict]}" for verdict, _ in counts if verdict in _MEANINGS]
    said += [f"{'; '.join(meanings)}; the margin is {content['margin']:g}."] if meanings else []
    for metric in ("recall", "auprc"):
        known = [c for c in content["comparisons"] if c["metric"] == metric]
        if known:
            low, high = (pick(known, key=lambda c: c["percent"]) for pick in (min, max))
            word = "recall" if metric == "recall" else "AUPRC"
            said.append(
                f"Mean {word} lies between {low['percent']:.1f} % ({low['model']} `{low['recipe']}`) and "
                f"{high['percent']:.1f} % ({high['model']} `{high['recipe']}`) of BF16's."
            )
    shares = {row["source"]: row for row in content["variance"]}
    if {"arch", "recipe"} <= set(shares):
        words = {"arch": "the architecture", "recipe": "the recipe"}
        parts = (f"{w} {100 * shares[k]['eta_squared']:.1f} % (p {_equals(shares[k]['p'])})" for k, w in words.items())
        said.append(f"The variance of AUPRC: {', '.join(parts)}.")
    return " ".join(said)


def _equals(p: float) -> str:
    return _p(p) if p < 0.001 else f"= {_p(p)}"


def comparisons(content: Mapping[str, Any], name: str) -> str:
    """Every recipe beside BF16, recall and AUPRC, with what the tests say."""
    found = {(c["model"], c["recipe"], c["metric"]): c for c in content["comparisons"]}
    rows = []
    for model, recipe in itertools.product(_models(content), content["protocol"]["recipes"]):
        tests = [found.get((model, recipe, metric)) for metric in ("recall", "auprc")]
        if not any(tests):
            continue
        known = [test for test in tests if test is not None]
        entries = [_test(test) if test else "not run" for test in tests]
        rows.append([model, f"`{recipe}`", str(known[0]["n"]), *entries, known[0].get("advice", "")])
    if not rows:
        return "No recipe has a finished cell beside a finished BF16 cell of its seed."
    # What Holm's correction counts: a single pair has a difference and no p.
    count = sum(key[2] == "auprc" and "p_holm" in test for key, test in found.items())
    words = (
        f"Difference to BF16 of the same seed with its 95 % t interval; p of a paired t-test, corrected (Holm) over "
        f"the rows with two pairs or more ({count}); p < margin: that a loss of {content['margin']:g} or more is "
        "excluded, corrected too. "
        "[What the last column means](howto/report.md#how-to-read-supported-open-and-advised-against)."
    )
    header = ["Model", "Recipe", "n", "Recall", "AUPRC", "Verdict"]
    return markdown(header, rows) + "\n\n" + words


def _test(test: Mapping[str, Any]) -> str:
    said = f"{test['mean']:+.4f}"
    if "low" in test:
        said += f" ({test['low']:+.4f} to {test['high']:+.4f}); p {_p(test['p_holm'])}"
        said += f"; p < margin {_p(test['p_margin_holm'])}"
    return said


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def variance(content: Mapping[str, Any], name: str) -> str:
    """The analysis of variance of AUPRC."""
    if not content["variance"]:
        return content["variance_words"]
    rows = [
        [
            row["source"],
            str(row["df"]),
            f"{100 * row['eta_squared']:.1f} %" if "eta_squared" in row else "",
            f"{row['f']:.2f}" if "f" in row else "",
            _p(row["p"]) if "p" in row else "",
        ]
        for row in content["variance"]
    ]
    words = content["variance_words"]
    return markdown(["Source", "df", "Share of the variance of AUPRC", "F", "p"], rows) + f"\n\nSplit plot, {words}"


def claims(content: Mapping[str, Any], name: str) -> str:
    """The paper's claims and what this study says of them; metrics that are judged alike share a row."""
    rows: list[list[str]] = []
    keys = ("claim", "verdict", "numbers", "missing")
    for _, group in itertools.groupby(content["claims"], key=lambda row: tuple(row.get(key, "") for key in keys)):
        own = list(group)
        first = own[0]
        metrics = ", ".join(_METRICS.get(row["metric"], row["metric"]) for row in own)
        words = [first.get("numbers", ""), f"Missing: {first['missing']}" if first.get("missing") else ""]
        count = f" (n = {first['n']})" if first["n"] else ""
        rows.append([first["says"], metrics, f"**{first['verdict']}**{count}", ". ".join(w for w in words if w)])
    return markdown(["The claim", "Judged in", "This study", "Numbers, and what is missing"], rows)


def overhead(content: Mapping[str, Any], name: str) -> str:
    """The share of time in which a place for a cell stood empty."""
    found = content["overhead"]
    if not found:
        return "Not computed: fewer than two cells are finished."
    share = 100 * found["empty_share"]
    said = (
        f"In the study `{name}`, {found['cells']} cells at {found['places']} places took "
        f"{found['cell_seconds']:,.0f} s in all. The first process began {found['start_seconds']:.0f} s after the "
        f"study was written, and the {found['gaps']} gaps between two cells add up to {found['gap_seconds']:.0f} s, "
        f"the longest {found['longest_gap_seconds']:.0f} s, by times in whole seconds: a place stood empty for "
        f"{share:.2f} % of the time."
    )
    if found["pauses"]:
        said += (
            f" Not in it are {found['pauses']} pauses of together {found['pause_seconds']:,.0f} s, in which the sweep "
            "had been stopped or cells were begun whose first attempt is not on record."
        )
    watched = measured(f"sweep_watch_{name}", _watched)
    return f"{said} {watched}" if watched != NOT_RUN else said


def _watched(content: Mapping[str, Any]) -> str:
    """What the sweep took of the processor beside its cells."""
    names = sorted(content["by_process"].items(), key=lambda item: -item[1])
    most = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in names[:3])
    cells, rest = content["cell_processor_seconds"], content["sweep_processor_seconds"]
    return (
        f"In {content['wall_seconds'] / 60:.0f} minutes of it the cells took {cells:,.0f} s of processor time, and Ray "
        f"and the driver {rest:.0f} s ({most}): {100 * content['share_of_cells']:.2f} % more."
    )


def tested(content: Mapping[str, Any], name: str) -> str:
    """AUPRC of the patients that chose the weights and of those that did not, a row a model and recipe."""

    def mean(cells: list[dict[str, Any]], metric: str) -> str:
        values = [cell[metric] for cell in cells if metric in cell]
        spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
        return f"{statistics.fmean(values):.3f}{spread}" if values else "not run"

    rows = []
    for model, recipe in itertools.product(_models(content), content["protocol"]["recipes"]):
        planned = _of(content, model, recipe)
        done = [cell for cell in planned if cell["status"] == "done"]
        chosen = sorted(cell["best_epoch"] for cell in done)
        epochs = "" if not chosen else str(chosen[0]) if chosen[0] == chosen[-1] else f"{chosen[0]} to {chosen[-1]}"
        begun = [cell["epochs_done"] for cell in planned if cell["status"] != "done" and cell.get("epochs_done")]
        seeds = f"{len(done)} of {len(planned)}" + (f", {len(begun)} begun ({max(begun)} epochs)" if begun else "")
        rows.append([model, f"`{recipe}`", seeds, mean(done, "auprc"), mean(done, "test_auprc"), epochs])
    header = ["Model", "Recipe", "Seeds finished", "AUPRC, validation", "AUPRC, test", "Epoch of the weights"]
    words = "Mean ± standard deviation over the finished seeds. The validation patients chose the weights; the test"
    return markdown(header, rows) + f"\n\n{words} patients were seen once, with those."


def excerpt(content: Mapping[str, Any], name: str) -> str:
    """What a page says of a part of the paper's protocol: both sets of patients, and nothing that it cannot test."""
    judged = {**content, "claims": [claim for claim in content["claims"] if claim["verdict"] != "not tested"]}
    parts = [protocol(content, name), tested(content, name), comparisons(content, name)]
    return "\n\n".join(
        [*parts, claims(judged, name) if judged["claims"] else "No claim of the paper can be tested yet."]
    )


def brief(content: Mapping[str, Any], name: str) -> str:
    """What a page says of a further study, in one go."""
    parts = [partial(quality, metric="recall"), partial(quality, metric="auprc"), comparisons, claims]
    return "\n\n".join(part(content, name) for part in (protocol, *parts))


def attention(content: Mapping[str, Any], name: str) -> str:
    """What attention in FP4 adds to a study: those recipes beside what they are built on, and the claims on them."""
    plan = content["protocol"]
    added = [recipe for recipe in plan["recipes"] if "+attention" in recipe]
    shown = ["bf16", *dict.fromkeys(word for recipe in added for word in (recipe.removesuffix("+attention"), recipe))]
    models = {cell["model"] for cell in content["cells"] if cell["recipe"] in added}
    part = {
        **content,
        "protocol": {**plan, "recipes": [recipe for recipe in shown if recipe in plan["recipes"]]},
        "cells": [cell for cell in content["cells"] if cell["model"] in models and cell["recipe"] in shown],
        "claims": [claim for claim in content["claims"] if claim["metric"] == "distinct_scores"],
    }
    tables = [partial(quality, metric="recall"), partial(quality, metric="auprc"), levels, claims]
    return "\n\n".join([protocol(content, name), *(table(part, name) for table in tables)])


def levels(content: Mapping[str, Any], name: str) -> str:
    """Distinct probabilities, in thousands: the range over the seeds."""
    models = _models(content)

    def entry(model: str, recipe: str) -> str:
        cells = _of(content, model, recipe)
        values = [c["distinct_scores"] / 1000 for c in cells if c["status"] == "done" and "distinct_scores" in c]
        if not values:
            return "not run" if cells else "not planned"
        said = f"{min(values):.1f}" + (f" to {max(values):.1f}" if len(values) > 1 else "")
        return said if len(values) == len(cells) else f"{said} ({len(values)} of {len(cells)})"

    rows = [[f"`{recipe}`", *(entry(model, recipe) for model in models)] for recipe in content["protocol"]["recipes"]]
    words = (
        "Distinct predicted probabilities over all validation pixels, in thousands, from the least to the most of the"
    )
    return markdown(["Thousands of levels", *models], rows) + f"\n\n{words} finished seeds."


def _table(name: str, kind: Callable[[Mapping[str, Any], str], str]) -> str:
    return measured(f"study_{name}", lambda content: kind(content, name))


KINDS: dict[str, Callable[[Mapping[str, Any], str], str]] = {
    "protocol": protocol,
    "summary": summary,
    "recall": partial(quality, metric="recall"),
    "auprc": partial(quality, metric="auprc"),
    "comparisons": comparisons,
    "variance": variance,
    "claims": claims,
    "overhead": overhead,
    "levels": levels,
    "brief": brief,
    "attention": attention,
    "excerpt": excerpt,
}
_FOUND = [path.stem.removeprefix("study_") for path in sorted(RESULTS.glob("study_*.json"))]
TABLES: dict[str, Callable[[], str]] = {
    f"study_{name}_{kind}": partial(_table, name, table)
    for name in dict.fromkeys((*STUDIES, *_FOUND))
    for kind, table in KINDS.items()
}
