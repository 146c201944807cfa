"""The default controller: it keeps the learning rate just below the one at which steps stop helping.

A fresh batch says of the steps that it judges, `d = h u`, by which factor they fell short of the minimum along them,
`rho = slope / curvature = b / (A h)`. Training under a rate that is right for its noise no longer changes the loss:
`b h = A h^2 / 2`, hence `rho = 1 / 2` although nothing is wrong. A rule that aims at the minimum, `rho = 1`, would
halve the rate again and again. This one aims at `sigma rho = 1` for a sigma a little below 2:

    start    no rate is known: rates that rise along the first step      _cold_start.py
    search   the first 50 probes, one a call: climb from a part of the best of these, with care
    hold     log eta += weight * (sigma rho - 1 + wish), within limits
    align    wish = 3 (cosine - 0.2), within limits, each time the run has doubled     _alignment.py

Where noise is most of what a batch says, rho is near 1 / 2 at any rate. The alignment is not: it is the cosine between
the steps of one long stretch of the run and those of the next. A fresh batch is not always fresh. So a gain counts by
the part of it that other batches confirm. In every phase an emergency, steps that overshot beyond doubt, lowers the
rate at once.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen_optax import _cold_start, _settings
from gen_optax._controller import Controller
from gen_optax._measurement import Measurement, ProbeStatus
from gen_optax._probe import retrospective

# The part of where the search would begin that a given rate can lower it to: from further below the climb is too long.
_LEAST_GIVEN = 0.1
# On a quadratic with noisy gradients the cosine falls by a third where the rate grows by a factor of e.
_GAIN = 3.0
# The logarithm of the factor by which an alignment moves the rate, at most.
_MOST = float(np.log(3.0))


class Claims(NamedTuple):
    """What the steps judged have gained on the batches that judge them, and whether other batches confirm it."""

    number: jax.Array  # int32, of paths
    gained: jax.Array  # from the start of the steps to their end, on one batch: an average
    lost: jax.Array  # at the start, from the batch that was next to be trained on there to this one: an average
    deviation: jax.Array  # standard, of single losses of this kind; no square, which might overflow, is kept


class BalanceState(NamedTuple):
    """What `balance` remembers; floating-point scalars in the dtype of the learning rate."""

    age: jax.Array  # int32, probes since the rate was found; -1: it is not known yet
    claims: Claims
    wish: jax.Array  # by how much log eta is still to change for the direction of the run


@dataclasses.dataclass(frozen=True)
class Balance(Controller):
    r"""Keeps the learning rate just below the one at which steps stop helping.

    Every probe judges the last steps, or the step to come, on a batch that had no part in them. They have the slope
    `b h`, the curvature `A h^2` and the rounding error `noise`. Other batches do not confirm the part `unconfirmed` of
    the gain, and the direction of the run asks for `wish`. After so many `probes` since the start, the rate becomes

    ```python
    def next_rate(
        rate, slope, curvature, noise, unconfirmed, wish, probes, every
    ):
        stands_for = 1 if probes < search_probes else every  # calls
        calls = min(probes, search_probes)
        calls += max(probes - search_probes, 0) * every
        weight = memory * stands_for / (calls + memory * stands_for)
        # The factor by which the steps fell short of the minimum along them.
        rho = slope / max(curvature, noise)
        rho = rho * (1 - unconfirmed) if rho > 0 else rho
        if probes < search_probes:
            factor = min(search_sigma, sigma) * rho
            most = 1 if curvature < -noise else max_change
            factor = clip(min(cbrt(factor), factor), 1 / max_change, most)
            return rate * factor**weight
        bound = log(max_change)
        change = clip(sigma * rho - 1, -bound, bound) + wish
        return rate * exp(weight * change)


    # At calls 256, 512, 1024, ...; each probe applies `weight` times the wish.
    def wish_for(cosine):
        return clip(3 * (cosine - alignment), -log(3), log(3))
    ```

    and it is in one of three states:

    ```text
    unknown -- a rate lowers the loss --> search -- 50 probes --> hold

    unknown       no step is taken until a rate lowers the loss along it
    search        a probe at every call
    search, hold  where steps overshot, the rate falls at once
    hold          where steps overshot, a positive wish becomes 0
    ```

    With `sigma = 2` the rate would rest where the steps stop making progress on a fresh batch, `b h = A h^2 / 2`. The
    default is a little less, since exactly there nothing is gained any more. A mean of the logarithm of `rho` would lie
    below the logarithm of its mean, the more so the noisier the batch; `sigma rho - 1` averages noise out. A weight
    falls as 1 / `calls`, without end: from each doubling of the run to the next the rate can move as far.

    During the search sigma is at most 1: balance is found at any rate within reach, so a rate that overshoots would
    stay there. The rate falls at once, but rises by the cube root of the factor to the target, since steps that are too
    long for a dozen calls leave dead units that no probe sees.

    Where the batches say little, balance is found at any rate that training survives. What tells rates apart then is
    whether the run keeps its direction. From call `t` to `1.5 t` the parameters move by :math:`d_1`, from there to
    `2 t` by :math:`d_2`, and `cosine` is

    .. math::
      \cos(d_1, d_2) = d_1 \cdot d_2 / (|d_1| |d_2|),

    near 1 where steps are too short to get anywhere, 0 for a random walk and negative where the parameters go to and
    fro. At `2 t` it becomes a wish, unless a decay has begun or the search goes on. The probes that follow fulfil it
    little by little. Sketches of the parameters serve for it, at most 512 numbers for each array, and no loss is
    evaluated. An array that weight decay alone moves has no say. What else moves parameters between calls counts, such
    as resets or projections: leave the alignment out where that happens again and again.

    A batch that the model has been trained on lately, or one like it, flatters the steps: data used several times in a
    row, sorted data, several epochs over one rollout. What it says then is not confirmed by the next path, which starts
    at the same point with another batch, and a higher loss. With the averages `gained` of the falls along the paths and
    `lost` of the rises between them, and as far as `lost` is beyond its standard error, :math:`b h` counts for its part
    :math:`1 - \mathrm{lost} / \mathrm{gained}`. A loss that rises by itself, more than the steps claim, counts less.

    It refuses probes along the step on the gradient's own batch. There the batch's own noise counts as slope, and the
    rate can run away.

    Args:
      init_learning_rate: None, the default: it is found. The first call tries rates along the step, and the search
        begins at a part of the best; until there is one, no step is taken. A given rate lowers where the search begins,
        by a factor of 10 at most; one that is higher is not used. It is kept where nothing speaks for another.
      sigma: the rate stands still, once it is found, where this times `b / (A h)` is 1.
      max_change: greater than 1: the factor by which one probe of weight 1 moves the rate, at most.
      search_probes: the length of the search, in probes; there is one a call.
      search_sigma: sigma during the search, unless `sigma` is lower.
      memory: a probe that stands for `n` calls has the weight `memory n / (t + memory n)` after `t` calls.
      first_fraction: where the search begins, as a part of what the first step alone would bear. Momentum is still to
        come, and curvature falls from its height at the start. Where the loss is rough along the first step, the search
        begins at a quarter of the best rate instead.
      confirm_errors: a gain is doubted where `lost` is above this many of its standard errors.
      alignment: the cosine between the steps of two successive stretches of the run at which the rate is right. None:
        the rate does not depend on it, and no sketches are kept.

    Raises:
      ValueError: on a setting outside its range.

    Examples:
      >>> import gen_optax
      >>> import optax
      >>> tx = gen_optax.gen(optax.adamw(1.0), controller=gen_optax.balance(sigma=1.5))
    """

    init_learning_rate: Any = None
    sigma: Any = 1.8
    max_change: Any = 2.0
    search_probes: int = 50
    search_sigma: float = 1.0
    memory: float = 3.0
    first_fraction: float = 0.03
    confirm_errors: float = 1.0
    alignment: float | None = 0.2

    every = 16
    averages = True

    def __post_init__(self):
        if self.init_learning_rate is not None:
            what = "a positive number, or None to have it found"
            _settings.require("init_learning_rate", self.init_learning_rate, _settings.positive, what)
        for name in ("sigma", "search_sigma", "memory", "first_fraction"):
            _settings.require(name, getattr(self, name), _settings.positive, "a positive number")
        _settings.require("confirm_errors", self.confirm_errors, _settings.number, "a number")
        if self.alignment is not None:
            _settings.require("alignment", self.alignment, _settings.number, "a number, or None to leave it out")
        _settings.require("search_probes", self.search_probes, lambda x: x == 0 or _settings.whole(x), "a whole number")
        _settings.require("max_change", self.max_change, _settings.above_one, "greater than 1")

    @property
    def num_start_rates(self):  # type: ignore[override]
        """23, or 37 where jax computes in float64."""
        return _cold_start.num_rates()

    @property
    def aligns(self):
        """Unless the user says no."""
        return self.alignment is not None

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
        claims = Claims(jnp.zeros((), jnp.int32), *(jnp.zeros((), dtype) for _ in range(3)))
        return jnp.array(given, dtype), BalanceState(jnp.full((), -1, jnp.int32), claims, jnp.zeros((), dtype))

    def starting(self, state):
        """Until a rate is found."""
        return state.age < 0

    def start_rate(self, k, tried, losses, context):
        """Where the loss begins to change, and rates that rise from there."""
        return _cold_start.rate(k, tried, losses, context)

    def start(self, learning_rate, state, tried, losses, context):
        """The rate where the search begins. A given rate against which nothing speaks is kept, without a search."""
        start, seen, status = _cold_start.first_rate(context, tried, losses, self.first_fraction)
        start, given = start.astype(learning_rate.dtype), learning_rate
        measured = status != ProbeStatus.NOT_FINITE  # else the next call tries again
        kept = (given > 0) & ~seen & measured
        start = jnp.where(given > 0, jnp.clip(given, _LEAST_GIVEN * start, start), start)
        found = jnp.where(kept | ~measured, given, start)
        age = jnp.where(kept, self.search_probes, jnp.where(measured & (found > 0), 0, -1)).astype(jnp.int32)
        return found, state._replace(age=age), status

    def searching(self, state):
        """While a rate that was found is young."""
        return (state.age >= 0) & (state.age < self.search_probes)

    def observe(self, learning_rate, state, measurement, status, context):
        """One law in two phases, and a brake."""
        weight = self._weight(state.age, context.every, learning_rate.dtype)
        least = jnp.maximum(measurement.noise, jnp.finfo(learning_rate.dtype).tiny)
        searching = self.searching(state)
        claims, unconfirmed = self._confirm(state.claims, measurement)
        rho = measurement.slope / jnp.maximum(measurement.curvature, least)
        rho = jnp.where(rho > 0, jnp.where(unconfirmed < 1, rho * (1 - unconfirmed), 0), rho)  # it may be infinite
        factor = jnp.where(searching, self._search(rho, weight, measurement), self._hold(rho, weight, state.wish))
        readable = jnp.isin(status, jnp.array([ProbeStatus.ACCEPTED, ProbeStatus.ASCENT, ProbeStatus.NO_CURVATURE]))
        moved = jnp.where(readable, learning_rate * factor, learning_rate)
        overshot, falls = self.emergency(self._sigma(searching) * rho, status)
        moved = jnp.where(overshot, learning_rate * falls, moved)
        wish = jnp.where(
            overshot, jnp.minimum(state.wish, 0), jnp.where(readable, (1 - weight) * state.wish, state.wish)
        )
        return moved, BalanceState(state.age + 1, claims, wish)

    def align(self, state, cosine):
        """A wish for more where the run keeps its direction, for less where it loses it."""
        return state._replace(wish=jnp.clip(_GAIN * (cosine - self.alignment), -_MOST, _MOST))

    def _search(self, rho, weight, measurement):
        """The factor while a rate is being found: up with care, down at once; and not up where the loss curves down."""
        target = self._sigma(True) * rho
        careful = jnp.minimum(jnp.cbrt(target), target)
        highest = jnp.where(measurement.curvature < -measurement.noise, 1, self.max_change)
        return jnp.clip(careful, 1 / self.max_change, highest) ** weight

    def _hold(self, rho, weight, wish):
        """The factor once a rate is found."""
        limit = jnp.log(self.max_change)
        return jnp.exp(weight * (jnp.clip(self.sigma * rho - 1, -limit, limit) + wish))

    def _sigma(self, searching):
        return jnp.where(searching, jnp.minimum(self.search_sigma, self.sigma), self.sigma)

    def _weight(self, age, every, dtype):
        """`memory` times the calls that this probe stands for, as a part of these and all since the rate was found."""
        age = age.astype(dtype)
        later = age >= self.search_probes
        spacing = jnp.where(later, every, 1).astype(dtype)
        calls = jnp.where(later, self.search_probes + (age - self.search_probes) * spacing, age)
        return self.memory * spacing / (calls + self.memory * spacing)

    def _confirm(self, old: Claims, measurement: Measurement) -> tuple[Claims, jax.Array]:
        """The claims with this one, and the part of a gain that other batches do not confirm.

        A batch that had a part in the steps, or one like it, says that they have gained what they have not: where they
        start, it is worse than the batch before it by as much. A loss that rises without the steps takes away more.
        """
        gained = measurement.value - measurement.end_value
        lost = measurement.value - measurement.value_before
        counts = measurement.is_complete & ~measurement.out_of_turn & jnp.isfinite(lost) & jnp.isfinite(gained)
        share = 2 / (2 + old.number.astype(old.lost.dtype))
        weight, error = jnp.where(counts, share, 0), jnp.where(counts, lost - old.lost, 0)
        new = Claims(
            number=old.number + counts.astype(old.number.dtype),
            gained=old.gained + weight * jnp.where(counts, gained - old.gained, 0),
            lost=old.lost + weight * error,
            deviation=jnp.sqrt(1 - weight) * jnp.hypot(old.deviation, jnp.sqrt(weight) * error),
        )
        doubt = self.confirm_errors * new.deviation * jnp.sqrt(share / (2 - share)) + measurement.noise
        doubted = (new.number > 1) & (new.lost > doubt)
        part = new.lost / jnp.where(new.gained > 0, new.gained, jnp.inf)
        certain = 1 - (doubt / jnp.where(doubted, new.lost, 1)) ** 2
        return new, jnp.where(doubted, certain * jnp.clip(jnp.minimum(part, 2 - part), 0, 1), 0)
