"""What GeN knows, as a flat dict for a logger."""

from typing import Any

import jax
import numpy as np

from gen_optax import _notice, _tree
from gen_optax._gen import GenState


def metrics(state: Any) -> dict[str, Any]:
    """The learning rate and the last probe as a flat dict of scalars.

    Outside of `jit` it warns once of each :class:`gen_optax.Notice` seen so far.

    Args:
      state: anything that holds the state of a `scale_by_gen`, however deep: an optax state (of a chain, of
        `optax.MultiSteps`, ...), a flax `TrainState`, an `nnx.Optimizer`.

    Returns:
      A dict with `learning_rate` (eta, smoothed), `applied_learning_rate` (eta with the decay, what the last
      updates were multiplied by) and the fields of :class:`gen_optax.GenInfo`. Python numbers, or the traced scalars
      inside of `jit`, so that a training step can return them. With several GeN states in `state` the keys are
      numbered: `0/learning_rate`, `1/learning_rate`, ...

    Raises:
      ValueError: if there is no state of `scale_by_gen` in `state`.

    Examples:
      >>> import gen_optax
      >>> import jax.numpy as jnp
      >>> state = gen_optax.gen_adamw(controller=gen_optax.balance(init_learning_rate=0.5)).init(jnp.zeros(3))
      >>> gen_optax.metrics(state)["learning_rate"]
      0.5
    """
    flat = [_flatten(gen_state) for gen_state in _tree.instances(state, GenState, "metrics")]
    _notice.warn_of_state(state, stacklevel=2)
    if len(flat) == 1:
        return flat[0]
    return {f"{i}/{name}": value for i, scalars in enumerate(flat) for name, value in scalars.items()}


def _flatten(state: GenState) -> dict[str, Any]:
    scalars = {
        "learning_rate": state.learning_rate,
        "applied_learning_rate": state.applied_learning_rate,
        **state.info._asdict(),
    }
    return {name: _to_python(value) for name, value in scalars.items()}


def _to_python(x: Any) -> Any:
    if hasattr(x, "get_value"):  # a flax nnx Variable
        x = x.get_value()
    if isinstance(x, jax.core.Tracer):
        return x
    x = np.asarray(x)
    return x.item() if x.ndim == 0 else x
