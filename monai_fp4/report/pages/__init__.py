"""The pages of a report: `templates` say what stands where, `contexts` gives them values, `write` makes the folder."""

from monai_fp4.report.pages.contexts import build_pages
from monai_fp4.report.pages.write import write_report

__all__ = ["build_pages", "write_report"]
