"""Algorithm 1 of the paper."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from gen_optax import _settings
from gen_optax._controller import Controller
from gen_optax._measurement import ProbeStatus


@dataclasses.dataclass(frozen=True)
class Algorithm1(Controller):
    r"""The rule of the paper, to the letter.

    With slope :math:`b = -G^\top u` and curvature :math:`A = u^\top H u` along the step `u` to come,

    .. math::
      \eta^* = b / A, \qquad \eta_t = \gamma\,\eta_{t-1} + (1 - \gamma)\,\eta^*,

    where `A > 0`, `b > 0` and the fit has :math:`R^2 > 0.99` (of three points it cannot fail); otherwise
    :math:`\eta_t = \eta_{t-1}`. By default it probes at every 8th call, at three points along the step, on the
    gradient's own batch. There is no search for the first rate and no brake, with one exception: a step that would make
    a finite loss NaN or infinite is not taken, and the rate falls to a tenth. `exact()` does not see where a step ends.

    With a probe on another batch or along the path, :math:`\eta^*` is :math:`\eta_{t-1}` times the factor by which the
    step probed was too short.

    Args:
      init_learning_rate: :math:`\eta_0`. A rate far from :math:`\eta^*` costs many probes.
      smoothing: :math:`\gamma`, in [0, 1).
      clamp: keeps :math:`\eta^*` within :math:`[\eta_{t-1} / c, c\,\eta_{t-1}]`; `clamp=2.0` is the rule of the
        authors' package `gen-optim` 0.1.1. None, as in the paper: no limit.

    Raises:
      ValueError: on a setting outside its range.

    Examples:
      >>> import gen_optax
      >>> import optax
      >>> tx = gen_optax.gen(optax.adamw(1.0), controller=gen_optax.algorithm_1())

    References:
      Bu and Xu, `Gradient descent with generalized Newton's method <https://arxiv.org/abs/2407.02772>`_, 2024
    """

    init_learning_rate: Any = 1e-3
    smoothing: Any = 0.9
    clamp: Any = None

    def __post_init__(self):
        _settings.require("init_learning_rate", self.init_learning_rate, _settings.positive, "a positive number")
        _settings.require("smoothing", self.smoothing, _settings.fraction, "in [0, 1)")
        if self.clamp is not None:
            _settings.require("clamp", self.clamp, _settings.above_one, "greater than 1, or None for no clamp")

    def init(self, dtype):
        """The given rate, and nothing to remember."""
        return jnp.array(self.init_learning_rate, dtype), ()

    def observe(self, learning_rate, state, measurement, status, context):
        """The moving average of eta*."""
        accepted = status == ProbeStatus.ACCEPTED
        curvature = jnp.where(measurement.curvature > 0, measurement.curvature, jnp.inf)
        factor = measurement.slope / curvature  # eta* / eta
        clamped = factor if self.clamp is None else jnp.clip(factor, 1 / self.clamp, self.clamp)
        smoothed = learning_rate * (self.smoothing + (1 - self.smoothing) * clamped)
        # A minimum beyond the range of the dtype is none in sight.
        moved = jnp.where(accepted & jnp.isfinite(smoothed), smoothed, learning_rate)
        overshot, falls = self.emergency(factor, status)
        return jnp.where(overshot, falls * learning_rate, moved), state
