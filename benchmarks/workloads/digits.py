"""Scikit-learn's 8x8 digits: to tell apart, to squeeze through eight units, and to learn from rewards alone.

The second and the third are small and delicate: a rate that is too high for a dozen steps leaves units dead, or a
policy that has settled on few actions, and no later rate mends that.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.models.mlp import MLP
from benchmarks.workload import Workload
from benchmarks.workloads._common import Splits, batches_of, classifier, flax_functions, mean_over, split_off

_NUM_ACTIONS = 10


def digits_mlp(tiny: bool = False) -> Workload:
    """Two hidden layers: the quick start."""
    return classifier(
        name="digits_mlp",
        base="sgd",
        weight_decay=0.0,
        num_steps=20 if tiny else 1000,
        batch_size=32,
        module=MLP(widths=(64, 64), num_classes=10),
        splits=digits_splits(),
    )


def digits_autoencoder(tiny: bool = False) -> Workload:
    """Mean squared error of 64 pixels through a bottleneck of eight rectified units."""
    splits = digits_splits()
    init, apply = flax_functions(MLP(widths=(128, 8, 128), num_classes=64), splits["train"]["x"][:1])

    def squared_errors(params, model_state, batch):
        x = batch["x"].reshape(len(batch["x"]), -1)
        return ((apply(params, model_state, x)[0] - x) ** 2).mean(axis=1)

    def loss_fn(params, model_state, batch, key):
        return squared_errors(params, model_state, batch).mean(), model_state

    def per_example(params, model_state, batch):
        return {"loss": squared_errors(params, model_state, batch)}

    return _delicate(
        name="digits_autoencoder",
        tiny=tiny,
        metric="loss",
        higher_is_better=False,
        init=init,
        loss_fn=loss_fn,
        batches=batches_of(splits["train"]),
        evaluate=mean_over(per_example, splits),
    )


def digits_policy(tiny: bool = False) -> Workload:
    """A policy from what actions drawn at random were rewarded with: 1 for naming the digit, and 0.

    The loss is minus the expected reward, estimated by inverse propensity with a baseline of a tenth: noise of the size
    of its range, and no lower bound to tell how far it is from the end.
    """
    splits = digits_splits()
    init, apply = flax_functions(MLP(widths=(64, 64), num_classes=_NUM_ACTIONS), splits["train"]["x"][:1])

    def probability(logits, action):
        return jnp.take_along_axis(jax.nn.softmax(logits.astype(jnp.float32)), action[:, None], axis=1)[:, 0]

    def act(batch, rng):
        action = rng.integers(0, _NUM_ACTIONS, len(batch["y"])).astype(np.int32)
        return {**batch, "action": action, "reward": (action == batch["y"]).astype(np.float32)}

    def loss_fn(params, model_state, batch, key):
        logits, _ = apply(params, model_state, batch["x"])
        advantage = batch["reward"] - 1 / _NUM_ACTIONS
        return -(_NUM_ACTIONS * probability(logits, batch["action"]) * advantage).mean(), model_state

    def per_example(params, model_state, batch):
        logits, _ = apply(params, model_state, batch["x"])
        right = probability(logits, batch["y"])
        return {"loss": 1 / _NUM_ACTIONS - right, "reward": right, "accuracy": jnp.argmax(logits, -1) == batch["y"]}

    return _delicate(
        name="digits_policy",
        tiny=tiny,
        metric="reward",
        higher_is_better=True,
        init=init,
        loss_fn=loss_fn,
        batches=batches_of(splits["train"], act),
        evaluate=mean_over(per_example, splits),
    )


def digits_splits() -> Splits:
    """1,197 digits to train on, 300 and 300 to judge by; `x` is `[n, 8, 8, 1]` in [0, 1]."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    everything = {"x": digits.images[..., None].astype(np.float32) / 16, "y": digits.target.astype(np.int32)}
    rest, test = split_off(everything, 300)
    train, validation = split_off(rest, 300)
    return {"train": train, "validation": validation, "test": test}


def _delicate(*, tiny: bool, **settings: Any) -> Workload:
    return Workload(base="adamw", weight_decay=0.0, num_steps=20 if tiny else 1500, batch_size=64, **settings)
