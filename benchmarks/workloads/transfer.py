"""Fine-tuning of a pretrained vision network: EfficientNet-Lite0, all of it, on few handwritten digits."""

from typing import Any

import numpy as np

from benchmarks.data import efficientnet_lite0, mnist5k
from benchmarks.models.efficientnet import EfficientNet, with_weights
from benchmarks.workload import Workload
from benchmarks.workloads._common import Splits, classifier, flax_functions, split_off, take
from benchmarks.workloads.digits import digits_splits


def efficientnet_finetune(tiny: bool = False) -> Workload:
    """Trained on ImageNet at 224x224, tuned on 3,500 digits at 56x56: what two cores can do."""
    module = EfficientNet(num_classes=10, num_stages=1) if tiny else EfficientNet(num_classes=10)
    splits = _digits_splits(tiny)
    random_init, _ = flax_functions(module, splits["train"]["x"][:1])

    def init(key) -> tuple[Any, Any]:
        params, model_state = random_init(key)
        return (params, model_state) if tiny else with_weights(params, model_state, efficientnet_lite0.load_weights())

    return classifier(
        name="efficientnet_finetune",
        base="sgd",
        weight_decay=5e-4,
        num_steps=20 if tiny else 150,
        batch_size=16,
        module=module,
        splits=splits,
        init=init,
    )


def _digits_splits(tiny: bool) -> Splits:
    """`x` `[n, 56, 56, 1]` (tiny: `[n, 16, 16, 1]`) in [-1, 1], as the weights expect it."""
    if tiny:
        splits = {name: take(part, slice(100)) for name, part in digits_splits().items()}
    else:
        digits = mnist5k.load()
        everything = {"x": digits["image"] / np.float32(255), "y": digits["label"]}
        rest, test = split_off(everything, 1000)
        train, validation = split_off(rest, 500)
        splits = {"train": train, "validation": validation, "test": test}
    return {name: {**part, "x": 2 * _doubled(part["x"]) - 1} for name, part in splits.items()}


def _doubled(x: np.ndarray) -> np.ndarray:
    """Height and width, each pixel four times."""
    return x.repeat(2, axis=1).repeat(2, axis=2)
