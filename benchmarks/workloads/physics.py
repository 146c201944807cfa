"""Burgers' equation by a physics-informed network (Raissi et al., 2019): no data but the equation."""

from collections.abc import Callable, Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.models.mlp import MLP
from benchmarks.workload import Batch, Workload
from benchmarks.workloads._common import Arrays, flax_functions, map_over

_VISCOSITY = 0.05
_NUM_POINTS = 2000  # to evaluate at
_NODES, _WEIGHTS = np.polynomial.hermite.hermgauss(100)


def pinn_burgers(tiny: bool = False) -> Workload:
    """`u_t + u u_x = 0.05 u_xx` for x in [-1, 1] and t in [0, 1], u = -sin(pi x) at t = 0 and 0 at both ends.

    The loss is the sum of three mean squares: of the residual inside, of the initial and of the boundary values, each
    at new points in every batch. The metric is the L2 error relative to the exact solution.
    """
    splits = {name: _exact_points(seed) for seed, name in enumerate(("train", "validation", "test"))}
    module = MLP(widths=(16,) if tiny else (32, 32, 32), num_classes=1, activation=nn.tanh)
    init, apply = flax_functions(module, splits["train"]["points"][:1])

    def loss_fn(params, model_state, batch, key):
        def u(points):
            return apply(params, model_state, points)[0][:, 0]

        u_x, u_t = _derivative(u, 0), _derivative(u, 1)
        inside, start = batch["inside"], batch["start"]
        residual = u_t(inside) + u(inside) * u_x(inside) - _VISCOSITY * _derivative(u_x, 0)(inside)
        initial = u(start) + jnp.sin(jnp.pi * start[:, 0])
        terms = (residual, initial, u(batch["boundary"]))
        return sum(jnp.mean(term.astype(jnp.float32) ** 2) for term in terms), model_state

    def squares(params, model_state, batch):
        u = apply(params, model_state, batch["points"])[0][:, 0]
        return {"error": (u - batch["u"]) ** 2, "exact": batch["u"] ** 2}

    over = map_over(squares, splits)

    def evaluate(params, model_state, split):
        means = {name: np.mean(values, dtype=np.float64) for name, values in over(params, model_state, split).items()}
        return {"loss": float(means["error"]), "error": float(np.sqrt(means["error"] / means["exact"]))}

    return Workload(
        name="pinn_burgers",
        base="adamw",
        weight_decay=0.0,
        num_steps=20 if tiny else 2000,
        batch_size=256,
        metric="error",
        higher_is_better=False,
        init=init,
        loss_fn=loss_fn,
        batches=_batches,
        evaluate=evaluate,
    )


def burgers(x: np.ndarray, t: np.ndarray) -> np.ndarray:
    """The exact solution for t > 0, by the Cole-Hopf transformation and Gauss-Hermite quadrature."""
    origin = x[..., None] - np.sqrt(4 * _VISCOSITY * t)[..., None] * _NODES
    weights = _WEIGHTS * np.exp(-np.cos(np.pi * origin) / (2 * np.pi * _VISCOSITY))
    return -np.sum(weights * np.sin(np.pi * origin), axis=-1) / np.sum(weights, axis=-1)


def _batches(seed: int, batch_size: int) -> Iterator[Batch]:
    """Points `(x, t)`, uniform inside, at t = 0 and at both ends."""
    rng = np.random.default_rng(seed)
    while True:
        start, boundary = _points(rng, batch_size), _points(rng, batch_size)
        start[:, 1] = 0
        boundary[:, 0] = np.copysign(1, boundary[:, 0])
        yield {"inside": _points(rng, batch_size), "start": start, "boundary": boundary}


def _exact_points(seed: int) -> Arrays:
    points = _points(np.random.default_rng(seed), _NUM_POINTS)
    return {"points": points, "u": burgers(*points.T.astype(np.float64)).astype(np.float32)}


def _points(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.uniform((-1, 0), (1, 1), (count, 2)).astype(np.float32)


def _derivative(function: Callable[[jax.Array], jax.Array], coordinate: int) -> Callable[[jax.Array], jax.Array]:
    """Of a function of rows, each for itself, in one coordinate of the rows."""

    def derivative(points):
        direction = jnp.zeros_like(points).at[:, coordinate].set(1)
        return jax.jvp(function, (points,), (direction,))[1]

    return derivative
