"""`flyspeck data`: look at, convert, shrink and tile annotated pictures."""

from __future__ import annotations

import typer

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Annotated pictures: look, convert, shrink, tile.",
)


@app.callback()
def data() -> None:
    """Annotated pictures: look at them, convert, shrink and tile them."""
