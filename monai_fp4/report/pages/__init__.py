"""The pages of a report: `content` says what stands where, `blocks` is HTML, `write` makes the folder."""

from monai_fp4.report.pages.content import build_pages
from monai_fp4.report.pages.write import write_report

__all__ = [
    "build_pages",
    "write_report",
]
