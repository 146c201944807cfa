"""Pedestrians in the photographs of Penn-Fudan: average precision as COCO defines it.

The published numbers are those of the paper's table 5, of boxes. The data, SGD, its weight decay and the mirrored
images are those of torchvision's tutorial on fine-tuning a detector, on which the authors build. Batches of 5 and five
epochs are read off the paper's figure 10: its manual schedule warms up over 24 of 120 steps, and falls at the 72nd. GeN
begins there at 0.005 and probes at every step, on the gradient's own batch.
"""

import re
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.models.detector import Detections
from benchmarks.reproduce import backbones
from benchmarks.reproduce._common import (
    Files,
    Reproduction,
    held_out,
    methods_of,
    read_weights,
    steps_of,
    with_published,
)
from benchmarks.workload import Workload
from benchmarks.workloads._common import Arrays, batches_of, flax_functions
from benchmarks.workloads.detection import judged

_EPOCHS, _BATCH = 5, 5
_SIDE = 512  # pixels of the square that an image is fitted into
_TEST, _VALIDATION = 50, 20
_KEPT = 50  # detections of an image that are judged
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the images that the weights are of
_FOLDER = "PennFudanPed"


def reproductions() -> list[Reproduction]:
    """One setting; boxes decide."""
    return [
        Reproduction(
            name="detector_pennfudan",
            about=f"point detector on resnet50, pretrained, on Penn-Fudan: {_EPOCHS} epochs, batches of {_BATCH}",
            data=Files(
                "the Penn-Fudan pedestrians, unpacked",
                tuple(f"{_FOLDER}/{folder}" for folder in ("Annotation", "PNGImages", "PedMasks")),
            ),
            weights=Files("the weights of timm's or torchvision's resnet50 in safetensors", ("model.safetensors",)),
            published={"GeN": 0.805, "warm-up and steps": 0.802},
            methods=methods_of(horizon=False, batch="own", every=1, init_learning_rate=0.005),
            load=load,
            differs="The paper's detector is Mask R-CNN, pretrained on COCO. This one finds boxes by their centres and "
            f"has seen ImageNet only; {_VALIDATION} images are held out to tune on. Compare methods, not levels.",
        )
    ]


def load(data: Path, weights: Path) -> Workload:
    """AP over IoUs of 0.5 to 0.95 decides; 50 images test, as in the tutorial."""
    arrays = read_weights(weights)
    rest, test = held_out(read_penn_fudan(data / _FOLDER, _SIDE), _TEST)
    train, validation = held_out(rest, _VALIDATION)
    splits = {"train": train, "validation": validation, "test": test}
    random_init, apply = flax_functions(PyramidDetector(backbones.trunk_of(arrays)), _scaled(train["image"][:1]))

    def init(key):
        params, model_state = random_init(key)
        filled = with_published({"params": params, **model_state}, arrays)
        return filled.pop("params"), filled

    def detect(params, model_state, image, key=None):
        return apply(params, model_state, _scaled(image), key)

    loss_fn, evaluate = judged(detect, splits, 1, kept=_KEPT, chunk=10)
    return Workload(
        name="detector_pennfudan",
        base="sgd",
        weight_decay=5e-4,
        num_steps=steps_of(_EPOCHS, len(train["labels"]), _BATCH),
        batch_size=_BATCH,
        metric="ap",
        higher_is_better=True,
        init=init,
        loss_fn=loss_fn,
        batches=batches_of(train, mirrored),
        evaluate=evaluate,
    )


class PyramidDetector(nn.Module):
    """Objects of one class as points on a pyramid of features (Lin et al., 2017), read at 4 pixels a cell.

    Statistics of batch norm stay those of the weights, as is usual where batches are this small.
    """

    trunk: backbones.Trunk
    width: int = 128

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> Detections:
        pyramid = None
        for level, feature in reversed(list(enumerate(self.trunk(x, train=False)))):
            lateral = nn.Conv(self.width, (1, 1), name=f"head_lateral_{level}")(feature)
            pyramid = lateral if pyramid is None else lateral + jax.image.resize(pyramid, lateral.shape, "nearest")
        pyramid = nn.Conv(self.width, (3, 3), use_bias=False, name="head_conv")(pyramid)
        pyramid = nn.relu(nn.GroupNorm(num_groups=8, name="head_norm")(pyramid))
        # Almost all cells are empty: they start out as such (Lin et al., 2017, section 4.1).
        bias = nn.initializers.constant(-4.0)
        classes = nn.Dense(1, bias_init=bias, name="head_classes")(pyramid)
        geometry = nn.Dense(4, name="head_geometry")(pyramid)
        return Detections(classes, geometry[..., :2], geometry[..., 2:])


def read_penn_fudan(folder: Path, side: int) -> Arrays:
    """The photographs, fitted into the upper left of a square, and the pedestrians' boxes.

    A box is what encloses a pedestrian's pixels in the mask, as in the tutorial. A mask may have more pedestrians than
    its text file, which may leave out those that are small or half hidden.

    Returns:
      `image` uint8 `[n, side, side, 3]`; `boxes` float32 `[n, most, 4]`, top, left, bottom, right in pixels of the
      square; `labels` int32 `[n, most]`, 0 for a pedestrian and -1 for none.

    Raises:
      FileNotFoundError: where the folder has no text files, or a photograph or a mask is missing.
      ValueError: where a mask has fewer pedestrians than its text file.
    """
    annotations = sorted((folder / "Annotation").glob("*.txt"))
    if not annotations:
        raise FileNotFoundError(f"No text files in {folder / 'Annotation'}. Put there: those of Penn-Fudan.")
    read = [_read_one(folder, path, side) for path in annotations]
    most = max(len(boxes) for _, boxes in read)
    boxes = np.zeros((len(read), most, 4), np.float32)
    labels = np.full((len(read), most), -1, np.int32)
    for row, (_, known) in enumerate(read):
        boxes[row, : len(known)], labels[row, : len(known)] = known, 0
    return {"image": np.stack([image for image, _ in read]), "boxes": boxes, "labels": labels}


def _read_one(folder: Path, annotation: Path, side: int) -> tuple[np.ndarray, np.ndarray]:
    from PIL import Image

    text = annotation.read_text(encoding="latin-1")
    count = int(re.search(r"Objects with ground truth\s*:\s*(\d+)", text)[1])
    mask = np.asarray(Image.open(folder / "PedMasks" / f"{annotation.stem}_mask.png"))
    people = [np.nonzero(mask == number) for number in np.unique(mask) if number > 0]
    if len(people) < count:
        raise ValueError(f"{annotation} counts {count} pedestrians, and its mask has {len(people)}.")
    photograph = Image.open(folder / "PNGImages" / f"{annotation.stem}.png").convert("RGB")
    factor = side / max(photograph.size)
    small = photograph.resize([max(1, round(size * factor)) for size in photograph.size], Image.Resampling.BILINEAR)
    square = np.zeros((side, side, 3), np.uint8)
    square[: small.height, : small.width] = np.asarray(small)
    boxes = [[rows.min(), columns.min(), rows.max() + 1, columns.max() + 1] for rows, columns in people]
    return square, np.array(boxes, np.float32).reshape(-1, 4) * np.float32(factor)


def mirrored(batch: Arrays, rng: np.random.Generator) -> Arrays:
    """Half of the images with left and right exchanged."""
    flipped = rng.random(len(batch["labels"])) < 0.5
    top, left, bottom, right = np.moveaxis(batch["boxes"], -1, 0)
    side = batch["image"].shape[2]
    other = np.stack([top, side - right, bottom, side - left], axis=-1)
    return {
        **batch,
        "image": np.where(flipped[:, None, None, None], batch["image"][:, :, ::-1], batch["image"]),
        # Where there is no object its box stays zero.
        "boxes": np.where((flipped[:, None] & (batch["labels"] >= 0))[..., None], other, batch["boxes"]),
    }


def _scaled(image):
    return (jnp.asarray(image, jnp.float32) / 255 - jnp.array(_MEAN)) / jnp.array(_DEVIATION)
