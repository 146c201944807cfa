"""Situations of users: small problems on which the default is compared with the best constant rate of the same base.

A  The batches of a classifier with noisy labels, under adamw.
    reference       every batch is new
    echo2 ... 16    each batch is used 2, 3, 4, 8 or 16 times in a row
    augmented_echo4 each batch is used 4 times in a row, with new noise on the inputs each time
    short_epoch6    6 batches in the same order over and over
    short_epoch12   the examples of 12 batches, shuffled anew for every epoch
    sorted          runs of 20 steps on one class each
    ..._held_out    the same, and `value_fn` is the loss of other examples
    rollout         8 epochs of 4 batches over a set of examples, then a new set
B  The loss that is handed over is not the function whose gradient is followed.
    dropout         one key for both: as it should be
    no_dropout      `value` has dropout, `value_fn` has none
    other_key       `value` and `value_fn` have dropout with different keys
    penalty         `value` has an L2 penalty, `value_fn` has none
    twice, half     `value` and the gradient are of twice, or half, of `value_fn`
    value_twice     `value` is twice `value_fn`, the gradient is that of `value_fn`
    vq              an autoencoder with a codebook: straight-through gradient, `value_fn` is the loss as it is written
    vq_reconstruction  the same, and `value_fn` is the error of the reconstruction alone
    vq_frozen       the same, with offsets and targets taken at the parameters and handed over as constants
    td, td_frozen   a value function learned from its own predictions: the target inside of `value_fn`, or handed over
C  The scales of the parameters of a regression, under adam.
    regression      all scales are 1
    buffer          1000 entries of 1e4 among the parameters that the loss ignores; buffer_adamw: and that decay
    tiny            all parameters are of the size 1e-7
    units           one leaf is 101325 from the start, the others are of the size 1e-3
    lora            a product of two factors, the first of which starts at zero
D  The level of the loss.
    likelihood+0 ... a negative log-likelihood that falls through zero, shifted by 0, 3, -3 and 1000
    offset          a classifier whose loss is 1e6 too large, in float32
    atoms           13 Lennard-Jones atoms from random positions, without batches
E  momentum9, momentum99, nesterov99, adam99: the classifier under bases with a long memory.
F  parabola/sgd, parabola/sgd/value, ...: the four functions of optax.contrib's common test, without and with `value`.
G  clipped          the steps are clipped after the rate has scaled them
X  zero_one         `value_fn` is the rate of errors, a step function; the gradient is that of the cross-entropy
   hinge            a loss that is exactly 0 on many batches

`python tests/situations.py` prints a table of all but F; names, or letters of groups, choose: `A echo4`. Of each: the
best constant rate and its metric (lower is better), the same of the default with an open end and with a horizon, their
excess over the best (of the mean; of the worst seed), the last learning rate before the decay and how often each status
was seen. Of F: the largest error of a parameter, and its bound; an excess of -100 % is an error of 0. `--tune` looks
for the best constant rates, and prints lines for `BEST`.
"""

import argparse
import collections
import functools
import itertools
import os
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

if __name__ == "__main__":
    os.environ |= {"JAX_PLATFORMS": "cpu"}

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax.contrib import _common_test as contrib

import gen_optax

STEPS, BATCH, FIRST_SEED = 1600, 32, 101
RATES = 2.0 ** np.arange(-34, 3)  # of the constant ones


class Rule(NamedTuple):
    """What is trained, and how. Situations with the same rule share one compiled function."""

    loss: Callable  # (params, batch): its gradient is followed
    metric: Callable  # (params, test)
    base: optax.GradientTransformation = optax.adamw(1.0)
    value_fn: Callable | None = None  # None: loss
    value: Callable | None = lambda loss: loss  # what is handed over as `value`, a function of the loss; None: nothing
    extra: Callable = lambda params, batch: {}  # further arguments of value_fn
    outer: optax.GradientTransformation = optax.identity()  # what comes after gen


class Situation(NamedTuple):
    rule: Rule
    data: Callable  # of a seed: (params, batches with a leading axis of steps, test)
    horizon: bool = True  # whether the default is also run with one
    seeds: int = 3
    scale: float | None = None  # what an excess is relative to; None: the best metric


class Run(NamedTuple):
    """What came out of one run."""

    metric: Any
    rates: Any  # of each step
    statuses: Any
    probed: Any  # bool: the step has measured
    notices: Any = 0


@functools.cache
def trainer(rule, num_steps):
    """`(params, batches, test) -> Run`, compiled once."""
    tx = optax.chain(gen_optax.gen(rule.base, num_steps=num_steps), rule.outer)

    def step(carry, batch):
        params, state = carry
        loss, grads = jax.value_and_grad(rule.loss)(params, batch)
        given = rule.extra(params, batch) | ({} if rule.value is None else {"value": rule.value(loss)})
        value_fn = rule.value_fn or rule.loss
        updates, state = tx.update(grads, state, params, value_fn=value_fn, batch=batch, **given)
        seen = [optax.tree.get(state, name) for name in ("learning_rate", "status", "num_probes", "notices")]
        return (optax.apply_updates(params, updates), state), seen

    @jax.jit
    def train(params, batches, test):
        (params, state), (rates, statuses, probes, notices) = jax.lax.scan(step, (params, tx.init(params)), batches)
        model = gen_optax.averaged_params(state, params)
        return Run(rule.metric(model, test), rates, statuses, jnp.diff(probes, prepend=0) > 0, notices)

    return train


@functools.cache
def constant_trainer(rule):
    """`(params, batches, test, rates) -> metrics` of the base at constant rates."""

    def train(params, batches, test, rate):
        tx = optax.chain(rule.base, optax.scale(rate), rule.outer)

        def step(carry, batch):
            params, state = carry
            updates, state = tx.update(jax.grad(rule.loss)(params, batch), state, params)
            return (optax.apply_updates(params, updates), state), None

        (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), batches)
        return rule.metric(params, test)

    return jax.jit(jax.vmap(train, in_axes=(None, None, None, 0)))


def as_arrays(data):
    """Numbers of double precision become those of single precision."""
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32 if np.asarray(x).dtype == np.float64 else None), data)


def run(name, seeds=None, horizon=False):
    """The `Run` of each seed."""
    rule, data, *_ = SITUATIONS[name]
    runs = []
    for seed in seeds or seeds_of(name):
        params, batches, test = as_arrays(data(seed))
        steps = len(jax.tree.leaves(batches)[0])
        runs.append(jax.device_get(trainer(rule, steps if horizon else None)(params, batches, test)))
    return runs


def constants(name, rates, seeds=None):
    """The metrics of the base at constant rates, shape (seeds, rates); infinite where it is NaN."""
    rule, data, *_ = SITUATIONS[name]
    found = [constant_trainer(rule)(*as_arrays(data(seed)), jnp.float32(rates)) for seed in seeds or seeds_of(name)]
    return np.nan_to_num(np.float64(found), nan=np.inf)


def best(name, seeds=None):
    """The best constant rate and its metric of each seed, stored where the seeds are."""
    seeds = seeds or seeds_of(name)
    if name not in BEST:
        return np.nan, np.full(len(seeds), TOLERANCE if "/" in name else np.nan)
    rate, metrics = BEST[name]
    known = dict(enumerate(metrics, FIRST_SEED))
    return rate, np.array([known[s] if s in known else constants(name, [rate], [s])[0, 0] for s in seeds])


def excess(name, metrics, bests):
    """How much worse than the best: of the means over seeds, and of the worst seed. 0.05 is 5 % worse."""
    metrics, bests, scale = np.nan_to_num(np.float64(metrics), nan=np.inf), np.float64(bests), SITUATIONS[name].scale
    of_mean = (metrics.mean() - bests.mean()) / (scale or abs(bests.mean()))
    return of_mean, np.max((metrics - bests) / (scale or abs(bests)))


def seeds_of(name, number=None):
    return [FIRST_SEED + i for i in range(number or SITUATIONS[name].seeds)]


# The classifier: 10 classes of 3 clusters each, a fifth of the labels drawn at random.


def dense(rng, *sizes):
    """Weights and biases of layers of these sizes."""
    return [{"w": rng.normal(size=(m, n)) / np.sqrt(m), "b": np.zeros(n)} for m, n in itertools.pairwise(sizes)]


def apply(layers, x, noise=1.0):
    """A tanh network; the last hidden layer is multiplied by `noise`."""
    for layer in layers[:-1]:
        x = jnp.tanh(x @ layer["w"] + layer["b"])
    return (x * noise) @ layers[-1]["w"] + layers[-1]["b"]


def entropy(logits, labels):
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


def classifier_loss(params, batch):
    return entropy(apply(params, batch["x"]), batch["y"])


def soft_metric(params, test):
    return jnp.mean(optax.softmax_cross_entropy(apply(params, test["x"]), test["y"]))


def classifier(order, seed, batch=BATCH, steps=STEPS, noise=0.0, flips=0.2, spread=0.9, factor=1.0):
    """`order(rng, labels)` gives the examples of each step, shape (steps, batch), out of `steps * batch` of them."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(10, 3, 20))

    def examples(number):
        labels = rng.integers(10, size=number)
        return centres[labels, rng.integers(3, size=number)] + spread * rng.normal(size=(number, 20)), labels

    params = dense(rng, 20, 64, 10)
    (x, y), (test_x, test_y) = examples(steps * batch), examples(4000)
    y = np.where(rng.uniform(size=len(y)) < flips, rng.integers(10, size=len(y)), y)
    index = order(rng, y)
    x = x[index]
    batches = {
        "x": x + noise * rng.normal(size=x.shape),
        "y": y[index].astype(np.int32),
        "factor": np.full(steps, factor),
    }
    batches["keys"] = rng.integers(2**32, size=(steps, 2, 2), dtype=np.uint32)
    return params, batches, {"x": test_x, "y": (1 - flips) * np.eye(10)[test_y] + flips / 10}


def in_order(times, rng, labels, batch=BATCH):
    """Each batch `times` times in a row."""
    steps = len(labels) // batch
    return np.arange(len(labels)).reshape(steps, batch)[np.arange(steps) // times]


def in_cycles(number, rng, labels, batch=BATCH):
    """The same batches over and over."""
    steps = len(labels) // batch
    return np.arange(len(labels)).reshape(steps, batch)[np.arange(steps) % number]


def in_rollouts(number, epochs, rng, labels, batch=BATCH):
    """`epochs` shuffled epochs over the examples of `number` batches, then over new ones."""
    sets = np.arange(len(labels)).reshape(-1, number * batch)
    epoch = np.arange(len(sets))
    return np.concatenate([rng.permutation(sets[i // epochs]) for i in epoch]).reshape(-1, batch)


def in_classes(rng, labels, batch=BATCH):
    """Sorted by class within each 200 steps."""
    sets = labels.reshape(-1, 200 * batch)
    index = np.argsort(sets, axis=1, kind="stable") + np.arange(len(sets))[:, None] * sets.shape[1]
    return index.reshape(-1, batch)


def batches_of(order, **options):
    return functools.partial(classifier, order, **options)


every_new = functools.partial(in_order, 1)
wide = {"batch": 128, "steps": 600}
CLASSIFIER = Rule(classifier_loss, soft_metric)
HELD_OUT = CLASSIFIER._replace(value_fn=lambda params, batch: classifier_loss(params, batch["held_out"]), value=None)


def with_held_out(data):
    """The same data, and beside each batch as many examples of others."""

    def both(seed):
        params, batches, test = data(seed)
        index = np.random.default_rng(seed).integers(len(test["x"]), size=batches["y"].shape)
        held_out = {"x": test["x"][index], "y": np.argmax(test["y"][index], axis=-1).astype(np.int32)}
        return params, batches | {"held_out": held_out}, test

    return both


A = {
    "reference": Situation(CLASSIFIER, batches_of(every_new)),
    **{f"echo{k}": Situation(CLASSIFIER, batches_of(functools.partial(in_order, k))) for k in (2, 3, 4, 8, 16)},
    "augmented_echo4": Situation(CLASSIFIER, batches_of(functools.partial(in_order, 4), noise=0.4)),
    "short_epoch6": Situation(CLASSIFIER, batches_of(functools.partial(in_cycles, 6, batch=128), **wide)),
    "short_epoch12": Situation(CLASSIFIER, batches_of(functools.partial(in_rollouts, 12, 50, batch=128), **wide)),
    "sorted": Situation(CLASSIFIER, batches_of(in_classes)),
    "rollout": Situation(CLASSIFIER, batches_of(functools.partial(in_rollouts, 4, 8))),
}
A |= {
    f"{name}_held_out": Situation(HELD_OUT, with_held_out(A[name].data))
    for name in ("echo8", "short_epoch6", "rollout")
}


# Losses whose gradient is not the one that is followed.


def masks(key, shape):
    """Dropout of a half."""
    return 2.0 * jax.random.bernoulli(jax.random.wrap_key_data(key), 0.5, shape)


def dropout_loss(which, params, batch):
    mask = masks(batch["keys"][which], (*batch["y"].shape, 64))
    return entropy(apply(params, batch["x"], mask), batch["y"])


def penalised_loss(params, batch):
    return classifier_loss(params, batch) + 1e-3 * optax.tree.norm(params, squared=True)


def scaled_loss(params, batch):
    return batch["factor"] * classifier_loss(params, batch)


stop = jax.lax.stop_gradient


def encoded(params, x):
    """Codes before they are quantised, and the number of the nearest entry of the codebook."""
    codes = apply(params["in"], x)
    return codes, jnp.argmin(jnp.sum((codes[..., None, :] - params["book"]) ** 2, axis=-1), axis=-1)


def book_loss(params, batch):
    """Reconstruction with the gradient straight through, codebook and commitment."""
    codes, nearest = encoded(params, batch["x"])
    entries = params["book"][nearest]
    output = apply(params["out"], codes + stop(entries - codes))
    commitment = jnp.mean((stop(codes) - entries) ** 2) + 0.25 * jnp.mean((codes - stop(entries)) ** 2)
    return jnp.mean((output - batch["x"]) ** 2) + commitment


def frozen_book(params, batch):
    """What `book_loss` takes for constant."""
    codes, nearest = encoded(params, batch["x"])
    return {"codes": codes, "nearest": nearest, "entries": params["book"][nearest]}


def frozen_book_loss(params, batch, codes, nearest, entries):
    """With the same value and gradient at the parameters that the constants are of."""
    present, book = apply(params["in"], batch["x"]), params["book"][nearest]
    output = apply(params["out"], present + entries - codes)
    commitment = jnp.mean((codes - book) ** 2) + 0.25 * jnp.mean((present - entries) ** 2)
    return jnp.mean((output - batch["x"]) ** 2) + commitment


def reconstruction(params, test):
    entries = params["book"][encoded(params, test["x"])[1]]
    return jnp.mean((apply(params["out"], entries) - test["x"]) ** 2)


def reconstruct(params, batch):
    """A loss without `stop_gradient` that training has to lower."""
    return reconstruction(params, batch)


def book(seed):
    rng = np.random.default_rng(seed)
    centres = 2 * rng.normal(size=(16, 12))

    def examples(*shape):
        return {"x": centres[rng.integers(16, size=shape)] + 0.5 * rng.normal(size=(*shape, 12))}

    params = {"in": dense(rng, 12, 32, 4), "out": dense(rng, 4, 32, 12)}
    params["book"] = np.array(apply(params["in"], examples(32)["x"]))  # as many codes of examples
    return params, examples(STEPS, BATCH), examples(4000)


DISCOUNT = 0.9


def prediction(params, features):
    return apply(params, features)[..., 0]


def target(params, batch):
    return {"target": batch["reward"] + DISCOUNT * prediction(params, batch["next"])}


def prediction_loss(params, batch, target):
    return jnp.mean((prediction(params, batch["now"]) - target) ** 2) / 2


def bootstrap_loss(params, batch):
    return prediction_loss(params, batch, stop(target(params, batch)["target"]))


def true_values(params, test):
    return jnp.mean((prediction(params, test["now"]) - test["value"]) ** 2) / 2


def chain(seed):
    """A random walk on a ring of 30 states, the features of which are smooth; rewards with noise."""
    rng = np.random.default_rng(seed)
    angles = 2 * np.pi * np.arange(30) / 30
    features = np.concatenate([[np.cos(k * angles), np.sin(k * angles)] for k in (1, 2, 3)]).T
    rewards = np.sin(angles * 2 + rng.uniform(0, 6)) + np.cos(angles)
    walk = (np.roll(np.eye(30), 1, axis=1) + np.roll(np.eye(30), -1, axis=1) + np.roll(np.eye(30), 2, axis=1)) / 3
    values = np.linalg.solve(np.eye(30) - DISCOUNT * walk, rewards)
    now = rng.integers(30, size=(STEPS, BATCH))
    after = (now + rng.choice([1, -1, 2], size=now.shape)) % 30
    reward = rewards[now] + 0.5 * rng.normal(size=now.shape)
    batches = {"now": features[now], "reward": reward, "next": features[after]}
    return dense(rng, 6, 32, 1), batches, {"now": features, "value": values}


with_key, with_other_key = (functools.partial(dropout_loss, which) for which in (0, 1))
SCALED = CLASSIFIER._replace(loss=scaled_loss, value_fn=classifier_loss)
BOOK, BOOTSTRAP = Rule(book_loss, reconstruction), Rule(bootstrap_loss, true_values)
MISMATCHES = {
    "dropout": CLASSIFIER._replace(loss=with_key),
    "no_dropout": CLASSIFIER._replace(loss=with_key, value_fn=classifier_loss),
    "other_key": CLASSIFIER._replace(loss=with_key, value_fn=with_other_key),
    "penalty": CLASSIFIER._replace(loss=penalised_loss, value_fn=classifier_loss),
    "value_twice": CLASSIFIER._replace(value=lambda loss: 2 * loss),
}
B = {name: Situation(rule, batches_of(every_new)) for name, rule in MISMATCHES.items()} | {
    "twice": Situation(SCALED, batches_of(every_new, factor=2.0)),
    "half": Situation(SCALED, batches_of(every_new, factor=0.5)),
    "vq": Situation(BOOK, book),
    "vq_frozen": Situation(BOOK._replace(value_fn=frozen_book_loss, extra=frozen_book), book),
    "vq_reconstruction": Situation(BOOK._replace(value_fn=reconstruct, value=None), book),
    "td": Situation(BOOTSTRAP, chain, scale=0.1),
    "td_frozen": Situation(BOOTSTRAP._replace(value_fn=prediction_loss, extra=target), chain, scale=0.1),
}


# The regression: 16 weights, some of them of other scales.


def linear_loss(params, batch):
    return jnp.mean((batch["x"] @ params["w"] + params.get("shift", 0.0) - batch["y"]) ** 2) / 2


def linear_metric(params, test):
    """Without the noise of the targets, whose variance is put back."""
    return linear_loss(params, test) + 0.3**2 / 2


def regression(seed, scale=1.0, shift=None, steps=STEPS, buffer=None):
    """The weights are of the size `scale`, the inputs of its inverse."""
    rng = np.random.default_rng(seed)
    weights, spread = scale * rng.normal(size=16), np.logspace(0, -1, 16) / scale
    params = {"w": scale * rng.normal(size=16)}
    if shift is not None:
        params["shift"] = np.float64(shift)
    if buffer is not None:
        params["buffer"] = np.full(1000, buffer)

    def examples(shape, noise):
        x = spread * rng.normal(size=(*shape, 16))
        return {"x": x, "y": x @ weights + (shift or 0.0) + noise * rng.normal(size=shape)}

    return params, examples((steps, BATCH), 0.3), examples((4000,), 0.0)


def lora_loss(params, batch):
    return jnp.mean((apply(_adapted(params), batch["x"]) - batch["y"]) ** 2) / 2


def lora_metric(params, test):
    return lora_loss(params, test) + 0.3**2 / 2


def _adapted(params):
    first, last = jax.tree.map(jnp.asarray, FROZEN)
    return [first | {"w": first["w"] + params["a"] @ params["b"]}, last]


FROZEN = jax.tree.map(np.float32, dense(np.random.default_rng(0), 16, 48, 4))


def lora(seed):
    rng = np.random.default_rng(seed)
    params = {"a": rng.normal(size=(16, 4)) / 4, "b": np.zeros((4, 48))}
    target = [FROZEN[0] | {"w": FROZEN[0]["w"] + rng.normal(size=(16, 4)) @ rng.normal(size=(4, 48)) / 8}, FROZEN[1]]

    def examples(shape, noise):
        x = rng.normal(size=(*shape, 16))
        y = np.tanh(x @ target[0]["w"]) @ target[1]["w"]
        return {"x": x, "y": y + noise * rng.normal(size=y.shape)}

    return params, examples((STEPS, BATCH), 0.3), examples((4000,), 0.0)


REGRESSION = Rule(linear_loss, linear_metric, optax.adam(1.0))
C = {
    "regression": Situation(REGRESSION, regression),
    "buffer": Situation(REGRESSION, functools.partial(regression, buffer=1e4)),
    "buffer_adamw": Situation(REGRESSION._replace(base=optax.adamw(1.0)), functools.partial(regression, buffer=1e4)),
    "tiny": Situation(REGRESSION, functools.partial(regression, scale=1e-7)),
    "units": Situation(REGRESSION, functools.partial(regression, scale=1e-3, shift=101325.0)),
    "lora": Situation(Rule(lora_loss, lora_metric, optax.adam(1.0)), lora),
}


# Levels of the loss.


def likelihood_loss(params, batch):
    mean, log_scale = jnp.split(apply(params, batch["x"]), 2, axis=-1)
    return jnp.mean(((batch["y"] - mean) / jnp.exp(log_scale)) ** 2 / 2 + log_scale) + jnp.mean(batch["offset"])


def likelihood(offset, seed, steps=3000):
    rng = np.random.default_rng(seed)
    direction, params = rng.normal(size=(8, 1)) / 2, dense(rng, 8, 32, 2)

    def examples(shape, offset=0.0):
        x = rng.normal(size=(*shape, 8))
        scale = 0.1 * (1 + np.abs(x[..., :1]))
        return {
            "x": x,
            "y": np.sin(2 * x @ direction) + scale * rng.normal(size=scale.shape),
            "offset": np.full(len(x), offset),
        }

    return params, examples((steps, BATCH), offset), examples((20000,))


def offset_loss(params, batch):
    return classifier_loss(params, batch) + 1e6


def energy(positions, batch):
    """The Lennard-Jones potential; its least value is -44.3."""
    first, second = np.triu_indices(13, 1)
    inverse = 1 / jnp.sum((positions[first] - positions[second]) ** 2, axis=-1) ** 3
    return jnp.sum(4 * (inverse**2 - inverse))


def atoms(seed, steps=3000):
    positions = np.random.default_rng(seed).uniform(-1.5, 1.5, size=(13, 3))
    return positions, {"none": np.zeros(steps)}, ()


LIKELIHOOD = Rule(likelihood_loss, likelihood_loss)
D = {f"likelihood{k:+d}": Situation(LIKELIHOOD, functools.partial(likelihood, k)) for k in (0, 3, -3, 1000)} | {
    "offset": Situation(CLASSIFIER._replace(loss=offset_loss), batches_of(every_new)),
    "atoms": Situation(Rule(energy, energy, optax.adam(1.0)), atoms, seeds=4),
}


# Memories of the base.

MEMORIES = {
    "momentum9": optax.sgd(1.0, momentum=0.9),
    "momentum99": optax.sgd(1.0, momentum=0.99),
    "nesterov99": optax.sgd(1.0, momentum=0.99, nesterov=True),
    "adam99": optax.adam(1.0, b1=0.99),
}
E = {name: Situation(CLASSIFIER._replace(base=base), batches_of(every_new)) for name, base in MEMORIES.items()}


# optax.contrib's common test.

TOLERANCE = 3e-2
CONTRIB_BASES = {
    "sgd": optax.sgd(1.0),
    "momentum": optax.sgd(1.0, momentum=0.9),
    "adam": optax.adam(1.0),
    "adamw": optax.adamw(1.0),
    "lion": optax.lion(1.0),
}
CONTRIB = {
    "parabola": contrib._setup_parabola,
    "rosenbrock": contrib._setup_rosenbrock,
    "matrix": contrib._setup_matrix_parabola,
    "mixed": contrib._setup_mixed_tensor_target,
}


def distance(params, final):
    distances = jax.tree.map(lambda p, q: jnp.max(jnp.abs(p - q)), params, final)
    return jnp.max(jnp.stack(jax.tree.leaves(distances)))


def contrib_situation(setup, base, value, steps=30_000):
    initial, final, objective = setup(jnp.float32)
    rule = Rule(lambda params, batch: objective(params), distance, base, value=value)
    return Situation(rule, lambda seed: (initial, {"none": np.zeros(steps)}, final), horizon=False, seeds=1)


F = {
    f"{target}/{base}{name}": contrib_situation(CONTRIB[target], CONTRIB_BASES[base], value)
    for target in CONTRIB
    for base in CONTRIB_BASES
    for name, value in {"": None, "/value": lambda loss: loss}.items()
}


# What comes after gen, and losses that say little.


def zero_one_loss(params, batch):
    return jnp.mean(jnp.argmax(apply(params, batch["x"]), -1) != batch["y"], dtype=jnp.float32)


def hinge_loss(params, batch):
    logits, one_hot = apply(params, batch["x"]), jax.nn.one_hot(batch["y"], 10)
    margins = jnp.sum(logits * one_hot, -1) - jnp.max(logits - 1e9 * one_hot, -1)
    return jnp.mean(jax.nn.relu(1 - margins))


def hinge_metric(params, test):
    return hinge_loss(params, {"x": test["x"], "y": jnp.argmax(test["y"], -1)})


G = {"clipped": Situation(CLASSIFIER._replace(outer=optax.clip_by_global_norm(0.02)), batches_of(every_new))}
X = {
    "zero_one": Situation(CLASSIFIER._replace(value_fn=zero_one_loss, value=None), batches_of(every_new)),
    "hinge": Situation(Rule(hinge_loss, hinge_metric), batches_of(every_new, flips=0.0, spread=0.35), scale=0.1),
}


GROUPS = {"A": A, "B": B, "C": C, "D": D, "E": E, "F": F, "G": G, "X": X}
SITUATIONS = {name: situation for group in GROUPS.values() for name, situation in group.items()}

# name: (the best constant rate, its metric of each seed). From `--tune`.
BEST = {
    "reference": (0.003906, (1.105, 1.118, 1.139)),
    "echo2": (0.003906, (1.166, 1.157, 1.173)),
    "echo3": (0.003906, (1.192, 1.216, 1.194)),
    "echo4": (0.001953, (1.197, 1.236, 1.224)),
    "echo8": (0.001953, (1.283, 1.272, 1.296)),
    "echo8_held_out": (0.001953, (1.283, 1.272, 1.296)),
    "echo16": (0.0009766, (1.373, 1.369, 1.409)),
    "augmented_echo4": (0.003906, (1.196, 1.236, 1.198)),
    "short_epoch6": (0.0009766, (1.403, 1.412, 1.402)),
    "short_epoch6_held_out": (0.0009766, (1.403, 1.412, 1.402)),
    "short_epoch12": (0.001953, (1.279, 1.289, 1.292)),
    "sorted": (0.0009766, (1.391, 1.362, 1.366)),
    "rollout": (0.001953, (1.28, 1.29, 1.308)),
    "rollout_held_out": (0.001953, (1.28, 1.29, 1.308)),
    "dropout": (0.007812, (1.238, 1.256, 1.267)),
    "no_dropout": (0.007812, (1.238, 1.256, 1.267)),
    "other_key": (0.007812, (1.238, 1.256, 1.267)),
    "penalty": (0.003906, (1.108, 1.125, 1.149)),
    "twice": (0.003906, (1.105, 1.118, 1.139)),
    "half": (0.003906, (1.105, 1.118, 1.139)),
    "value_twice": (0.003906, (1.105, 1.118, 1.139)),
    "vq": (0.01562, (0.2716, 0.27, 0.2749)),
    "vq_reconstruction": (0.01562, (0.2716, 0.27, 0.2749)),
    "vq_frozen": (0.01562, (0.2716, 0.27, 0.2749)),
    "td": (0.0009766, (0.006706, 0.01352, 0.004366)),
    "td_frozen": (0.0009766, (0.006706, 0.01352, 0.004366)),
    "regression": (0.007812, (0.04509, 0.04527, 0.0452)),
    "buffer": (0.007812, (0.04509, 0.04527, 0.0452)),
    "buffer_adamw": (0.007812, (0.0451, 0.04527, 0.0452)),
    "tiny": (9.313e-10, (0.0451, 0.04537, 0.04528)),
    "units": (7.629e-06, (0.0451, 0.04527, 0.0452)),
    "lora": (0.003906, (0.04647, 0.04584, 0.04577)),
    "likelihood+0": (0.01562, (-1.099, -1.074, -1.071)),
    "likelihood+3": (0.01562, (-1.099, -1.074, -1.071)),
    "likelihood-3": (0.01562, (-1.099, -1.074, -1.071)),
    "likelihood+1000": (0.01562, (-1.099, -1.074, -1.071)),
    "offset": (0.003906, (1.105, 1.118, 1.139)),
    "atoms": (0.03125, (-36.06, -28.43, -38.74, -39.06)),
    "momentum9": (0.01562, (1.112, 1.132, 1.144)),
    "momentum99": (0.001953, (1.121, 1.138, 1.143)),
    "nesterov99": (0.001953, (1.119, 1.135, 1.142)),
    "adam99": (0.003906, (1.109, 1.128, 1.139)),
    "clipped": (0.003906, (1.15, 1.162, 1.187)),
    "zero_one": (0.003906, (1.105, 1.118, 1.139)),
    "hinge": (0.003906, (0.001379, 0.001683, 0.002091)),
}


def statuses(runs):
    """How often each status was seen, the most frequent first."""
    counts = collections.Counter(int(status) for run in runs for status in run.statuses[run.probed])
    return ", ".join(f"{gen_optax.ProbeStatus(status).name} {n}" for status, n in counts.most_common())


def tune(name, seeds):
    """Prints a line for `BEST`, and the means of the rates around."""
    found = constants(name, RATES, seeds)
    i = int(np.argmin(found.mean(0)))
    around = slice(max(0, i - 3), i + 4)
    print(f'    "{name}": ({RATES[i]:.4g}, ({", ".join(f"{x:.4g}" for x in found[:, i])})),', flush=True)
    print(
        "   ",
        *(f"{r:.1e}: {m:.4g} " for r, m in zip(RATES[around], found.mean(0)[around], strict=True)),
        file=sys.stderr,
    )


def compare(name, seeds):
    """Prints the lines of the table for one situation."""
    rate, bests = best(name, seeds)
    print(f"{name:25}  {'constant' if name in BEST else 'bound':8}  {rate:9.2e}  {bests.mean():10.4g}")
    for horizon in (False, True)[: 1 + SITUATIONS[name].horizon]:
        runs = run(name, seeds, horizon)
        metrics, last = [r.metric for r in runs], np.median([r.rates[-1] for r in runs])
        worse = "  ".join(f"{x:+8.1%}" for x in excess(name, metrics, bests))
        method = "horizon" if horizon else "open end"
        print(f"{'':25}  {method:8}  {last:9.2e}  {np.mean(metrics):10.4g}  {worse}  {statuses(runs)}", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", help="situations, or letters of groups; none: all but F")
    parser.add_argument("--seeds", type=int, help="how many")
    parser.add_argument("--tune", action="store_true", help="look for the best constant rates")
    args = parser.parse_args()
    names = [name for given in args.names or "ABCDEGX" for name in GROUPS.get(given, [given])]
    if not args.tune:
        print(f"{'situation':25}  {'rate':8}  {'last':>9}  {'metric':>10}  {'excess':>8}  {'worst':>8}  statuses")
    for name in names:
        began = time.time()
        (tune if args.tune else compare)(name, seeds_of(name, args.seeds))
        print(f"    {time.time() - began:.1f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
