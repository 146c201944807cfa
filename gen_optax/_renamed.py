"""Errors that say what to write instead of an argument that is not there."""

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_INSTEAD = {
    "init_learning_rate": "controller=gen_optax.balance(init_learning_rate=...), or algorithm_1(...)",
    "smoothing": "controller=gen_optax.algorithm_1(smoothing=...)",
    "sigma": "controller=gen_optax.balance(sigma=...)",
    "max_change": "controller=gen_optax.balance(max_change=...), or algorithm_1(clamp=...)",
    "smooth": "controller=gen_optax.algorithm_1() to average the rate as the paper does, or gen_optax.balance()",
    "learning_rate": "nothing: the learning rate is found. Bounds are min_learning_rate and max_learning_rate",
}


def says_what_to_write(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, whose TypeErrors about its arguments name the right ones."""
    signature = inspect.signature(function)
    positional = sum(p.kind == p.POSITIONAL_OR_KEYWORD for p in signature.parameters.values())

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        if len(args) > positional:
            raise TypeError(
                f"{function.__name__} takes its settings by name, got {args[positional]!r} without one. A learning "
                "rate is not needed: it is found."
            )
        for name in kwargs:
            if name in _INSTEAD and name not in signature.parameters:
                raise TypeError(f"{function.__name__} has no argument {name}. Write {_INSTEAD[name]}.")
        return function(*args, **kwargs)

    return checked
