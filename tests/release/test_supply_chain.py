"""What a release is made of: licences, the bill of materials, a wheel that is the same bytes twice, the workflow."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.metadata import Distribution
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "release"))

import licences  # noqa: E402
from installed import closure, needed_by, project, shared_libraries  # noqa: E402
from sbom import bill  # noqa: E402


def test_every_licence_is_allowed_or_excused() -> None:
    """Of whatever is installed here; an exception that no package needs any more fails too."""
    verdicts = [licences.verdict(name, package) for name, package in closure(project().extras).items()]
    assert len(verdicts) > 30
    assert not [(one.name, fault) for one in verdicts for fault in one.faults]
    found = {one.name: " ".join(one.excused) for one in verdicts}
    for (name, fault), reason in licences.EXCEPTIONS.items():
        assert name not in found or f"{fault}: {reason}" in found[name], f"{name}: no longer so"
    for name, reason in licences._OWN.items():
        assert name not in found or reason in found[name], f"{name}: no longer so"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("MIT", True),
        ("Apache-2.0 AND Apache-2.0 WITH LLVM-exception AND BSD-2-Clause AND Zlib", True),
        ("ISC License (ISCL)", True),
        ("BSD License", True),
        ("GNU General Public License v3 (GPLv3)", False),
        ("MIT AND GPL-2.0-only", False),
        ("AGPL-3.0", False),
        ("UNKNOWN", False),
        ("Proprietary", False),
        ("", False),
    ],
)
def test_words_of_licences(words: str, expected: bool) -> None:
    assert licences.allowed(words) is expected


class Made(Distribution):
    """A package that was never installed."""

    def __init__(self, folder: Path, metadata: str, files: dict[str, str]) -> None:
        self.folder = folder
        self.texts = {"METADATA": metadata, "RECORD": "".join(f"{name},,\n" for name in files)}
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)

    def read_text(self, filename: str) -> str | None:
        return self.texts.get(filename)

    def locate_file(self, path):
        return self.folder / path


GPL = "                    GNU GENERAL PUBLIC LICENSE\n Version 3\n\n TERMS AND CONDITIONS\n"
AGPL = GPL.replace("GNU GENERAL", "GNU AFFERO GENERAL")


@pytest.mark.parametrize(
    ("licence", "files", "faults"),
    [
        ("MIT", {"x-1.dist-info/licenses/LICENSE": "MIT License"}, []),
        ("MIT", {"x-1.dist-info/licenses/COPYING": GPL}, ["holds the text of COPYING"]),
        ("MIT", {"x-1.dist-info/LICENSE": AGPL}, ["holds the text of LICENSE"]),
        ("MIT", {"x-1.dist-info/LICENSE": GPL + "GCC RUNTIME LIBRARY EXCEPTION"}, []),
        ("MIT", {"x.libs/libx265-f5385bb8.so.216": ""}, ["bundles x265"]),
        ("MIT", {"x/.dylibs/libx264.165.dylib": ""}, ["bundles x264"]),
        ("GPL-3.0-only", {}, ["licence GPL-3.0-only"]),
        ("GPL-2.0-only", {"x.libs/libgsl.so": ""}, ["licence GPL-2.0-only", "bundles gsl"]),
    ],
)
def test_a_planted_licence_is_found(licence: str, files: dict[str, str], faults: list[str], tmp_path: Path) -> None:
    package = Made(tmp_path, f"Name: x\nVersion: 1\nLicense-Expression: {licence}\n", files)
    found = licences.verdict("x", package).faults
    assert len(found) == len(faults)
    assert all(wanted in got for wanted, got in zip(faults, found, strict=True))


def test_names_of_bundled_libraries(tmp_path: Path) -> None:
    files = (
        "x.libs/libx264-d6533a8d.so.165",
        "x.libs/libdeflate-d9fd40d3.so.0",
        "x/_core.abi3.so",
        "x.libs/libpng16.86585de4.so",
    )
    package = Made(tmp_path, "Name: x\nVersion: 1\n", dict.fromkeys(files, ""))
    assert shared_libraries(package)[:2] == ["deflate", "png16"]
    assert "x264" in shared_libraries(package)


def test_the_bill_holds_together() -> None:
    own = project()
    made = bill(own.extras, epoch=0)
    assert (made["bomFormat"], made["specVersion"]) == ("CycloneDX", "1.6")
    assert made["metadata"]["timestamp"] == "1970-01-01T00:00:00Z"
    assert made["metadata"]["component"]["version"] == own.version
    references = [one["bom-ref"] for one in (made["metadata"]["component"], *made["components"])]
    assert len(set(references)) == len(references) > 30
    edges = {one["ref"]: one["dependsOn"] for one in made["dependencies"]}
    assert set(edges) == set(references)
    assert {other for needed in edges.values() for other in needed} <= set(references)
    assert all(re.fullmatch(r"pkg:pypi/[a-z0-9-]+@[^@ ]+", one["purl"]) for one in made["components"])
    assert re.fullmatch(r"urn:uuid:[0-9a-f-]{36}", made["serialNumber"])
    direct = {
        name.lower().replace("_", "-") for extra in ("", *own.extras) for name, _ in needed_by(own.requires[extra])
    }
    assert direct & {one["name"] for one in made["components"]} >= {"torch", "numpy", "pillow", "safetensors"}
    assert json.dumps(made) == json.dumps(bill(own.extras, epoch=0))
    assert made["serialNumber"] != bill([], epoch=0)["serialNumber"]


@pytest.mark.slow
def test_the_wheel_is_the_same_bytes_twice(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "release" / "twice.py"), "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    hashes = {line.split()[0] for line in done.stdout.splitlines()}
    assert len(done.stdout.splitlines()) == 2
    assert len(hashes) == 1
    assert list(tmp_path.glob("*.whl"))


def test_the_workflow_publishes_without_a_secret() -> None:
    text = (ROOT / ".github" / "workflows" / "release.yml").read_text(encoding="utf-8")
    content = yaml.safe_load(text)
    assert "secrets." not in text
    assert "password" not in text
    assert "http" not in text, "no address of an index"
    assert content["permissions"] == {}
    jobs = content["jobs"]
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert jobs["publish"]["environment"] == "release"
    assert jobs["publish"]["needs"] == "build"
    assert set(jobs["build"]["permissions"].values()) == {"read", "write"}
    used = [step["uses"].partition("@") for job in jobs.values() for step in job["steps"] if "uses" in step]
    assert all(mark for _, _, mark in used)
    assert {name for name, _, _ in used} >= {"actions/attest-build-provenance", "pypa/gh-action-pypi-publish"}
    for script in re.findall(r"(?:python3?|python) (\S+\.py)", text):
        assert (ROOT / script).is_file(), script


HASHED = re.compile(r"^[a-z0-9][a-z0-9._-]*==\S+( \\)?$|^    --hash=sha256:[0-9a-f]{64}( \\)?$|^#.*$")


def test_constraints_name_no_address() -> None:
    for name in ("constraints.txt", "constraints-hashed.txt"):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert "://" not in text
        assert "--index" not in text
    lines = text.splitlines()
    assert not [line for line in lines if not HASHED.match(line)]
    hashes = [len(part.splitlines()) - 1 for part in re.split(r"\n(?=[a-z0-9])", text)[1:]]
    assert min(hashes) >= 1, "a version without a hash"
    plain = {line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")}
    assert {line.removesuffix(" \\") for line in lines if "==" in line} == {line.replace("_", "-") for line in plain}
