"""Whether weights may be published under a licence, given those of the weights that they started from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from flyspeck.errors import UserError

# What a licence asks of everything that is made from the work, and how those that fulfil it are told.
_DEMANDS = (
    (r"\bAGPL|affero", "AGPL", r"\bAGPL|affero"),
    (r"\bGPL|gnu general public", "GPL", r"GPL|gnu|affero"),
    (
        r"\bNC\b|non[- ]?commercial|\bresearch (only|use)|for research",
        "for no commercial use",
        r"\bNC\b|non[- ]?comm|research",
    ),
    (r"\bND\b|no[- ]?deriv", "not to be changed", r"(?!)"),
    (r"[- ]SA\b|share[- ]?alike", "to be shared alike", r"[- ]SA\b|share[- ]?alike"),
)


def check_licence(licence: str, description: Mapping[str, Any]) -> None:
    """Raises UserError where a start of the run (`starts` of its description) forbids to publish its weights under `licence`."""
    for start in description.get("starts", ()):
        theirs = _weights_part(str(start.get("licence") or ""))
        for pattern, word, fulfilled in _DEMANDS:
            if re.search(pattern, theirs, re.IGNORECASE) and not re.search(fulfilled, licence, re.IGNORECASE):
                raise UserError(
                    f"the run started from {start.get('source')}, whose weights are {word} ({theirs}): "
                    f"they cannot become '{licence}'",
                    where="--licence",
                    fix="name a licence that allows no more than that, or train again without this start",
                )


def _weights_part(licence: str) -> str:
    """Without what is said of the images behind a semicolon: terms of images are no licence of weights."""
    return licence.partition(";")[0]
