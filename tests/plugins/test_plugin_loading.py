"""A plugin is loaded by the user's word or as an installed entry point, and by nothing else."""

from __future__ import annotations

import json
import logging
import re
import sys

import pytest
import typer

import flyspeck
from flyspeck import UserError, plugins
from flyspeck.cli.main import VERBS, app, main
from flyspeck.cli.plugin_option import WITHOUT_PLUGINS
from flyspeck.models import names, zoo

BACKBONE = """
from flyspeck import register_backbone
from flyspeck.models.backbones.resnet import resnet18

def register():
    register_backbone("mine", resnet18)
"""


def failing(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of a command that fails with 2."""
    assert main(list(arguments)) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_importing_a_plugin_registers_nothing(outside):
    sys.path.append(str(outside(parts=BACKBONE)))
    import parts  # pyright: ignore[reportMissingImports]

    assert "mine" not in zoo.BACKBONES
    parts.register()
    assert "mine" in zoo.BACKBONES
    assert plugins.owner("backbone", "mine") == "parts"  # the program called it itself, and that is known too


def test_the_command_line_loads_a_module_of_the_folder(outside, capsys):
    outside(parts=BACKBONE)
    assert main(["profile", "retinanet:mine", "--size", "64x64", "--plugin", "parts"]) == 0
    assert "retinanet:mine" in capsys.readouterr().out
    assert [note.partition("==")[0] for note in plugins.notes_of([("backbone", "mine"), ("neck", "fpn")])] == ["parts"]


def test_a_plugin_is_called_once(outside):
    sys.path.append(str(outside(parts=BACKBONE)))
    assert flyspeck.load_plugin("parts") == flyspeck.load_plugin("parts:register")


def test_without_the_option_a_module_of_the_folder_stays_unknown(outside, capsys):
    outside(parts=BACKBONE)
    line = failing(capsys, "profile", "retinanet:mine", "--size", "64x64")
    assert "no backbone 'mine' in 'retinanet:mine'" in line
    assert "--plugin" in line
    assert "parts" not in sys.modules


def test_an_installed_plugin_is_found_by_the_name_of_its_part(install):
    install("my-parts", "1.2", parts=BACKBONE)
    assert "parts" not in sys.modules
    names.parse_name("retinanet:resnet18")
    assert "parts" not in sys.modules  # nothing unknown: nothing loaded
    assert names.parse_name("retinanet:mine").backbone == "mine"
    assert plugins.notes_of([("backbone", "mine")]) == ["parts==1.2"]


def test_lists_of_parts_name_the_installed_plugins_that_they_lack(install, capsys):
    install("my-parts", "1.2", parts=BACKBONE)
    for command in (["models"], ["eval", "--list"]):
        assert main(command) == 0
        listed = capsys.readouterr().out
        assert "installed plugins, whose parts are listed with --plugin NAME:" in listed
        assert "parts" in listed.splitlines()[-1].partition("NAME:")[2]
        assert "parts" not in sys.modules  # a list runs nothing
    assert main(["models", "--plugin", "parts"]) == 0
    listed = capsys.readouterr().out
    assert re.search(r"\bmine\b", listed.partition("backbones:")[2])
    assert "parts" not in listed.partition("--plugin NAME:")[2]
    assert main(["models", "zzz", "--json"]) == 0
    assert "parts" not in json.loads(capsys.readouterr().out)["plugins"]


def test_the_function_may_have_another_name(install):
    install("my-parts", "1.2", point="parts:fill", parts=BACKBONE.replace("def register()", "def fill()"))
    assert names.parse_name("retinanet:mine").backbone == "mine"
    assert plugins.notes_of([("backbone", "mine")]) == ["parts:fill==1.2"]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("raise RuntimeError('no luck')", "importing it failed (RuntimeError: no luck)"),
        ("import sys\nsys.exit(3)", "importing it failed (SystemExit: 3)"),
        (
            "import nonsense_of_nobody",
            "importing it failed (ModuleNotFoundError: No module named 'nonsense_of_nobody')",
        ),
        ("def register(:\n", "importing it failed (SyntaxError:"),
        ("x = 1", "it has no function 'register'"),
        ("def register():\n    1 / 0", "registering failed (ZeroDivisionError: division by zero)"),
        (BACKBONE.replace("mine", "resnet18"), "the backbone 'resnet18' is taken by flyspeck itself"),
        (BACKBONE.replace("mine", "re:net"), "'re:net' is no name for a backbone"),
    ],
)
def test_a_plugin_that_cannot_be_used_is_one_line(outside, capsys, source, words):
    outside(broken=source)
    line = failing(capsys, "profile", "resnet18", "--plugin", "broken")
    assert line.startswith("error: plugin broken: ")
    assert words in line


def test_a_plugin_that_is_not_there_is_one_line(outside, capsys):
    outside()
    assert "there is no module 'nobody'" in failing(capsys, "profile", "resnet18", "--plugin", "nobody")
    assert "as in --plugin my_parts" in failing(capsys, "profile", "resnet18", "--plugin", "./my_parts.py")


def test_two_plugins_may_not_take_one_name(outside, capsys):
    outside(one=BACKBONE, two=BACKBONE)
    line = failing(capsys, "profile", "resnet18", "--plugin", "one", "--plugin", "two")
    assert "plugin two: the backbone 'mine' is taken by the plugin one" in line


def test_what_a_failing_plugin_registered_is_taken_back(outside):
    sys.path.append(str(outside(half=BACKBONE + "    register_backbone('resnet18', resnet18)\n")))
    with pytest.raises(UserError, match="taken by flyspeck itself"):
        plugins.load_plugin("half")
    assert "mine" not in zoo.BACKBONES
    assert plugins.owner("backbone", "mine") is None


def test_a_broken_installed_plugin_spoils_no_other(install):
    install("broken", "1.0", broken="raise RuntimeError('no luck')")
    install("my-parts", "1.2", parts=BACKBONE)
    assert names.parse_name("retinanet:mine").backbone == "mine"
    with pytest.raises(UserError, match=r"no backbone 'mnie'.*did you mean 'mine'.*plugin broken: importing it failed"):
        names.parse_name("retinanet:mnie")


def test_a_file_that_names_a_plugin_imports_nothing_that_is_not_installed(outside):
    sys.path.append(str(outside(parts=BACKBONE)))
    with pytest.raises(UserError, match=r"a\.yaml: it needs the plugin 'parts', version 1\.0, .* --plugin parts"):
        plugins.load_needed(["parts==1.0"], where="a.yaml")
    assert "parts" not in sys.modules


def test_another_version_than_noted_is_one_warning(install, caplog):
    install("my-parts", "1.2", parts=BACKBONE)
    with caplog.at_level(logging.WARNING, logger="flyspeck"):
        plugins.load_needed(["parts==1.2"], where="a.yaml")
        assert not caplog.records
        plugins.load_needed(["parts==1.1"], where="a.yaml")
        plugins.load_needed(["parts==1.1"], where="a.yaml")
    assert caplog.messages == ["a.yaml: made with parts==1.1, now it runs with parts==1.2: results may differ"]


def test_a_module_without_a_version_is_known_by_its_source(outside):
    sys.path.append(
        str(
            outside(one=BACKBONE, two=BACKBONE.replace("mine", "yours"), three="__version__ = '7'\ndef register(): ...")
        )
    )
    one, two, three = (plugins.load_plugin(name).version for name in ("one", "two", "three"))
    assert one.startswith("0+") and two.startswith("0+") and one != two  # noqa: PT018
    assert three == "7"


def test_every_verb_that_can_use_a_plugin_offers_it(capsys):
    group = typer.main.get_command(app)
    paths = []
    for name in VERBS:
        command = group.get_command(None, name)  # type: ignore[attr-defined, arg-type]
        inner = getattr(command, "commands", {})
        paths += [f"{name} {verb}" for verb, its in inner.items() if not its.hidden] or [name]
    assert set(WITHOUT_PLUGINS) < set(paths)
    for path in paths:
        assert main([*path.split(), "--help"]) == 0
        assert ("--plugin" in capsys.readouterr().out) == (path not in WITHOUT_PLUGINS), path
