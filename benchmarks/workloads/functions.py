"""Two functions of the plane with a known minimum, without data and without noise."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.workload import Workload


def beale(tiny: bool = False) -> Workload:
    """A flat valley between steep walls: minimum 0 at (3, 0.5)."""

    def function(x, y):
        return (1.5 - x + x * y) ** 2 + (2.25 - x + x * y**2) ** 2 + (2.625 - x + x * y**3) ** 2

    return _plane("beale", function, start=(1.0, 1.0), minimum=(3.0, 0.5), num_steps=20 if tiny else 1000)


def rosenbrock(tiny: bool = False) -> Workload:
    """A curved valley, a hundred times steeper across than along: minimum 0 at (1, 1)."""

    def function(x, y):
        return (1 - x) ** 2 + 100 * (y - x**2) ** 2

    return _plane("rosenbrock", function, start=(-1.2, 1.0), minimum=(1.0, 1.0), num_steps=20 if tiny else 1000)


def _plane(
    name: str,
    function: Callable[[jax.Array, jax.Array], jax.Array],
    start: tuple[float, float],
    minimum: tuple[float, float],
    num_steps: int,
) -> Workload:
    def init(key):
        # The customary start, moved a little so that seeds differ.
        return {"point": jnp.array(start) + 0.05 * jax.random.normal(key, (2,))}, {}

    def loss_fn(params, model_state, batch, key):
        return function(*params["point"]), model_state

    def batches(seed, batch_size):
        # There is no data: a batch says only how large it is.
        while True:
            yield {"index": np.arange(batch_size, dtype=np.int32)}

    def evaluate(params, model_state, split):
        distance = jnp.linalg.norm(params["point"] - jnp.array(minimum))
        return {"loss": float(function(*params["point"])), "distance": float(distance)}

    return Workload(
        name=name,
        base="sgd",
        weight_decay=0.0,
        num_steps=num_steps,
        batch_size=1,
        metric="distance",
        higher_is_better=False,
        init=init,
        loss_fn=loss_fn,
        batches=batches,
        evaluate=evaluate,
    )
