"""What is wrong with a user's situation, as far as a run can see it: kept in `info.notices`, said outside of `jit`."""

import enum
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gen_optax import _axes, _tree
from gen_optax._measurement import Context, Measurement, ProbeStatus

# Two programs for one loss agree to this many times its rounding error.
_SAME = 8.0
# The first change of the loss that is this many times as large shows the slope, before any curvature.
_CLEAR = 64.0
# The loss rises along more than this part of so many probes only if it is not the one that the steps lower.
_MOST, _ENOUGH = 0.6, 64
# A search in which the loss rises along this part of so many probes takes steps as good as chance. Where it finds its
# way the loss rises along a third at most, with as few as four examples a step.
_CHANCE, _SEARCHED = 0.4, 40


class Notice(enum.IntFlag):
    """Why GeN cannot do its best here. `info.notices` holds those that were seen so far, as the bits of an int32."""

    VALUE_DIFFERS = 1
    """`value` is not `value_fn(params)`: another dropout key, a penalty, another scale. Probes leave `value` out, at
    one forward pass more each."""
    GRADIENT_DIFFERS = 2
    """The loss does not fall as the gradient says: `value_fn` has a `stop_gradient` inside, or is another loss."""
    UPHILL = 4
    """The updates of the base point uphill: a base without its sign. No learning rate can help."""
    BATCH_SEEN = 8
    """Every batch comes back while its last use is still being judged, so a probe has waited for a new one in vain.
    What it says is flattered."""
    NO_RATE = 16
    """No first learning rate was found at the first calls: nothing moves. `info.status` says why."""
    HORIZON_PASSED = 32
    """The decay has reached 0: nothing moves any more."""
    SEARCH_IN_VAIN = 64
    """While a rate was searched for, the loss rose along two fifths of the paths, as along random steps. The rate
    that was found says little."""
    NOT_FINITE = 128
    """The loss was NaN or infinite at two probes in a row: NaN among the parameters, the updates or the data."""


ADVICE = {
    Notice.VALUE_DIFFERS: "the `value` given to update is not value_fn(params) on the same batch with the same dropout "
    "key, so probes do without it. Return both from one function, or leave value out",
    Notice.GRADIENT_DIFFERS: "value_fn does not fall along the step as the gradient given to update says. Where the "
    "loss has a stop_gradient (a target, a codebook), hand over as value_fn a loss without it that training has to "
    "lower, and no value; see the page 'When it does not work'. Where gradients are clipped or scaled before gen, do "
    "that inside: gen(optax.chain(clip, base))",
    Notice.UPHILL: "the updates of the base point uphill. optax.scale_by_...() has no sign: put optax.scale(-1.0) "
    "behind it, or take the optimizer of that name, at learning rate 1",
    Notice.BATCH_SEEN: "all batches come back within a few calls, so steps are judged on data that they were taken on. "
    "Hand over a loss on data that is held out: value_fn=lambda p: loss_fn(p, held_out), and no value",
    Notice.NO_RATE: "no learning rate was found at the first calls. Until one is found nothing moves, and "
    "info.status says why: ASCENT, the loss rises along the step; BELOW_ROUNDING, it does not respond to it; "
    "NOT_FINITE, it is NaN or infinite",
    Notice.HORIZON_PASSED: "the decay has reached 0, and where it is 0 nothing moves. Give num_steps the total number "
    "of steps, those before a resumption included",
    Notice.SEARCH_IN_VAIN: "while a rate was searched for, the loss rose along two fifths of the paths or more, as "
    "along random steps. Unless the model is trained already, take larger batches, hold the statistics of batch "
    "normalisation fixed, or let the search begin higher, which helps some of these runs and harms most others: "
    "controller=gen_optax.balance(first_fraction=1.0)",
    Notice.NOT_FINITE: "the loss was NaN or infinite at two probes in a row. Look for NaN among the data and the "
    "parameters, and restore a checkpoint. gen(optax.apply_if_finite(base, 5)) leaves such gradients out",
}


def seen(*conditions: tuple[Any, Notice]) -> Any:
    """The notices whose condition holds, as int32 bits."""
    bits = jnp.int32(0)
    for holds, notice in conditions:
        bits |= jnp.where(holds, jnp.int32(notice), 0)
    return bits


def of_start(context: Context, tried: jax.Array, losses: jax.Array, status: jax.Array) -> jax.Array:
    """What the first losses along a step show, of which the first is that at the parameters if `tried[0]` is 0."""
    if not tried.size:
        return jnp.int32(0)
    start = losses[0]
    differs = (tried[0] == 0) & _differs(context, start)
    slope, uphill = context.slope, status == ProbeStatus.ASCENT
    if slope is None or context.arithmetic.is_coarse:
        return seen((differs, Notice.VALUE_DIFFERS), (uphill, Notice.UPHILL))
    clear = jnp.isfinite(losses) & (jnp.abs(losses - start) > _CLEAR * context.arithmetic.error_of(start))
    least = jnp.argmin(jnp.where(clear & (tried > 0), tried, jnp.inf))
    expected = slope * tried[least]
    fall = start - losses[least]
    agrees = jnp.abs(fall - expected) <= jnp.abs(expected) / 2
    # What rises at once may have fallen by less than can be seen; but not if it rises by what it should have fallen,
    # and goes on as a line, as a reward does.
    is_opposite = (jnp.abs(fall + expected) <= jnp.abs(expected) / 2) & _rises_as_a_line(tried, losses, least)
    follows = ~jnp.any(clear) | agrees | (fall <= 0) & ~is_opposite
    says_uphill, says_nothing = uphill & (slope <= 0), _has_underflowed(slope, context)
    return seen(
        (differs, Notice.VALUE_DIFFERS),
        (says_uphill & ~says_nothing, Notice.UPHILL),
        (~follows & ~says_uphill & ~says_nothing, Notice.GRADIENT_DIFFERS),
    )


def of_probe(
    context: Context, measurement: Measurement, value_before: jax.Array, number: jax.Array, ascents: jax.Array
) -> jax.Array:
    """What a probe shows, where it has evaluated the loss at the parameters as well; and what all of them do.

    Where noise alone is left, the loss rises along no more than half of the paths. `value_before` is that of the probe
    before.
    """
    at_params = jnp.where(measurement.is_path, measurement.end_value, measurement.value)
    number, ascents = (n.astype(measurement.value.dtype) for n in (number, ascents))
    uphill = (number >= _ENOUGH) & (ascents > _MOST * number)
    in_vain = jnp.asarray(context.searching) & (number >= _SEARCHED) & (ascents >= _CHANCE * number)
    return seen(
        (_differs(context, at_params), Notice.VALUE_DIFFERS),
        (uphill, Notice.GRADIENT_DIFFERS),
        (in_vain, Notice.SEARCH_IN_VAIN),
        (~jnp.isfinite(measurement.value) & ~jnp.isfinite(value_before), Notice.NOT_FINITE),
    )


def _rises_as_a_line(tried: jax.Array, losses: jax.Array, least: jax.Array) -> jax.Array:
    """Whether the loss rises from one rate to the next, `r` times as high, by less than `r^1.5`.

    A line rises by `r`; a parabola that falls at first, by `r^2` at least.
    """
    is_next = jnp.isfinite(losses) & (tried > tried[least]) & (tried <= 8 * tried[least])
    beyond = jnp.argmin(jnp.where(is_next, tried, jnp.inf))
    ratio = tried[beyond] / jnp.where(tried[least] > 0, tried[least], 1)
    return jnp.any(is_next) & (losses[beyond] - losses[0] < ratio**1.5 * (losses[least] - losses[0]))


def _has_underflowed(slope: jax.Array, context: Context) -> jax.Array:
    """Whether `G.u` is 0 though neither is: as of a gradient and a step of 1e-25 in float32."""
    sizes = (_axes.maximum(_tree.largest(x), context.axis_name) for x in (context.grad, context.updates))
    return (slope == 0) & (jnp.minimum(*sizes) > 0)


def _differs(context: Context, at_params: jax.Array) -> Any:
    """Whether `value` is another loss than the one at the parameters."""
    if context.value is None:
        return False
    value = context.average_value(at_params.dtype)
    size = jnp.maximum(jnp.abs(value), jnp.abs(at_params))
    apart = jnp.abs(value - at_params) > _SAME * context.arithmetic.rounding(context.value) * size
    return jnp.isfinite(at_params) & (~jnp.isfinite(value) | apart)


def warn(notices: int, stacklevel: int) -> None:
    """One warning for each; Python shows the same one once."""
    for notice, advice in ADVICE.items():
        if notices & notice:
            warnings.warn(f"gen_optax: {advice}.", stacklevel=stacklevel + 1)


def warn_of_state(state: Any, stacklevel: int) -> None:
    """Warns of what the states of GeN in `state` have noticed, stacked ones together; not where that is traced."""

    def is_info(x):
        return "notices" in getattr(x, "_fields", ())

    for info in filter(is_info, jax.tree.leaves(state, is_leaf=is_info)):
        (notices,) = jax.tree.leaves(info.notices)  # in an nnx.Optimizer it is a variable
        if isinstance(notices, jax.core.Tracer):
            continue
        if not isinstance(notices, jax.Array) or notices.is_fully_addressable or notices.is_fully_replicated:
            warn(int(np.bitwise_or.reduce(np.ravel(notices))), stacklevel + 1)
