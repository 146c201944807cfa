"""Fashion-MNIST with a small ResNet, a small ViT and a deep residual network without normalisation."""

import numpy as np

from benchmarks.data import fashion_mnist
from benchmarks.models.resnet import ResNet, UnnormalizedResNet
from benchmarks.models.transformer import ViT
from benchmarks.workload import Workload
from benchmarks.workloads._common import Arrays, Splits, classifier, split_off, take
from benchmarks.workloads.digits import digits_splits

_MEAN, _DEVIATION = 0.286, 0.353  # of the training set's pixels in [0, 1]


def resnet_fashion(tiny: bool = False) -> Workload:
    """Four residual blocks with batch norm, SGD with momentum."""
    return classifier(
        name="resnet_fashion",
        base="sgd",
        weight_decay=5e-4,
        num_steps=20 if tiny else 1000,
        batch_size=16 if tiny else 64,
        module=ResNet(num_classes=10, widths=(4, 8) if tiny else (16, 16, 32, 64)),
        splits=fashion_splits(tiny),
    )


def vit_fashion(tiny: bool = False) -> Workload:
    """Patches of 7x7, four transformer blocks, AdamW."""
    return classifier(
        name="vit_fashion",
        base="adamw",
        weight_decay=0.05,
        num_steps=20 if tiny else 1000,
        batch_size=16 if tiny else 64,
        module=ViT(num_classes=10, patch=7, width=16 if tiny else 64, depth=1 if tiny else 4, num_heads=4),
        splits=fashion_splits(tiny),
    )


def deep_resnet_nonorm(tiny: bool = False) -> Workload:
    """Residual blocks without normalisation: where a quadratic model of the loss is said to break.

    The activations grow with each block. With 24 blocks no rate of SGD from 1e-7 to 1e-3 was better than guessing after
    60 steps, so there are 12.
    """
    return classifier(
        name="deep_resnet_nonorm",
        base="sgd",
        weight_decay=0.0,
        num_steps=20 if tiny else 1000,
        batch_size=16 if tiny else 64,
        module=UnnormalizedResNet(num_classes=10, width=8 if tiny else 16, depth=4 if tiny else 12),
        splits=fashion_splits(tiny),
    )


def fashion_splits(tiny: bool = False) -> Splits:
    """55,000 images to train on, 5,000 to tune on, the official 10,000 to test; `x` is `[n, 28, 28, 1]`, standardised.

    Tiny: the digits of scikit-learn, enlarged.
    """
    if tiny:
        return {name: _enlarged(take(part, slice(200))) for name, part in digits_splits().items()}
    train, validation = split_off(_standardised("train"), 5000)
    return {"train": train, "validation": validation, "test": _standardised("t10k")}


def _standardised(part: str) -> Arrays:
    images, labels = fashion_mnist.load(part)
    return {"x": (images[..., None] / np.float32(255) - _MEAN) / _DEVIATION, "y": labels}


def _enlarged(digits: Arrays) -> Arrays:
    # 8x8 to 24x24 by repetition, and a border to 28x28.
    x = np.pad(digits["x"].repeat(3, axis=1).repeat(3, axis=2), ((0, 0), (2, 2), (2, 2), (0, 0)))
    return {"x": (x - np.float32(_MEAN)) / np.float32(_DEVIATION), "y": digits["y"]}
