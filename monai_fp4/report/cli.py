"""``monai-fp4 report study/``: the study's pages, from its own files.

The libraries of the extra ``report`` are imported once the command runs, so that the rest of ``monai-fp4`` does
without.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from monai_fp4.errors import ConfigError, MonaiFP4Error

__all__ = ["build_parser", "main"]

_EXTRA = ("jinja2", "pandas", "pyarrow", "scipy")


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        prog="monai-fp4 report",
        description="Write the report of a study: pages that open offline, pictures, CSV and Parquet.",
    )
    parser.add_argument("study", help="folder of a 'monai-fp4 sweep', finished or not")
    parser.add_argument("--output_dir", help="folder of the report (default: report/ within the study)")
    parser.add_argument(
        "--margin", type=float, default=0.01, help="loss of recall or AUPRC that does not matter (default: %(default)s)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Write a report and say where it is.

    Args:
        argv: the arguments after ``report``; None takes ``sys.argv``.

    Returns:
        0, or 1 after an error, which is one sentence on stderr.
    """
    args = build_parser().parse_args(argv)
    try:
        page, done, total = _write(args)
    except MonaiFP4Error as error:
        if os.environ.get("MONAI_FP4_DEBUG"):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
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


if __name__ == "__main__":
    sys.exit(main())
