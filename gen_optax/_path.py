"""The path of the last steps: a direction that ends at the present parameters."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gen_optax import _batch, _flow, _tree
from gen_optax._direction import Direction
from gen_optax._measurement import Context, Measurement, ProbeStatus, overshot
from gen_optax._notice import Notice

# A loss that rises by more than this many times the largest of its recent changes does not do so by chance.
_ALARM = 4.0
# What was a large change once counts for this part of it at the next probe.
_FORGET = 0.5
# How often the loss is looked at between two regular probes where no one says what it is.
_EARS = 4
# A loss that does not respond is looked at down to once in two to the power of this turns.
_MOST_BLIND = 3


class Losses(NamedTuple):
    """What a loss is compared with, to tell whether it has risen beyond doubt."""

    level: jax.Array  # at the last probe; infinite before the first
    spread: jax.Array  # the largest of the recent changes, along paths and from one batch to the next


class PathState(NamedTuple):
    """Where the path starts, and what is known of batches and losses."""

    anchor: optax.Params  # a copy of the parameters at that call
    loss: jax.Array  # there, of the batch of that call; infinite: not known
    length: jax.Array  # int32, steps since
    blind: jax.Array  # int32, probes in a row that saw nothing above rounding
    batches: _batch.Batches
    losses: Losses


class Turn(NamedTuple):
    """What a call is to the regular probes."""

    wanted: Any  # bool: one is to be made, as soon as there is a batch for it
    repeated: jax.Array  # bool: this batch is one of the last ones
    taken: Any  # bool: it is made now

    @property
    def in_vain(self) -> Any:
        """Whether it has waited for a new batch in vain."""
        return _flow.both(self.taken, self.repeated)


def _whole_turns(window: Any, every: Any) -> Any:
    """The first multiple of `every` from `window` on."""
    return every * -(-window // every)


@dataclasses.dataclass(frozen=True)
class Path(Direction):
    """The last steps as one: `d = params - anchor`, judged on the present batch, which they have not seen.

    A batch that was trained on flatters them. So where batches come back within a path, a probe in turn waits for a
    new one. Where all batches of late were the present one, the loss is a function without noise, and there is
    nothing to wait for.

    Attributes:
      window: steps. The anchor is set anew at every call whose number is a multiple of `window` (or of the first
        multiple of `every` above it), and before that at calls 1, 2, 4, 8, ..., as the first steps are the wildest.
        Fewer steps scatter more, and change a rounded loss by less. The batches of as many calls are remembered (where
        `every` is traced, of `window`).
    """

    window: int = 16
    independent = True

    def with_probes_every(self, every):
        """A path as long as it will be, all batches of which are remembered."""
        return dataclasses.replace(self, window=_whole_turns(self.window, every))

    def init(self, params):
        """The anchor is a copy, so that both can be donated."""
        dtype = jax.dtypes.canonicalize_dtype(jnp.float64)
        return PathState(
            anchor=jax.tree.map(jnp.copy, params),
            loss=jnp.full((), jnp.inf, dtype),
            length=jnp.zeros((), jnp.int32),
            blind=jnp.zeros((), jnp.int32),
            batches=_batch.init(self.window),
            losses=Losses(jnp.full((), jnp.inf, dtype), jnp.zeros((), dtype)),
        )

    def due(self, state, context):
        """In turn, on a new batch, or at an alarm; not while there is no path."""
        alarm = False
        if context.value is not None:
            alarm = self.alarms(state, context, context.average_value(state.losses.level.dtype))
        return _flow.both(state.length > 0, _flow.either(self._turn(state, context).taken, alarm))

    def listens(self, state, context):
        """Without `value` it is evaluated four times between two regular probes, at every fourth call at most."""
        if context.value is not None:
            return False
        return (state.length > 0) & (context.call % jnp.maximum(context.every // _EARS, _EARS) == 0)

    def alarms(self, state, context, value):
        """A loss that leaves no time to wait: it is not finite, or far above that of the last probe."""
        return ~jnp.isfinite(value) | ~(value - state.losses.level <= _ALARM * state.losses.spread)

    def notices(self, state, context):
        """A probe that has waited for a new batch in vain."""
        return [(self._turn(state, context).in_vain, Notice.BATCH_SEEN)]

    def vector(self, state, context):
        """All of the steps."""
        return _tree.difference(context.params, state.anchor)

    def factor(self, context):
        """The path is the whole vector."""
        return jnp.ones_like(context.learning_rate)

    def measurement(self, state, context, start, end, slope, curvature):
        """The parabola told from where the path starts, one path behind the present parameters."""
        turn, spread = self._turn(state, context), state.losses.spread
        jumped = (spread > 0) & (end - start > _ALARM * spread)
        return Measurement(
            value=start,
            slope=slope + curvature,
            curvature=curvature,
            end_value=end,
            step_size=context.applied_learning_rate,
            jumped=jumped,
            value_before=state.loss,
            is_complete=self._begins(context) | (state.batches.waited > 0),
            is_path=True,
            is_flattered=turn.in_vain & ~jnp.asarray(context.searching),
            out_of_turn=~jnp.asarray(turn.taken),
        )

    def anchor(self, state):
        """Where the path starts."""
        return state.anchor

    def begins(self, state, context, status):
        """In turn, but not while a probe waits for a new batch: then once it was made; and not where steps go back."""
        turn = self._turn(state, context)
        late = (status != ProbeStatus.NONE) & turn.taken & (state.batches.waited > 0)
        return (self._begins(context) & ~self._waits(state, turn) | late) & ~overshot(status)

    def settle(self, state, context, measurement, status, updates, anchor):
        """Steps that raised the loss beyond doubt are taken back."""
        taken_back, probed = overshot(status), status != ProbeStatus.NONE
        turn, begins = self._turn(state, context), self.begins(state, context, status)
        state = PathState(
            anchor=anchor,
            loss=jnp.where(begins, self._value(context, measurement, probed), state.loss),
            length=jnp.where(taken_back, 0, jnp.where(begins, 0, state.length) + 1),
            blind=jnp.where(probed, jnp.where(status == ProbeStatus.BELOW_ROUNDING, state.blind + 1, 0), state.blind),
            batches=_batch.follow(
                state.batches, context.batch, turn.repeated, self._waits(state, turn), probed & turn.taken
            ),
            losses=self._follow(state.losses, context, measurement, probed & ~taken_back),
        )
        if _flow.is_known(taken_back) and not taken_back:
            return updates, state
        back = _tree.difference(context.params, anchor)

        def choose(d, u):
            return jnp.where(taken_back, (-d).astype(u.dtype), u) if _tree.is_inexact(u) else u

        return jax.tree.map(choose, back, updates), state

    def _turn(self, state: PathState, context: Context) -> Turn:
        """After a probe that saw nothing every other turn is left out, then three of four, then seven of eight."""
        number = jnp.where(context.searching, context.count, context.call // context.every)
        kept = number & ((1 << jnp.minimum(state.blind, _MOST_BLIND)) - 1) == 0
        batches = state.batches
        wanted = _flow.either(_flow.both(context.in_turn, kept), batches.waited > 0)
        repeated = _batch.is_repeated(batches, context.batch, context.count)
        return Turn(wanted, repeated, _flow.both(wanted, ~repeated | (batches.waited >= batches.patience)))

    def _waits(self, state: PathState, turn: Turn) -> Any:
        """Whether a probe in turn waits for a new batch."""
        return _flow.both(turn.wanted, _flow.negation(turn.taken)) & (state.length > 0)

    def _begins(self, context):
        """Whether a path begins at this call, the number of which is 1 for the first, unless a probe is waited for."""
        call, window = context.call, _whole_turns(self.window, context.every)
        return (call % window == 0) | ((call < window) & (call & (call - 1) == 0))

    def _value(self, context: Context, measurement: Measurement, probed: jax.Array) -> jax.Array:
        """The loss of the present batch by `value_fn`: measured, or the value if that is the same; or infinite."""
        measured = jnp.where(probed, measurement.end_value, jnp.inf)
        if context.value is None:
            return measured
        return jnp.where(context.trusts_value & ~probed, context.average_value(measured.dtype), measured)

    def _follow(self, losses, context, measurement, counts):
        """The losses with those of this probe; steps that are taken back do not count."""
        value = measurement.end_value
        if context.value is not None:
            value = context.average_value(value.dtype)
        between = jnp.where(jnp.isfinite(losses.level), jnp.abs(value - losses.level), 0)
        change = jnp.maximum(between, jnp.abs(measurement.end_value - measurement.value))
        known = counts & jnp.isfinite(change)
        spread = jnp.maximum(change, _FORGET * losses.spread)
        level = jnp.where(known, value, losses.level)
        return Losses(level, jnp.where(known, spread, losses.spread))
