"""Problems and training loops that the tests share. References in float64 NumPy, independent of the code under test."""

import dataclasses
import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gen_optax
from gen_optax import _measurement


@jax.custom_vjp
def sine_in_reverse(x):
    """A function that forward-mode differentiation cannot go through, as it cannot through fused attention."""
    return jnp.sin(x)


sine_in_reverse.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: (g * jnp.cos(x),))


class Quadratic(NamedTuple):
    """`L(w) = 1/2 (w - c)^T H (w - c) + offset`, in float64; `value_fn` evaluates it in the dtype of `w`."""

    hessian: np.ndarray
    centre: np.ndarray
    offset: float = 0.0

    def value_fn(self, w):
        difference = w - jnp.asarray(self.centre, w.dtype)
        return 0.5 * difference @ (jnp.asarray(self.hessian, w.dtype) @ difference) + self.offset

    def gradient(self, w):
        return self.hessian @ (np.asarray(w, np.float64) - self.centre)

    def value(self, w):
        difference = np.asarray(w, np.float64) - self.centre
        return 0.5 * difference @ self.hessian @ difference + self.offset

    def slope_and_curvature(self, w, u):
        u = np.asarray(u, np.float64)
        return -self.gradient(w) @ u, u @ self.hessian @ u


def random_quadratic(seed: int, size: int = 6, condition: float = 100.0, offset: float = 0.0) -> Quadratic:
    """Positive definite, eigenvalues log-uniform in [1, condition], a random basis."""
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.normal(size=(size, size)))
    eigenvalues = condition ** np.concatenate([[0.0, 1.0], rng.uniform(size=size - 2)])
    return Quadratic((basis * eigenvalues) @ basis.T, rng.normal(size=size), offset)


def network(seed: int = 0, dtype: Any = np.float32, sizes: tuple[int, ...] = (5, 16, 3), samples: int = 32):
    """A small tanh network and a regression batch: `(params, {"x": ..., "y": ...})`."""
    rng = np.random.default_rng(seed)
    params = {
        f"layer{i}": {
            "w": (rng.normal(size=(m, n)) / np.sqrt(m)).astype(dtype),
            "b": (0.1 * rng.normal(size=n)).astype(dtype),
        }
        for i, (m, n) in enumerate(itertools.pairwise(sizes))
    }
    x = rng.normal(size=(samples, sizes[0]))
    y = np.sin(x @ rng.normal(size=(sizes[0], sizes[-1])))
    return jax.tree.map(jnp.asarray, params), {"x": jnp.asarray(x, dtype), "y": jnp.asarray(y, dtype)}


def network_loss(params, x, y):
    """Half the mean squared error of the network."""
    for i in range(len(params)):
        x = x @ params[f"layer{i}"]["w"] + params[f"layer{i}"]["b"]
        x = jnp.tanh(x) if i + 1 < len(params) else x
    return jnp.mean((x - y) ** 2) / 2


def numpy_network_loss(params, x, y):
    """`(loss, gradient)` of `network_loss` by hand, in float64, for one hidden layer."""
    w0, b0, w1, b1 = params
    hidden = np.tanh(x @ w0 + b0)
    error = hidden @ w1 + b1 - y
    scaled = error / error.size
    back = (scaled @ w1.T) * (1 - hidden**2)
    return np.mean(error**2) / 2, [x.T @ back, back.sum(0), hidden.T @ scaled, scaled.sum(0)]


def flat(params) -> list[np.ndarray]:
    """The leaves of a one-hidden-layer network in the order of `numpy_network_loss`, in float64."""
    return [np.asarray(params[f"layer{i}"][k], np.float64) for i in (0, 1) for k in ("w", "b")]


def train(tx, params, loss_fn, steps: int, value: bool = True, grad: bool = False, **extra: Any):
    """`steps` steps in one `lax.scan`: `(params, state, losses before each step, states after each step)`."""
    tx = optax.with_extra_args_support(tx)

    def step(carry, _):
        params, state = carry
        loss, grads = jax.value_and_grad(loss_fn)(params, **extra)
        arguments = dict(extra, value_fn=loss_fn)
        if value:
            arguments["value"] = loss
        if grad:
            arguments["grad"] = grads
        updates, state = tx.update(grads, state, params, **arguments)
        return (optax.apply_updates(params, updates), state), (loss, state)

    @jax.jit
    def run(params):
        (params, state), (losses, states) = jax.lax.scan(step, (params, tx.init(params)), length=steps)
        return params, state, losses, states

    return run(params)


def gen_state(state) -> gen_optax.GenState:
    """The one GenState in an optax state."""
    found = [
        s
        for s in jax.tree.leaves(state, is_leaf=lambda s: isinstance(s, gen_optax.GenState))
        if isinstance(s, gen_optax.GenState)
    ]
    assert len(found) == 1
    return found[0]


def jitted_update(tx, value_fn):
    """`tx.update` under jit, with `value_fn` closed over: `(updates, state, params, **extra)`."""
    return jax.jit(functools.partial(tx.update, value_fn=value_fn))


def one_probe(probe, value_fn, params, updates, learning_rate=1.0, value=None, grad=None, **options: Any):
    """The state after a single due probe along `updates` at a known rate that it replaces, and the scaled updates."""
    tx = gen_optax.scale_by_gen(probe=probe, **(greedy(learning_rate) | options))
    extra = {k: v for k, v in (("value", value), ("grad", grad)) if v is not None}
    scaled, state = jitted_update(tx, value_fn)(updates, tx.init(params), params, **extra)
    return state, scaled


def greedy(learning_rate=1.0):
    """Settings with which every call probes and the minimiser, unsmoothed, becomes the learning rate."""
    return {"controller": gen_optax.algorithm_1(init_learning_rate=learning_rate, smoothing=0.0), "every": 1}


def measurement(slope, curvature, **fields: Any) -> gen_optax.Measurement:
    """In float32; unless told otherwise the loss is 1 at both ends of the step."""
    fields = {"value": 1.0, "end_value": 1.0, "step_size": 0.1, "r_squared": 1.0, "noise": 1e-6} | fields
    names = "jumped", "is_complete", "is_flattered", "is_path", "out_of_turn"
    flags = {name: jnp.asarray(fields.pop(name, False)) for name in names}
    numbers = {name: jnp.float32(x) for name, x in (fields | {"slope": slope, "curvature": curvature}).items()}
    return gen_optax.Measurement(**numbers, **flags)


def observed(controller, measured, rate=0.1, state=(), every=16):
    """What a controller makes of a measurement at a learning rate: `(rate, state, status)`."""
    return _observed(controller, measured, jnp.float32(rate), state, jnp.int32(every))


@functools.partial(jax.jit, static_argnums=0)
def _observed(controller, measured, rate, state, every):
    status = _measurement.judge(measured)
    nothing = dict.fromkeys(field.name for field in dataclasses.fields(gen_optax.Context))
    context = gen_optax.Context(**(nothing | {"every": every}))
    return *controller.observe(rate, state, measured, status, context), status


def paths_and_types(tree):
    """Structure, shapes, dtypes and weak types: what must not drift."""
    return jax.tree.structure(tree), [
        (jnp.shape(x), jax.typeof(x).dtype, jax.typeof(x).weak_type) for x in jax.tree.leaves(tree)
    ]


PROBES = {
    "three points": gen_optax.finite_difference(),
    "map": gen_optax.finite_difference(batching="map"),
    "five points": gen_optax.finite_difference((-1.0, -0.5, 0.0, 0.5, 1.0)),
    "free slope": gen_optax.finite_difference(free_slope=True),
    "exact": gen_optax.exact(),
    "retrospective": gen_optax.retrospective(),
}

# One of each kind, where the number of candidates and how they are evaluated make no difference.
KINDS = {name: PROBES[name] for name in ("three points", "free slope", "exact", "retrospective")}


def settings_of(name, learning_rate=None):
    """A probe of `PROBES` with a controller that takes it: the default one, or Algorithm 1 where that refuses it."""
    given = {} if learning_rate is None else {"init_learning_rate": learning_rate}
    controller = gen_optax.balance if PROBES[name].direction.independent else gen_optax.algorithm_1
    return {"probe": PROBES[name], "controller": controller(**given)}
