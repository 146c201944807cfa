"""Checks of settings. Traced numbers, as `optax.inject_hyperparams` makes them, are taken as they are."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np


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
