"""Tables, figures, one HTML file."""

from flyspeck.report.html import Appendix, build_report
from flyspeck.report.runs import RunReport, read_run, read_runs

__all__ = ["Appendix", "RunReport", "build_report", "read_run", "read_runs"]
