"""Numbers that mean something: named protocols on one matcher, and the reasons behind a score. NumPy only."""

from flyspeck.callable_package import make_callable
from flyspeck.evaluate.catalogue import PROTOCOLS, customised, protocol_named
from flyspeck.evaluate.detections import DetectionTable
from flyspeck.evaluate.diagnosis import Diagnosis, diagnose
from flyspeck.evaluate.evaluation import evaluate
from flyspeck.evaluate.protocols import Protocol
from flyspeck.evaluate.results import EvaluationResult

__all__ = [
    "PROTOCOLS",
    "DetectionTable",
    "Diagnosis",
    "EvaluationResult",
    "Protocol",
    "customised",
    "diagnose",
    "evaluate",
    "protocol_named",
]

make_callable(__name__, "flyspeck.evaluate.scoring:evaluate")  # `flyspeck.evaluate(...)`
