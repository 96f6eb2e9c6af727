"""What a recipe may say, for people and editors: a JSON schema, a recipe with comments, a page. All from the fields themselves.

The options of a detector, backbone or assigner depend on its name; parts that plugins have registered are among them.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from flyspeck.options import Options
from flyspeck.train import model_config as parts
from flyspeck.train.config import Recipe
from flyspeck.train.model_config import ModelConfig

Schema = Mapping[str, Any]
_WIDTH = 118
_BOUNDS = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "below"}


def recipe_schema() -> dict[str, Any]:
    """JSON schema (2020-12) of a recipe file, with every sentence and bound; for editors, and to check files without flyspeck.

    What `head` and `backbone` may hold follows from the model's name, as conditions.
    """
    schema = Recipe.model_json_schema()
    definitions: dict[str, Any] = schema["$defs"]
    model = definitions["ModelConfig"]
    conditions = []
    for kind, table, pattern in (
        ("head", parts.all_head_options(), "^{name}:"),
        ("backbone", parts.all_backbone_options(), r"^[^:]+:{name}(-S\d+L\d+(-\d+)*)?(:|$)"),
    ):
        for name, options in table.items():
            reference = _define(definitions, options)
            named = {"name": {"pattern": pattern.format(name=re.escape(name))}}
            conditions.append(
                {
                    "if": {"properties": named, "required": ["name"]},
                    "then": {"properties": {kind: reference}},
                }
            )
        unnamed = parts.head_options if kind == "head" else parts.backbone_options
        options = unnamed(ModelConfig.model_fields["name"].default)
        conditions.append(
            {"if": {"not": {"required": ["name"]}}, "then": {"properties": {kind: _define(definitions, options)}}}
        )
        model["properties"][kind] = {
            "type": "object",
            "description": model["properties"][kind]["description"],
        }
    model["allOf"] = conditions
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "flyspeck recipe",
        **{key: value for key, value in schema.items() if key not in ("title", "$defs")},
        "$defs": dict(sorted(definitions.items())),
    }


def _define(definitions: dict[str, Any], options: type[Options]) -> dict[str, str]:
    """Adds the schema of `options` to the definitions; returns a reference to it."""
    own = options.model_json_schema(ref_template="#/$defs/{model}")
    definitions.update(own.pop("$defs", {}))
    definitions[options.__name__] = own
    return {"$ref": f"#/$defs/{options.__name__}"}


def commented(recipe: Recipe) -> str:
    """The complete recipe as YAML with each field's sentence above it; reads back to the same recipe."""
    lines = ["# Every field of this recipe, with its sentence. What equals the default may be left out."]
    lines += _commented(recipe, recipe.model_dump(mode="json"), 0)
    return "\n".join(lines) + "\n"


def _commented(model: Options, values: Mapping[str, Any], indent: int) -> Iterator[str]:
    space = "  " * indent
    schema = type(model).model_json_schema()
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        section = isinstance(value, Options)
        if section and indent == 0:
            yield ""
        kind = "" if section else _kind(schema["properties"][name], schema.get("$defs", {}))
        text = f"{field.description or ''}{f' [{kind}]' if kind else ''}"
        yield from textwrap.wrap(
            " ".join(text.split()), _WIDTH, initial_indent=f"{space}# ", subsequent_indent=f"{space}# ",
            break_long_words=False, break_on_hyphens=False,
        )  # fmt: skip
        if section and type(value).model_fields:
            yield f"{space}{name}:"
            yield from _commented(value, values[name], indent + 1)
        else:
            yield f"{space}{name}: {_flow(values[name])}"


def _flow(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**6)
    return text.removesuffix("\n").removesuffix("\n...")


def markdown() -> str:
    """The reference page of recipes, with the options of flyspeck's own parts."""
    out = [
        "# Every field of a recipe",
        "",
        "Written by `flyspeck schema --to markdown`; the tests compare. `flyspeck train recipe.yaml --print-config` prints",
        "a recipe with all of this as comments, `flyspeck schema` the same as a JSON schema for editors.",
        "",
        "Paths are relative to the recipe's file, those of `--set` to the working folder. `null` stands for nothing.",
    ]
    out += _section("recipe", Recipe, level=2)
    seen: set[type[Options]] = set()
    for name, annotation in _sections(Recipe):
        out += _with_parts(name, annotation, seen)
    return "\n".join(out) + "\n"


def _with_parts(name: str, model: type[Options], seen: set[type[Options]]) -> list[str]:
    out = _section(name, model, level=2)
    for inner, annotation in _sections(model):
        if annotation not in seen and annotation is not Options:
            seen.add(annotation)
            out += _section(f"{name}.{inner}", annotation, level=3)
    if model is not ModelConfig:
        return out
    named = (
        ("assigner", "name: ", parts.all_assigner_options()),
        ("head", "", parts.all_head_options(plugins=False)),
        ("backbone", "", parts.all_backbone_options(plugins=False)),
    )
    for kind, prefix, table in named:
        for options, names in _shared(table):
            title = ", ".join(f"`{prefix}{one}`" for one in names)
            out += _section(f"model.{kind}", options, level=3, title=f"`model.{kind}` of {title}")
            for inner, annotation in _sections(options):
                if annotation not in seen:
                    seen.add(annotation)
                    out += _section(f"model.{kind}.{inner}", annotation, level=4)
    return out


def _shared(table: Mapping[str, type[Options]]) -> list[tuple[type[Options], list[str]]]:
    """Options and the names of the parts that have them; parts without options are left out."""
    found: dict[type[Options], list[str]] = {}
    for name, options in table.items():
        if options.model_fields:
            found.setdefault(options, []).append(name)
    return list(found.items())


def _section(name: str, model: type[Options], *, level: int, title: str = "") -> list[str]:
    schema = model.model_json_schema()
    rows = []
    for key, field in model.model_fields.items():
        property_ = schema["properties"][key]
        default = "required" if field.is_required() else _default(model, key)
        text = " ".join((field.description or "").split())
        kind = _kind(property_, schema.get("$defs", {}))
        rows.append("| " + " | ".join(_cell(part) for part in (f"`{key}`", kind, default, text)) + " |")
    return [
        "",
        f"{'#' * level} {title or f'`{name}`'}",
        "",
        *textwrap.wrap(" ".join((model.__doc__ or "").split()), 120),
        "",
        "| key | values | default | |",
        "|---|---|---|---|",
        *rows,
    ]


def _default(model: type[Options], key: str) -> str:
    value = model.model_fields[key].get_default(call_default_factory=True, validated_data={})
    if isinstance(value, Options):
        return "as below"
    return f"`{_flow(list(value) if isinstance(value, tuple) else value)}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _sections(model: type[Options]) -> Iterator[tuple[str, type[Options]]]:
    """Fields that are options themselves, perhaps null."""
    for name, field in model.model_fields.items():
        kinds = (field.annotation, *getattr(field.annotation, "__args__", ()))
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, Options):
                yield name, kind
                break


def _kind(schema: Schema, definitions: Mapping[str, Any]) -> str:
    """What a value may be, in words: `number > 0`, `one of none, bn, gn`, `list of whole numbers ≥ 1, or null`."""
    if schema.get("format") in ("path", "path-or-name"):
        word = "path" if schema["format"] == "path" else "path or name"
        return f"{word}, or null" if {"type": "null"} in schema.get("anyOf", ()) else word
    if "discriminator" in schema:
        return f"section by name: {', '.join(schema['discriminator']['mapping'])}"
    if "anyOf" in schema or "oneOf" in schema:
        kinds = [_kind(part, definitions) for part in schema.get("anyOf", schema.get("oneOf"))]  # type: ignore[union-attr]
        return ", or ".join(dict.fromkeys(kinds))
    if "$ref" in schema:
        return "section"
    if "enum" in schema:
        return f"one of {', '.join(map(str, schema['enum']))}"
    if "const" in schema:
        return str(schema["const"])
    kind = schema.get("type")
    if kind == "array":
        return _list_kind(schema, definitions)
    words = {
        "integer": "whole number",
        "number": "number",
        "string": "text",
        "boolean": "true or false",
        "null": "null",
    }
    return f"{words.get(str(kind), 'section')} {_bounds(schema)}".strip()


def _bounds(schema: Schema) -> str:
    """`from 0 to 1`, `above 0`; limits in the millions only keep typing errors out and are left to the schema."""
    told = {key: f"{schema[key]:g}" for key in _BOUNDS if key in schema and abs(schema[key]) < 10**6}
    if {"minimum", "maximum"} <= told.keys():
        return f"from {told['minimum']} to {told['maximum']}"
    return ", ".join(f"{word} {told[key]}" for key, word in _BOUNDS.items() if key in told)


def _list_kind(schema: Schema, definitions: Mapping[str, Any]) -> str:
    if "prefixItems" in schema:
        kinds = [_kind(part, definitions) for part in schema["prefixItems"]]
        return f"{len(kinds)} of: {kinds[0]}" if len(set(kinds)) == 1 else f"[{', '.join(kinds)}]"
    return f"list of: {_kind(schema.get('items', {}), definitions)}"
