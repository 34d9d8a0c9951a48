"""Pictures and a page about one run or several."""

from trqam_fast.report.page import write_report
from trqam_fast.runs.plots import write_overview
from trqam_fast.runs.read import Run, read_run

__all__ = ["Run", "read_run", "write_overview", "write_report"]
