"""``monai-fp4 report study/``: the study's pages, from its own files.

The libraries of the extra ``report`` are imported once the command runs; the rest of ``monai-fp4`` does without.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from monai_fp4.errors import ConfigError

if TYPE_CHECKING:
    from argparse import _SubParsersAction

__all__ = ["add_parser"]

_EXTRA = ("jinja2", "pandas", "pyarrow", "scipy")


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command ``report`` to a parser; it sets ``func``, which returns the exit code."""
    parser = subparsers.add_parser(
        "report",
        help="the figures and tables of a study, as a folder for the browser",
        description="Write the report of a study: pages that open offline, pictures, CSV and Parquet.",
    )
    parser.add_argument("study", help="folder of a 'monai-fp4 sweep', finished or not")
    parser.add_argument("--output_dir", help="folder of the report (default: report/ within the study)")
    parser.add_argument(
        "--margin", type=float, default=0.01, help="loss of recall or AUPRC that does not matter (default: %(default)s)"
    )
    parser.set_defaults(func=_report)


def _report(args: argparse.Namespace) -> int:
    page, done, total = _write(args)
    if not done:
        print(f"No cell of {total} is finished: the report lists them and holds no results.")
    elif done < total:
        print(f"A partial report: {done} of {total} cells are finished, the others are listed.")
    else:
        print(f"All {total} cells are finished.")
    print(f"Open {page} in a browser.")
    return 0


def _write(args: argparse.Namespace) -> tuple[object, int, int]:
    try:
        from monai_fp4.report.pages.write import write_report
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] not in _EXTRA:
            raise
        raise ConfigError(
            f"a report needs the extra 'report', but {error.name} is not installed; pip install 'monai-fp4[report]'"
        ) from None
    page, tables = write_report(args.study, args.output_dir, args.margin)
    return page, int(tables.cells["status"].eq("done").sum()), len(tables.cells)
