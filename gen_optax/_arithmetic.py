"""The arithmetic that a loss is computed in, read off its trace.

A float32 loss of bfloat16 activations carries the rounding of bfloat16, and its dtype does not say so. What does is the
program that computes it: every floating-point type that the values pass through on their way from the parameters.

What is rounded before the mean over a batch averages out in it: of bfloat16 activations a hundredth to a few units in
their last place are left in the loss. A mean in bfloat16 has lost all that it says below its own last place.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

from gen_optax import _axes

# What the matrix units of these backends round float32 operands to, unless asked for Precision.HIGHEST.
_MATMUL_EPS = {"tpu": float(jnp.finfo(jnp.bfloat16).eps), "gpu": 2.0**-10}
# A float32 loss is trusted to this many units in its last place: a mean over a batch after some dozens of layers loses
# a few. And to this part of one in the last place of a coarser type that its layers are computed in.
_ULPS = 8
_FLOAT32_EPS = float(jnp.finfo(jnp.float32).eps)
_CALLS = ("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call", "checkpoint", "remat2")


class Arithmetic(NamedTuple):
    """How a loss is computed. Plain Python numbers, known while tracing."""

    eps: float  # of the coarsest floating-point type between the parameters and the loss
    scalar_eps: float  # of the coarsest that a scalar passes through, as the loss itself does at the end
    loss_dtype: Any  # that of the loss, float32 at least
    varying: frozenset[Any]  # the mesh axes over which the loss is typed as varying, before any average

    @property
    def is_coarse(self) -> bool:
        """Whether anything is rounded to less than float32."""
        return self.eps > _FLOAT32_EPS

    @property
    def is_fine(self) -> bool:
        """Whether nothing is rounded to float32 or less: all is float64."""
        return self.eps < _FLOAT32_EPS

    def rounding(self, value: jax.Array | None = None) -> float:
        """The error of the loss, relative to it; `value`: where one that was computed elsewhere is among the losses."""
        scalar_eps = self.scalar_eps if value is None else max(self.scalar_eps, float(jnp.finfo(value.dtype).eps))
        return max(scalar_eps, _ULPS * min(self.eps, _FLOAT32_EPS), self.eps / _ULPS)

    def error_of(self, loss: jax.Array) -> jax.Array:
        """The rounding error of a loss; of one that is 0, or nearly, what leaves its changes some digits."""
        limits = jnp.finfo(loss.dtype)
        return self.rounding() * jnp.maximum(jnp.abs(loss), limits.tiny / limits.eps**2)


def arithmetic(trace: Any) -> Arithmetic:
    """The arithmetic of a loss, from its trace; what does not depend on the parameters is left out."""
    jaxpr = trace.jaxpr
    entered = [*jaxpr.invars, *jaxpr.outvars]  # parameters that are bfloat16 are rounded to it, whatever comes then
    eps, scalar_eps = _walk(jaxpr, [True] * len(jaxpr.invars))
    (value,) = jaxpr.outvars
    return Arithmetic(
        max([eps, *map(_eps, entered)]),
        max([scalar_eps, _eps(value)]),
        jnp.promote_types(value.aval.dtype, jnp.float32),
        _axes.varying_of(value.aval),
    )


def _walk(jaxpr: Any, depends: Sequence[bool]) -> tuple[float, float]:
    moving = {variable for variable, does in zip(jaxpr.invars, depends, strict=True) if does}
    eps, scalar_eps = 0.0, 0.0
    for equation in jaxpr.eqns:
        inputs = [not isinstance(x, core.Literal) and x in moving for x in equation.invars]
        if not any(inputs):
            continue
        moving.update(equation.outvars)
        eps = max([eps, _matmul_eps(equation), *map(_eps, equation.outvars)])
        scalar_eps = max([scalar_eps, *(_eps(x) for x in equation.outvars if getattr(x.aval, "shape", None) == ())])
        name = equation.primitive.name
        for inner in _inner(equation):
            known = name in _CALLS and len(inner.invars) == len(inputs)
            within = _walk(inner, inputs if known else [True] * len(inner.invars))
            eps, scalar_eps = max(eps, within[0]), max(scalar_eps, within[1])
    return eps, scalar_eps


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
    """What matrix units round to; they leave float64 alone."""
    is_product = equation.primitive.name in ("dot_general", "conv_general_dilated")
    if not is_product or _eps(equation.outvars[0]) < _FLOAT32_EPS:
        return 0.0
    precision = equation.params["precision"]
    if precision is not None and set(precision if isinstance(precision, tuple) else [precision]) == {
        jax.lax.Precision.HIGHEST
    }:
        return 0.0
    return _MATMUL_EPS.get(jax.default_backend(), 0.0)
