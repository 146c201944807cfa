"""One small model with batch norm and dropout, in linen and in nnx, and how to train it: shared by the flax tests."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import gen_optax.linen
import gen_optax.nnx

# Every probe there is, and what each is given: a rate that cannot move leaves the probe itself as the only difference.
PROBES = {
    "three points": gen_optax.finite_difference(),
    "map": gen_optax.finite_difference(batching="map"),
    "exact": gen_optax.exact(),
    "retrospective": gen_optax.retrospective(),
}


def batch(seed: int = 0):
    """Regression data, shapes `(16, 3)` and `(16, 1)`."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(16, 3)).astype(np.float32)
    return jnp.asarray(x), jnp.asarray(np.sin(x.sum(1, keepdims=True)))


def fixed_rate(rate: float, probe: Any, every: int = 1):
    """A `scale_by_gen` that probes and whose rate stays: the bounds leave it no room."""
    controller = gen_optax.balance() if probe.direction.independent else gen_optax.algorithm_1()
    bounds = {"min_learning_rate": rate, "max_learning_rate": rate}
    return gen_optax.scale_by_gen(controller=controller, probe=probe, every=every, **bounds)


class LinenNet(nn.Module):
    """A hidden layer with batch norm and dropout."""

    @nn.compact
    def __call__(self, x, train: bool = True):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(nn.Dense(8)(x))
        return nn.Dense(1)(nn.Dropout(0.25, deterministic=not train)(nn.relu(x)))


class LinenState(gen_optax.linen.TrainState):
    batch_stats: Any
    key: jax.Array


NET = LinenNet()


def linen_state(tx: Any, seed: int = 0) -> LinenState:
    variables = NET.init(jax.random.key(seed), jnp.ones((1, 3)), train=False)
    return LinenState.create(apply_fn=NET.apply, tx=tx, key=jax.random.key(seed + 1), **variables)


def linen_step(state: LinenState, x: jax.Array, y: jax.Array) -> tuple[LinenState, jax.Array]:
    """The step of docs/guides/flax-linen.md."""
    key = jax.random.fold_in(state.key, state.step)

    def loss_fn(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        predictions, new = state.apply_fn(variables, x, mutable=["batch_stats"], rngs={"dropout": key})
        return jnp.mean((predictions - y) ** 2), new["batch_stats"]

    (value, batch_stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    state = state.apply_gradients(grads=grads, value=value, value_fn=loss_fn, batch_stats=batch_stats)
    return state, value


class NnxNet(nnx.Module):
    """The same for nnx."""

    def __init__(self, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(3, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.25, rngs=rngs)
        self.out = nnx.Linear(8, 1, rngs=rngs)

    def __call__(self, x):
        return self.out(self.dropout(nnx.relu(self.norm(self.hidden(x)))))


def nnx_loss(model, x, y):
    return jnp.mean((model(x) - y) ** 2)


def nnx_model(tx: Any, seed: int = 0) -> tuple[NnxNet, nnx.Optimizer]:
    model = NnxNet(nnx.Rngs(seed))
    return model, nnx.Optimizer(model, tx, wrt=nnx.Param)


def nnx_step(model: NnxNet, optimizer: nnx.Optimizer, x: jax.Array, y: jax.Array) -> jax.Array:
    """The step of docs/guides/flax-nnx.md."""
    value_fn = gen_optax.nnx.make_value_fn(nnx_loss, model)
    value, grads = nnx.value_and_grad(nnx_loss)(model, x, y)
    optimizer.update(model, grads, value=value, value_fn=value_fn, x=x, y=y)
    return value


def counting(function):
    """`function`, and a list that grows by one with every trace of it."""
    traces: list[None] = []

    @functools.wraps(function)
    def counted(*args, **kwargs):
        traces.append(None)
        return function(*args, **kwargs)

    return counted, traces


def host(tree: Any) -> Any:
    """Arrays of NumPy, typed random keys as their bits: what `np.testing` can compare."""

    def to_numpy(x):
        is_key = isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(x) if is_key else x)

    return jax.tree.map(to_numpy, nnx.as_pure(tree))


def assert_same(a: Any, b: Any, **tolerances: float) -> None:
    """Equal trees: to the bit, or within the tolerances."""
    a, b = host(a), host(b)
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        name = jax.tree_util.keystr(path)
        if tolerances:
            np.testing.assert_allclose(x, y, err_msg=name, **tolerances)
        else:
            np.testing.assert_array_equal(x, y, err_msg=name)
