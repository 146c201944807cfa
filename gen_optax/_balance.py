"""The default controller: it keeps the learning rate just below the one at which steps stop helping.

A fresh batch says of the steps that it judges, `d = h u`, by which factor they fell short of the minimum along them,
`rho = slope / curvature = b / (A h)`. Training under a rate that is right for its noise no longer changes the loss:
`b h = A h^2 / 2`, hence `rho = 1 / 2` although nothing is wrong. A rule that aims at the minimum, `rho = 1`, would
halve the rate again and again. This one aims at `sigma rho = 1` for a sigma a little below 2:

    start    no rate is known: rates that double along the first step      _cold_start.py
    search   the first 50 probes, one a call: climb from a fiftieth of the best of these, with care
    hold     log eta += weight * clip(sigma * slope / max(curvature, noise) - 1, -log m, log m)

In every phase an emergency, a step that overshot beyond doubt, lowers the rate at once; after the search so does a
setback, an average loss that the steps have cost a quarter of what they had gained.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gen_optax import _cold_start, _settings
from gen_optax._controller import Controller
from gen_optax._measurement import Measurement, ProbeStatus
from gen_optax._probe import retrospective


class Losses(NamedTuple):
    """The loss where the steps judged start, on batches that these have not seen. All infinite before the first."""

    first: jax.Array
    average: jax.Array
    deviation: jax.Array  # standard, of single losses about it; no square, which might overflow, is kept
    lowest: jax.Array  # that the average was, since the last setback
    change: jax.Array  # since then by the steps judged, from one end of them to the other on the same batch
    change_error: jax.Array  # its standard error


class BalanceState(NamedTuple):
    """What `balance` remembers; floating-point scalars in the dtype of the learning rate."""

    age: jax.Array  # int32, probes since the rate was found; -1: it is not known yet
    floor: jax.Array  # the rate where the search began, which does not fall below
    losses: Losses


@dataclasses.dataclass(frozen=True)
class Balance(Controller):
    r"""Keeps the learning rate just below the one at which steps stop helping.

    Every probe judges the last steps, or the step to come, on a batch that had no part in them. With their slope
    :math:`b h`, curvature :math:`A h^2` and rounding error :math:`\epsilon`, and once a rate is found,

    .. math::
      \log\eta \mathrel{+}= w\;\mathrm{clip}\!\left(\sigma\,\frac{b h}{\max(A h^2, \epsilon)} - 1,
      \ -\log m,\ \log m\right).

    With :math:`\sigma = 2` the rate would rest where the steps stop making progress on a fresh batch,
    :math:`b h = A h^2 / 2`. The default is a little less, since exactly there nothing is gained any more. A mean of the
    logarithm of the ratio would lie below that of the ratio, the more so the noisier the batch; this form averages
    noise out.

    During the search for a rate :math:`\sigma` is at most 1: balance is found at any rate within reach, so a rate that
    overshoots would stay there. The rate falls at once, but rises by the cube root of the factor to the target, since
    steps that are too long for a dozen calls leave dead units that no probe sees.

    It refuses probes along the step on the gradient's own batch. There the batch's own noise counts as slope, and the
    rate can run away.

    Args:
      init_learning_rate: None, and as good as any: the first rate is found. The first call tries rates that double, and
        the search begins at a fiftieth of the best; until there is one, no step is taken. A given rate is where the
        search begins if it is lower, by up to a factor of 10, than where it would; any other counts as unknown.
      sigma: the factor on `b / (A h)` at which the rate stands still once it is found.
      smoothing: 1 minus the least weight `w` of a probe.
      max_change: `m`, greater than 1: the factor by which one probe of weight 1 moves the rate.
      search_probes: probes, one a call, of the search.
      search_sigma: sigma during the search, unless `sigma` is lower.
      memory: `w` is this times the part of the calls so far that lie between two probes: an average over a fixed part
        of the past, a quarter of it.
      max_weight: the greatest `w`.
      first_fraction: where the search begins, as a part of what the first step alone would bear. Momentum is still to
        come, and curvature falls from its height at the start.
      least_given: a given rate below this part of that is a climb of its own, and counts as unknown.
      setback: a setback is a rise of the average loss above the lowest it has been by this part of what it had gained,
      setback_errors: and by this many of its standard errors. One outlier amounts to at most 1.73 of them.
      change_errors: But it is none where the changes that the steps made to the loss of one and the same batch add up
        to less than the rise by this many standard errors: the loss then rose without them.
      setback_probes: probes before the first setback.

    Raises:
      ValueError: on a setting outside its range.

    Examples:
      >>> import gen_optax
      >>> import optax
      >>> tx = gen_optax.gen(optax.adamw(1.0), controller=gen_optax.balance(sigma=1.5))
    """

    init_learning_rate: Any = None
    sigma: Any = 1.8
    smoothing: Any = 0.95
    max_change: Any = 2.0
    search_probes: int = 50
    search_sigma: float = 1.0
    memory: float = 4.0
    max_weight: float = 0.5
    first_fraction: float = 0.02
    least_given: float = 0.1
    setback: float = 0.25
    setback_errors: float = 1.75
    change_errors: float = 3.0
    setback_probes: int = 10

    every = 16

    def __post_init__(self):
        if self.init_learning_rate is not None:
            what = "a positive number, or None to have it found"
            _settings.require("init_learning_rate", self.init_learning_rate, _settings.positive, what)
        for name in ("sigma", "search_sigma", "memory", "first_fraction", "least_given", "setback"):
            _settings.require(name, getattr(self, name), _settings.positive, "a positive number")
        for name in ("setback_errors", "change_errors"):
            _settings.require(name, getattr(self, name), _settings.number, "a number")
        for name in ("search_probes", "setback_probes"):
            _settings.require(name, getattr(self, name), lambda x: x == 0 or _settings.whole(x), "a whole number")
        for name in ("smoothing", "max_weight"):
            _settings.require(name, getattr(self, name), _settings.fraction, "in [0, 1)")
        _settings.require("max_change", self.max_change, _settings.above_one, "greater than 1")

    def default_probe(self):
        """The last steps, on the present batch."""
        return retrospective()

    def check(self, probe):
        """Raises a ValueError on a probe whose batch had a part in the step."""
        if not probe.direction.independent:
            raise ValueError(
                f"balance cannot use {probe!r}, which judges a step on the batch that it was computed from: that "
                "flatters the step, and the rate runs away. Leave probe out, or pass finite_difference("
                "independent=True) with a value_fn over another batch, or controller=gen_optax.algorithm_1()."
            )

    def init(self, dtype):
        """No rate, unless one is given."""
        given = 0 if self.init_learning_rate is None else self.init_learning_rate
        # Every field an array of its own: all of them can be donated.
        losses = Losses(*(jnp.full((), jnp.inf, dtype) for _ in Losses._fields))
        return jnp.array(given, dtype), BalanceState(jnp.full((), -1, jnp.int32), jnp.zeros((), dtype), losses)

    def starting(self, state):
        """Until a rate is found."""
        return state.age < 0

    def start_points(self, state, context):
        """Rates that double."""
        return _cold_start.rates(context)

    def start(self, learning_rate, state, points, losses, context):
        """The rate where the search begins. A given rate against which nothing speaks is kept, without a search."""
        start, seen, status = _cold_start.first_rate(context, points, losses, self.first_fraction)
        start, given = start.astype(learning_rate.dtype), learning_rate
        kept = (given > 0) & ~seen
        start = jnp.where(given >= self.least_given * start, jnp.minimum(given, start), start)
        found = jnp.where(kept, given, start)
        age = jnp.where(kept, self.search_probes, jnp.where(found > 0, 0, -1)).astype(jnp.int32)
        return found, state._replace(age=age, floor=jnp.where(kept, 0, start)), status

    def searching(self, state):
        """While a rate that was found is young."""
        return (state.age >= 0) & (state.age < self.search_probes)

    def observe(self, learning_rate, state, measurement, status, context):
        """One law in two phases, and two brakes."""
        weight = self._weight(state.age, context.every, learning_rate.dtype)
        least = jnp.maximum(measurement.noise, jnp.finfo(learning_rate.dtype).tiny)
        rho = measurement.slope / jnp.maximum(measurement.curvature, least)
        searching = self.searching(state)
        factor = jnp.where(searching, self._search(rho, weight, measurement), self._hold(rho, weight))
        readable = jnp.isin(status, jnp.array([ProbeStatus.ACCEPTED, ProbeStatus.ASCENT, ProbeStatus.NO_CURVATURE]))
        moved = jnp.where(readable, learning_rate * factor, learning_rate)
        moved = jnp.maximum(moved, jnp.where(searching, jnp.minimum(state.floor, learning_rate), 0))
        overshot, falls = self.emergency(self._sigma(searching) * rho, status)
        moved = jnp.where(overshot, learning_rate * falls, moved)
        losses, set_back = self._watch(state, measurement, jnp.maximum(weight, 1 / (state.age + 1)))
        moved = jnp.where(set_back, moved / self.max_change, moved)
        return moved, state._replace(age=state.age + 1, losses=losses)

    def _search(self, rho, weight, measurement):
        """The factor while a rate is being found: up with care, down at once; and not up where the loss curves down."""
        target = self._sigma(True) * rho
        careful = jnp.minimum(jnp.cbrt(target), target)
        highest = jnp.where(measurement.curvature < -measurement.noise, 1, self.max_change)
        return jnp.clip(careful, 1 / self.max_change, highest) ** weight

    def _hold(self, rho, weight):
        """The factor once a rate is found."""
        limit = jnp.log(self.max_change)
        return jnp.exp(weight * jnp.clip(self.sigma * rho - 1, -limit, limit))

    def _sigma(self, searching):
        return jnp.where(searching, jnp.minimum(self.search_sigma, self.sigma), self.sigma)

    def _weight(self, age, every, dtype):
        """`memory` times the calls since the last probe, as a part of the calls since the rate was found."""
        age, least = age.astype(dtype), 1 - jnp.asarray(self.smoothing, dtype)
        later = age >= self.search_probes
        spacing = jnp.where(later, every, 1)
        calls = jnp.where(later, self.search_probes + (age - self.search_probes) * spacing, age)
        return jnp.clip(self.memory * spacing / jnp.maximum(calls, 1), least, jnp.maximum(least, self.max_weight))

    def _watch(self, state: BalanceState, measurement: Measurement, weight: jax.Array) -> tuple[Losses, jax.Array]:
        """The losses with this one, and whether they show a setback that is the fault of the steps.

        Harder data may raise a loss as well, or a penalty that grows. What the steps did to the loss on one and the
        same batch tells: there such a shift cancels.
        """
        counts = jnp.isfinite(measurement.value) & ~measurement.out_of_turn  # an alarm's batch is a bad one
        loss = jnp.where(counts, measurement.value, 0)
        none = jnp.zeros_like(loss)
        known, start = jnp.isfinite(state.losses.average), Losses(loss, loss, none, loss, none, none)
        old = jax.tree.map(lambda x, new: jnp.where(known, x, new), state.losses, start)

        error = loss - old.average
        average = old.average + weight * error
        deviation = jnp.sqrt(1 - weight) * jnp.hypot(old.deviation, jnp.sqrt(weight) * error)
        lowest = jnp.minimum(old.lowest, average)
        rise, standard_error = average - lowest, deviation * jnp.sqrt(weight / (2 - weight))
        set_back = (rise > self.setback * jnp.abs(old.first - lowest)) & (rise > self.setback_errors * standard_error)
        set_back &= counts & (state.age >= self.setback_probes) & ~self.searching(state)

        by_steps = measurement.end_value - measurement.value
        by_steps = jnp.where(jnp.isfinite(by_steps), by_steps, 0)
        change, change_error = old.change + by_steps, jnp.hypot(old.change_error, by_steps)
        set_back &= ~measurement.is_path | (change + self.change_errors * change_error >= rise)
        risen = (rise > 0) & ~set_back
        seen = Losses(
            old.first,
            average,
            deviation,
            jnp.where(set_back, average, lowest),
            jnp.where(risen, change, 0),
            jnp.where(risen, change_error, 0),
        )
        return jax.tree.map(lambda new, x: jnp.where(counts, new, x), seen, state.losses), set_back
