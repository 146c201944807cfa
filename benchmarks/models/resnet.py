"""Residual networks for small grey images: with batch normalisation, and deep without any normalisation."""

from collections.abc import Sequence

import flax.linen as nn
import jax


class ResNet(nn.Module):
    """One residual block per entry of ``widths``; the image is halved by the stem and before each block but the first.

    Maps ``[batch, height, width, channels]`` to logits ``[batch, num_classes]``; statistics of the batch while
    training, running ones (collection ``batch_stats``) otherwise.
    """

    num_classes: int
    widths: Sequence[int] = (16, 32, 64)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        # Runs are short: statistics with flax's default memory of 100 steps would lag behind the weights.
        def norm(**kwargs):
            return nn.BatchNorm(use_running_average=not train, momentum=0.9, **kwargs)

        x = nn.relu(norm()(nn.Conv(self.widths[0], (3, 3), strides=2, use_bias=False)(x)))
        for index, width in enumerate(self.widths):
            stride = 1 if index == 0 else 2
            y = nn.relu(norm()(nn.Conv(width, (3, 3), strides=stride, use_bias=False)(x)))
            y = nn.Conv(width, (3, 3), use_bias=False)(y)
            # A block starts as the identity, as is usual for residual nets trained at a high rate.
            y = norm(scale_init=nn.initializers.zeros)(y)
            if x.shape != y.shape:
                x = norm()(nn.Conv(width, (1, 1), strides=stride, use_bias=False)(x))
            x = nn.relu(x + y)
        return nn.Dense(self.num_classes)(x.mean(axis=(1, 2)))


class UnnormalizedResNet(nn.Module):
    """Many residual blocks, He initialised, with nothing that keeps the activations from growing with depth."""

    num_classes: int
    width: int = 16
    depth: int = 12

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        he = nn.initializers.he_normal()
        x = nn.Conv(self.width, (4, 4), strides=4, kernel_init=he)(x)
        for _ in range(self.depth):
            y = nn.Conv(self.width, (3, 3), kernel_init=he)(nn.relu(x))
            x = x + nn.Conv(self.width, (3, 3), kernel_init=he)(nn.relu(y))
        return nn.Dense(self.num_classes)(nn.relu(x).mean(axis=(1, 2)))
