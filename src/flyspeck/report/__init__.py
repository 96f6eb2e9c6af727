"""Tables, metrics, one HTML file."""

from flyspeck.callable_package import make_callable
from flyspeck.report.html import Section, build_report
from flyspeck.report.runs import RunReport, read_run, read_runs

__all__ = ["RunReport", "Section", "build_report", "read_run", "read_runs"]

make_callable(__name__, "flyspeck.report.page:report")  # `flyspeck.report(...)`
