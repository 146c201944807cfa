"""Two rules of others as controllers, written as a user would write a third.

Both aim where the parabola of the step to come is least, on the gradient's own batch and at every step. With its slope
`b` and curvature `A` per unit of learning rate:

    LQA     eta = b / A                            Zhu et al., arXiv 2004.03260
    CDAT    eta = sigma * mean(b) / mean(A)        Roulet et al., arXiv 2407.06183

Where there is no minimum ahead, or none that can be trusted, the rate stays.
"""

import dataclasses

import jax.numpy as jnp

import gen_optax
from gen_optax import ProbeStatus


@dataclasses.dataclass(frozen=True)
class LQA(gen_optax.Controller):
    """The minimiser of the parabola itself, neither averaged nor clamped.

    A step that would make the loss infinite is not taken, and the rate falls to a tenth.
    """

    init_learning_rate: float = 1e-3

    every = 1

    def init(self, dtype):
        """The given rate."""
        return jnp.array(self.init_learning_rate, dtype), ()

    def observe(self, learning_rate, state, measurement, status, context):
        """The new rate is h (b h) / (A h^2), where h is the old one."""
        accepted = status == ProbeStatus.ACCEPTED
        minimum = learning_rate * measurement.slope / jnp.where(accepted, measurement.curvature, 1)
        found = jnp.where(accepted & jnp.isfinite(minimum), minimum, learning_rate)
        return jnp.where(status == ProbeStatus.OVERSHOOT, learning_rate / 10, found), state


@dataclasses.dataclass(frozen=True)
class CDAT(gen_optax.Controller):
    """The curvature-aware rate: a ratio of means, whose factor `sigma` of 2 is the edge of stability.

    The means are over accepted probes, in which b > 0 and A > 0; the paper averages all of them and takes
    max(mean(b), 0) and |mean(A)|. Both means start at zero, and their bias cancels in the ratio. So the first accepted
    probe replaces the initial rate, which the paper does not have.
    """

    init_learning_rate: float = 1e-3
    sigma: float = 2.0
    smoothing: float = 0.9

    every = 1

    def default_probe(self):
        """Derivatives along the step."""
        return gen_optax.exact()

    def init(self, dtype):
        """The given rate, and the means of b and A."""
        return jnp.array(self.init_learning_rate, dtype), (jnp.zeros((), dtype), jnp.zeros((), dtype))

    def observe(self, learning_rate, state, measurement, status, context):
        """The means, m = gamma m + (1 - gamma) x, then sigma times their ratio."""
        h = measurement.step_size
        b, a = measurement.slope / h, measurement.curvature / h / h
        counts = (status == ProbeStatus.ACCEPTED) & jnp.isfinite(b) & jnp.isfinite(a)
        new = (self.smoothing * mean + (1 - self.smoothing) * x for mean, x in zip(state, (b, a), strict=True))
        slope, curvature = state = tuple(jnp.where(counts, x, mean) for x, mean in zip(new, state, strict=True))
        ratio = self.sigma * slope / jnp.where(counts, curvature, 1)
        return jnp.where(counts & jnp.isfinite(ratio), ratio, learning_rate), state
