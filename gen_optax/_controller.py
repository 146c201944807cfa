"""Controllers: how measurements become a learning rate. The Protocol, and what controllers share.

A controller is a small frozen dataclass whose fields are its constants. `algorithm_1` is the paper's, `balance` the
default; a third one subclasses `Controller` and defines `init` and `observe`.
"""

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from gen_optax import _settings
from gen_optax._measurement import Context, Measurement, ProbeStatus, overshot
from gen_optax._probe import Probe, finite_difference

# The factors by which a rate falls in an emergency, at most, where the loss is finite and where it is not. The distance
# to safety is unknown then, every try costs a probe, and a rate that is too low is found and raised again. A finite
# loss of a few examples may double by chance, and a tenth would cost more than it saves.
_AFTER_JUMP, _AFTER_OVERSHOOT = 0.5, 0.1


class Controller(Protocol):
    """What `scale_by_gen` asks of a controller. Subclass it: all but `init` and `observe` have a default."""

    every: int = 8
    """Calls between two regular probes, unless the user gives another number."""

    averages: bool = False
    """Whether the average of the iterates is the model to use where the end is open."""

    @property
    def aligns(self) -> bool:
        """Whether `align` is to be called."""
        return False

    def default_probe(self) -> Probe:
        """The probe, unless the user gives another one."""
        return finite_difference()

    def check(self, probe: Probe) -> None:
        """Raises a ValueError on a probe whose measurements mislead this controller."""

    def init(self, dtype: Any) -> tuple[jax.Array, Any]:
        """The first learning rate and the state, a tree of scalars of `dtype` (or integers)."""
        ...

    def observe(
        self, learning_rate: jax.Array, state: Any, measurement: Measurement, status: jax.Array, context: Context
    ) -> tuple[jax.Array, Any]:
        """The learning rate and the state after a probe; `status` is its `ProbeStatus`."""
        ...

    def align(self, state: Any, cosine: jax.Array) -> Any:
        """The state where a stretch of the run ends: each time its length has doubled.

        `cosine` is that between the displacements of the parameters in the stretch and in the one before.
        """
        return state

    num_start_rates: int = 0
    """How many learning rates are tried, at most, while none is known."""

    def starting(self, state: Any) -> Any:
        """Whether no learning rate is known yet: bool. The loss at the start rates is then evaluated."""
        return False

    def start_rate(self, k: jax.Array, tried: jax.Array, losses: jax.Array, context: Context) -> jax.Array:
        """The `k`-th rate to try along the step to come, from those before it and the losses there; infinite: no more.

        `tried` and `losses` have the shape (num_start_rates,) or more; they are infinite from the `k`-th on.
        """
        return jnp.float32(jnp.inf)

    def start(
        self, learning_rate: jax.Array, state: Any, tried: jax.Array, losses: jax.Array, context: Context
    ) -> tuple[jax.Array, Any, jax.Array]:
        """The first learning rate (0: none was found), the state and the `ProbeStatus` that says why none was found.

        `tried` are the start rates, `losses` the losses there; infinite where none was tried.
        """
        return learning_rate, state, jnp.int32(ProbeStatus.NONE)

    def searching(self, state: Any) -> Any:
        """Whether every call has to probe: bool."""
        return False

    @staticmethod
    def emergency(factor: jax.Array, status: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Whether a step overshot beyond doubt, and the factor by which the rate then falls at once.

        After a jump it falls to `factor` times itself, but by no more than 2; it never rises. Where the loss was not
        finite it falls by 10.
        """
        after_jump = jnp.clip(jnp.where(jnp.isnan(factor), 0, factor), _AFTER_JUMP, 1)
        return overshot(status), jnp.where(status == ProbeStatus.OVERSHOOT, _AFTER_OVERSHOOT, after_jump)


@dataclasses.dataclass(frozen=True)
class Bounds:
    """The user's bounds of the learning rate, None where there is none."""

    low: Any
    high: Any

    def __post_init__(self):
        for name, bound in (("min_learning_rate", self.low), ("max_learning_rate", self.high)):
            if bound is not None:
                _settings.require(name, bound, _settings.positive, "a positive number")
        if _settings.number(self.low) and _settings.number(self.high) and self.low > self.high:
            raise ValueError(f"min_learning_rate must not exceed max_learning_rate, got {self.low} and {self.high}.")

    def clip(self, learning_rate: jax.Array) -> jax.Array:
        """The learning rate within them and within the range of its dtype; 0, no rate found, stays 0."""
        limits = jnp.finfo(learning_rate.dtype)
        low, high = limits.tiny if self.low is None else self.low, limits.max if self.high is None else self.high
        return jnp.where(learning_rate > 0, jnp.clip(learning_rate, low, high), 0).astype(learning_rate.dtype)
