"""Tables, figures, one HTML file."""

from flyspeck.report.html import build_report
from flyspeck.report.runs import RunReport, read_run

__all__ = ["RunReport", "build_report", "read_run"]
