#!/usr/bin/env python3
"""Writes the bill of materials of flyspeck and whatever it brings, as CycloneDX 1.6 JSON (ECMA-424).

    python release/sbom.py --out dist/flyspeck.cdx.json            of all extras, as they are installed here
    python release/sbom.py --extra export --out dist/export.cdx.json

The file is the same bytes for the same packages: its time is that of the sources (SOURCE_DATE_EPOCH), its number is made of its
content.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import time
import uuid
from collections.abc import Iterable, Sequence
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any

from installed import closure, licence_of, needed_by, plain, project, shared_libraries


def bill(extras: Sequence[str], *, epoch: int) -> dict[str, Any]:
    """The bill as plain values; `epoch` is the time that it states, in seconds."""
    own, packages = project(), closure(extras)
    references = {name: f"{name}=={package.version}" for name, package in packages.items()}
    asked = (text for extra in ("", *extras) for text in own.requires[extra])
    root: dict[str, Any] = {
        "type": "application",
        "bom-ref": f"{own.name}=={own.version}",
        "name": own.name,
        "version": own.version,
        "purl": f"pkg:pypi/{own.name}@{own.version}",
        "licenses": [{"expression": own.licence}],
    }
    needs = {own.name: (root["bom-ref"], asked)}
    needs |= {name: (references[name], package.requires or []) for name, package in packages.items()}
    content: dict[str, Any] = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(epoch)),
            "component": root,
            "properties": [{"name": "flyspeck:extras", "value": ",".join(extras)}],
        },
        "components": [_component(name, package) for name, package in packages.items()],
        "dependencies": [_edges(reference, texts, references) for reference, texts in needs.values()],
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).digest()
    return {**content, "serialNumber": f"urn:uuid:{uuid.UUID(bytes=digest[:16], version=4)}"}


def _component(name: str, package: Distribution) -> dict[str, Any]:
    made: dict[str, Any] = {
        "type": "library",
        "bom-ref": f"{name}=={package.version}",
        "name": name,
        "version": package.version,
        "purl": f"pkg:pypi/{name}@{package.version}",
    }
    expression, said = package.metadata.get("License-Expression"), licence_of(package)
    if expression:
        made["licenses"] = [{"expression": expression}]
    elif said != "UNKNOWN":
        made["licenses"] = [{"license": {"name": said}}]
    bundled = shared_libraries(package)
    if bundled:
        made["properties"] = [{"name": "flyspeck:bundled-library", "value": library} for library in bundled]
    return made


def _edges(reference: str, texts: Iterable[str], references: dict[str, str]) -> dict[str, Any]:
    found = {references[plain(name)] for name, _ in needed_by(texts) if plain(name) in references}
    return {"ref": reference, "dependsOn": sorted(found - {reference})}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--extra", action="append", help="one of several; default: all of run time")
    asked = parser.parse_args()
    epoch = int(os.environ.get("SOURCE_DATE_EPOCH", time.time()))
    content = bill(asked.extra if asked.extra is not None else project().extras, epoch=epoch)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"{asked.out}: {len(content['components'])} components")


if __name__ == "__main__":
    main()
