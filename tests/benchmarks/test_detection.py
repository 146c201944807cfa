"""Average precision and the composed scenes."""

import numpy as np
import pytest

from benchmarks.models.detector import STRIDE, Detections, best_boxes, detection_loss
from benchmarks.workloads.detection import _IOUS, _compose, average_precision

TRUTH = {
    "boxes": np.array([[[0, 0, 20, 20], [30, 30, 50, 50]], [[8, 8, 24, 24], [0, 0, 0, 0]]], np.float32),
    "labels": np.array([[0, 1], [0, -1]]),
}


def found(boxes, labels, scores):
    return {"boxes": np.array(boxes, np.float32), "labels": np.array(labels), "scores": np.array(scores)}


def test_all_objects_found():
    perfect = found(TRUTH["boxes"], [[0, 1], [0, 1]], [[0.9, 0.8], [0.9, 0.1]])
    np.testing.assert_allclose(average_precision(perfect, TRUTH, 3, _IOUS), 1)


def test_precision_falls_with_what_is_scored_above_the_objects():
    # Class 0: a false box scores highest, then both objects: precision 2/3 at either recall. Class 1: not found.
    boxes = [[[40, 0, 60, 20], [0, 0, 20, 20]], [[8, 8, 24, 24], [0, 0, 4, 4]]]
    detections = found(boxes, [[0, 0], [0, 2]], [[0.9, 0.8], [0.7, 0.6]])
    np.testing.assert_allclose(average_precision(detections, TRUTH, 3, _IOUS), 1 / 3)


def test_an_object_is_found_once_and_as_exactly_as_asked():
    # IoU of the first box: 16 / 20 = 0.8; the second one is a duplicate of lower score.
    boxes = [[[0, 0, 20, 16], [0, 0, 20, 20]], [[8, 8, 24, 24], [8, 8, 24, 24]]]
    detections = found(boxes, [[0, 0], [0, 0]], [[0.9, 0.8], [0.7, 0.6]])
    truth = {**TRUTH, "labels": np.array([[0, -1], [0, -1]])}
    # The duplicate lowers the precision at the second recall to 2 / 3.
    assert average_precision(detections, truth, 1, np.array([0.75]))[0] == pytest.approx(5 / 6)
    # At 0.9 the first box is wrong, the second takes the object: (2 / 3) at both recalls.
    assert average_precision(detections, truth, 1, np.array([0.9]))[0] == pytest.approx(2 / 3)


def test_a_network_that_knows_has_no_loss_and_the_right_boxes():
    grid, centre, size = 16, np.array([[10, 10], [40, 40]]) / STRIDE, np.array([[20, 20], [20, 20]]) / STRIDE
    classes = np.full((1, grid, grid, 2), -30.0, np.float32)
    offset, log_size = np.zeros((2, 1, grid, grid, 2), np.float32)
    for label, (middle, extent) in enumerate(zip(centre, size, strict=True)):
        row, column = middle.astype(int)
        classes[0, row, column, label] = 30
        offset[0, row, column], log_size[0, row, column] = middle - [row, column], np.log(extent)
    predicted = Detections(classes, offset, log_size)
    assert detection_loss(predicted, TRUTH["boxes"][:1], TRUTH["labels"][:1])[0] < 1e-5
    boxes = best_boxes(predicted, 2)
    truth = {name: array[:1] for name, array in TRUTH.items()}
    np.testing.assert_allclose(average_precision({k: np.asarray(v) for k, v in boxes.items()}, truth, 2, _IOUS), 1)


def test_boxes_are_tight():
    image = np.zeros((1, 28, 28), np.uint8)
    image[0, 5:25, 8:18] = 255
    scenes = _compose(image, np.array([3]), 5)
    assert scenes["image"].dtype == np.uint8
    assert np.all((scenes["labels"] == 3) | (scenes["labels"] == -1))
    for picture, boxes, labels in zip(scenes["image"][..., 0], scenes["boxes"], scenes["labels"], strict=True):
        bright = np.zeros_like(picture, bool)
        for top, left, bottom, right in boxes[labels >= 0].astype(int):
            bright[top:bottom, left:right] = True
        np.testing.assert_array_equal(picture > 128, bright)
