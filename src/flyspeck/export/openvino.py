"""An ONNX model as OpenVINO's two files, `.xml` and `.bin`, its description inside."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flyspeck.errors import missing_extra
from flyspeck.export.metadata import conventions
from flyspeck.infer.exported import KEY
from flyspeck.infer.openvino_model import the_core


def write_openvino(model: Any, path: Path, description: Mapping[str, Any]) -> None:
    """An `onnx.ModelProto` as `path` (`.xml`) and the `.bin` beside it. Weights stay fp32; bf16 is chosen when it runs."""
    try:
        import openvino
    except ImportError:
        raise missing_extra("openvino", "export") from None
    converted: Any = the_core().read_model(model.SerializeToString())
    for name, text in {KEY: json.dumps(description), **conventions(description)}.items():
        converted.set_rt_info(text, [name])
    openvino.save_model(converted, path, compress_to_fp16=False)
