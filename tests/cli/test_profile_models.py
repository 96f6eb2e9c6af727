"""`flyspeck profile` and `flyspeck models` from the command line."""

from __future__ import annotations

import json

import pytest

from flyspeck.cli.main import main


def run(capsys, *arguments):
    code = main(list(arguments))
    out = capsys.readouterr()
    return code, out.out, out.err


def test_profile_json_of_the_adaptive_retinanet(capsys):
    code, out, _ = run(capsys, "profile", "retinanet:resnet50", "--frozen-stages", "1", "--frozen-norm", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["name"] == "retinanet:resnet50"
    assert found["size"] == [512, 640]
    assert found["convention"] == "mmcv"
    assert found["params_trainable"] == pytest.approx(36.12e6, rel=1e-3)
    assert found["gflops"] == pytest.approx(177.52, rel=1e-3)
    assert set(found["parts"]) == {"backbone", "neck", "head"}
    assert list(found["stages"]) == ["stem", "stage1", "stage2", "stage3", "stage4"]


def test_profile_table_latency_and_plot(capsys, tmp_path):
    plot = tmp_path / "shares.png"
    code, out, err = run(
        capsys, "profile", "resnet18", "mobilenet_v2", "--size", "32x64", "--width", "0.25", "--latency",
        "--rounds", "2", "--threads", "1", "--plot", str(plot),
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert "resnet18 at 32x64, convention mmcv" in out
    assert "median of 2 runs" in out
    assert plot.stat().st_size > 1000


def test_width_levels_and_classes_change_the_count(capsys):
    def gflops(*options):
        _, out, _ = run(capsys, "profile", "retinanet:resnet18", "--width", "0.25", "--json", *options)
        return json.loads(out)["gflops"]

    base = gflops()
    assert gflops("--levels", "3-7") < base / 2
    assert gflops("--num-classes", "20") > base
    assert gflops("--size", "256x320") < base


def test_profile_of_a_recipe(capsys, tmp_path):
    recipe = tmp_path / "small.yaml"
    recipe.write_text(
        "data: {train: a.json, val: b.json, classes: [x, y]}\n"
        "model: {name: 'retinanet:mobilenet_v2', width: 0.25, channels: 32, weights: absent.pth}\n"
    )
    code, out, _ = run(capsys, "profile", str(recipe), "--size", "64x64", "--json")
    assert code == 0
    assert json.loads(out)["params"] < 1e6


def test_profile_says_where_a_recipe_with_crops_keeps_more_of_an_image(capsys, tmp_path):
    """64x64 has four times the area of a crop of 32x32, and no more than that of one of 64x48 worth a line."""

    def told(crop: str, counts: str = "area") -> bool:
        recipe = tmp_path / "small.yaml"
        recipe.write_text(
            f"data: {{train: a.json, val: b.json}}\naugment: {{crop: {crop}}}\n"
            f"model: {{name: 'retinanet:mobilenet_v2', width: 0.25, channels: 32, counts: {counts}}}\n"
        )
        code, out, _ = run(capsys, "profile", str(recipe), "--size", "64x64")
        assert code == 0
        return "note: 4.0 times the area of its crops of 32x32" in out and "model.counts" in out

    assert told("[32, 32]")
    assert not told("[32, 32]", "fixed")
    assert not told("[64, 48]")
    assert not told("null")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnet5"], "did you mean 'resnet50'"),
        (["resnet18", "--size", "big"], "'big' is no size"),
        (["resnet18", "--convention", "flops"], "'flops' is not one of"),
        (["resnet18", "--frozen-stages", "9"], "cannot freeze 9 stages"),
        (["retinanet:resnet18", "--levels", "9"], "'9' are no pyramid levels"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys, arguments, message):
    code, out, err = run(capsys, "profile", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_models_lists_paper_and_counts(capsys):
    code, out, _ = run(capsys, "models")
    assert code == 0
    line = next(line for line in out.splitlines() if line.split()[:1] == ["bh_resnet50"])
    assert "002" in line
    assert "2303.11267" in line
    assert "27.12" in line
    assert "backbones: resnet18" in out


def test_models_counts_anew(capsys):
    _, out, _ = run(capsys, "models", "bh_resnet50", "--recount", "--json")
    row = json.loads(out)["models"][0]
    assert row["params"] == 10_948_160
    assert row["gflops"] == pytest.approx(27.115, abs=1e-3)
