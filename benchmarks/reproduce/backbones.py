"""The vision networks that the paper fine-tunes: ResNet (He et al., 2016) and ViT (Dosovitskiy et al., 2021).

Sizes are read off published weights, in the names that timm gives them, which torchvision shares for ResNet. Modules
have the same names, dots included, so that `with_published` finds each array.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.models.transformer import attention


class Trunk(nn.Module):
    """A ResNet of bottleneck blocks without its head: the outputs of the stages, 4, 8, 16, ... pixels a cell.

    Attributes:
      blocks: how many there are, per stage.
      widths: of the 3x3 convolutions, per stage; a stage's output is four times as wide.
      stem: the width of the first convolution.
    """

    blocks: tuple[int, ...]
    widths: tuple[int, ...]
    stem: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> list[jax.Array]:
        def conv(x, name, norm, width, kernel, stride=1):
            x = nn.Conv(width, (kernel, kernel), stride, padding=kernel // 2, use_bias=False, name=name)(x)
            return nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5, name=norm)(x)

        x = nn.relu(conv(x, "conv1", "bn1", self.stem, 7, 2))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        stages = []
        for stage, (blocks, width) in enumerate(zip(self.blocks, self.widths, strict=True)):
            for index in range(blocks):
                name = f"layer{stage + 1}.{index}."
                stride = 2 if stage > 0 and index == 0 else 1
                y = nn.relu(conv(x, f"{name}conv1", f"{name}bn1", width, 1))
                y = nn.relu(conv(y, f"{name}conv2", f"{name}bn2", width, 3, stride))
                y = conv(y, f"{name}conv3", f"{name}bn3", 4 * width, 1)
                if index == 0:
                    x = conv(x, f"{name}downsample.0", f"{name}downsample.1", 4 * width, 1, stride)
                x = nn.relu(x + y)
            stages.append(x)
        return stages


def trunk_of(weights: Mapping[str, np.ndarray], **settings: Any) -> Trunk:
    """The trunk that these weights fit; `settings` are those of a flax module."""
    stages = _counted(weights, "layer", 1)
    return Trunk(
        blocks=tuple(_counted(weights, f"layer{stage + 1}.", 0) for stage in range(stages)),
        widths=tuple(len(weights[f"layer{stage + 1}.0.conv1.weight"]) for stage in range(stages)),
        stem=len(_first(weights, "conv1.weight")),
        **settings,
    )


class ResNet(nn.Module):
    """A trunk, the mean over the image, and a new head."""

    trunk: Trunk
    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        return nn.Dense(self.num_classes, name="head")(self.trunk(x, train)[-1].mean(axis=(1, 2)))


class ViT(nn.Module):
    """Square patches, learned positions, pre-norm blocks, and a new head on the class token."""

    num_classes: int
    patch: int
    width: int
    depth: int
    num_heads: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        def norm(name):
            return nn.LayerNorm(epsilon=1e-6, name=name)

        width, initial = self.width, nn.initializers.normal(0.02)
        patches = nn.Conv(width, (self.patch, self.patch), self.patch, padding="VALID", name="patch_embed.proj")(x)
        patches = patches.reshape(len(x), -1, width)
        token = jnp.broadcast_to(self.param("cls_token", initial, (1, 1, width)), (len(x), 1, width))
        x = jnp.concatenate([token, patches], axis=1)
        x = x + self.param("pos_embed", initial, (1, *x.shape[1:]))
        for index in range(self.depth):
            name = f"blocks.{index}."
            mixed = nn.Dense(3 * width, name=f"{name}attn.qkv")(norm(f"{name}norm1")(x))
            attended = attention(*jnp.split(mixed, 3, axis=-1), self.num_heads)
            x = x + nn.Dense(width, name=f"{name}attn.proj")(attended)
            hidden = nn.Dense(4 * width, name=f"{name}mlp.fc1")(norm(f"{name}norm2")(x))
            x = x + nn.Dense(width, name=f"{name}mlp.fc2")(nn.gelu(hidden, approximate=False))
        return nn.Dense(self.num_classes, name="head")(norm("norm")(x)[:, 0])


def vit_of(weights: Mapping[str, np.ndarray], num_classes: int) -> tuple[ViT, int]:
    """The ViT that these weights fit, with a head for `num_classes`, and the side of its images in pixels.

    Heads are 64 wide, as in all ViT from tiny to large.
    """
    width, _, patch, _ = _first(weights, "patch_embed.proj.weight").shape
    patches = weights["pos_embed"].shape[1] - 1
    model = ViT(num_classes, patch, width, depth=_counted(weights, "blocks.", 0), num_heads=max(1, width // 64))
    return model, patch * round(patches**0.5)


def _counted(weights: Mapping[str, np.ndarray], prefix: str, start: int) -> int:
    """How many numbers from `start` on follow the prefix in a name."""
    count = 0
    while any(name.startswith(f"{prefix}{start + count}.") for name in weights):
        count += 1
    return count


def _first(weights: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    if name not in weights:
        raise ValueError(f"The weights have no array {name}: they are of another kind of model.")
    return weights[name]
