"""An exported LiteRT model (`.tflite`), run by LiteRT's interpreter on the CPU. No torch here.

The file holds networks for one window of one size, as signatures, and behind them, as TFLite's associated files are stored, a zip
archive: `flyspeck.json` (what it says of itself, the plan among it) and `labels.txt`. The plan (`flyspeck.export.stages`) says
which network runs when, and which operators (`infer.array_operators`) stand between them.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flyspeck.data.images import match_channels
from flyspeck.devices import processors
from flyspeck.errors import UserError, missing_extra
from flyspeck.infer.array_operators import ARRAY_OPERATORS
from flyspeck.infer.exported import Arrays, ExportedModel, Session, cannot_run
from flyspeck.infer.padding import extended

ENTRY, LABELS = "flyspeck.json", "labels.txt"
WINDOW = "windows"
"""Name of the value that goes in: `(1, H, W, C)`."""

Watch = Callable[[str, dict[str, np.ndarray]], None]


class LiteRTSession(Session):
    """The networks of a file by name; `run` takes the first."""

    def __init__(self, path: Path | str, *, device: str = "auto", precision: str = "fp32") -> None:
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError:
            raise missing_extra("ai-edge-litert", "litert") from None
        self.path = Path(path)
        if device not in ("auto", "cpu"):
            raise UserError(f"a LiteRT file runs on cpu, not on '{device}'", where="device", fix="cpu, or leave it out")
        if precision != "fp32":
            raise UserError(
                f"a LiteRT file has the precision that it was exported with, not {precision}",
                where="--precision",
                fix="leave it out",
            )
        try:
            self._interpreter: Any = Interpreter(model_path=str(self.path), num_threads=processors())
            self._runners = {name: self._runner(name) for name in self._interpreter.get_signature_list()}
        except (ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:160]
            raise UserError(f"not a model that LiteRT opens ({reason})", where=self.path, fix="export again") from None
        self.text = _entry(self.path)

    def _runner(self, name: str) -> Callable[[Sequence[np.ndarray]], list[np.ndarray]]:
        told = self._interpreter.get_signature_list()[name]
        inputs, outputs = sorted(told["inputs"], key=_number), sorted(told["outputs"], key=_number)
        runner = self._interpreter.get_signature_runner(name)
        kinds = {key: np.dtype(value["dtype"]) for key, value in runner.get_input_details().items()}

        def run(values: Sequence[np.ndarray]) -> list[np.ndarray]:
            given = dict(zip(inputs, values, strict=True))
            found = runner(**{key: np.ascontiguousarray(v, kinds[key]) for key, v in given.items()})
            return [found[key].copy() for key in outputs]

        return run

    @property
    def networks(self) -> list[str]:
        """Their names."""
        return list(self._runners)

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """See `Session.run`: of the first network."""
        return self.run_network(self.networks[0], inputs)

    def run_network(self, name: str, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The outputs of a network, in its order, for its inputs, in its order."""
        try:
            return self._runners[name](inputs)
        except (ValueError, RuntimeError) as error:
            raise cannot_run(self.path, inputs, error) from error


def _number(name: str) -> int:
    """`args_3` and `output_3` are the fourth."""
    return int(name.rpartition("_")[2])


_LONGEST = 1 << 24
"""Bytes of a description: a few kilobytes of a zip may stand for any number."""


def _entry(path: Path) -> str | None:
    """What a file says of itself; None where nothing stands behind it."""
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.getinfo(ENTRY).file_size > _LONGEST:
                return None
            return archive.read(ENTRY).decode("utf-8")
    except (zipfile.BadZipFile, KeyError, ValueError, NotImplementedError, RuntimeError, zlib.error, EOFError):
        return None


class LiteRTModel(ExportedModel):
    """Runs the plan of a file, window by window."""

    def __init__(self, session: LiteRTSession, description: dict[str, Any]) -> None:
        super().__init__(session.path, description)
        self._session = session
        try:
            self.largest_window: tuple[int, int] = (int(description["size"][0]), int(description["size"][1]))
            self._steps, self._result = list(description["steps"]), list(description["result"])
            unknown = {s["operator"] for s in self._steps if "operator" in s} - set(ARRAY_OPERATORS)
            missing = {s["network"] for s in self._steps if "network" in s} - set(session.networks)
        except (KeyError, TypeError, IndexError, ValueError):
            raise UserError("its plan cannot be read", where=session.path, fix="export it again") from None
        if unknown or missing:
            what = f"its plan asks for {', '.join(sorted(map(str, unknown | missing)))}"
            raise UserError(f"{what}, which is not there", where=session.path, fix="export it again")
        self.watch: Watch | None = None
        """Called with each network's name and inputs before it runs."""

    def to_batch(self, windows: list[np.ndarray]) -> np.ndarray:
        """Windows of one size to `(B, H, W, C)` of the file's size, the mean at the bottom and the right.

        Raises UserError for windows that are larger.
        """
        (height, width), (most_high, most_wide) = windows[0].shape[:2], self.largest_window
        if height > most_high or width > most_wide:
            raise UserError(
                f"a window of {height}x{width} for a file that takes {most_high}x{most_wide}",
                where=self.path,
                fix=f"give --tile {most_high}x{most_wide}, or export with another --tile",
            )
        space = ((0, most_high - height), (0, most_wide - width))
        whole = [extended(match_channels(window, self.channels), space, self.fill) for window in windows]
        return self.as_taken(np.stack(whole))

    def detection_limit(self, size: tuple[int, int]) -> int | None:
        """See `ExportedModel.detection_limit`: that of the file's size."""
        return super().detection_limit(self.largest_window)

    def run(self, batch: np.ndarray) -> Arrays:
        """See `ExportedModel.run`."""
        found = [self._run_one(batch[row : row + 1]) for row in range(len(batch))]
        boxes, scores, labels, counts = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return boxes, scores, labels, counts

    def _run_one(self, window: np.ndarray) -> list[np.ndarray]:
        """The plan on one window `(1, H, W, C)`."""
        values: dict[str, np.ndarray] = {WINDOW: window}

        def value_of(given: Any) -> Any:
            if isinstance(given, list):
                return [value_of(one) for one in given]
            if isinstance(given, dict):
                return np.array(given["array"], given["type"])
            return values[given] if isinstance(given, str) else given

        for step in self._steps:
            inputs = [value_of(given) for given in step["inputs"]]
            if "network" in step:
                if self.watch is not None:
                    self.watch(step["network"], {f"args_{i}": array for i, array in enumerate(inputs)})
                found = self._session.run_network(step["network"], inputs)
            else:
                result = ARRAY_OPERATORS[step["operator"]](*inputs)
                found = list(result) if isinstance(result, tuple) else [result]
            values.update({name: one for name, one in zip(step["outputs"], found, strict=True) if name is not None})
        return [values[name] for name in self._result]
