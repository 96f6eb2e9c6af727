"""Images that cannot be used: each named once, counted, and an error as soon as there are too many."""

from __future__ import annotations

import logging

from flyspeck.errors import UserError

log = logging.getLogger(__name__)


class BrokenImages:
    """What is wrong with which file (`found`), of `num_images`; more than a share of `most` of them is an error."""

    def __init__(self, num_images: int, *, most: float) -> None:
        self.num_images, self.most = num_images, most
        self.found: dict[str, UserError] = {}

    def note(self, error: UserError) -> None:
        """Logs a file that is not known yet. Raises UserError where it is one too many: `error` itself where none is allowed."""
        if error.where in self.found:
            return
        self.found[error.where] = error
        allowed = self.most * self.num_images
        if len(self.found) <= allowed:
            log.warning("left out (%d of %d allowed): %s", len(self.found), int(allowed), error)
            return
        if self.most == 0:
            raise error
        raise UserError(
            f"{len(self.found)} of {self.num_images} images cannot be used, more than the allowed share of"
            f" {self.most:g}; the last: {error.what}",
            where=error.where,
            fix="repair or remove them, or raise the share (--max-broken-share; data.max_broken_share in a recipe)",
        )
