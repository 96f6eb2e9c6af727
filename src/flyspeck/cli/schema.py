"""`flyspeck schema`: what a recipe may say, for editors and as a page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import typer


def schema(
    to: Literal["json", "markdown"] | None = typer.Option(
        None, "--to", help="Format to write; default: by the ending of --out (`.md` is markdown), else json."
    ),
    out: Path | None = typer.Option(None, "--out", metavar="FILE", help="Where to write: a file; default: print."),
) -> None:
    """What a recipe may say, with a sentence and bounds for every field: a JSON schema for editors, or a page.

    An editor with a YAML language server checks a recipe and completes its keys when the recipe's first line is
    `# yaml-language-server: $schema=recipe.schema.json`, after `flyspeck schema --out recipe.schema.json`.
    """
    from flyspeck.files import make_folder, write_text
    from flyspeck.train.reference import markdown, recipe_schema

    if to is None:
        to = "markdown" if out is not None and out.suffix.lower() in (".md", ".markdown") else "json"
    text = markdown() if to == "markdown" else json.dumps(recipe_schema(), indent=2, ensure_ascii=False) + "\n"
    if out is None:
        typer.echo(text, nl=False)
    else:
        make_folder(out.parent)
        write_text(out, text)
