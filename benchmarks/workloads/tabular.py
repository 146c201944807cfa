"""Logistic regression on letter recognition, on the whole training set and on mini-batches."""

import numpy as np

from benchmarks.data import letter
from benchmarks.models.mlp import MLP
from benchmarks.workload import Workload
from benchmarks.workloads._common import Arrays, Splits, classifier, split_off, take


def logreg_fullbatch(tiny: bool = False) -> Workload:
    """Convex and without noise: every step sees the whole training set."""
    splits = _letter_splits(tiny)
    return _logistic_regression("logreg_fullbatch", splits, 20 if tiny else 1000, len(splits["train"]["y"]))


def logreg_minibatch(tiny: bool = False) -> Workload:
    """Convex with the noise of batches of 64."""
    return _logistic_regression("logreg_minibatch", _letter_splits(tiny), 20 if tiny else 4000, 64)


def _logistic_regression(name: str, splits: Splits, num_steps: int, batch_size: int) -> Workload:
    return classifier(
        name=name,
        base="sgd",
        weight_decay=0.0,
        num_steps=num_steps,
        batch_size=batch_size,
        module=MLP(widths=(), num_classes=26),
        splits=splits,
    )


def _letter_splits(tiny: bool) -> Splits:
    """The last 4,000 rows are the customary test set; features are standardised with the training set's moments."""
    if tiny:
        rest, test = split_off(_synthetic_letters(), 100)
        train, validation = split_off(rest, 100)
    else:
        x, y = letter.load()
        everything = {"x": x, "y": y}
        test = take(everything, slice(-4000, None))
        train, validation = split_off(take(everything, slice(-4000)), 2000)
    mean, deviation = train["x"].mean(0), train["x"].std(0)
    splits: Splits = {"train": train, "validation": validation, "test": test}
    return {name: {**part, "x": (part["x"] - mean) / deviation} for name, part in splits.items()}


def _synthetic_letters() -> Arrays:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 26, 600).astype(np.int32)
    return {"x": (rng.normal(size=(26, 16))[labels] + rng.normal(size=(600, 16))).astype(np.float32), "y": labels}
