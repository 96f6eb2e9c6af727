"""The command line means one thing by one name: held over the whole tree of verbs."""

from __future__ import annotations

import os
import re
import shlex
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from flyspeck.cli.benchmark import DEFAULT
from flyspeck.cli.choices import open_choices
from flyspeck.cli.examples import EXAMPLES
from flyspeck.cli.main import main
from flyspeck.cli.moved import OPTIONS
from flyspeck.cli.shared_options import training_device
from flyspeck.errors import UserError
from flyspeck.export.benchmark import ENGINES
from flyspeck.infer.processes import Processes
from flyspeck_lab.cli.main import main as laboratory
from verb_tree import all_verbs, parse

VERBS = all_verbs()
# Names whose value has another shape in some verb, and why that is no other meaning.
SHAPES = {
    "--out": {"FILE", "FOLDER", "PATH"},  # where to write; what is written differs
    "--overlap": {"PX", "PX|HxW"},  # only `data tile` takes two numbers
    "--to": {
        "NAME",
        "A,B,...",
        "<onnx|openvino|litert>",
        "<json|markdown>",
    },  # `predict` writes several formats, `export` has no plugins
}


def options(command: Any) -> list[Any]:
    return [p for p in command.params if p.param_type_name == "option"]


def shape(option: Any, command: Any) -> str:
    """What value it takes, as help shows it: `N`, `HxW`, `<fp32|bf16>`; `flag` for none."""
    left = option.get_help_record(command.make_context("x", [], resilient_parsing=True))[0]
    left = left.split(", --")[-1]  # of several names, the last
    value = left.split(" ", 1)[1] if " " in left and " / " not in left else "flag"
    return re.sub(r"^\[(.*)\]$", r"<\1>", value)  # as older versions of typer write choices


def head(option: Any) -> str:
    """The first two words of its help."""
    return " ".join(re.findall(r"[\w-]+", option.help or "")[:2]).lower()


def by_name() -> dict[str, list[tuple[str, Any, Any]]]:
    found = defaultdict(list)
    for path, command in VERBS.items():
        for option in options(command):
            found[option.opts[0]].append((path, option, command))
    return found


@pytest.mark.parametrize(("name", "uses"), by_name().items())
def test_a_name_has_one_type_and_one_meaning(name: str, uses: list[tuple[str, Any, Any]]) -> None:
    shapes = {path: shape(option, command) for path, option, command in uses}
    assert len(set(shapes.values()) - SHAPES.get(name, set())) <= (name not in SHAPES), shapes
    heads = {path: head(option) for path, option, _ in uses}
    assert all(heads.values()), f"{name} has no help: {heads}"
    assert len(set(heads.values())) == 1, heads


def test_a_sentence_belongs_to_one_name() -> None:
    names = defaultdict(set)
    for name, uses in by_name().items():
        for _, option, _ in uses:
            names[option.help].add(name)
    assert {sentence: known for sentence, known in names.items() if len(known) > 1} == {}


def test_sizes_counts_and_shares_look_alike() -> None:
    for path, command in VERBS.items():
        for option in options(command):
            shown = shape(option, command)
            assert not re.fullmatch(r"<?(str|int|float|path|text|integer|directory|file)\b.*", shown), (
                f"{path} {option.opts[0]} shows {shown}: give it a metavar that says what it is"
            )


@pytest.mark.parametrize(("path", "command"), VERBS.items())
def test_help_is_plain_and_has_an_example_that_parses(
    path: str, command: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    program, *words = path.split()
    assert (main if program == "flyspeck" else laboratory)([*words, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"Usage: {path} [OPTIONS]")
    assert not set(text) & set("╭─│╰"), "help is drawn with boxes"
    example = text.rpartition("\nExample:\n  ")[2].strip()
    assert example.startswith(f"{path} ")
    parse(shlex.split(example), VERBS)


@pytest.mark.parametrize("verb", ["data", "tune", "dpnet"])
def test_the_help_of_a_group_cuts_no_sentence(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    listed = capsys.readouterr().out.partition("Commands:")[2]
    assert listed
    assert "..." not in listed


def test_there_is_no_example_of_a_verb_that_is_gone() -> None:
    assert set(EXAMPLES) == {path for path in VERBS if path.startswith("flyspeck ")}


def test_every_choice_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    seen = 0
    for path, command in VERBS.items():
        names = [name for option in options(command) for name in open_choices(path, option.opts[0])]
        if names:
            program, *words = path.split()
            (main if program == "flyspeck" else laboratory)([*words, "--help"])
            text = " ".join(capsys.readouterr().out.split())
            assert [name for name in names if not re.search(rf"[ :]{re.escape(name)}[,.]", text)] == [], path
        seen += len(names)
    assert seen > 40


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("predict x --model m --out o --precision fp16", "fp32"),
        ("predict x --model m --out o --merge nmn", "soft-nms"),
        ("export x --out o --to coreml", "openvino"),
        ("export x --out o --bits 12", "16"),
        ("distill r.yaml --method both", "hierarchical"),
        ("eval --merge-kernel gpu", "cuda"),
        ("eval --gt a --dt b --protocol flyspek", "did you mean 'flyspeck'"),
        ("data convert x --out o --to cocoa", "did you mean 'coco'"),
        ("data tile x --out o --rule flyspeek", "did you mean 'flyspeck'"),
        ("data scenes --out o --kind lake", "field"),
        ("data shrink x --out o --by 2 --image-format jpg", "webp"),
        ("profile resnet18 --convention flops", "ptflops"),
        ("alpha x --assign boxes", "points"),
        ("dpnet labels x --part test", "val"),
        ("predit x", "did you mean 'predict'"),
        ("data inspct x", "did you mean 'inspect'"),
        ("predict x --model m --out o --devise cpu", "--device"),
        ("train", "RECIPE"),
    ],
)
def test_a_wrong_word_is_one_line_that_names_the_right_ones(
    words: str, shown: str, capsys: pytest.CaptureFixture[str], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "x").mkdir()
    assert main(words.split()) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1), err
    assert err.startswith("error: ")
    assert shown in err


MOVED = [(path, old, new) for path, table in OPTIONS.items() for old, new in table.items()]


@pytest.mark.parametrize(("path", "old", "new"), MOVED)
@pytest.mark.parametrize("form", ["{old}", "{old}=5", "{old} 5"])
def test_an_old_option_names_the_new_one(
    path: str, old: str, new: str, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    program, *words = path.split()
    assert (main if program == "flyspeck" else laboratory)([*words, *form.format(old=old).split()]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert f"{old} of `{path}` is {new} now" in err
    names = {name for option in options(VERBS[path]) for name in option.opts}
    assert new in names
    assert old not in names


def test_an_old_word_after_two_dashes_is_a_value() -> None:
    from flyspeck.cli.moved import refuse_moved

    refuse_moved("flyspeck predict", ["--", "--images"])


@pytest.mark.parametrize("verb", [path for path, c in VERBS.items() if any("--device" in o.opts for o in options(c))])
def test_the_device_is_auto(verb: str) -> None:
    (option,) = [o for o in options(VERBS[verb]) if "--device" in o.opts]
    assert option.default == "auto"


def test_whatever_runs_a_model_takes_a_device() -> None:
    having = {path for path, command in VERBS.items() if any("--device" in o.opts for o in options(command))}
    # `export` and `benchmark` compare engines on the CPU, `tune look` trains a network of a few thousand weights there.
    running = {"predict", "train", "distill", "pretrain", "profile", "explain", "card", "demo", "tune alpha"}
    running |= {"dpnet fit", "dpnet labels", "data errors", "eval", "init", "auto", "tune lr"}
    assert having == {f"flyspeck {verb}" for verb in running} | {"flyspeck-lab curve", "flyspeck-lab gpu"}


def complete(words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setenv("_FLYSPECK_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split(" ")) - 1))
    main([])
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("flyspeck pre", {"predict", "pretrain"}),
        ("flyspeck data sc", {"scale-match", "scenes"}),
        ("flyspeck predict --precision ", {"fp32", "bf16"}),
        ("flyspeck data convert --to co", {"coco"}),
        ("flyspeck eval --protocol vis", {"visdrone"}),
    ],
)
def test_the_shell_completes(
    words: str, found: set[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert set(complete(words, monkeypatch, capsys).split()) == found


def test_the_page_lists_every_option_that_moved() -> None:
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "command_line.md").read_text(encoding="utf-8")
    listed = {
        (verb, old, new)
        for verb, olds, new in re.findall(r"^\| `(flyspeck[^`]*)` \| (.*) \| `(--[\w-]+)` \|$", page, re.MULTILINE)
        for old in re.findall(r"`(--[\w-]+)`", olds)
    }
    assert listed == set(MOVED)


def test_a_training_takes_the_device_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACCELERATE_TORCH_DEVICE", raising=False)
    with training_device("auto"):
        assert "ACCELERATE_TORCH_DEVICE" not in os.environ
    with training_device("cpu"):
        assert os.environ["ACCELERATE_TORCH_DEVICE"] == "cpu"
    assert "ACCELERATE_TORCH_DEVICE" not in os.environ
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="several processes"), training_device("cpu"):
        pass
    monkeypatch.delenv("WORLD_SIZE")
    with pytest.raises(UserError, match="unknown device 'gpu'"), training_device("gpu"):
        pass


def test_one_process_of_several_takes_its_own_gpu_for_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert Processes(1, 2, 1).device("auto") == "cuda:1"
    assert Processes().device("auto") == "auto"
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert Processes(1, 2, 1).device("auto") in ("cpu", "mps")


def test_the_engines_that_help_lists_are_all_there_are() -> None:
    assert tuple(DEFAULT.split(",")) == ENGINES
