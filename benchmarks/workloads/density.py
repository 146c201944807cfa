"""The density of the features of letter recognition, by a normalising flow."""

import jax
import numpy as np

from benchmarks.data import letter
from benchmarks.models.flow import RealNVP
from benchmarks.workload import Workload
from benchmarks.workloads._common import Splits, batches_of, flax_functions, mean_over, split_off, take

_LEVELS = 16
_UNIT = 6  # levels of a feature; in this unit the loss crosses zero after a tenth to a half of the training
_NUM_FEATURES = 16


def flow_letter(tiny: bool = False) -> Workload:
    """Negative log-likelihood in nats per feature: a loss that crosses zero.

    Features are integers. Uniform noise makes them continuous: drawn from the step's key in training, fixed in
    evaluation.
    """
    splits = _letter_splits(tiny)
    module = RealNVP(num_couplings=2 if tiny else 6, width=16 if tiny else 64)
    init, apply = flax_functions(module, splits["train"]["x"][:1])

    def losses(params, model_state, batch, noise):
        x = (batch["x"] + noise - _LEVELS / 2) / _UNIT
        return -apply(params, model_state, x)[0] / _NUM_FEATURES

    def loss_fn(params, model_state, batch, key):
        noise = jax.random.uniform(key, batch["x"].shape, batch["x"].dtype)
        return losses(params, model_state, batch, noise).mean(), model_state

    def per_example(params, model_state, batch):
        nll = losses(params, model_state, batch, batch["noise"])
        return {"loss": nll, "nll": nll}

    return Workload(
        name="flow_letter",
        base="adamw",
        weight_decay=0.01,
        num_steps=20 if tiny else 2000,
        batch_size=128,
        metric="nll",
        higher_is_better=False,
        init=init,
        loss_fn=loss_fn,
        batches=batches_of({"x": splits["train"]["x"]}),
        evaluate=mean_over(per_example, splits),
    )


def _letter_splits(tiny: bool) -> Splits:
    """`x`, integers as float32, and the `noise` to evaluate with; the last 4,000 rows are the customary test set."""
    if tiny:
        x, num_test, num_validation = _synthetic_features(), 100, 100
    else:
        (x, _), num_test, num_validation = letter.load(), 4000, 2000
    everything = {"x": x, "noise": np.random.default_rng(0).random(x.shape, np.float32)}
    train, validation = split_off(take(everything, slice(-num_test)), num_validation)
    return {"train": train, "validation": validation, "test": take(everything, slice(-num_test, None))}


def _synthetic_features() -> np.ndarray:
    rng = np.random.default_rng(0)
    means = rng.uniform(3, 12, (26, _NUM_FEATURES))[rng.integers(0, 26, 600)]
    return rng.normal(means, 2).round().clip(0, _LEVELS - 1).astype(np.float32)
