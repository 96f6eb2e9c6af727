"""Models that leave Python, with the same boxes."""

from flyspeck.callable_package import make_callable

make_callable(__name__, "flyspeck.export.exporting:export")  # `flyspeck.export(...)`
