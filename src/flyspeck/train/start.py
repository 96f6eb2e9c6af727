"""Fine-tuning: a detector that starts from another one's weights, tensor by tensor, with a report of each."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from flyspeck.errors import UserError
from flyspeck.models.detector import Detector
from flyspeck.models.start import snapshot
from flyspeck.models.start.report import StartReport
from flyspeck.models.start.rows import Outputs
from flyspeck.models.start.torchvision_keys import guess, read_source
from flyspeck.models.start.transfer import Source, source_of, transfer
from flyspeck.models.weights import levels_from_shared, read_weights, refuse_shard
from flyspeck.train.checkpoint import load_weights
from flyspeck.train.start_names import Start, find_start

log = logging.getLogger("flyspeck")


Build = Callable[..., Detector]
"""A checkpoint's description, and `where` for errors, to the detector that it describes (`build.detector_from_description`)."""


def take_over(detector: Detector, start: Path | str, *, build: Build) -> StartReport:
    """Gives `detector` what fits of `start` (a run folder, a weights file, a name: `start_names`), and reports every tensor.

    Rows of classes go by name, levels by stride, anchors by shape (`models.start.transfer`); what depends on the images (mean
    and deviation) stays as it is. `build` makes the detector that a run describes, whose levels, classes and anchors say what
    its tensors stand for. Raises UserError unless the whole backbone fits.
    """
    found = find_start(start)
    report = transfer(detector, _source(found, detector, build), where=found.file)
    for line in report.summary():
        log.info("%s", line)
    return report


def _source(start: Start, detector: Detector, build: Build) -> Source:
    if start.is_torchvision:
        return read_source(start.name, file=start.file)
    if snapshot.is_snapshot(start.name):
        return snapshot.read_source(start.name, detector)
    refuse_shard(start.file)
    if start.file.suffix != ".safetensors":
        _refuse_foreign(start.file)
    state, description = load_weights(start.file)
    name = start.name if Path(start.name) == start.file else f"{start.name} ({start.file})"
    licence = start.licence or str(description.get("licence") or "")
    state = levels_from_shared(state, detector.state_dict())
    try:
        with torch.device("meta"):  # its shapes are enough
            like = build(description, where=start.file)
    except (
        UserError
    ) as error:  # a plugin of its run is missing: what needs no knowledge of its head is taken all the same
        note = f"it cannot be built here ({error}): last layers are taken where the classes are the same"
        return Source(name, state, Outputs(tuple(description["classes"]), {}), licence=licence, notes=(note,))
    source = source_of(name, state, like, licence=licence)
    passed_on = [str(one["source"]) for one in description.get("starts", ()) if one.get("source")]
    return replace(source, notes=(f"which itself started from {', '.join(passed_on)}",)) if passed_on else source


def _refuse_foreign(file: Path) -> None:
    """Raises UserError for a file that is none of flyspeck's, with what it seems to be."""
    state: dict[str, Tensor] = read_weights(file)
    if (name := guess(state)) is not None:
        raise UserError(
            f"the weights of torchvision's {name}, as it seems",
            where=file,
            fix=f"write start: torchvision:{name}@{file}",
        )
    raise UserError(
        "no weights of a flyspeck detector (those are .safetensors), nor of one of torchvision's",
        where=file,
        fix="for the weights of a backbone alone, use model.weights",
    )
