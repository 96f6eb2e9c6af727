"""A list of `Detections` finds its images and its classes by name, in whatever order a program has them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import flyspeck
from flyspeck.evaluate import DetectionTable
from flyspeck.types import Detections


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> flyspeck.Annotations:
    """Three scenes, whose numbers do not follow their names."""
    path = flyspeck.write_scenes(
        tmp_path_factory.mktemp("lists") / "scenes", num_images=3, seed=5, height=96, width=128, density=3
    )
    return flyspeck.read_annotations(path).select_images([2, 0, 1])


def perfect(truth: flyspeck.Annotations, row: int) -> Detections:
    """All that is in an image."""
    mine = (truth.image_index == row) & ~truth.ignore
    size = (int(truth.sizes[row][0]), int(truth.sizes[row][1]))
    return Detections(truth.boxes[mine], np.full(mine.sum(), 0.9), truth.labels[mine], size, truth.classes)


def ap50(truth: flyspeck.Annotations, found: list[Detections]) -> float:
    return flyspeck.evaluate(ground_truth=truth, detections=found).value(metric="AP", iou=0.5, area="all")


@pytest.mark.parametrize(
    "called", [lambda path: str(path), lambda path: path.name, lambda path: f"elsewhere/{path.name}"]
)
def test_images_are_found_by_their_paths_in_any_order(truth, called):
    found = [replace(perfect(truth, row), image_id=called(truth.path(row))) for row in (1, 2, 0)]
    assert ap50(truth, found) == 1
    table = DetectionTable.from_list(found[:2], truth)
    assert set(table.image_index.tolist()) <= {1, 2}


def test_a_predictor_names_files_and_counts_nothing(truth, tmp_path):
    """One by one and all at once: ids of a count would be those of other images."""

    class Knows:
        """A model that has seen the annotations: the mean of an image tells it which one it is."""

        classes = truth.classes
        channels = 3

        def __call__(self, images):
            return [replace(perfect(truth, self.row(image)), image_size=image.shape[:2]) for image in images]

        def row(self, image):
            return min(
                range(len(truth)), key=lambda row: abs(flyspeck.read_image(truth.path(row)).mean() - image.mean())
            )

    predictor = flyspeck.Predictor(Knows(), tile=None)
    folder = truth.path(0).parent
    assert [one.image_id for one in predictor.predict(folder)] == sorted(str(path) for path in folder.iterdir())
    assert ap50(truth, predictor.predict(folder)) == 1
    assert ap50(truth, [predictor.predict(path)[0] for path in sorted(folder.iterdir())]) == 1
    in_order = [predictor.predict(flyspeck.read_image(truth.path(row)))[0] for row in range(len(truth))]
    assert [one.image_id for one in in_order] == [None] * 3
    assert ap50(truth, in_order) == 1


def test_an_image_of_the_same_name_is_another_one(truth, tmp_path):
    """A copy elsewhere is the same image; another image, called alike in another folder, is not."""
    copies = [tmp_path / "copies" / truth.path(row).name for row in range(3)]
    copies[0].parent.mkdir()
    for row, copy in enumerate(copies):
        copy.write_bytes(truth.path(row).read_bytes())
    assert ap50(truth, [replace(perfect(truth, row), image_id=str(copies[row])) for row in (2, 0, 1)]) == 1
    copies[1].write_bytes(truth.path(0).read_bytes())
    with pytest.raises(flyspeck.UserError, match="does not have"):
        DetectionTable.from_list([replace(perfect(truth, 1), image_id=str(copies[1]))], truth)
    up = truth.path(1).parent / ".." / truth.path(1).parent.name / truth.path(1).name
    assert len(DetectionTable.from_list([replace(perfect(truth, 1), image_id=str(up))], truth))


def test_two_entries_for_an_image_are_told(truth):
    one = replace(perfect(truth, 0), image_id=truth.path(0).name)
    with pytest.raises(flyspeck.UserError, match="2 entries for image"):
        DetectionTable.from_list([one, one], truth)
    with pytest.raises(flyspeck.UserError, match="does not have"):
        DetectionTable.from_list([replace(one, image_id="other.png")], truth)


def test_classes_go_by_their_names(truth):
    every, turned = [perfect(truth, row) for row in range(3)], truth.classes[::-1]
    other = [replace(one, labels=len(turned) - 1 - one.labels, classes=turned) for one in every]
    assert ap50(truth, other) == 1
    more = [replace(one, labels=one.labels + 1, classes=("tree", *truth.classes)) for one in every]
    assert ap50(truth, more) == 1
    trees = [replace(one, labels=one.labels * 0) for one in more]
    result = flyspeck.evaluate(ground_truth=truth, detections=[trees[0], *more[1:]])
    assert any("classes that the ground truth does not have (tree)" in note for note in result.notes)
    with pytest.raises(flyspeck.UserError, match="no class of the detections"):
        DetectionTable.from_list([replace(one, classes=tuple("abcdef")[: len(truth.classes)]) for one in other], truth)
