"""Writes the report: pages, pictures, tables, in one folder that needs nothing from anywhere else.

Every page holds its own style and script, and every link is relative, so that the folder opens offline, from a memory
stick or out of a mail. A folder that holds anything but an earlier report is refused; of an earlier report, files that
this one does not write are removed.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from io import BytesIO
from itertools import chain
from pathlib import Path

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from monai_fp4.atomic import read_json, write_atomically
from monai_fp4.errors import ConfigError
from monai_fp4.report.analyse import analyse
from monai_fp4.report.figures.picture import save_picture
from monai_fp4.report.formulas import is_formula
from monai_fp4.report.pages.cells import format_cell
from monai_fp4.report.pages.contexts import build_pages
from monai_fp4.report.statistics import MARGIN
from monai_fp4.report.tables import StudyTables, collect

__all__ = ["environment", "write_report"]

_MARK = "report.json"
_OWN = re.compile(r"[a-z_]+\.html|(figures|data)/[\w-]+\.(png|svg|csv|parquet)", re.ASCII)
"""Files of a report, below its folder."""


def write_report(
    study: str | Path, output_dir: str | Path | None = None, margin: float = MARGIN
) -> tuple[Path, StudyTables]:
    """Read a study folder and write its report.

    Args:
        study: folder of a ``monai-fp4 sweep``.
        output_dir: of the report; ``report`` within the study by default.
        margin: loss of recall or AUPRC that is taken not to matter.

    Returns:
        The first page, and the study's tables.

    Raises:
        ConfigError: no study, a margin that is not above 0, or a folder that holds something else or cannot be written
        to.
    """
    if not margin > 0:
        raise ConfigError(f"margin must be above 0, but {margin} was given; 0.01 is the default")
    folder = Path(output_dir) if output_dir is not None else Path(study) / "report"
    previous = _previous(folder)
    tables = collect(study)
    found = analyse(tables, margin)
    pages = build_pages(found)
    if not (folder / _MARK).exists():  # so that a report which is cut off can be written again
        _write_mark(folder, "", previous)
    written = [_MARK]
    for page in pages:
        for picture in chain.from_iterable(page.pictures.values()):
            names = [f"figures/{picture.name}.{kind}" for kind in ("png", "svg")]
            if names[0] not in written:
                save_picture(picture, folder / "figures")
                written += names
    for name, frame in found.frames.items():
        _write_table(folder / "data" / name, frame)
        written += [f"data/{name}.csv", f"data/{name}.parquet"]
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    templates = environment()
    shared = {
        "pages": pages,
        "title": f"{tables.data_set}: FP4 study",
        "made": made,
        "tables": tables,
        "definition": tables.definition,
        "frames": found.frames,
        "margin": margin,
    }
    for page in pages:
        template = templates.get_template(f"{page.name}.html.j2")
        html = template.render(shared, page=page, pictures=page.pictures, **page.values)
        write_atomically(folder / f"{page.name}.html", html)
        written.append(f"{page.name}.html")
    for name in previous:
        if name not in written:
            (folder / name).unlink(missing_ok=True)
    _write_mark(folder, made, written)
    return folder / "index.html", tables


def environment() -> Environment:
    """The templates of all pages, and the filter that formats the cells of their tables."""
    found = Environment(
        loader=PackageLoader("monai_fp4.report.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["cell"] = format_cell
    return found


def _write_mark(folder: Path, made: str, files: list[str]) -> None:
    write_atomically(folder / _MARK, json.dumps({"monai_fp4_report": 1, "made": made, "files": files}, indent=2) + "\n")


def _previous(folder: Path) -> list[str]:
    """Files of the report that the folder holds; none for a new one."""
    if not folder.exists():
        return []
    if not folder.is_dir():
        raise ConfigError(f"output_dir must be a folder, but {folder} is a file; choose another output_dir")
    for part in ("figures", "data"):
        if (folder / part).is_symlink():
            raise ConfigError(
                f"output_dir must hold the whole report, but {folder / part} is a link that leads elsewhere; remove it"
            )
    try:
        names = read_json(folder / _MARK)["files"]
    except (ConfigError, KeyError, TypeError):
        names = None
    if isinstance(names, list):  # anything else than a report's own was not written by one
        return [name for name in names if isinstance(name, str) and _OWN.fullmatch(name)]
    if any(folder.iterdir()):
        raise ConfigError(
            f"output_dir must be new or hold an earlier report, but {folder} holds other files; choose another"
            " output_dir"
        )
    return []


def _write_table(path: Path, frame: pd.DataFrame) -> None:
    shown = frame.map(lambda value: f"'{value}" if is_formula(value) else value)
    write_atomically(path.with_suffix(".csv"), shown.to_csv(index=False, lineterminator="\n"))
    buffer = BytesIO()
    # A column of options may mix numbers and texts, which Parquet does not know.
    mixed = {name: frame[name].map(str, na_action="ignore") for name in frame if frame[name].dtype == object}
    frame.assign(**mixed).to_parquet(buffer, index=False)
    write_atomically(path.with_suffix(".parquet"), buffer.getvalue())
