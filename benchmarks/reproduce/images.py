"""ResNet50 and ViT-base, pretrained on ImageNet, fine-tuned for five epochs on CIFAR-10 and CIFAR-100.

The published numbers are those of the paper's table 2. Length, batch size, learning rate and decay are the defaults of
the authors' `examples/cv.py`: images enlarged to 224 pixels a side, no augmentation, probes on the next batch at every
fourth step.
"""

import dataclasses
import functools
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.reproduce import backbones
from benchmarks.reproduce._common import (
    Files,
    Reproduction,
    held_out,
    methods_of,
    microbatched,
    read_weights,
    steps_of,
    with_published,
)
from benchmarks.workload import Workload
from benchmarks.workloads._common import Arrays, Splits, classifier, flax_functions

_EPOCHS, _BATCH, _MICROBATCH = 5, 500, 50
_SIDE = 224  # of the images that a ResNet sees; a ViT's follows from its weights
_VALIDATION = 5000

_METHODS = methods_of(horizon=True, batch="independent", every=4, init_learning_rate=1e-4)
_FOLDERS = {10: "cifar-10-batches-py", 100: "cifar-100-python"}
_TRAIN = {10: tuple(f"data_batch_{part}" for part in range(1, 6)), 100: ("train",)}
_TEST = {10: "test_batch", 100: "test"}
_PUBLISHED = {
    ("resnet50", 10): (0.9676, 0.9591, 0.9552, 0.9582, 0.9517, 0.9520),
    ("resnet50", 100): (0.8477, 0.8164, 0.8167, 0.8071, 0.8039, 0.8095),
    ("vit_base", 10): (0.9868, 0.9749, 0.9848, 0.9873, 0.9892, 0.9756),
    ("vit_base", 100): (0.9262, 0.8923, 0.9260, 0.9271, 0.9249, 0.8811),
}
_WEIGHTS = {"resnet50": "timm's resnet50", "vit_base": "timm's vit_base_patch16_224"}


def reproductions() -> list[Reproduction]:
    """Two networks on two data sets."""
    return [_reproduction(network, classes) for network in ("resnet50", "vit_base") for classes in (10, 100)]


def _reproduction(network: str, classes: int) -> Reproduction:
    folder = _FOLDERS[classes]
    labels = ("GeN", "constant", "linear decay", "cosine decay", "Prodigy", "D-adaptation")
    return Reproduction(
        name=f"{network}_cifar{classes}",
        about=f"{_WEIGHTS[network].split()[1]}, pretrained, on CIFAR-{classes}: {_EPOCHS} epochs, batches of {_BATCH}",
        data=Files(
            f"CIFAR-{classes}, python version, unpacked",
            tuple(f"{folder}/{file}" for file in (*_TRAIN[classes], _TEST[classes])),
        ),
        weights=Files(f"the weights of {_WEIGHTS[network]} in safetensors", ("model.safetensors",)),
        published=dict(zip(labels, _PUBLISHED[network, classes], strict=True)),
        methods=_METHODS,
        load=functools.partial(load, network, classes),
        differs=f"{_VALIDATION} training images are held out to tune on.",
    )


def load(network: str, classes: int, data: Path, weights: Path) -> Workload:
    """Softmax cross-entropy on images `[n, 32, 32, 3]` of bytes, enlarged on the device."""
    arrays = read_weights(weights)
    if network == "resnet50":
        module, side = backbones.ResNet(backbones.trunk_of(arrays), classes), _SIDE
    else:
        module, side = backbones.vit_of(arrays, classes)
    return _fine_tuning(f"{network}_cifar{classes}", Enlarged(module, side), arrays, cifar_splits(data, classes))


class Enlarged(nn.Module):
    """A network for images of bytes, standardised with mean and deviation 1/2 and enlarged to `side` pixels."""

    network: nn.Module
    side: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = jnp.asarray(x, jnp.float32) / 127.5 - 1
        x = jax.image.resize(x, (len(x), self.side, self.side, 3), "bilinear")
        return self.network(x, train)


def _fine_tuning(name: str, module: Enlarged, weights: dict[str, np.ndarray], splits: Splits) -> Workload:
    random_init, _ = flax_functions(module, splits["train"]["x"][:1])

    def init(key) -> tuple[Any, Any]:
        params, model_state = random_init(key)
        filled = with_published({"params": params, **model_state}, weights)
        return filled.pop("params"), filled

    is_vit = isinstance(module.network, backbones.ViT)
    workload = classifier(
        name=name,
        base="adamw" if is_vit else "sgd",
        weight_decay=5e-4,
        num_steps=steps_of(_EPOCHS, len(splits["train"]["y"]), _BATCH),
        batch_size=_BATCH,
        module=module,
        splits=splits,
        init=init,
    )
    return dataclasses.replace(workload, loss_fn=microbatched(workload.loss_fn, _MICROBATCH))


def cifar_splits(data: Path, classes: int) -> Splits:
    """`x` uint8 `[n, 32, 32, 3]` and `y` int32; the official test images, and some held out of the others."""
    folder = data / _FOLDERS[classes]
    train, validation = held_out(read_cifar([folder / file for file in _TRAIN[classes]]), _VALIDATION)
    return {"train": train, "validation": validation, "test": read_cifar([folder / _TEST[classes]])}


def read_cifar(paths: Sequence[Path]) -> Arrays:
    """The images of the official pickles, one after another: rows of 3,072 bytes, red, green and blue planes."""
    batches = [_read_pickle(path) for path in paths]
    planes = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32)
    labels = [batch.get("fine_labels") or batch["labels"] for batch in batches]
    return {"x": planes.transpose(0, 2, 3, 1), "y": np.concatenate(labels).astype(np.int32)}


def _read_pickle(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        return _Arrays(file, encoding="latin1").load()


class _Arrays(pickle.Unpickler):
    """Unpickles NumPy's arrays, and refuses every other object: a pickle could run any code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in (("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")):
            return np.empty(0).__reduce__()[0]
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"A batch of images has no use for {module}.{name}.")
