"""Least-squares parabolas: from a few measured losses to slope, curvature and minimiser.

A loss along a step is modelled as `L(t) ~ L(0) - b t + A t^2 / 2`. The fit never sees the step sizes or the losses
at their own magnitude: it is solved for `x = t / max|t|` and `y = (L - L_ref) / max|L - L_ref|`, where every number
is at most one, and scaled back at the end. Learning rates of 1e-12 and losses of 1e30 are then as good as any.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class QuadraticFit(NamedTuple):
    """The parabola `L(t) ~ L(0) - slope * t + curvature * t^2 / 2`."""

    slope: jax.Array  # b: decrease of the loss per unit of step at t = 0; positive on a descending step
    curvature: jax.Array  # A: second derivative of the loss along the step
    minimizer: jax.Array  # b / A where A > 0; +inf or -inf, by the sign of b, where there is no minimum
    r_squared: jax.Array  # coefficient of determination; 1 for three points, where it cannot fail


def fit_quadratic(
    step_sizes: jax.typing.ArrayLike,
    losses: jax.typing.ArrayLike,
    weights: jax.typing.ArrayLike | None = None,
) -> QuadraticFit:
    r"""Fits a parabola to losses measured at several step sizes.

    Minimises over value, slope and curvature the weighted squares

    .. math::
      \sum_j w_j \bigl(L_j - (L(0) - b\,t_j + \tfrac12 A\,t_j^2)\bigr)^2

    by polynomials that are orthogonal on the points, which needs sums only and no linear solver. Through three
    points the parabola passes exactly; with symmetric ones it is the rule of Algorithm 1,
    :math:`\eta^* = \frac{h}{2}\,\frac{L_- - L_+}{L_+ - 2 L_0 + L_-}`.

    Args:
      step_sizes: the steps `t_j`, shape `(n,)` with `n >= 3`, in units of the learning rate. At least three of them
        (of non-zero weight) are distinct; if fewer are, the curvature is 0.
      losses: the losses `L_j`, shape `(n,)`. The fit is computed in float32, or in float64 for float64 losses.
      weights: the weights `w_j >= 0`, shape `(n,)`; a point of weight 0 is left out, even where its loss is NaN.
        None: all equal.

    Returns:
      A :class:`QuadraticFit` of scalars. A NaN or infinite loss makes every field NaN.

    Raises:
      ValueError: if the shapes differ, are not one-dimensional or have fewer than three points.

    Examples:
      >>> import gen_optax
      >>> fit = gen_optax.fit_quadratic([-0.1, 0.0, 0.1], [1.25, 1.0, 0.85])
      >>> print(f"{fit.slope:.2f} {fit.curvature:.2f} {fit.minimizer:.3f}")
      2.00 10.00 0.200

    References:
      Bu and Xu, `Gradient descent with generalized Newton's method <https://arxiv.org/abs/2407.02772>`_, 2024

      Forsythe, `Generation and use of orthogonal polynomials for data-fitting with a digital computer
      <https://doi.org/10.1137/0105007>`_, 1957
    """
    if np.ndim(step_sizes) != 1 or np.shape(step_sizes) != np.shape(losses) or np.shape(losses)[0] < 3:
        raise ValueError(
            "fit_quadratic needs one loss per step size and at least three of them, got step_sizes of shape "
            f"{np.shape(step_sizes)} and losses of shape {np.shape(losses)}."
        )
    if weights is not None and np.shape(weights) != np.shape(losses):
        raise ValueError(f"weights must have the shape of losses, {np.shape(losses)}, got {np.shape(weights)}.")
    losses = jnp.asarray(losses)
    dtype = jnp.promote_types(losses.dtype, jnp.float32)
    t = jnp.asarray(step_sizes, dtype)
    w = jnp.ones_like(t) if weights is None else jnp.asarray(weights, dtype)
    used = w > 0
    t_scale = nonzero(jnp.max(jnp.where(used, jnp.abs(t), 0)))
    slope, curvature, r_squared = fit_own_scale(t / t_scale, losses.astype(dtype), w)
    return QuadraticFit(
        slope=slope / t_scale,
        curvature=curvature / t_scale / t_scale,  # not t_scale**2, which underflows first
        minimizer=t_scale * minimizer(slope, curvature),
        r_squared=r_squared,
    )


def fit_own_scale(x: jax.Array, losses: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The fit for step sizes of the order of one: `(slope, curvature, r_squared)`, slope and curvature per `x`."""
    used = weights > 0
    w = jnp.where(used, weights, 0) / jnp.max(weights)
    # Differences from the loss nearest to the centre are exact where losses are close, so nothing cancels later.
    y = losses - losses[jnp.argmin(jnp.where(used, jnp.abs(x), jnp.inf))]
    y = jnp.where(used, y, 0)
    y_scale = nonzero(jnp.max(jnp.abs(y)))
    y = y / y_scale

    # p0 = 1, p1 = x - a0, p2 = (x - a1) p1 - m1/m0: orthogonal under the weights, m_k = sum(w p_k^2).
    m0 = jnp.sum(w)
    a0 = jnp.sum(w * x) / m0
    p1 = x - a0
    m1 = jnp.sum(w * p1**2)
    a1 = jnp.sum(w * x * p1**2) / nonzero(m1)
    p2 = (x - a1) * p1 - m1 / m0
    m2 = jnp.sum(w * p2**2)
    c0 = jnp.sum(w * y) / m0
    c1 = jnp.sum(w * y * p1) / nonzero(m1)
    # On fewer than three distinct points p2 vanishes up to the rounding of (x - a1) p1, which is some eps p1 as |x| is
    # at most about 1: no curvature can be read off.
    c2 = jnp.where(m2 > 100 * jnp.finfo(x.dtype).eps ** 2 * m1, jnp.sum(w * y * p2) / nonzero(m2), 0)

    slope = c2 * (a0 + a1) - c1
    curvature = 2 * c2
    residual = jnp.sum(w * (y - (c0 + c1 * p1 + c2 * p2)) ** 2)
    total = jnp.sum(w * (y - c0) ** 2)
    # Losses that are all equal lie on their (flat) parabola.
    r_squared = jnp.where(total == 0, 1.0, 1 - residual / nonzero(total))
    return slope * y_scale, curvature * y_scale, r_squared


def fit_at(x: np.ndarray, losses: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The fit at points that are known while tracing: `(slope, curvature, r_squared)` per `x`, each a few products."""
    scale, basis = _scaled_basis(x)
    y = losses - losses[np.argmin(np.abs(x))]
    y_scale = nonzero(jnp.max(jnp.abs(y)))
    y = y / y_scale
    value, slope, curvature = (jnp.sum(row.astype(y.dtype) * y) for row in np.linalg.pinv(basis))
    r_squared = jnp.ones_like(slope)
    if len(x) > 3:  # three points lie on their parabola
        total = jnp.sum((y - jnp.mean(y)) ** 2)
        fitted = (value * basis[:, 0] + slope * basis[:, 1] + curvature * basis[:, 2]).astype(y.dtype)
        r_squared = jnp.where(total == 0, 1.0, 1 - jnp.sum((y - fitted) ** 2) / nonzero(total))
    return slope * y_scale / scale, curvature * y_scale / scale**2, r_squared


def resolution(x: np.ndarray) -> float:
    r"""What the rounding of a loss is divided by to give that of slope and curvature by `fit_at` at these points.

    Both are sums :math:`\sum_j P_j L_j` over the losses, with `P` a row of the pseudoinverse of the basis
    :math:`1, -x, x^2/2`. Losses that are wrong by up to :math:`\epsilon` change them by up to
    :math:`\epsilon \sum_j |P_j|`. At -1, 0, 1 that is :math:`\epsilon` for the slope and :math:`4 \epsilon` for the
    curvature. These are the units here, and the worse of the two counts. At points `s` times as wide the slope has
    :math:`1/s` and the curvature :math:`1/s^2` of it, so that the answer for `(-s, 0, s)` is :math:`\min(s, s^2)`.
    """
    scale, basis = _scaled_basis(x)
    _, slope, curvature = np.round(np.sum(np.abs(np.linalg.pinv(basis)), axis=1), 9)  # 1 and 4 are exact at -1, 0, 1
    return float(min(scale / slope, scale**2 / (curvature / 4)))


def _scaled_basis(x: np.ndarray) -> tuple[Any, np.ndarray]:
    """`max|x|`, and `1, -x, x^2 / 2` at the points over it, one row each."""
    scale = np.max(np.abs(x))
    return scale, np.stack([np.ones_like(x), -x / scale, (x / scale) ** 2 / 2], axis=1)


def minimizer(slope: jax.Array, curvature: jax.Array) -> jax.Array:
    """`b / A` for `A > 0`, else infinitely far along the descent: never 0 / 0, so `jax_debug_nans` stays quiet."""
    inf = jnp.select([slope > 0, slope < 0], [jnp.inf, -jnp.inf], slope)
    return jnp.where(curvature > 0, slope / jnp.where(curvature > 0, curvature, 1), inf)


def nonzero(x: jax.Array) -> jax.Array:
    """`x` as a divisor: 1 where it is 0."""
    return jnp.where(x == 0, 1, x)
