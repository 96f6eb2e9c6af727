"""`register_*`: parts from outside the package, added to the tables by name. See docs/how-to/extend.md.

Importing this module imports no torch; a call imports the home of its table alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flyspeck.plugins import add_part, guarded

if TYPE_CHECKING:
    from flyspeck.data.annotations import Annotations
    from flyspeck.data.readers import ReadOptions
    from flyspeck.data.transforms import Transform
    from flyspeck.evaluate.protocols import Protocol
    from flyspeck.infer.writer import Writer
    from flyspeck.options import Options


def register_backbone(
    name: str,
    build: Callable[..., Any],
    *,
    strides: Sequence[int] = (4, 8, 16, 32),
    neck: str | None = None,
    options: type[Options] | None = None,
) -> None:
    """Adds the backbone `name`, as in `retinanet:NAME`.

    Args:
        name: Not yet taken.
        build: Takes the keywords `width` and `weights` and returns a module that maps images `(B, 3, H, W)` to a list of maps,
            with a `FeatureSpec` of each in its `features`. A `StagedBackbone` can do more (frozen stages, stride elimination).
        strides: Those of these maps in pixels, finest first.
        neck: The neck it wants where the model's name has none.
        options: Further keywords of `build` that a recipe may set under `model.backbone` (`flyspeck.options`).

    Raises:
        UserError: For a name that is taken. Maps that contradict their `FeatureSpec`s are refused when it is first built.
    """
    from flyspeck.models.zoo import BackboneEntry
    from flyspeck.options import Options

    build = guarded("backbone", name, build)
    add_part("backbone", name, BackboneEntry(build, tuple(strides), neck, settings=options or Options))


def register_neck(
    name: str,
    build: Callable[..., Any],
    *,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    fuses: bool = False,
) -> None:
    """Adds the neck `name`, as in `retinanet:resnet18:NAME`.

    Args:
        name: Not yet taken.
        build: `build(features, *, channels, num_extra, norm)` takes the backbone's `FeatureSpec`s and returns a module that maps
            the list of maps to `len(features) + num_extra` maps of `channels`, described by its own `features`.
        options: By detector, arguments that this neck implies for the detector's builder.
        fuses: `build` takes `fusion` too, one factor a top-down edge.

    Raises:
        UserError: For a name that is taken.
    """
    from flyspeck.models.zoo import NeckEntry

    add_part("neck", name, NeckEntry(guarded("neck", name, build), options or {}, fuses))


def register_detector(
    name: str,
    build: Callable[..., Any],
    *,
    passes_to: Sequence[Callable[..., Any]] = (),
    levels: str = "2-6",
    assigners: tuple[str, ...] = (),
    like: str | None = None,
    options: type[Options] | None = None,
    classes: int = 1,
    find_configuration: Callable[..., Any] | None = None,
) -> None:
    """Adds the detector `name`, as in `NAME:resnet18`.

    Args:
        name: Not yet taken.
        build: `build(backbone, *, classes, pixel_norm, neck, num_extra, channels, norm, suppression, **options)` returns a
            `Detector` with a `Head` of its own.
        passes_to: Where keywords go on to others (the class of the head): these.
        levels: Its usual pyramid.
        assigners: Names of the label assigners that it takes.
        like: The detector (`faster_rcnn`) for which backbones and necks give arguments that its builder takes too.
        options: The keywords that a recipe may set under `model.head`: a subclass of `flyspeck.options.Options`, with their
            types, bounds, defaults and sentences, which schema and `--print-config` show too; None: it has none.
        classes: Foreground classes of its published numbers.
        find_configuration: Of a detector without a neck to choose, as SSD: takes the third part of its name, a configuration,
            and raises UserError for one that is not known. `build` then gets `configuration` (`base` where the name has none),
            and no `neck`, `num_extra`, `channels` or `norm`.

    Raises:
        UserError: For a name that is taken.
    """
    from flyspeck.models.zoo import DetectorEntry
    from flyspeck.options import Options

    build = guarded("detector", name, build, gives="flyspeck.models.detector:Detector")
    entry = DetectorEntry(
        build,
        tuple(passes_to),
        levels=levels,
        classes=classes,
        find_configuration=find_configuration,
        assigners=tuple(assigners),
        like=like,
        settings=options or Options,
    )
    add_part("detector", name, entry)


def register_reader(
    name: str,
    read: Callable[[Path, ReadOptions], Annotations],
    *,
    endings: Sequence[str] = (),
    detect: Callable[[Path], bool] | None = None,
) -> None:
    """Adds the annotation format `name`, as in `--format NAME` and `data.format: NAME`.

    Without a format given, a file or folder that is in none of flyspeck's own formats is taken for this one if its name has one
    of `endings` and `detect`, where given, says so. With neither, the format has to be named.

    Args:
        name: Not yet taken.
        read: `read(path, options)` returns the table; `data.readers.assemble` has what all readers share.
        endings: Of file names, such as `.tally`.
        detect: Whether a path is of this format.

    Raises:
        UserError: For a name that is taken.
    """
    from flyspeck.data.readers import Reader

    read = guarded("reader", name, read, gives="flyspeck.data.annotations:Annotations")
    add_part("reader", name, Reader(read, tuple(endings), detect))


def register_writer(
    name: str,
    *,
    annotations: Callable[[Annotations, Path], None] | None = None,
    detections: Callable[..., Writer] | None = None,
) -> None:
    """Adds the format `name` to what is written: annotations (`data convert --to NAME`), detections (`predict --to NAME`).

    Args:
        name: Not yet taken.
        annotations: `annotations(table, path)` writes a table.
        detections: `detections(folder, *, classes, category_ids)` returns a `Writer` that gets one image's result after the
            other.

    Raises:
        UserError: For a name that is taken.
        ValueError: Where neither is given.
    """
    if annotations is None and detections is None:
        raise ValueError(f"the writer '{name}' writes neither annotations nor detections")
    if annotations is not None:
        add_part("writer of annotations", name, guarded("writer of annotations", name, annotations))
    if detections is not None:
        add_part("writer of detections", name, guarded("writer of detections", name, detections))


def register_protocol(protocol: Protocol) -> None:
    """Adds an evaluation protocol under its own name.

    Args:
        protocol: A value of `evaluate.protocols`, best made with `dataclasses.replace`.

    Raises:
        UserError: For a name that is taken.
    """
    add_part("protocol", protocol.name, protocol)


def register_transform(name: str, build: Callable[..., Transform]) -> None:
    """Adds the transform `name`, as in a recipe's `augment.extra: [{name: NAME, ...}]`.

    Args:
        name: Not yet taken.
        build: Takes the recipe's further keys as keywords and returns a callable `(sample, rng, another) -> sample` that draws
            all its numbers from `rng` (see `data.transforms`) and can be pickled: a frozen dataclass at the top of a module is
            best.

    Raises:
        UserError: For a name that is taken.
    """
    add_part("transform", name, guarded("transform", name, build, gives="collections.abc:Callable"))
