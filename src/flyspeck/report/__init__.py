"""Tables, metrics, one HTML file."""

from flyspeck.callable_package import make_callable
from flyspeck.report.html import Appendix, build_report
from flyspeck.report.runs import RunReport, read_run, read_runs

__all__ = ["Appendix", "RunReport", "build_report", "read_run", "read_runs"]

make_callable(__name__, "flyspeck.report.page:report")  # `flyspeck.report(...)`
