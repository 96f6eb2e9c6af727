"""Which bands and values a training reads: from all headers, never from the first image. NumPy and Pillow only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from flyspeck.data.bands import PixelRule, Ranges
from flyspeck.data.headers import ImageHeader
from flyspeck.data.images import read_image
from flyspeck.data.value_range import FoundRange, extremes, measured_range, stated_range
from flyspeck.errors import UserError

RANGE_IMAGES = 256
"""Images that the range of values is measured on, evenly spread over the training set."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class Survey:
    """The headers of a set's images."""

    source: str
    """What messages call the set."""
    headers: Mapping[str, ImageHeader]
    """Path of an image to its header."""

    def counted(self, key: Callable[[ImageHeader], object], word: str = "") -> str:
        """`30 of 3 bands (as a.png), 12 of 4 bands (as b.tif)`: the kinds by `key`, the most frequent first."""
        counts = Counter(key(header) for header in self.headers.values())
        example = {key(header): path for path, header in reversed(list(self.headers.items()))}
        return ", ".join(
            f"{count} of {kind}{word if kind != 1 else word.removesuffix('s')} (as {example[kind]})"
            for kind, count in counts.most_common()
        )

    def where(self, holds: Callable[[ImageHeader], bool]) -> list[str]:
        """Paths of the images of which something holds."""
        return [path for path, header in self.headers.items() if holds(header)]


def choose_rule(
    train: Survey,
    val: Survey | None = None,
    *,
    channels: int | None = None,
    bands: Sequence[int] | None = None,
    value_range: Ranges | None = None,
    say: Say,
) -> PixelRule:
    """The rule by which a training reads its images; `say` is told of every choice that somebody might want otherwise.

    `channels`, `bands` and `value_range` are what the recipe says of them. Grey among colour is read as colour; any other
    mixture is refused, with counts and an example of each. Raises UserError.
    """
    if bands is not None:
        rule = PixelRule(channels=channels or len(bands), bands=tuple(bands))
    elif channels is not None:
        rule = _as_asked(train, channels, say)
    else:
        rule = PixelRule(channels=_common(train, say))
    for survey in (train, val):
        if survey is not None:
            _check_bands(survey, rule, asked=channels is not None or bands is not None)
            if value_range is None:
                _check_depths(survey)
    _say_alpha(train, rule, say)
    found = _range(train, rule, value_range)
    if found.reason:
        say(f"{train.source}: {found.reason}")
    kinds = {header.dtype for header in train.headers.values()}
    wide = found.ranges is not None or kinds - {"uint8"}
    of = next(iter(kinds)) if value_range is None and found.ranges is not None else None
    rule = PixelRule(channels=rule.channels, bands=rule.bands, value_range=found.ranges, of=of, bits=16 if wide else 8)
    if val is not None:
        _check_types(val, rule, say)
    return rule


def _common(survey: Survey, say: Say) -> int | None:
    """The bands of all images; 3 for grey and colour together."""
    kinds = {header.bands for header in survey.headers.values()}
    if len(kinds) == 1:
        return kinds.pop()
    if kinds == {1, 3}:
        say(
            f"{survey.source}: images of different bands, {_by_bands(survey)}: all are read as 3, grey repeated;"
            " data.channels: 1 reads all as grey"
        )
        return 3
    if not kinds:
        return None
    raise UserError(
        f"images of different bands: {_by_bands(survey)}",
        where=survey.source,
        fix="keep them in sets of their own, or name what to read of each: data.bands, data.channels",
    )


def _as_asked(survey: Survey, channels: int, say: Say) -> PixelRule:
    """`data.channels` overrules: of images that all have more bands the first are read, and that is said."""
    rule = PixelRule(channels=channels)
    more = survey.where(lambda header: not _fits(header, rule) and header.bands > channels)
    if more and all(header.bands >= channels for header in survey.headers.values()):
        first = tuple(range(1, channels + 1))
        said = ",".join(map(str, first))
        say(
            f"{survey.source}: {len(more)} of {len(survey.headers)} images have more than {channels} bands (as {more[0]}):"
            f" bands {said} are read, as data.channels says; data.bands chooses others"
        )
        return PixelRule(channels=channels, bands=first)
    return rule


def _by_bands(survey: Survey) -> str:
    return survey.counted(lambda header: header.bands, " bands")


def _fits(header: ImageHeader, rule: PixelRule) -> bool:
    """Whether an image gives what the rule asks for."""
    if rule.bands is not None:
        return max(rule.bands) <= header.bands + header.alpha
    pair = (header.bands, rule.channels)
    return rule.channels in (None, header.bands) or pair in ((1, 3), (3, 1)) or _alpha_counts(header, rule)


def _alpha_counts(header: ImageHeader, rule: PixelRule) -> bool:
    return header.alpha and header.bands + 1 == rule.channels


def _check_bands(survey: Survey, rule: PixelRule, *, asked: bool) -> None:
    bad = survey.where(lambda header: not _fits(header, rule))
    if not bad:
        return
    wanted = f"{rule.channels} bands" if rule.bands is None else f"the bands {','.join(map(str, rule.bands))}"
    by = "data.channels or data.bands" if asked else "the training set"
    raise UserError(
        f"{len(bad)} of {len(survey.headers)} images do not have {wanted} ({by} asks for them): {_by_bands(survey)}",
        where=survey.source,
        fix="choose bands that all of them have: data.bands, data.channels",
    )


def _check_depths(survey: Survey) -> None:
    if len({header.dtype for header in survey.headers.values()}) > 1:
        raise UserError(
            f"images of different depths: {survey.counted(lambda header: header.dtype)}",
            where=survey.source,
            fix="keep them in sets of their own, or give data.value_range, which holds for all of them",
        )


def _check_types(val: Survey, rule: PixelRule, say: Say) -> None:
    """A range that was found for the training set's values says nothing of values of another type."""
    for path, header in val.headers.items():
        if header.dtype == "float32" and (rule.value_range is None or rule.of not in (None, "float32")):
            raise UserError(
                "floating-point values for a training on others",
                where=path,
                fix="give data.value_range, or convert them",
            )
    others = {h.dtype for h in val.headers.values() if rule.of not in (None, h.dtype)} & {"uint8"}
    if others:
        say(f"{val.source}: images of 8 bits beside a training set of {rule.of}: 0 to 255 as black to white")


def _say_alpha(survey: Survey, rule: PixelRule, say: Say) -> None:
    if rule.bands is not None:
        return
    left_out = survey.where(lambda header: header.alpha and not _alpha_counts(header, rule))
    if left_out:
        count = survey.headers[left_out[0]].bands + 1
        say(
            f"{survey.source}: {len(left_out)} of {len(survey.headers)} images have transparency beside their bands"
            f" (as {left_out[0]}): they are laid on black; data.channels: {count} reads it as a band"
        )


def _range(survey: Survey, rule: PixelRule, asked: Ranges | None) -> FoundRange:
    if asked is not None:
        if len(asked) not in (1, rule.channels):
            raise UserError(
                f"{len(asked)} ranges for {rule.channels} bands",
                where="data.value_range",
                fix="give one pair, or one a band",
            )
        return FoundRange(asked, "")
    kinds = {header.dtype for header in survey.headers.values()}
    if kinds <= {"uint8"}:
        return FoundRange(None, "")
    found = stated_range(list(survey.headers.values())) or measured_range(_values(survey, rule))
    said = "" if found.ranges is None else "; data.value_range says otherwise"
    return FoundRange(found.ranges, f"{found.reason} as black to white{said}")


def _values(survey: Survey, rule: PixelRule) -> Iterator[tuple[np.ndarray, float | None]]:
    paths = list(survey.headers)
    step = max(1, len(paths) // RANGE_IMAGES)
    for path in paths[::step][:RANGE_IMAGES]:
        try:
            yield read_image(path, channels=rule.channels, bands=rule.bands), survey.headers[path].nodata
        except UserError:
            continue  # the loader counts and reports it


def band_ranges(survey: Survey, kind: str, most: int = 32) -> Ranges:
    """The lowest and highest value of each band of the images of a `kind` (with ` with alpha`), over at most `most` of them."""
    mine = {p: h for p, h in survey.headers.items() if h.kind + (" with alpha" if h.alpha else "") == kind}
    paths = list(mine)[:: max(1, len(mine) // most)][:most]
    some = Survey(survey.source, {path: mine[path] for path in paths})
    found = [extremes(pixels, nodata) for pixels, nodata in _values(some, PixelRule())]
    if not found:
        return ()
    low, high = np.fmin.reduce([pair[0] for pair in found]), np.fmax.reduce([pair[1] for pair in found])
    return tuple(zip(low.tolist(), high.tolist(), strict=True))
