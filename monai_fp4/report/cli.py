"""``monai-fp4 report study/`` and ``monai-fp4 manifest report m.json``: pages on a study, and on a data folder.

The libraries of the extra ``report`` are imported once the command runs; the rest of ``monai-fp4`` does without.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from monai_fp4.atomic import write_atomically
from monai_fp4.errors import ConfigError

if TYPE_CHECKING:
    from argparse import _SubParsersAction

__all__ = ["add_manifest_report", "add_parser"]

logger = logging.getLogger(__name__)

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


def add_manifest_report(actions: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the action ``report`` to those of the command ``manifest``."""
    parser = actions.add_parser(
        "report",
        help="one page for the browser: what the files hold, and what may be wrong",
        description="Read every patient of a manifest and write one page: counts, folds, spacing, intensities, lesion "
        "volumes, pictures with the mask's outline, suspected duplicates and mask shifts. It names patients by their "
        "keys in the manifest, holds no path and needs no network. Exit status 1: patients could not be read.",
    )
    parser.add_argument("manifest", help="a path or a shipped name, as for 'manifest check'")
    parser.add_argument("--dataset_dir", required=True, help="the data folder")
    parser.add_argument("--output", default="manifest_report.html", help="the page to write (default: %(default)s)")
    parser.add_argument(
        "--persons",
        metavar="CSV",
        help="also write a table for 'manifest build --groups', in which patients that seem to show the same are one "
        "person, whom folds keep together",
    )
    parser.add_argument("--force", action="store_true", help="write over existing files")
    parser.set_defaults(func=_manifest_report)


def _manifest_report(args: argparse.Namespace) -> int:
    logger.info("reading manifest %s ...", args.manifest)
    from monai_fp4.data.manifest import refuse_existing

    with _needs_extra():
        from monai_fp4.report.pages.manifest import write_manifest_report
        from monai_fp4.report.survey.findings import findings, reasons
        from monai_fp4.report.survey.persons import persons_of
    if args.persons and not args.force:
        refuse_existing(Path(args.persons), "table of persons")
    found = write_manifest_report(args.manifest, args.dataset_dir, args.output, force=args.force)
    print(f"{len(found.measured)} of {len(found.manifest.patients)} patients read; open {args.output} in a browser.")
    if args.persons:
        rows = persons_of(found)
        write_atomically(Path(args.persons), rows.to_csv(index=False, lineterminator="\n"))
        print(f"{len(rows)} patients, {rows['person'].nunique()} persons: {args.persons}")
    for reason, patients in reasons(found).items():
        print(f"{', '.join(patients)}: {reason}", file=sys.stderr)
    for sentence, _ in findings(found):
        print(f"warning: {sentence}", file=sys.stderr)
    return 1 if found.unreadable else 0


def _report(args: argparse.Namespace) -> int:
    logger.info("reading the study in %s ...", args.study)
    with _needs_extra():
        from monai_fp4.report.pages.write import write_report
    page, tables = write_report(args.study, args.output_dir, args.margin)
    done, total = int(tables.cells["status"].eq("done").sum()), len(tables.cells)
    if not done:
        print(f"No cell of {total} is finished: the report lists them and holds no results.")
    elif done < total:
        print(f"A partial report: {done} of {total} cells are finished, the others are listed.")
    else:
        print(f"All {total} cells are finished.")
    print(f"Open {page} in a browser.")
    return 0


@contextmanager
def _needs_extra() -> Iterator[None]:
    """Say which extra to install where a library of the reports is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] not in _EXTRA:
            raise
        raise ConfigError(
            f"a report needs the extra 'report', but {error.name} is not installed; pip install 'monai-fp4[report]'"
        ) from None
