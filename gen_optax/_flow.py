"""Control flow that is Python's own where a condition is known: outside of `jit` nothing is traced in vain."""

from collections.abc import Callable
from typing import Any

import jax


def is_known(condition: Any) -> bool:
    """Whether a condition has a value: it is a Python bool, or an array that is not traced."""
    return not isinstance(condition, jax.core.Tracer)


def cond(condition: Any, if_true: Callable[..., Any], if_false: Callable[..., Any], *operands: Any) -> Any:
    """`jax.lax.cond`, which runs the one branch alone where the condition is known."""
    if is_known(condition):
        return if_true(*operands) if condition else if_false(*operands)
    return jax.lax.cond(condition, if_true, if_false, *operands)


def both(a: Any, b: Any) -> Any:
    """`a & b`, known where one of them is known to be false."""
    if (is_known(a) and not a) or (is_known(b) and not b):
        return False
    return a & b


def either(a: Any, b: Any) -> Any:
    """`a | b`, known where one of them is known to be true."""
    if (is_known(a) and a) or (is_known(b) and b):
        return True
    return a | b


def negation(a: Any) -> Any:
    """`not a`."""
    return not a if is_known(a) else ~a
