"""A detector that chooses its factor leaves Python as a graph for each factor and a driver that finds the same."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from numpy.testing import assert_allclose, assert_array_equal
from tiny_exports import CLASSES, RULE, make_detector, write_images
from torch import nn

from flyspeck.cli.main import main
from flyspeck.errors import UserError
from flyspeck.export.factors import FactorGraph, HalvingPool, PrefixGraph
from flyspeck.export.graph import FixedResize
from flyspeck.export.onnx import describe
from flyspeck.export.package import export_model
from flyspeck.export.proof import ExportOptions
from flyspeck.infer.engines import open_exported
from flyspeck.infer.exported import Session
from flyspeck.infer.factor_model import FactorModel, factor_file
from flyspeck.infer.load import load_model
from flyspeck.infer.torch_model import TorchModel
from flyspeck.models.detector import Detector
from flyspeck.models.dynamic.pooling import resized, run_prefix
from flyspeck.models.dynamic.predictor import Decision
from flyspeck.models.dynamic.router import FactorRouter, attach_predictor
from flyspeck.train.build import describe_model
from flyspeck.train.checkpoint import save_weights
from flyspeck.train.config import DynamicConfig, ModelConfig
from flyspeck.train.dynamic import make_dynamic
from flyspeck.types import Detections, ImageBatch
from same_detections import assert_same_detections

FACTORS = (0.5, 0.33, 0.25)


def make_choosing(stride: str = "kept", stage: str = "stage2") -> tuple[Detector, ModelConfig, FactorRouter]:
    """A detector with private norms that differ, and a predictor whose answers spread around a half."""
    detector, config = make_detector("fcos:resnet18", norm="bn", head={"depth": 1})
    make_dynamic(detector, DynamicConfig(stride=stride, stage=stage))  # pyright: ignore[reportArgumentType]
    router = attach_predictor(detector, widths=(4, 4, 8, 8))
    torch.manual_seed(1)
    with torch.no_grad():
        for norm in (m for m in detector.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 1.5)
        router.predictor.factors.weight.mul_(20)
        router.predictor.factors.bias.zero_()
    return detector.eval(), config, router


@pytest.fixture(scope="module")
def choosing() -> tuple[Detector, ModelConfig, FactorRouter]:
    return make_choosing()


@pytest.fixture(
    scope="module",
    params=[("kept", "stage2"), ("replaced", "stage2"), ("kept", "stage1")],
    ids=["kept", "replaced", "behind a pool"],
)
def any_stride(request: pytest.FixtureRequest) -> tuple[Detector, ModelConfig, FactorRouter]:
    """The stride that the resize stands for is kept behind it, replaced by it, or that of the pool before a stage."""
    return make_choosing(*request.param)


def noise(number: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (number, height, width, 3), np.uint8)


def assert_same(one: Sequence[Detections], other: Sequence[Detections]) -> None:
    assert_same_detections(other, one, box_px=0.01, score=1e-5, rule=RULE, least=6)


class TorchSession(Session):
    """A graph as the engines run it, by torch itself."""

    def __init__(self, graph: nn.Module) -> None:
        self.path, self.text, self.graph = Path("x.onnx"), None, graph.eval()
        self.shapes: list[tuple[int, ...]] = []

    @torch.no_grad()
    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        self.shapes.append(inputs[0].shape)
        return [t.numpy() for t in self.graph(*(torch.from_numpy(array) for array in inputs))]


def test_the_graphs_and_their_driver_find_what_the_detector_does(any_stride) -> None:
    detector, _, router = any_stride
    told = describe(detector, {"model": {"name": "fcos:resnet18"}})
    assert told["factors"] == {"factors": list(FACTORS), "rule": "cheapest", "threshold": 0.5}
    first = TorchSession(PrefixGraph(detector))
    rest = [TorchSession(FactorGraph(detector, factor)) for factor in FACTORS]
    model, eager = FactorModel(first, rest, told), TorchModel(detector)
    batch = list(noise(4, 131, 166))
    seen = model.to_batch(batch)  # padded to 160 x 192
    probabilities = first.run([seen])[0]
    with torch.no_grad():
        images = ImageBatch(torch.from_numpy(seen).permute(0, 3, 1, 2), ((160, 192),) * 4)
        assert_allclose(probabilities, router.probabilities(run_prefix(detector, images)[1], images), atol=1e-5)
    # A threshold between the images' own probabilities, so that they part ways.
    middle = float(np.sort(probabilities[:, 2])[1:3].mean())
    told["factors"]["threshold"] = middle
    router.decision = Decision("cheapest", middle)
    model, eager = FactorModel(first, rest, told), TorchModel(detector)
    assert_same(eager(batch), model(batch))
    assert sum(count > 0 for count in model.taken.values()) > 1
    assert model.taken == eager.taken
    for place, factor in enumerate(FACTORS):
        model.set_choice(factor=factor)
        eager.detector.router.choose_always(place)  # pyright: ignore
        assert_same(eager(batch), model(batch))
    router.decision = Decision()


def test_the_statistic_branch_is_a_first_look(choosing) -> None:
    from flyspeck.infer.statistic import StatisticLook, has_statistics

    detector, _, router = choosing
    batch = list(noise(3, 96, 128))
    images = ImageBatch(torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2), ((96, 128),) * 3)
    model = TorchModel(detector)
    assert has_statistics(model)
    with torch.no_grad():
        logarithms = router.predictor(run_prefix(detector, images)[1])[1][:, 0]
    assert_allclose(StatisticLook(model)(batch), np.expm1(logarithms.numpy()).clip(0, 1), atol=1e-4)
    plain = TorchModel(make_detector("fcos:resnet18", norm="bn", head={"depth": 1})[0])
    assert not has_statistics(plain)
    with pytest.raises(UserError, match="has no factor predictor"):
        StatisticLook(plain)


def test_decisions_are_those_of_the_library(choosing) -> None:
    detector, *_ = choosing
    probabilities = np.random.default_rng(0).uniform(0, 1, (200, 3)).astype(np.float32)
    for rule in ("cheapest", "argmax"):
        for threshold in (0.0, 0.3, 0.5, 0.9, 1.001):
            told = describe(detector, {})
            told["factors"] |= {"rule": rule, "threshold": threshold}
            model = FactorModel(TorchSession(nn.Identity()), [], told)
            assert_array_equal(model.places(probabilities), Decision(rule, threshold).choose(probabilities))
    model.set_choice(quality=1)
    assert model.places(probabilities) == [0] * 200
    model.set_choice(quality=0)
    assert model.places(probabilities) == [2] * 200
    with pytest.raises(UserError, match=r"no down-sampling factor 0\.4"):
        model.set_choice(factor=0.4)
    with pytest.raises(UserError, match="a quality of 2"):
        model.set_choice(quality=2)


def test_windows_with_fewer_candidates_are_filled_up(choosing) -> None:
    class Fixed(Session):
        def __init__(self, number: int) -> None:
            self.path, self.text, self.number = Path("x.onnx"), None, number

        def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
            n = self.number
            return [
                np.tile(np.array([0, 0, 1, 1], np.float32), (1, n, 1)),
                np.ones((1, n), np.float32),
                np.ones((1, n), np.int64),
                np.array([n]),
            ]

    class Chooses(Session):
        def __init__(self) -> None:
            self.path, self.text = Path("x.onnx"), None

        def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
            return [np.array([[0, 0, 1], [1, 0, 0]], np.float32), np.zeros((2, 1, 4, 4), np.float32)]

    model = FactorModel(Chooses(), [Fixed(5), Fixed(4), Fixed(2)], describe(choosing[0], {}))
    assert [len(found) for found in model(list(noise(2, 64, 64)))] == [2, 5]
    assert model.taken == {0.5: 1, 0.33: 0, 0.25: 1}


def test_sizes_in_whole_numbers_are_the_resize_of_training() -> None:
    for factor in FACTORS:
        for side in range(4, 300):
            x = torch.zeros(1, 1, side, 8)
            assert FixedResize(factor)(x).shape[2] == resized(side, factor)
            assert FixedResize(2 * factor)(x).shape[2] == resized(side, 2 * factor)


def test_the_shortcut_pools_any_size_as_training_does() -> None:
    pool = nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False)
    for height, width in ((1, 1), (1, 4), (2, 3), (5, 5), (8, 7)):
        x = torch.rand(2, 3, height, width)
        torch.testing.assert_close(HalvingPool()(x), pool(x))


def test_the_smallest_image_leaves_a_kernel_at_the_smallest_factor(choosing) -> None:
    # The resize works on a map of stride 4; at 0.25 twelve cells are left as three: 48 px; the backbone's stride is 32.
    assert choosing[0].smallest_side == 48
    assert make_detector("fcos:resnet18", norm="bn", head={"depth": 1})[0].smallest_side == 32
    assert describe(choosing[0], {})["smallest_side"] == 48


def write_choosing_run(folder: Path) -> Path:
    """A run folder of such a detector, with images."""
    folder.mkdir()
    detector, config, router = make_choosing()
    train, val = (write_images(folder, n, seed=n, name=part) for n, part in ((3, "train"), (4, "val")))
    dynamic = DynamicConfig()
    statistics = {"classes": CLASSES, "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3)}
    description = {
        **describe_model(config, **statistics, dynamic=dynamic),  # type: ignore[arg-type]
        "training_size": [HEIGHT, WIDTH],
        "predictor": {"rule": "cheapest", "threshold": 0.5, "widths": [4, 4, 8, 8], "pool": router.predictor.pool},
    }
    save_weights(folder / "best.safetensors", detector.state_dict(), description)
    recipe = {"name": "tiny", "data": {"train": str(train), "val": str(val)}}
    recipe |= {
        "model": config.model_dump(mode="json", exclude_defaults=True),
        "dynamic": dynamic.model_dump(mode="json"),
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


HEIGHT, WIDTH = 96, 128


def test_int8_of_one_that_chooses_is_refused(tmp_path: Path) -> None:
    run = write_choosing_run(tmp_path / "run")
    with pytest.raises(UserError, match="has no INT8 form") as caught:
        export_model(run, tmp_path / "m.onnx", ExportOptions(int8=True), say=lambda _: None)
    assert "--factor" in caught.value.fix
    with pytest.raises(UserError, match=r"no down-sampling factor 0\.4"):
        export_model(run, tmp_path / "m.onnx", ExportOptions(factor=0.4), say=lambda _: None)


@pytest.mark.slow  # five traces of torch.onnx
def test_files_of_all_factors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_choosing_run(tmp_path / "run")
    out = tmp_path / "made"
    out.mkdir()
    done = export_model(run, out / "m.onnx", ExportOptions(), say=lambda _: None)
    assert done.difference.same
    names = ["m.df0.25.onnx", "m.df0.33.onnx", "m.df0.5.onnx", "m.onnx"]
    assert sorted(path.name for path in out.iterdir()) == names
    asked = [str(run / "val0.png"), "--model", str(out / "m.onnx"), "--out", str(tmp_path / "o")]
    assert main(["predict", *asked, "--quality", "1"]) == 0
    assert "images or tiles by factor: 0.5: 1 (100 %)" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "o" / "detections.json").read_text())) > 5
    assert main(["predict", *asked, "--budget", "1GFLOPs"]) == 2
    assert "takes no budget" in capsys.readouterr().err
    eager, _ = load_model(run, choice={"factor": 0.33})
    model, _ = load_model(out / "m.onnx", choice={"factor": 0.33})
    assert_same(eager(list(noise(2, 96, 128))), model(list(noise(2, 96, 128))))
    factor_file(out / "m.onnx", 0.33).unlink()
    with pytest.raises(UserError, match=r"m\.df0\.33\.onnx is not beside it"):
        open_exported(out / "m.onnx")
    export_model(run, out / "one.xml", ExportOptions(format="openvino", factor=0.25), say=lambda _: None)
    assert "factors" not in open_exported(out / "one.xml").description
    eager, _ = load_model(run, choice={"factor": 0.25})
    assert_same(eager(list(noise(2, 96, 128))), open_exported(out / "one.xml")(list(noise(2, 96, 128))))
