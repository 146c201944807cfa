"""A one-stage detector without anchors: objects as points (Zhou et al., 2019, arXiv 1904.07850)."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

STRIDE = 4


class Detections(NamedTuple):
    """What the network says of each cell of a grid `STRIDE` pixels wide, arrays `[batch, rows, columns, ...]`."""

    classes: jax.Array  # logits of an object of each class having its centre here
    offset: jax.Array  # of the centre from the cell's corner (row, column), in cells
    log_size: jax.Array  # of the height and width, in cells


class Detector(nn.Module):
    """Maps `[batch, height, width, 1]` to `Detections`; group norm, so that no statistics are carried along."""

    num_classes: int
    width: int = 32
    depth: int = 2

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> Detections:
        def conv(x, width, strides=1):
            return nn.GroupNorm(num_groups=4)(nn.Conv(width, (3, 3), strides=strides, use_bias=False)(x))

        x = nn.relu(conv(x, self.width // 2, strides=2))
        x = nn.relu(conv(x, self.width, strides=2))
        for _ in range(self.depth):
            x = nn.relu(x + conv(nn.relu(conv(x, self.width)), self.width))
        x = nn.relu(conv(x, self.width))
        # Almost all cells are empty: they start out as such (Lin et al., 2017, section 4.1).
        classes = nn.Dense(self.num_classes, bias_init=nn.initializers.constant(-4.0), name="classes")(x)
        geometry = nn.Dense(4, name="geometry")(x)
        return Detections(classes, geometry[..., :2], geometry[..., 2:])


def detection_loss(predicted: Detections, boxes: jax.Array, labels: jax.Array) -> jax.Array:
    """Per scene, over its number of objects: focal loss of the centres plus L1 of offsets and log sizes.

    `boxes` `[batch, objects, 4]` are top, left, bottom, right in pixels; `labels` is -1 where there is no object.
    """
    rows, columns, num_classes = predicted.classes.shape[1:]
    there = (labels >= 0).astype(jnp.float32)
    centre = (boxes[..., :2] + boxes[..., 2:]) / (2 * STRIDE)
    size = (boxes[..., 2:] - boxes[..., :2]) / STRIDE
    cell = jnp.floor(centre).astype(jnp.int32)

    # A bump around each centre: near misses cost less.
    sigma = jnp.maximum(size / 6, 0.5)
    along_rows = jnp.exp(-(((jnp.arange(rows) - cell[..., :1]) / sigma[..., :1]) ** 2) / 2)
    along_columns = jnp.exp(-(((jnp.arange(columns) - cell[..., 1:]) / sigma[..., 1:]) ** 2) / 2)
    bumps = along_rows[..., :, None] * along_columns[..., None, :] * there[..., None, None]
    of_class = jax.nn.one_hot(labels, num_classes)
    heat = jnp.max(bumps[..., None] * of_class[:, :, None, None, :], axis=1)
    log_yes, log_no = jax.nn.log_sigmoid(predicted.classes), jax.nn.log_sigmoid(-predicted.classes)
    yes = jnp.exp(log_yes)
    focal = -jnp.where(heat == 1, (1 - yes) ** 2 * log_yes, (1 - heat) ** 4 * yes**2 * log_no)

    def at_centres(values):
        return jax.vmap(lambda value, index: value[index[:, 0], index[:, 1]])(values, cell)

    offset = jnp.abs(at_centres(predicted.offset) - (centre - cell)).sum(-1)
    log_size = jnp.abs(at_centres(predicted.log_size) - jnp.log(jnp.maximum(size, 1e-3))).sum(-1)
    return (focal.sum((1, 2, 3)) + jnp.sum((offset + log_size) * there, axis=1)) / there.sum(axis=1)


def best_boxes(predicted: Detections, count: int) -> dict[str, jax.Array]:
    """The `count` highest peaks of each scene: `boxes` `[batch, count, 4]`, `labels` and `scores` `[batch, count]`."""
    scores = jax.nn.sigmoid(predicted.classes.astype(jnp.float32))
    _, _, columns, num_classes = scores.shape
    # An object is the highest of its neighbourhood: that replaces the suppression of overlapping boxes.
    peaks = jnp.where(scores == nn.max_pool(scores, (3, 3), padding="SAME"), scores, 0)
    top, index = jax.lax.top_k(peaks.reshape(len(peaks), -1), count)
    cell, labels = index // num_classes, index % num_classes

    def at_cells(values):
        return jnp.take_along_axis(values.reshape(len(values), -1, 2), cell[..., None], axis=1).astype(jnp.float32)

    centre = jnp.stack([cell // columns, cell % columns], axis=-1) + at_cells(predicted.offset)
    half = jnp.exp(at_cells(predicted.log_size)) / 2
    boxes = jnp.concatenate([centre - half, centre + half], axis=-1) * STRIDE
    return {"boxes": boxes, "labels": labels, "scores": top}
