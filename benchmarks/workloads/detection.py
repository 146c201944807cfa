"""Detection of clothes in scenes composed of Fashion-MNIST items: average precision as COCO defines it."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from benchmarks.data import fashion_mnist
from benchmarks.models.detector import Detector, best_boxes, detection_loss
from benchmarks.workload import Workload
from benchmarks.workloads._common import Arrays, Splits, batches_of, flax_functions, map_over, split_off
from benchmarks.workloads.digits import digits_splits

_SIDE = 64
_MAX_OBJECTS = 4
_NUM_CLASSES = 10
_KEPT = 20  # detections of a scene that are judged
_IOUS = np.arange(0.5, 1, 0.05)


def detector_scenes(tiny: bool = False) -> Workload:
    """One to four items in noise, of half to one and a half times their size; AP over IoUs of 0.5 to 0.95 decides."""
    splits = _scene_splits(tiny)
    module = Detector(_NUM_CLASSES, width=8 if tiny else 32, depth=1 if tiny else 2)
    init, apply = flax_functions(module, _scaled(splits["train"]["image"][:1]))

    def detect(params, model_state, image, key=None):
        return apply(params, model_state, _scaled(image), key)

    loss_fn, evaluate = judged(detect, splits, _NUM_CLASSES, kept=_KEPT, chunk=100)
    return Workload(
        name="detector_scenes",
        base="adamw",
        weight_decay=0.01,
        num_steps=20 if tiny else 400,
        batch_size=16 if tiny else 32,
        metric="ap",
        higher_is_better=True,
        init=init,
        loss_fn=loss_fn,
        batches=batches_of(splits["train"]),
        evaluate=evaluate,
    )


def judged(
    detect: Callable[..., Any], splits: Splits, num_classes: int, *, kept: int, chunk: int
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The loss and the evaluation of a detector.

    Args:
      detect: `(params, model_state, image, key) -> (Detections, model_state)`, without a key not in training.
      splits: `image`, `boxes` and `labels` of each.
      num_classes: labels are below it.
      kept: detections of an image that are judged.
      chunk: images that are evaluated at once.
    """

    def loss_fn(params, model_state, batch, key):
        predicted, model_state = detect(params, model_state, batch["image"], key)
        return detection_loss(predicted, batch["boxes"], batch["labels"]).mean(), model_state

    def per_image(params, model_state, batch):
        predicted, _ = detect(params, model_state, batch["image"])
        losses = detection_loss(predicted, batch["boxes"], batch["labels"])
        return {"loss": losses, **best_boxes(predicted, kept)}

    over = map_over(per_image, splits, chunk=chunk)

    def evaluate(params, model_state, split):
        found, truth = over(params, model_state, split), splits[split]
        precision = average_precision(found, truth, num_classes, _IOUS)
        loss = float(np.mean(found["loss"], dtype=np.float64))
        return {"loss": loss, "ap": float(precision.mean()), "ap50": float(precision[0])}

    return loss_fn, evaluate


def average_precision(found: Arrays, truth: Arrays, num_classes: int, ious: np.ndarray) -> np.ndarray:
    """Per IoU that a match needs, the area under precision over recall, mean of the classes that occur.

    `found`: `boxes` `[n, k, 4]`, `labels` and `scores` `[n, k]`, best first; `truth`: `boxes` `[n, m, 4]` and `labels`
    `[n, m]`, -1 for none. A detection takes the best matching object of its class that no better one took.
    """
    overlap = _iou(found["boxes"][:, :, None], truth["boxes"][:, None])
    overlap = np.where(found["labels"][:, :, None] == truth["labels"][:, None], overlap, -1)
    scenes = np.arange(len(overlap))
    matched = np.zeros((len(ious), *found["labels"].shape), bool)
    for threshold, hits in zip(ious, matched, strict=True):
        free = overlap.copy()
        for rank in range(overlap.shape[1]):
            best = free[:, rank].argmax(axis=1)
            hits[:, rank] = free[scenes, rank, best] >= threshold
            free[scenes[hits[:, rank]], :, best[hits[:, rank]]] = -1
    # A scene's detections come best first, so a stable sort keeps that order among ties.
    order = np.argsort(-found["scores"].ravel(), kind="stable")
    labels, matched = found["labels"].ravel()[order], matched.reshape(len(ious), -1)[:, order]
    counts = [int(np.sum(truth["labels"] == label)) for label in range(num_classes)]
    areas = [_area(matched[:, labels == label], count) for label, count in enumerate(counts) if count]
    return np.mean(areas, axis=0)


def _area(matched: np.ndarray, count: int) -> np.ndarray:
    """Under the highest precision at each recall or beyond it; rows of hits, best scored first."""
    hits = np.cumsum(matched, axis=1)
    precision = hits / np.arange(1, matched.shape[1] + 1)
    highest = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    return np.sum(highest * matched, axis=1) / count


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes (top, left, bottom, right) on the last axis."""
    sides = np.clip(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0, None)
    common = sides.prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - common
    return common / np.maximum(union, 1e-9)


def _scaled(image):
    return jnp.asarray(image, jnp.float32) / 128 - 1


def _scene_splits(tiny: bool) -> Splits:
    """Scenes to tune on are made of items that no training scene has, those to test on of the official test images."""
    if tiny:
        sources = {
            name: {"image": (255 * part["x"]).repeat(3, axis=1).repeat(3, axis=2), "label": part["y"]}
            for name, part in digits_splits().items()
        }
        sizes = {"train": 64, "validation": 20, "test": 20}
    else:
        train, test = (
            dict(zip(("image", "label"), fashion_mnist.load(part), strict=True)) for part in ("train", "t10k")
        )
        train, validation = split_off(train, 5000)
        sources = {"train": train, "validation": validation, "test": test}
        sizes = {"train": 6000, "validation": 500, "test": 1000}
    return {
        name: _compose(
            source["image"].reshape(len(source["label"]), *source["image"].shape[1:3]), source["label"], size
        )
        for (name, source), size in zip(sources.items(), sizes.values(), strict=True)
    }


def _compose(images: np.ndarray, labels: np.ndarray, num_scenes: int) -> Arrays:
    """`image` uint8 `[n, side, side, 1]`, `boxes` float32 `[n, objects, 4]`, `labels` int32, -1 where there is none."""
    rng = np.random.default_rng(0)
    scenes = rng.normal(20, 10, (num_scenes, _SIDE, _SIDE)).clip(0, 255)
    boxes = np.zeros((num_scenes, _MAX_OBJECTS, 4), np.float32)
    classes = np.full((num_scenes, _MAX_OBJECTS), -1, np.int32)
    for scene in range(num_scenes):
        count = 0
        for _ in range(rng.integers(1, _MAX_OBJECTS + 1)):
            chosen = rng.integers(len(labels))
            item = _resized(_cropped(images[chosen]), rng.uniform(0.5, 1.5))
            height, width = item.shape
            top, left = rng.integers(_SIDE - height + 1), rng.integers(_SIDE - width + 1)
            box = np.array([top, left, top + height, left + width], np.float32)
            # Items may touch; one that would hide another is left out.
            if count and _iou(boxes[scene, :count], box).max() > 0.1:
                continue
            spot = scenes[scene, top : top + height, left : left + width]
            np.maximum(spot, item, out=spot)
            boxes[scene, count], classes[scene, count] = box, labels[chosen]
            count += 1
    return {"image": scenes[..., None].astype(np.uint8), "boxes": boxes, "labels": classes}


def _cropped(image: np.ndarray) -> np.ndarray:
    """To the rows and columns in which something of the item is to be seen."""
    rows, columns = (np.flatnonzero((image > 30).any(axis=axis)) for axis in (1, 0))
    return image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _resized(image: np.ndarray, factor: float) -> np.ndarray:
    """By the nearest pixel."""
    rows, columns = (np.arange(max(4, round(size * factor))) for size in image.shape)
    height, width = image.shape
    return image[np.ix_(rows * height // len(rows), columns * width // len(columns))]
