"""The report as a folder of files: links, tables, pictures, and what Chromium makes of them where it is installed."""

from __future__ import annotations

import json
from html import unescape
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from browser import CHROMIUM, chromium
from html_document import Document
from synthetic_study import definition, write_study

from monai_fp4.cli import main
from monai_fp4.report.pages import write_report
from monai_fp4.report.tables import collect
from monai_fp4.study.layout import Cell, CellStatus

PAGES = ["index", "recipes", "claims", "quality", "statistics", "outputs", "health", "cost", "cells", "data"]


def partly(cell: Cell) -> CellStatus:
    if (cell.arch, cell.recipe, cell.seed) == ("swin", "sr", 2):
        return CellStatus.FAILED
    if (cell.arch, cell.recipe, cell.seed) == ("swin", "full", 2):
        return CellStatus.RUNNING
    return CellStatus.WAITING if (cell.arch, cell.fold) == ("swin", 1) else CellStatus.DONE


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two architectures, two folds, three seeds; partial, of two code versions, a damaged cell and an own recipe."""
    path = tmp_path_factory.mktemp("study")
    recipes = {"mine": {"base": "sr", "bf16_last_share": 0.1}, "bf16": "bf16", "full": "full", "sr": "sr"}
    folder = write_study(
        path, definition(recipes=recipes, folds=(0, 1)), status=partly, version=lambda c: f"0.{c.seed % 2}", patients=5
    )
    (folder.run_dir(Cell("unet", "500k", "sr", 1, 2)) / "metrics.json").write_text('{"finished": tr')
    return path


@pytest.fixture(scope="module")
def report(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report")
    assert main(["report", str(study), "--output_dir", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def documents(report: Path) -> dict[str, Document]:
    return {name: Document(report / f"{name}.html") for name in PAGES}


def test_every_page_is_there_and_no_other(report: Path) -> None:
    assert sorted(path.stem for path in report.glob("*.html")) == sorted(PAGES)


def test_every_link_leads_to_a_file_of_the_folder(report: Path, documents: dict[str, Document]) -> None:
    for name, page in documents.items():
        ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
        assert len(ids) == len(set(ids)), f"{name}: an id stands twice"
        targets = [a["href"] for a in page.all("a")] + [i["src"] for i in page.all("img")]
        assert len(targets) > len(PAGES)
        for target in targets:
            parts = urlsplit(target)
            assert not parts.scheme and not parts.netloc and not parts.path.startswith("/"), target
            if parts.path:
                assert (report / parts.path).is_file(), target
            elif parts.fragment:
                assert parts.fragment in ids, target


def test_nothing_comes_from_elsewhere(report: Path) -> None:
    for path in report.glob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert "http://" not in text and "https://" not in text and "@import" not in text, path.name
        assert "<script src" not in text and 'rel="stylesheet"' not in text


def test_pages_can_be_read_without_seeing_them(documents: dict[str, Document]) -> None:
    for name, page in documents.items():
        assert page.all("html")[0]["lang"] == "en" and len(page.all("h1")) == 1
        assert [a["aria-current"] for a in page.all("a") if "aria-current" in a] == ["page"]
        assert all(len(image["alt"]) > 20 for image in page.all("img")), name
        assert all(heading.get("scope") in ("col", "row") for heading in page.all("th")), name
        assert len(page.all("caption")) == len(page.all("table"))
        levels = [int(tag[1]) for tag, _ in page.elements if tag in ("h1", "h2", "h3", "h4")]
        assert all(b - a <= 1 for a, b in pairwise(levels)), f"{name} skips a level of headings"


def test_every_cell_of_the_definition_is_listed_with_its_state(study: Path, documents: dict[str, Document]) -> None:
    cells = collect(study).cells
    assert documents["cells"].text.count("0.0") >= 1
    rows = [tag for tag, _ in documents["cells"].elements if tag == "tr"]
    assert len(rows) == len(cells) + 1
    overview = documents["index"].text
    for _, cell in cells[cells["status"] != "done"].iterrows():
        assert cell["id"] in overview and cell["status"] in overview
    assert "This is a partial report" in overview and "loss is NaN" in overview and "1 damaged" in overview
    assert "run by 2 versions of the code: 0.0, 0.1" in overview
    assert "Fold in which seeds are compared 0 Begun with version" in overview, "0 is known"


def test_every_page_says_that_the_report_is_partial(study: Path, documents: dict[str, Document]) -> None:
    tables = collect(study)
    for name, page in documents.items():
        said = "This is a partial report" if name == "index" else "Partial report"
        assert said in page.text, name
        assert name == "index" or f"{len(tables.done)} of {len(tables.cells)} cells are finished" in page.text


def test_every_recipe_of_the_study_is_explained(study: Path, documents: dict[str, Document]) -> None:
    text = documents["data"].text
    assert "mine Forward and backward products in FP4; gradients rounded stochastically; the last 10 %" in text
    assert "bf16 Nothing is quantized" in text and "sensitivity" in text


def test_every_picture_has_both_forms_and_a_caption_with_its_cells(
    report: Path, documents: dict[str, Document]
) -> None:
    names = {image["src"] for page in documents.values() for image in page.all("img")}
    assert len(names) >= 15
    for name in names:
        picture = matplotlib.image.imread((report / name).with_suffix(".png"))
        assert picture[..., :3].std() > 0.01, f"{name} is blank"
        assert (report / name).read_text(encoding="utf-8").startswith("<?xml")
    for page in documents.values():
        assert len(page.all("figcaption")) == len(page.all("img"))
        text = page.text
        if page.all("img"):
            assert text.count("code version") >= len(page.all("img"))
            for words in ("n = ", "seeds", "fold", "epochs 4", "image size 64x64"):
                assert text.count(words) >= 1


def test_csv_and_parquet_hold_the_same(report: Path, study: Path) -> None:
    names = sorted(path.stem for path in (report / "data").glob("*.csv"))
    assert names == sorted(path.stem for path in (report / "data").glob("*.parquet")) and "cells" in names
    for name in names:
        text, binary = pd.read_csv(report / f"data/{name}.csv"), pd.read_parquet(report / f"data/{name}.parquet")
        assert list(text.columns) == list(binary.columns) and len(text) == len(binary), name
        for column in binary.select_dtypes("number"):
            assert np.allclose(text[column].astype(float), binary[column].astype(float), equal_nan=True), (name, column)
    cells = pd.read_parquet(report / "data/cells.parquet")
    assert len(cells) == len(collect(study).cells)


def test_the_advice_page_puts_limits_before_recipes(documents: dict[str, Document]) -> None:
    text = documents["recipes"].text
    assert text.index("What the evidence does not cover") < text.index("By model")
    assert "recall is judged first" in text and "mine" in text


def test_under_the_paper_s_protocol_the_report_opens_with_its_table(tmp_path: Path) -> None:
    grid = definition(
        archs=("paper_swin", "paper_cnn"), scales=("4m",), recipes={"bf16": "bf16", "sr_rht_2d": "sr_rht_2d"},
        folds=(0, 1, 2), seeds=(2026,), protocol="paper", manifest="lgg_paper",
    )  # fmt: skip
    write_study(tmp_path / "study", grid, tested=True)
    page, tables = write_report(tmp_path / "study", tmp_path / "report")
    html = page.read_text()
    first = html[html.index("<h2") :]
    assert first.startswith('<h2 id="beside-the-paper">')
    assert "0.7038" in first and "folds 3, 4 not planned" in first and "None of the 4 paired differences" in first
    own = tables.cells.query("id == 'paper_cnn_4m/bf16/fold1_seed2026'")["test_auprc"].item()
    assert f"{own:.4f}" in first
    assert "Test AUPRC" in (tmp_path / "report" / "cells.html").read_text()
    assert "lgg_paper" in html and "on whom nothing was chosen" in (tmp_path / "report" / "recipes.html").read_text()


def test_other_studies_do_not_show_the_paper_s_table(report: Path) -> None:
    assert "0.7038" not in (report / "index.html").read_text() and not (report / "data" / "paper_table.csv").exists()
    assert "As the paper tests" in (report / "statistics.html").read_text()


def test_what_runs_do_not_record_is_said_to_be_so(documents: dict[str, Document]) -> None:
    assert documents["outputs"].text.count("Not recorded") == 1, "attention entropy"
    assert "Not recorded" in documents["cost"].text, "memory"
    assert "Not recorded" not in documents["statistics"].text, "there are evaluations of patients"


def test_a_second_report_replaces_the_first_and_only_that(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_study(tmp_path / "study", definition(archs=("unet",), seeds=(0,)), health=False)
    assert main(["report", str(tmp_path / "study")]) == 0
    folder = tmp_path / "study" / "report"
    assert f"Open {folder / 'index.html'}" in capsys.readouterr().out
    written = json.loads((folder / "report.json").read_text())
    (folder / "figures" / "stale.svg").write_text("old")
    (folder / "notes.txt").write_text("the user's own")
    kept = tmp_path / "study" / "study.json"
    files = [*written["files"], "figures/stale.svg", "figures/../../study.json", "../study.json", str(kept), ""]
    (folder / "report.json").write_text(json.dumps(written | {"files": files}))
    assert main(["report", str(tmp_path / "study")]) == 0
    assert not (folder / "figures" / "stale.svg").exists() and (folder / "notes.txt").exists() and kept.exists()
    assert "All 4 cells are finished." in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["file", "other", "no study", "margin", "damaged study"])
def test_what_cannot_be_is_refused_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    write_study(tmp_path / "study", definition(archs=("unet",), seeds=(0,)), health=False)
    out, arguments = tmp_path / "out", [str(tmp_path / "study"), "--output_dir", str(tmp_path / "out")]
    if kind == "file":
        out.write_text("")
    elif kind == "other":
        out.mkdir()
        (out / "thesis.tex").write_text("")
    elif kind == "no study":
        arguments[0] = str(tmp_path)
    elif kind == "margin":
        arguments += ["--margin", "0"]
    else:
        (tmp_path / "study" / "study.json").write_text("{")
    assert main(["report", *arguments]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    assert kind in ("file", "other") or not out.exists()


def test_a_study_without_a_finished_cell_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def state(cell: Cell) -> CellStatus:
        return CellStatus.FAILED if cell.seed == 0 else CellStatus.WAITING

    write_study(tmp_path, status=state)
    assert main(["report", str(tmp_path)]) == 0
    assert "No cell of 24 is finished" in capsys.readouterr().out
    pages = {name: Document(tmp_path / "report" / f"{name}.html") for name in PAGES}
    assert "No cell is finished yet" in pages["index"].text and pages["index"].text.count("loss is NaN") == 8
    assert len(pages["quality"].all("img")) == 3, "the curves so far"


def test_a_study_that_has_not_begun_is_listed(tmp_path: Path) -> None:
    write_study(tmp_path, status=lambda cell: CellStatus.WAITING)
    assert main(["report", str(tmp_path)]) == 0
    pages = {name: Document(tmp_path / "report" / f"{name}.html") for name in PAGES}
    assert not any(page.all("img") for page in pages.values())
    assert pages["cells"].text.count("waiting") == 24


def test_texts_of_users_are_no_markup(tmp_path: Path) -> None:
    recipes = {"bf16": "bf16", "<b>x</b>": "sr"}
    write_study(tmp_path, definition(archs=("unet",), recipes=recipes, seeds=(0,)), health=False)
    assert main(["report", str(tmp_path)]) == 0
    page = Document(tmp_path / "report" / "index.html")
    assert not page.all("b") and "<b>x</b>" in page.text


needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, such as of 'apt-get install chromium'")


@needs_chromium
def test_a_browser_sorts_and_filters_the_cells(report: Path, tmp_path: Path) -> None:
    """A script at the end of a copy does what a reader would, and leaves what it saw in the title."""
    script = """
    const table = document.querySelector("table[data-sorts]"), field = document.querySelector("input[type=search]");
    const button = [...table.querySelectorAll("thead button")].find((b) => b.textContent === "AUPRC");
    const column = button.closest("th").cellIndex;
    const values = () => [...table.tBodies[0].rows].map((row) => row.cells[column].dataset.sort);
    const seen = {before: values()};
    button.click(); seen.up = values(); button.click(); seen.down = values();
    seen.state = button.closest("th").getAttribute("aria-sort");
    field.value = "swin  failed"; field.dispatchEvent(new Event("input"));
    seen.shown = [...table.tBodies[0].rows].filter((row) => !row.hidden).length;
    seen.wide = document.documentElement.scrollWidth <= window.innerWidth;
    document.title = JSON.stringify(seen);
    """
    copy = report / "copy_of_cells.html"
    copy.write_text(
        (report / "cells.html").read_text(encoding="utf-8").replace("</body>", f"<script>{script}</script></body>")
    )
    try:
        result = chromium(copy, "--dump-dom", "--window-size=500,900", profile=tmp_path)
    finally:
        copy.unlink()
    assert "CONSOLE" not in result.stderr, result.stderr
    seen = json.loads(unescape(result.stdout.split("<title>", 1)[1].split("</title>", 1)[0]))
    known = sorted(float(value) for value in seen["before"] if value)
    assert [float(v) for v in seen["up"] if v] == known and [float(v) for v in seen["down"] if v] == known[::-1]
    unknown = len(seen["before"]) - len(known)
    assert unknown > 0 and seen["up"][-unknown:] == seen["down"][-unknown:] == [""] * unknown, "unknown ones stay below"
    assert seen["state"] == "descending" and seen["shown"] == 2 and seen["wide"]


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_draws_the_pages_in_both_schemes(report: Path, tmp_path: Path, scheme: str) -> None:
    shot = tmp_path / "shot.png"
    options = ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    result = chromium(
        report / "index.html", *options, f"--screenshot={shot}", "--window-size=800,600", profile=tmp_path
    )
    assert shot.exists(), result.stderr
    corner = matplotlib.image.imread(shot)[2, 2, :3].mean()
    assert corner < 0.2 if scheme == "dark" else corner > 0.9
