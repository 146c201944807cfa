"""The arithmetic that a loss is computed in, read off its trace.

A float32 loss of bfloat16 activations carries the rounding of bfloat16, and its dtype does not say so. What does is the
program that computes it: every floating-point type that the values pass through on their way from the parameters.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

# What the matrix units of these backends round float32 operands to, unless asked for Precision.HIGHEST.
_MATMUL_EPS = {"tpu": float(jnp.finfo(jnp.bfloat16).eps), "gpu": 2.0**-10}
_CALLS = ("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call", "checkpoint", "remat2")


class Arithmetic(NamedTuple):
    """How a loss is computed. Plain Python values, known while tracing."""

    eps: float  # of the coarsest floating-point type between the parameters and the loss
    forward_mode: bool  # whether forward-mode differentiation may go through: no function with a reverse rule only

    @property
    def is_coarse(self) -> bool:
        """Whether differences of losses are lost in more than the rounding of float32."""
        return self.eps > float(jnp.finfo(jnp.float32).eps)


def arithmetic(loss: Callable[[Any], jax.Array], params: Any) -> Arithmetic:
    """The arithmetic of `loss` between `params` and its value; what does not depend on the parameters is left out."""
    jaxpr = jax.make_jaxpr(loss)(params).jaxpr
    entered = [*jaxpr.invars, *jaxpr.outvars]  # parameters that are bfloat16 are rounded to it, whatever comes then
    eps, forward_mode = _walk(jaxpr, [True] * len(jaxpr.invars))
    return Arithmetic(max([eps, *map(_eps, entered)]), forward_mode)


def _walk(jaxpr: Any, depends: Sequence[bool]) -> tuple[float, bool]:
    moving = {variable for variable, does in zip(jaxpr.invars, depends, strict=True) if does}
    eps, forward_mode = 0.0, True
    for equation in jaxpr.eqns:
        inputs = [not isinstance(x, core.Literal) and x in moving for x in equation.invars]
        if not any(inputs):
            continue
        moving.update(equation.outvars)
        eps = max([eps, _matmul_eps(equation), *map(_eps, equation.outvars)])
        name = equation.primitive.name
        forward_mode &= not name.startswith("custom_vjp")
        for inner in _inner(equation):
            known = name in _CALLS and len(inner.invars) == len(inputs)
            inner_eps, inner_forward_mode = _walk(inner, inputs if known else [True] * len(inner.invars))
            eps, forward_mode = max(eps, inner_eps), forward_mode and inner_forward_mode
    return eps, forward_mode


def _inner(equation: Any) -> Iterator[Any]:
    """The programs inside of an equation: of a loop, a branch, a function with its own `jit`."""
    for parameter in equation.params.values():
        for x in parameter if isinstance(parameter, tuple | list) else [parameter]:
            if isinstance(x, core.ClosedJaxpr):
                yield x.jaxpr
            elif isinstance(x, core.Jaxpr):
                yield x


def _eps(variable: Any) -> float:
    dtype = getattr(variable.aval, "dtype", None)
    return float(jnp.finfo(dtype).eps) if dtype is not None and jnp.issubdtype(dtype, jnp.inexact) else 0.0


def _matmul_eps(equation: Any) -> float:
    if equation.primitive.name not in ("dot_general", "conv_general_dilated"):
        return 0.0
    precision = equation.params["precision"]
    if precision is not None and set(precision if isinstance(precision, tuple) else [precision]) == {
        jax.lax.Precision.HIGHEST
    }:
        return 0.0
    return _MATMUL_EPS.get(jax.default_backend(), 0.0)
