"""Peers that optax does not have, as transformations of optax."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class ScheduleFreePlusState(NamedTuple):
    """State of `schedule_free_plus`. The parameters of the training loop are `y`, where gradients are taken."""

    count: jax.Array
    average: optax.Params  # x, the point to evaluate at
    iterate: optax.Params  # z, where Adam's steps go
    mu: optax.Updates
    nu: optax.Updates
    norm: jax.Array  # the moving average of the gradient's norm, before its correction for the start
    learning_rate: jax.Array  # of the last step
    max_learning_rate: jax.Array
    sum_of_weights: jax.Array


def schedule_free_plus(
    learning_rate: float = 1.0,
    b1: float = 0.9,
    b2: float = 0.95,
    beta: float = 0.9,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    *,
    warmup_steps: int = 0,
    annealing_steps: int = 0,
    max_beta: float = 0.965,
    norm_decay: float = 0.0,
    power: float = 0.0,
    rate_power: float = 2.0,
) -> optax.GradientTransformationExtraArgs:
    r"""ScheduleFree+: Adam by Polyak's step, evaluated at an average of the iterates.

    With :math:`L_t` and :math:`g_t` the loss and its gradient at :math:`y_t`, and Adam's direction :math:`u_t`,

    .. math::
        \eta_t &= \gamma_t \max(0, L_t + \beta_t \langle g_t, z_t - x_t \rangle) / n_t, \\
        z_{t+1} &= z_t - \eta_t^2 \lambda y_t - \eta_t u_t, \\
        x_{t+1} &= (1 - c_t) x_t + c_t z_{t+1}, \\
        y_{t+1} &= \beta_t x_{t+1} + (1 - \beta_t) z_{t+1},

    where :math:`n_t` is :math:`\sqrt{\pi / 2} \, \|g_t\|_1` or a moving average of it, and :math:`c_t` the share of
    :math:`(t + 1)^r \max_s \eta_s^p` in its sum so far. The least loss is taken to be zero: where the loss is negative
    no step is taken.

    Args:
      learning_rate: a factor on Polyak's step.
      b1: decay of Adam's first moment.
      b2: decay of Adam's second moment.
      beta: how far gradients are taken towards the average.
      eps: added to the denominator of Adam's direction.
      weight_decay: decoupled, in units of its own: the authors use 20 to 50.
      warmup_steps: the factor rises from 0 over so many steps, and the average follows the iterate during them.
      annealing_steps: 1 - beta goes to 1 - max_beta over so many steps, evenly in its logarithm; 0: not at all.
      max_beta: where it ends.
      norm_decay: decay of the moving average of the gradient's norm; 0: none is taken.
      power: r.
      rate_power: p.

    References:
      Defazio, `ScheduleFree+: Scaling Learning-Rate-Free & Schedule-Free Learning to Large Language Models
      <https://arxiv.org/abs/2605.19095>`_, 2026.
    """

    def init(params):
        return ScheduleFreePlusState(
            count=jnp.zeros((), jnp.int32),
            average=params,
            iterate=params,
            mu=optax.tree.zeros_like(params),
            nu=optax.tree.zeros_like(params),
            norm=jnp.zeros(()),
            learning_rate=jnp.zeros(()),
            max_learning_rate=jnp.full((), eps),
            sum_of_weights=jnp.zeros(()),
        )

    def update(updates, state, params, *, value, **extra):
        del extra
        step = state.count + 1
        towards = _beta(state.count, beta, max_beta, annealing_steps)
        norm = norm_decay * state.norm + (1 - norm_decay) * jnp.sqrt(jnp.pi / 2) * optax.tree.norm(updates, ord=1)
        ahead = optax.tree.vdot(updates, optax.tree.sub(state.iterate, state.average))
        polyak = jnp.maximum(0, value + towards * ahead) * (1 - norm_decay**step) / jnp.where(norm > 0, norm, jnp.inf)
        rate = learning_rate * polyak * (jnp.minimum(1, step / warmup_steps) if warmup_steps else 1)
        highest = jnp.maximum(rate, state.max_learning_rate)

        warm = state.count >= warmup_steps
        weight = step**power * highest**rate_power
        sum_of_weights = state.sum_of_weights + jnp.where(warm, weight, 0)
        share = jnp.where(warm, weight / sum_of_weights, 1)

        mu = optax.tree.update_moment(updates, state.mu, b1, 1)
        nu = optax.tree.update_moment(updates, state.nu, b2, 2)
        direction = jax.tree.map(
            lambda m, v: m / (jnp.sqrt(v) + eps),
            optax.tree.bias_correction(mu, b1, step),
            optax.tree.bias_correction(nu, b2, step),
        )
        iterate = _mapped(lambda z, y, u: z - rate**2 * weight_decay * y - rate * u, state.iterate, params, direction)
        average = _mapped(lambda x, z: (1 - share) * x + share * z, state.average, iterate)
        moved = _mapped(lambda x, z: towards * x + (1 - towards) * z, average, iterate)
        new = ScheduleFreePlusState(step, average, iterate, mu, nu, norm, rate, highest, sum_of_weights)
        return optax.tree.sub(moved, params), new

    return optax.GradientTransformationExtraArgs(init, update)


def _beta(count: jax.Array, beta: float, max_beta: float, annealing_steps: int) -> jax.typing.ArrayLike:
    if not annealing_steps:
        return beta
    progress = jnp.minimum(count / annealing_steps, 1)
    return 1 - (1 - beta) ** (1 - progress) * (1 - max_beta) ** progress


def _mapped(function: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """`function` of all leaves, in the types of the first tree."""
    return jax.tree.map(lambda x, *rest: function(x, *rest).astype(x.dtype), tree, *others)
