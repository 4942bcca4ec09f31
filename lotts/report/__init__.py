"""A run as something to look at and to keep: one picture of everything, and a folder of files."""

from lotts.report.page import draw_report
from lotts.report.save import save_output

__all__ = ["draw_report", "save_output"]
