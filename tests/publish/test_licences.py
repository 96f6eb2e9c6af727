"""A run is not published under a licence that the weights it started from forbid."""

from __future__ import annotations

import pytest

from flyspeck.errors import UserError
from flyspeck.publish.licences import check_licence


@pytest.mark.parametrize(
    ("theirs", "mine"),
    [
        ("AGPL-3.0", "Apache-2.0"),
        ("GNU Affero General Public License v3", "MIT"),
        ("GPL-3.0-or-later", "Apache-2.0"),
        ("CC BY-NC 4.0", "CC BY 4.0"),
        ("for research use only", "Apache-2.0"),
        ("CC BY-ND 4.0", "CC BY-ND 4.0"),
        ("CC-BY-NC-SA-4.0", "CC BY-NC 4.0"),
    ],
)
def test_what_a_start_forbids_is_named(theirs: str, mine: str) -> None:
    description = {"starts": [{"source": "plain", "licence": "MIT"}, {"source": "runs/theirs", "licence": theirs}]}
    with pytest.raises(UserError, match=r"started from runs/theirs, whose weights are ") as caught:
        check_licence(mine, description)
    assert theirs in str(caught.value)


@pytest.mark.parametrize(
    ("theirs", "mine"),
    [
        ("", "Apache-2.0"),
        ("Apache-2.0", "Apache-2.0"),
        ("CC BY 4.0, as the data", "Apache-2.0"),
        ("AGPL-3.0", "AGPL-3.0-or-later"),
        ("CC BY-NC 4.0", "CC BY-NC 4.0"),
        ("BSD-3-Clause (torchvision); learnt from ImageNet, whose images are for research", "Apache-2.0"),
    ],
)
def test_what_it_allows_is_not(theirs: str, mine: str) -> None:
    check_licence(mine, {"starts": [{"source": "a", "licence": theirs}]})
    check_licence(mine, {})
