"""flyspeck: find the tiny things in big images.

The names below are the library's front door. They are resolved on first use, so that `import flyspeck` costs nothing and
an exported model can be run where torch is not installed. The whole job is eight functions: `inspect`, `train`, `evaluate`,
`build`, `load_predictor`, `predict`, `export`, `report`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from flyspeck.version import VERSION

__version__ = VERSION

if TYPE_CHECKING:
    from flyspeck.data.annotations import Annotations as Annotations
    from flyspeck.data.checks.split import Split as Split
    from flyspeck.data.checks.split import split as split
    from flyspeck.data.images import read_image as read_image
    from flyspeck.data.inspection import Inspection as Inspection
    from flyspeck.data.inspection import inspect as inspect
    from flyspeck.data.loading import DetectionDataset as DetectionDataset
    from flyspeck.data.loading import make_loader as make_loader
    from flyspeck.data.policy import CutPolicy as CutPolicy
    from flyspeck.data.readers import read_annotations as read_annotations
    from flyspeck.data.scenes.dataset import write_scenes as write_scenes
    from flyspeck.data.writers import write_coco as write_coco
    from flyspeck.errors import UserError as UserError
    from flyspeck.evaluate.detections import DetectionTable as DetectionTable
    from flyspeck.evaluate.results import EvaluationResult as EvaluationResult
    from flyspeck.evaluate.scoring import evaluate as evaluate
    from flyspeck.export.exporting import export as export
    from flyspeck.export.proof import Exported as Exported
    from flyspeck.infer.job import predict as predict
    from flyspeck.infer.job_images import PredictionSummary as PredictionSummary
    from flyspeck.infer.load import load_predictor as load_predictor
    from flyspeck.infer.merge import MergeRule as MergeRule
    from flyspeck.infer.predictor import Predictor as Predictor
    from flyspeck.infer.several import ImagesFailed as ImagesFailed
    from flyspeck.infer.windows import OpenOptions as OpenOptions
    from flyspeck.label_errors.run import LabelErrors as LabelErrors
    from flyspeck.label_errors.run import find_label_errors as find_label_errors
    from flyspeck.label_errors.suspects import Suspect as Suspect
    from flyspeck.models.by_name import build as build
    from flyspeck.models.detector import Detector as Detector
    from flyspeck.plan.auto import AutoRun as AutoRun
    from flyspeck.plan.auto import auto as auto
    from flyspeck.plan.init import Initialised as Initialised
    from flyspeck.plan.init import init as init
    from flyspeck.plugins import load_plugin as load_plugin
    from flyspeck.register import register_backbone as register_backbone
    from flyspeck.register import register_detector as register_detector
    from flyspeck.register import register_neck as register_neck
    from flyspeck.register import register_protocol as register_protocol
    from flyspeck.register import register_reader as register_reader
    from flyspeck.register import register_transform as register_transform
    from flyspeck.register import register_writer as register_writer
    from flyspeck.report.page import report as report
    from flyspeck.train.build import load_detector as load_detector
    from flyspeck.train.config import Recipe as Recipe
    from flyspeck.train.config import load_recipe as load_recipe
    from flyspeck.train.trained import TrainedRun as TrainedRun
    from flyspeck.train.trained import train as train
    from flyspeck.types import Detections as Detections
    from flyspeck.types import FeatureSpec as FeatureSpec
    from flyspeck.types import ImageBatch as ImageBatch
    from flyspeck.types import Sample as Sample
    from flyspeck.types import Targets as Targets

# Packages that can be called as the function of their name (`flyspeck.callable_package`).
_CALLED = ("evaluate", "export", "report", "train")

_HOMES = {
    "Annotations": "flyspeck.data.annotations",
    "AutoRun": "flyspeck.plan.auto",
    "CutPolicy": "flyspeck.data.policy",
    "DetectionDataset": "flyspeck.data.loading",
    "DetectionTable": "flyspeck.evaluate.detections",
    "Detections": "flyspeck.types",
    "Detector": "flyspeck.models.detector",
    "EvaluationResult": "flyspeck.evaluate.results",
    "Exported": "flyspeck.export.proof",
    "FeatureSpec": "flyspeck.types",
    "ImageBatch": "flyspeck.types",
    "ImagesFailed": "flyspeck.infer.several",
    "Initialised": "flyspeck.plan.init",
    "Inspection": "flyspeck.data.inspection",
    "LabelErrors": "flyspeck.label_errors.run",
    "MergeRule": "flyspeck.infer.merge",
    "OpenOptions": "flyspeck.infer.windows",
    "PredictionSummary": "flyspeck.infer.job_images",
    "Predictor": "flyspeck.infer.predictor",
    "Recipe": "flyspeck.train.config",
    "Sample": "flyspeck.types",
    "Split": "flyspeck.data.checks.split",
    "Suspect": "flyspeck.label_errors.suspects",
    "Targets": "flyspeck.types",
    "TrainedRun": "flyspeck.train.trained",
    "UserError": "flyspeck.errors",
    "auto": "flyspeck.plan.auto",
    "build": "flyspeck.models.by_name",
    "find_label_errors": "flyspeck.label_errors.run",
    "init": "flyspeck.plan.init",
    "inspect": "flyspeck.data.inspection",
    "load_detector": "flyspeck.train.build",
    "load_plugin": "flyspeck.plugins",
    "load_predictor": "flyspeck.infer.load",
    "load_recipe": "flyspeck.train.config",
    "make_loader": "flyspeck.data.loading",
    "predict": "flyspeck.infer.job",
    "read_annotations": "flyspeck.data.readers",
    "read_image": "flyspeck.data.images",
    "register_backbone": "flyspeck.register",
    "register_detector": "flyspeck.register",
    "register_neck": "flyspeck.register",
    "register_protocol": "flyspeck.register",
    "register_reader": "flyspeck.register",
    "register_transform": "flyspeck.register",
    "register_writer": "flyspeck.register",
    "split": "flyspeck.data.checks.split",
    "write_coco": "flyspeck.data.writers",
    "write_scenes": "flyspeck.data.scenes.dataset",
}

__all__ = ["__version__", *sorted([*_HOMES, *_CALLED])]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _CALLED:
        return import_module(f"flyspeck.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'flyspeck' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
