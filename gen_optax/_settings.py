"""Checks of settings. Traced numbers, as `optax.inject_hyperparams` makes them, are taken as they are."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax


def require(name: str, setting: Any, condition: Callable[[Any], bool], what: str) -> None:
    """Raises a ValueError unless the setting meets the condition."""
    if not isinstance(setting, jax.Array | np.ndarray) and not condition(setting):
        raise ValueError(f"{name} must be {what}, got {setting!r}.")


def number(x: Any) -> bool:
    """A finite real number."""
    return isinstance(x, int | float | np.number) and not isinstance(x, bool) and bool(np.isfinite(x))


def positive(x: Any) -> bool:
    """A positive number."""
    return number(x) and bool(x > 0)


def fraction(x: Any) -> bool:
    """A number in [0, 1)."""
    return number(x) and bool(0 <= x < 1)


def above_one(x: Any) -> bool:
    """A number greater than 1."""
    return number(x) and bool(x > 1)


def whole(x: Any) -> bool:
    """A whole number of at least 1."""
    return isinstance(x, int | np.integer) and not isinstance(x, bool) and bool(x >= 1)


def bool_or_dtype(x: Any) -> bool:
    """True, False or a floating-point dtype."""
    if isinstance(x, bool):
        return True
    try:
        return bool(jnp.issubdtype(jnp.dtype(x), jnp.floating))
    except TypeError:
        return False


def require_peak_of_one(decay: optax.Schedule) -> None:
    """Raises a ValueError where the peak of a decay is far from 1, as that of a schedule of learning rates is.

    The schedule is evaluated at some 100 counts up to 2**30. One that cannot be evaluated is taken as it is.
    """
    counts = np.unique((2 ** np.linspace(0, 30, 121)).astype(np.int32) - 1)
    try:
        with jax.ensure_compile_time_eval():
            factors = np.asarray(jax.jit(jax.vmap(decay))(jnp.asarray(counts)), float)
    except Exception:
        return
    factors = factors[np.isfinite(factors)]
    if not factors.size:
        return
    # A polynomial may rise again behind its horizon, which is not known here: only the first hump can be too high.
    fallen = factors < np.maximum.accumulate(factors) / 2
    peak = factors[: max(1, np.argmax(fallen)) if fallen.any() else None].max()
    if peak > 2 or factors.max() < 0.5:
        raise ValueError(
            f"decay is a factor on the learning rate that GeN finds, so its peak must be 1; this one's is {peak:.4g}. "
            "Write for example optax.cosine_decay_schedule(1.0, T)."
        )
