"""EfficientNet-Lite0 (Tan and Le, 2019; no squeeze-and-excitation, ReLU6), out of published weights."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

# Per stage: blocks, kernel size, stride of the first block, expansion, width.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class EfficientNet(nn.Module):
    """Maps images ``[batch, height, width, 3]``, or grey ones, to logits.

    ``num_stages`` < 7 leaves out the last stages and the wide layer after them.

    Batch norm uses statistics of the batch while training, running ones (collection ``batch_stats``) otherwise.
    """

    num_classes: int
    num_stages: int = len(STAGES)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = jnp.broadcast_to(x, (*x.shape[:3], 3))
        x = nn.relu6(_norm("stem_norm", train)(_conv("stem", 32, 3, 2)(x)))
        index = 0
        for blocks, kernel, stride, expansion, width in STAGES[: self.num_stages]:
            for block in range(blocks):
                first = stride if block == 0 else 1
                x = InvertedBottleneck(kernel, first, expansion, width, name=f"block_{index}")(x, train)
                index += 1
        if self.num_stages == len(STAGES):
            x = nn.relu6(_norm("top_norm", train)(_conv("top", 4 * x.shape[-1], 1)(x)))
        return nn.Dense(self.num_classes, name="head")(x.mean(axis=(1, 2)))


class InvertedBottleneck(nn.Module):
    """Widens each pixel, filters each channel by itself, narrows again; added to the input where shapes agree."""

    kernel: int
    stride: int
    expansion: int
    width: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = x
        if self.expansion > 1:
            y = nn.relu6(_norm("expand_norm", train)(_conv("expand", self.expansion * x.shape[-1], 1)(y)))
        y = Depthwise(self.kernel, self.stride, name="depthwise")(y)
        y = nn.relu6(_norm("depthwise_norm", train)(y))
        y = _norm("project_norm", train)(_conv("project", self.width, 1)(y))
        return x + y if x.shape == y.shape else y


class Depthwise(nn.Module):
    """A convolution of each channel with a kernel of its own, as a sum of shifted images.

    With its gradient that takes a quarter to a hundredth of the time of XLA's grouped convolution on a CPU.
    """

    kernel: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size, stride = self.kernel, self.stride
        kernel = self.param("kernel", nn.initializers.he_normal(), (size, size, x.shape[-1]))
        padding = size // 2
        x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
        rows, columns = ((side - size) // stride + 1 for side in x.shape[1:3])
        return sum(
            kernel[i, j] * x[:, i : i + stride * rows : stride, j : j + stride * columns : stride]
            for i in range(size)
            for j in range(size)
        )


def with_weights(params: Any, model_state: Any, weights: Mapping[str, np.ndarray]) -> tuple[Any, Any]:
    """Parameters and statistics of `EfficientNet`, all published ones but the head."""
    variables = flatten_dict({"params": params, **model_state}, sep="/")
    for path, value in variables.items():
        _, *modules, name = path.split("/")
        if modules == ["head"]:
            continue
        array = weights[_published(modules, name)]
        if modules[-1] == "depthwise":
            array = array[:, 0].transpose(1, 2, 0)
        elif name == "kernel":
            array = array.transpose(2, 3, 1, 0)
        if value.shape != array.shape:
            raise ValueError(
                f"The weights' {_published(modules, name)} {array.shape} does not fit {path} {value.shape}."
            )
        variables[path] = jnp.asarray(array)
    filled = unflatten_dict(variables, sep="/")
    return filled.pop("params"), filled


def _published(modules: list[str], name: str) -> str:
    *block, layer = modules
    prefix = f"_blocks.{block[0].removeprefix('block_')}." if block else ""
    return f"{prefix}{_LAYERS[layer]}.{_ARRAYS[name]}"


_LAYERS = {
    "stem": "_conv_stem",
    "stem_norm": "_bn0",
    "expand": "_expand_conv",
    "expand_norm": "_bn0",
    "depthwise": "_depthwise_conv",
    "depthwise_norm": "_bn1",
    "project": "_project_conv",
    "project_norm": "_bn2",
    "top": "_conv_head",
    "top_norm": "_bn1",
}
_ARRAYS = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def _conv(name: str, width: int, kernel: int, stride: int = 1) -> nn.Conv:
    # Explicit: "SAME" would pad an even image with stride 2 on one side only, unlike the padding of the weights.
    return nn.Conv(width, (kernel, kernel), stride, padding=kernel // 2, use_bias=False, name=name)


def _norm(name: str, train: bool) -> nn.BatchNorm:
    return nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-3, name=name)
