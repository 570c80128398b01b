"""Reports: from what a run left on the disk to a page and to figures."""

from secateur.report.figure import compare_losses, save_comparison, save_spread
from secateur.report.page import render, write_page
from secateur.report.read import RunRecord, read_run

__all__ = [
    "RunRecord",
    "compare_losses",
    "read_run",
    "render",
    "save_comparison",
    "save_spread",
    "write_page",
]
