"""The average of the iterates: the model to evaluate where no decay takes the learning rate down.

At a learning rate that is held, the parameters scatter about where they move to, and the loss is higher for it. A decay
takes the scatter away, but has to know when the run ends. An average takes it away at any time:

    w_bar(T) = sum_t t^k w_t / sum_t t^k

Late iterates count most, since the first ones lie far behind: with `k = 20` nine tenths of the weight lie on the last
tenth of the run, however long it is. A running mean takes iterates in, each for all calls since the one before: every
one at first, and one in many in a long run, where nothing is read or written at the other calls. An iterate that
overshot, or whose loss is NaN or infinite, never enters; where no one looks at its loss, it is not taken in.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gen_optax import _notice, _tree
from gen_optax._masks import is_masked

# `k + 1`: the weights of the calls up to `t` sum to `t ** _POWER`.
_POWER = 21
# 2**32 over the golden ratio, and over the plastic number.
_GOLDEN, _PLASTIC = 0x9E3779B9, 0xC13FA9A9
# Parameters taken in while the number of calls grows by a factor of e.
_SAMPLES = 256


class AverageState(NamedTuple):
    """The average so far."""

    mean: optax.Params  # like the parameters, in a dtype of its own if one was asked for; those of `init` at first
    last_call: jax.Array  # int32, at which it took the parameters in; 0: none yet


class NoAverage(NamedTuple):
    """No average is kept."""


def init(params: optax.Params, keep: Any) -> AverageState | NoAverage:
    """A copy, so that both can be donated; `keep` is a bool or the dtype of the copy."""
    if keep is False:
        return NoAverage()
    dtype = None if keep is True else keep

    def copy(p):
        short = dtype is not None and jnp.issubdtype(jnp.result_type(p), jnp.floating)  # complex ones are kept as such
        return jnp.array(p, dtype if short else None, copy=True)

    return AverageState(jax.tree.map(copy, params), jnp.zeros((), jnp.int32))


def is_due(state: Any, call: jax.Array) -> Any:
    """Whether the parameters are taken in at this call: seldom in a long run, where they hardly differ in between."""
    return False if isinstance(state, NoAverage) else call - state.last_call > state.last_call // _SAMPLES


def update(state: Any, params: optax.Params, call: jax.Array, taken: Any) -> Any:
    """The average with the parameters of this call, where they are taken in, for all calls since the last time."""
    if isinstance(state, NoAverage):
        return state
    last, now = (x.astype(jnp.result_type(float)) for x in (state.last_call, call))
    weight = 1 - (last / now) ** _POWER
    leaves, structure = jax.tree.flatten(state.mean)
    mixed = [
        jnp.where(taken, _mix(average, p, weight, call), average)
        for average, p in zip(leaves, jax.tree.leaves(params), strict=True)
    ]
    return AverageState(jax.tree.unflatten(structure, mixed), jnp.where(taken, call, state.last_call))


def averaged_params(state: Any, params: optax.Params) -> optax.Params:
    r"""The average of the iterates: the parameters to evaluate, at any moment.

    With `w_t` the parameters that the `t`-th call of `update` was given, of calls at which the loss is known,

    .. math::
      \bar w_T = \sum_t t^{20} w_t / \sum_t t^{20},

    nine tenths of which is the last tenth of the run. It takes off the loss what the scatter of the iterates at a held
    learning rate adds, as a decay would, and need not know when the run ends. Training goes on from `params`, never
    from the average. Where no average is kept, as by default with `num_steps` or `decay`, these are `params`.

    Statistics of batch normalisation belong to the parameters that they were taken with. Take them again for the
    average: :func:`gen_optax.linen.update_batch_stats`, :func:`gen_optax.nnx.update_batch_stats`.

    Outside of `jit` it warns of each :class:`gen_optax.Notice` once, as :func:`gen_optax.metrics` does.

    Args:
      state: anything that holds the state of a `scale_by_gen`: an optax state, a flax `TrainState`, an
        `nnx.Optimizer`.
      params: the parameters that are trained. Where the optimizer trains a part of them, by `optax.masked` or
        `optax.partition`, the others are taken from here.

    Returns:
      A tree like `params`, in its dtypes. Before any iterate was taken in, `params`.

    Raises:
      ValueError: if there is no state of `scale_by_gen` in `state`, or `params` is not like those that it trains.

    Examples:
      >>> import gen_optax
      >>> import jax.numpy as jnp
      >>> import optax
      >>> def loss_fn(w): return jnp.sum((w - 3.0) ** 2)
      >>> w = jnp.zeros(2)
      >>> tx = gen_optax.gen(optax.sgd(1.0), value_fn=loss_fn)
      >>> state = tx.init(w)
      >>> for _ in range(100):
      ...   updates, state = tx.update(2 * (w - 3.0), state, w)
      ...   w = optax.apply_updates(w, updates)
      >>> model = gen_optax.averaged_params(state, w)
      >>> print(jnp.round(model, 2))
      [3. 3.]
    """
    for average in _tree.instances(state, (AverageState, NoAverage), "averaged_params"):
        if isinstance(average, AverageState):
            params = _put(average, params)
    _notice.warn_of_state(state, stacklevel=2)
    return params


def _put(average: AverageState, params: optax.Params) -> optax.Params:
    """`params` with the average in place of those that it is of."""
    (last_call,) = jax.tree.leaves(average.last_call)  # in an nnx.Optimizer it is a variable

    def choose(a, p):
        if is_masked(a) or not _tree.is_inexact(p):
            return p
        kept = jnp.reshape(last_call > 0, jnp.shape(last_call) + (1,) * (a.ndim - jnp.ndim(last_call)))  # of each model
        return jnp.where(kept, a.astype(jnp.result_type(p)), p)

    if any(map(is_masked, jax.tree.leaves(average.mean, is_leaf=is_masked))):
        return jax.tree.map(choose, average.mean, params, is_leaf=is_masked)
    _tree.require_like(params, average.mean, "averaged_params: params")
    leaves, structure = jax.tree.flatten(params)
    return jax.tree.unflatten(structure, map(choose, jax.tree.leaves(average.mean), leaves))


def _mix(average: jax.Array, p: Any, weight: jax.Array, call: jax.Array) -> jax.Array:
    """`average + weight (p - average)`, formed in float32 at least."""
    if not _tree.is_inexact(p):
        return jnp.asarray(p, average.dtype)
    dtype = jnp.promote_types(jnp.result_type(p), jnp.float32)
    before = average.astype(dtype)
    (change,) = _tree.difference([p], [before])
    return _rounded(before + weight.astype(_tree.real(dtype)) * change, average.dtype, call)


def _rounded(x: jax.Array, dtype: Any, call: jax.Array) -> jax.Array:
    """`x` in a dtype. Where it is a short one, up or down in turns: to the nearest, a long average would stand still.

    A number between two others goes to either as often as it is near to it: multiples of irrational numbers, modulo 1,
    are spread evenly over the calls and from one entry to the next.
    """
    near = x.astype(dtype)
    if jnp.finfo(dtype).bits >= 32:
        return near
    rest = x - near.astype(x.dtype)
    beyond = jnp.nextafter(near, jnp.where(rest > 0, jnp.inf, -jnp.inf).astype(dtype))
    gap = jnp.abs(beyond.astype(x.dtype) - near.astype(x.dtype))
    turn = _tree.places(x.shape) * jnp.uint32(_GOLDEN) + call.astype(jnp.uint32) * jnp.uint32(_PLASTIC)
    uniform = turn.astype(x.dtype) * 2.0**-32
    return jnp.where(uniform * gap < jnp.abs(rest), beyond, near)
