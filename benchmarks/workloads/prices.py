"""The price of a diamond with its uncertainty: regression of a mean and a variance."""

import jax.numpy as jnp
import numpy as np

from benchmarks.data import diamonds
from benchmarks.models.mlp import MLP
from benchmarks.workload import Workload
from benchmarks.workloads._common import Arrays, Splits, batches_of, flax_functions, mean_over, split_off, take

_CLIP = 5  # standard deviations; a few proportions lie at up to 17


def variance_prices(tiny: bool = False) -> Workload:
    """Negative log-likelihood of the standardised log price under a normal distribution: a loss that crosses zero."""
    splits = _diamond_splits(tiny)
    module = MLP(widths=(16,) if tiny else (128, 128, 128), num_classes=2)
    init, apply = flax_functions(module, splits["train"]["x"][:1])

    def losses(params, model_state, batch):
        mean, log_variance = apply(params, model_state, batch["x"])[0].astype(jnp.float32).T
        squared_error = (mean - batch["y"]) ** 2
        return 0.5 * (squared_error * jnp.exp(-log_variance) + log_variance + jnp.log(2 * jnp.pi))

    def loss_fn(params, model_state, batch, key):
        return losses(params, model_state, batch).mean(), model_state

    def per_example(params, model_state, batch):
        nll = losses(params, model_state, batch)
        return {"loss": nll, "nll": nll}

    return Workload(
        name="variance_prices",
        base="adamw",
        weight_decay=0.01,
        num_steps=20 if tiny else 2500,
        batch_size=128,
        metric="nll",
        higher_is_better=False,
        init=init,
        loss_fn=loss_fn,
        batches=batches_of(splits["train"]),
        evaluate=mean_over(per_example, splits),
    )


def _diamond_splits(tiny: bool) -> Splits:
    """`x`: standardised numbers and one-hot grades; `y`: the standardised log price; by the training set's moments.

    Stones whose sides contradict their depth are left out: some are recorded with sides of zero or six centimetres.
    """
    if tiny:
        everything, count = _synthetic_diamonds(), 100
    else:
        everything, count = diamonds.load(), 5000
        _, depth, _, x, y, z = everything["numbers"].T
        everything = take(everything, np.abs(z - depth / 100 * (x + y) / 2) < 0.05 * (x + y) / 2)
    rest, test = split_off(everything, count)
    train, validation = split_off(rest, count)
    mean, deviation = train["numbers"].mean(0), train["numbers"].std(0)
    logs = np.log(train["price"])

    def prepared(part: Arrays) -> Arrays:
        numbers = ((part["numbers"] - mean) / deviation).clip(-_CLIP, _CLIP)
        one_hot = [
            np.eye(len(names))[grade] for names, grade in zip(diamonds.GRADES.values(), part["grades"].T, strict=True)
        ]
        x = np.concatenate([numbers, *one_hot], axis=1).astype(np.float32)
        return {"x": x, "y": (np.log(part["price"]) - logs.mean()) / logs.std()}

    return {"train": prepared(train), "validation": prepared(validation), "test": prepared(test)}


def _synthetic_diamonds() -> Arrays:
    """Prices of which the grades explain a part, and the first number how uncertain the rest is."""
    rng = np.random.default_rng(0)
    numbers = rng.normal(size=(600, len(diamonds.NUMBERS)))
    grades = np.stack([rng.integers(0, len(names), 600) for names in diamonds.GRADES.values()], axis=1)
    logs = numbers[:, 1] + 0.1 * grades.sum(axis=1) + np.exp(numbers[:, 0] - 2) * rng.normal(size=600)
    return {
        "numbers": numbers.astype(np.float32),
        "grades": grades.astype(np.int32),
        "price": np.exp(logs).astype(np.float32),
    }
