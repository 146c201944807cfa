"""GeN as an optax transformation: the step of any base optimizer, times a learning rate that is measured.

    base optimizer -> updates u
        start?     no rate is known: losses at rates along the first step     controller
        due?       in turn at every Phi-th call, or out of turn at an alarm    probe
        measure    the parabola of the loss along a step                       probe      -> Measurement
        judge      is it readable, and what does it say?                                  -> ProbeStatus
        observe    the measurement moves the learning rate                     controller
        settle     keep the step, or take back what overshot                   probe
        align      each time the run has doubled: does it keep its direction?  controller
        average    of the parameters, where no decay takes the rate down       _average.py
    -> eta * s(t) * u

`s(t)`, the decay over a horizon, stays outside of all that: it scales the step, never the learning rate. The state is a
few scalars, a copy of the parameters for a probe along the path, and another one for the average.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gen_optax import (
    _alignment,
    _average,
    _axes,
    _company,
    _fit,
    _flow,
    _line,
    _loss,
    _notice,
    _renamed,
    _settings,
    _tree,
)
from gen_optax._balance import Balance
from gen_optax._controller import Bounds, Controller
from gen_optax._measurement import Context, Measurement, ProbeStatus, judge, overshot
from gen_optax._notice import Notice
from gen_optax._probe import Probe

# Calls without a learning rate after which a user is told.
_PATIENCE = 4
# A decay above it has not begun: it may be a rounding error below 1.
_UNDECAYED = 0.999


class GenInfo(NamedTuple):
    """The last probe, for logs and plots. Floating-point scalars have the dtype of `GenState.learning_rate`.

    The step `u` is the one to come or, for a probe along the path, the sum of those judged, per unit of learning rate.
    """

    value: jax.Array  # loss where the probed step starts
    slope: jax.Array  # b = -G.u: decrease of the loss per unit of learning rate; > 0 on a descending step
    curvature: jax.Array  # A = u.H.u
    optimal_learning_rate: jax.Array  # b / A, the minimiser of the parabola; +-inf where it has none
    r_squared: jax.Array  # of the fit; 1 where it cannot fail
    status: jax.Array  # int32, a ProbeStatus: what became of the probe, or why no first rate was found
    accepted: jax.Array  # bool: the status is ACCEPTED
    num_probes: jax.Array  # int32, probes so far
    num_accepted: jax.Array  # int32, accepted probes so far
    num_ascents: jax.Array  # int32, probes so far along which the loss rises
    notices: jax.Array  # int32, bits of `Notice`: what is wrong with the situation, as far as the run has seen it


class GenState(NamedTuple):
    """State of `scale_by_gen`: scalars of float32 (float64 under x64), whatever the dtype of the parameters."""

    count: jax.Array  # type: ignore[assignment]  # int32, calls of update so far
    learning_rate: jax.Array  # the smoothed eta, before the decay; 0: not found yet
    applied_learning_rate: jax.Array  # what the last updates were multiplied by: eta * s(t)
    probe: Any  # () or, along the path, `PathState`: the parameters where the path starts
    controller: Any  # what the controller remembers: scalars
    average: Any  # `AverageState`, a copy of the parameters, or `NoAverage`
    alignment: Any  # () or `AlignmentState`: up to 512 numbers for each array of the parameters
    info: GenInfo


@_renamed.says_what_to_write
def scale_by_gen(
    *,
    controller: Controller | None = None,
    probe: Probe | None = None,
    every: int | None = None,
    num_steps: int | None = None,
    decay: optax.Schedule | None = None,
    average: Any = None,
    min_learning_rate: float | None = None,
    max_learning_rate: float | None = None,
    axis_name: Any = None,
    value_fn: Callable[..., Any] | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Scales updates by a learning rate that is measured with a quadratic model of the loss along them.

    For a loss `L` with gradient `G` and Hessian `H` at the parameters `w`, and updates `u` (a step with its sign),

    .. math::
      L(w + \eta u) \approx L(w) - b\,\eta + \tfrac12 A\,\eta^2, \qquad b = -G^\top u, \quad A = u^\top H u,

    which is least at :math:`\eta^* = b / A`. At every `every`-th call `probe` measures the parabola, and `controller`
    moves the learning rate :math:`\eta` by what was measured. The updates are multiplied by :math:`\eta_t s(t)`, with
    `s` a decay from 1 to 0 over `num_steps`.

    The default finds the first learning rate, and then keeps it just below the one at which steps stop helping, see
    :func:`gen_optax.balance`. It measures the path of the last 16 steps or so on the present batch, see
    :func:`gen_optax.retrospective`. The paper's Algorithm 1 is `controller=gen_optax.algorithm_1()`.

    Put it last in a chain, after a base optimizer of learning rate 1: the direction that is probed is then the one that
    is applied.

    Args:
      controller: how measurements move the learning rate: :func:`gen_optax.balance`, :func:`gen_optax.algorithm_1` or
        a :class:`gen_optax.Controller` of your own. None: `balance()`.
      probe: how the parabola is measured: :func:`gen_optax.retrospective`, :func:`gen_optax.finite_difference`,
        :func:`gen_optax.exact` or a :class:`gen_optax.Probe` of your own. None: what the controller asks for.
      every: :math:`\Phi`: every `every`-th call probes. At the others no loss is evaluated, except in the search, at
        an alarm and, where `update` is given no `value`, at every fourth call. None: what the controller asks for.
      num_steps: the horizon `T`: :math:`s(t) = \min(1, \max(0, 4 - 4 t / T))`, which is 1 for three quarters of it and
        then falls to 0. None: no decay.
      decay: a schedule in place of `s`, with a peak of 1: `optax.cosine_decay_schedule(1.0, T)`. Below 0 it is 0.
        A warm-up in it is made up for by the search. Give one of `num_steps` and `decay`.
      average: whether to keep the average of the iterates for :func:`gen_optax.averaged_params`, one more copy of the
        parameters: True, False, or the dtype to keep it in, such as `jnp.bfloat16`. None: where the end is open and the
        controller is made for it, as `balance` is and `algorithm_1` is not.
      min_learning_rate: lower bound of the learning rate before the decay.
      max_learning_rate: upper bound, likewise.
      axis_name: name (or names) of the `shard_map` or `pmap` axes over which the batch is split; losses and slopes are
        averaged over it. Under plain `jit` with shardings none is needed.
      value_fn: the loss, where it is one function at all steps and `update` cannot be given it. A loss among the
        arguments of `update`, or else that of a :func:`gen_optax.loss_context`, wins.

    Returns:
      A transformation whose `update` takes `params` and the keyword arguments

      * `value_fn` (or `obj_fn`): `value_fn(params, **kwargs)` returns the loss to probe, a real scalar, or
        `(loss, aux)`. Its keyword arguments are taken by name from the extra arguments of `update`; `**kwargs` takes
        all others. It must be one function for all step sizes: one batch, one dropout key.
      * `value` (or `loss`): optional, `value_fn(params)`. It saves a forward pass at each probe, and a loss that jumps
        is probed at once. Without it, the loss is evaluated at every fourth call to notice a jump.
      * `grad`: optional, the gradient of `value_fn`, neither clipped nor otherwise transformed. The first call compares
        it with the loss (notice `GRADIENT_DIFFERS`), and `finite_difference(free_slope=True)` takes the slope from it.

      To probe on another batch than the gradient's, close `value_fn` over that batch and leave `value` and `grad` out.
      Extra arguments that nobody asks for are ignored.

    Raises:
      ValueError: on settings outside their range, or a probe that misleads the controller; from `init`, on a decay
        whose peak is above 2 or below 1/2; from `update`, if `params` or `value_fn` is missing, if updates or `grad`
        have other shapes than `params`, or if the loss is no real scalar.
      TypeError: from `update`, if `value_fn` is no function.

    Examples:
      >>> import gen_optax
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import optax
      >>> def loss_fn(w, x, y): return jnp.mean((x @ w - y) ** 2)
      >>> x, y = jnp.eye(3), jnp.array([1.0, 2.0, 3.0])
      >>> w = jnp.zeros(3)
      >>> tx = optax.chain(optax.adam(1.0), gen_optax.scale_by_gen(num_steps=200))
      >>> state = tx.init(w)
      >>> @jax.jit
      ... def step(w, state):
      ...   value, grads = jax.value_and_grad(loss_fn)(w, x, y)
      ...   updates, state = tx.update(grads, state, w, value=value, value_fn=loss_fn, x=x, y=y)
      ...   return optax.apply_updates(w, updates), state
      >>> for _ in range(200):
      ...   w, state = step(w, state)
      >>> bool(loss_fn(w, x, y) < 1e-2 * loss_fn(jnp.zeros(3), x, y))
      True
      >>> learning_rate = optax.tree.get(state, "learning_rate")

    References:
      Bu and Xu, `Gradient descent with generalized Newton's method <https://arxiv.org/abs/2407.02772>`_, 2024
    """
    if controller is None:
        controller = Balance()
    _check_part("controller", controller, Controller.observe, "balance() or algorithm_1()")
    probe = controller.default_probe() if probe is None else probe
    _check_part("probe", probe, Probe.measure, "retrospective() or finite_difference()")
    every = controller.every if every is None else every
    _check_settings(every=every, num_steps=num_steps, decay=decay, average=average, value_fn=value_fn)
    if num_steps is not None and decay is not None:
        raise ValueError("num_steps and decay both say how the learning rate falls. Give one of them.")
    controller.check(probe)
    schedule = _hold_then_linear(num_steps) if decay is None else decay
    if average is None:
        average = controller.averages and num_steps is None and decay is None
    rule = _Rule(
        controller, probe, every, schedule, average, Bounds(min_learning_rate, max_learning_rate), axis_name, value_fn
    )

    def init_fn(params):
        if decay is not None:
            _settings.require_peak_of_one(decay)
        return rule.init(params)

    return optax.GradientTransformationExtraArgs(init_fn, rule.update)


@_renamed.says_what_to_write
def gen(
    base: optax.GradientTransformation,
    *,
    controller: Controller | None = None,
    probe: Probe | None = None,
    every: int | None = None,
    num_steps: int | None = None,
    decay: optax.Schedule | None = None,
    average: Any = None,
    min_learning_rate: float | None = None,
    max_learning_rate: float | None = None,
    axis_name: Any = None,
    value_fn: Callable[..., Any] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """A base optimizer of learning rate 1 with the learning rate that GeN finds for it.

    It is `optax.chain(base, scale_by_gen(...))` with two additions. `init` refuses a base whose updates must not be
    scaled, and warns of a schedule inside it. And where `update` is given `value` and no `grad`, it takes the incoming
    gradient for `grad`, unless parameters are complex. That has to be the raw one, so clip inside of `base`.

    Args:
      base: the base optimizer, at learning rate 1: `optax.adamw(1.0)`, `optax.sgd(1.0, momentum=0.9)`, or a chain such
        as `optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1.0))`. Weight decay belongs in it.
      controller: as in :func:`gen_optax.scale_by_gen`, like all that follow.
      probe: how the parabola is measured.
      every: every `every`-th call probes.
      num_steps: the horizon of the decay.
      decay: a schedule in its place.
      average: whether, or in which dtype, the average of the iterates is kept.
      min_learning_rate: lower bound of the learning rate before the decay.
      max_learning_rate: upper bound, likewise.
      axis_name: the `shard_map` or `pmap` axes over which the batch is split.
      value_fn: the loss, for training loops whose `update` cannot pass it.

    Returns:
      A transformation; for the arguments of its `update` see :func:`gen_optax.scale_by_gen`.

    Raises:
      ValueError: if `base` is no transformation; from `init`, with what to write instead, if its updates must not be
        scaled (`optax.MultiSteps`, `optax.lookahead`, `optax.contrib.schedule_free`, ...) or it finds a learning rate
        itself (`optax.contrib.prodigy`, `optax.lbfgs` with its line search, ...).

    Examples:
      >>> import gen_optax
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import optax
      >>> tx = gen_optax.gen(optax.sgd(1.0, momentum=0.9))
      >>> def loss_fn(w): return jnp.sum((w - 3.0) ** 2)
      >>> w = jnp.zeros(2)
      >>> state = tx.init(w)
      >>> @jax.jit
      ... def step(w, state):
      ...   value, grads = jax.value_and_grad(loss_fn)(w)
      ...   updates, state = tx.update(grads, state, w, value=value, value_fn=loss_fn)
      ...   return optax.apply_updates(w, updates), state
      >>> for _ in range(300):
      ...   w, state = step(w, state)
      >>> print(jnp.round(w, 2))
      [3. 3.]
    """
    if not (hasattr(base, "init") and hasattr(base, "update")):
        raise ValueError(f"gen needs an optax transformation as its base, for example optax.adamw(1.0), got {base!r}.")
    scaling = scale_by_gen(
        controller=controller,
        probe=probe,
        every=every,
        num_steps=num_steps,
        decay=decay,
        average=average,
        min_learning_rate=min_learning_rate,
        max_learning_rate=max_learning_rate,
        axis_name=axis_name,
        value_fn=value_fn,
    )
    chained = optax.chain(base, scaling)

    def init_fn(params):
        state = chained.init(params)
        _company.refuse_base(state[:-1])
        _company.warn_of_base(state)
        return state

    def update_fn(updates, state, params=None, *, value=None, loss=None, grad=None, **extra_args):
        if grad is None and (value is not None or loss is not None):
            is_raw = params is not None and _tree.is_like(updates, params)
            grad = updates if is_raw and not any(map(jnp.iscomplexobj, jax.tree.leaves(updates))) else None
        given = {"value": value, "loss": loss, "grad": grad}
        given = {name: x for name, x in given.items() if x is not None}
        return chained.update(updates, state, params, **given, **extra_args)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


class _Seen(NamedTuple):
    """What one call has learned."""

    learning_rate: jax.Array
    controller: Any
    info: GenInfo
    measurement: Measurement
    status: jax.Array  # of the probe of this call; NONE where there was none


@dataclasses.dataclass(frozen=True)
class _Rule:
    """The settings of `scale_by_gen` at work."""

    controller: Controller
    probe: Probe
    every: Any
    decay: optax.Schedule
    average: Any
    bounds: Bounds
    axis_name: Any
    value_fn: Callable[..., Any] | None

    def init(self, params: optax.Params) -> GenState:
        """Every field is an array of its own: all of them, and params, can then be donated."""
        dtype = jax.dtypes.canonicalize_dtype(jnp.float64)
        learning_rate, controller_state = self.controller.init(dtype)
        direction = self.probe.direction
        if _settings.whole(self.every):  # else it is traced
            direction = direction.with_probes_every(int(self.every))
        return GenState(
            count=jnp.zeros((), jnp.int32),
            learning_rate=self.bounds.clip(learning_rate),
            applied_learning_rate=jnp.zeros((), dtype),
            probe=direction.init(params),
            controller=controller_state,
            average=_average.init(params, self.average),
            alignment=_alignment.init(params) if self.controller.aligns else (),
            info=GenInfo(*(jnp.zeros((), _INFO_DTYPES.get(name, dtype)) for name in GenInfo._fields)),
        )

    def update(
        self,
        updates: optax.Updates,
        state: GenState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, GenState]:
        """Start, measure, judge, observe, settle: see the module."""
        context = self._context(updates, state, params, extra_args)
        direction = self.probe.direction
        starting = self.controller.starting(state.controller)
        due = _flow.both(_flow.negation(starting), direction.due(state.probe, context))
        listens = _flow.both(_flow.negation(_flow.either(starting, due)), direction.listens(state.probe, context))
        looks = _flow.either(_flow.either(starting, due), listens)
        look = functools.partial(self._look, context, starting, listens)
        seen = _flow.cond(looks, look, self._look_away, state)

        learning_rate = self.bounds.clip(seen.learning_rate)
        nothing_found = (learning_rate == 0) | self.controller.starting(seen.controller)
        noticed = _notice.seen(
            (self._is_past_the_decay(state, context), Notice.HORIZON_PASSED),
            (nothing_found & (context.call >= _PATIENCE), Notice.NO_RATE),
            *direction.notices(state.probe, context),
        )
        info = seen.info._replace(notices=seen.info.notices | noticed)
        # A rate that is known to overshoot is not tried on the parameters, or not left there.
        applied = jnp.where(overshot(seen.status) | nothing_found, 0, learning_rate * context.decay)
        updates = _tree.scale(updates, applied)
        anchor, average, here = self._remember(state, context, seen.status, looks)
        remembered, alignment = self._align(state, context, seen, here)
        updates, probe_state = direction.settle(state.probe, context, seen.measurement, seen.status, updates, anchor)
        return updates, GenState(
            context.call, learning_rate, applied, probe_state, remembered, average, alignment, info
        )

    def _decay_at(self, count: jax.Array, dtype: Any) -> jax.Array:
        """s(t); a schedule that goes on below 0 would climb the loss, so it ends at 0."""
        s = jnp.asarray(self.decay(count), dtype)
        return jnp.where(s > 0, s, 0)

    def _is_past_the_decay(self, state: GenState, context: Context) -> jax.Array:
        """Whether the decay is 0 after it was more; a warm-up may be 0 for some steps."""
        begins_at_zero = jnp.asarray(self.decay(jnp.zeros_like(state.count))) == 0
        was_more = ~begins_at_zero | (state.applied_learning_rate > 0)
        return (context.decay == 0) & (state.count > 0) & was_more

    def _align(self, state: GenState, context: Context, seen: _Seen, here: Any) -> tuple[Any, Any]:
        """What the controller remembers, told where a stretch of the run ends that no search and no decay blurs."""
        if not self.controller.aligns:
            return seen.controller, ()
        known, cosine, alignment = _alignment.update(state.alignment, here, context)
        counts = known & (context.decay > _UNDECAYED) & ~jnp.asarray(context.searching) & ~overshot(seen.status)
        told = self.controller.align(seen.controller, cosine)
        return jax.tree.map(lambda new, old: jnp.where(counts, new, old), told, seen.controller), alignment

    def _remember(self, state: GenState, context: Context, status: jax.Array, looks: Any) -> tuple[Any, Any, Any]:
        """The anchor, the average and, where they are due, sketches; `looks`: the loss was evaluated at this call.

        One branch for all: XLA copies parameters that two branches read, at every call.
        """
        direction, params, call = self.probe.direction, context.params, context.call
        anchor = direction.anchor(state.probe)
        begins = direction.begins(state.probe, context, status)
        taken = _average.is_due(state.average, call)
        if taken is not False:
            taken &= self._is_sound(context, status, looks)
        due = _alignment.is_due(state.alignment, call)
        elsewhere = None if due is False else _alignment.look_away(state.alignment, context)

        def remember():
            new = anchor if begins is False else jax.tree.map(lambda p, a: jnp.where(begins, p, a), params, anchor)
            here = _flow.cond(due, lambda: _alignment.look(state.alignment, context), lambda: elsewhere)
            return new, _average.update(state.average, params, call, taken), here

        wanted = _flow.either(_flow.either(begins, taken), due)
        return _flow.cond(wanted, remember, lambda: (anchor, state.average, elsewhere))

    def _is_sound(self, context: Context, status: jax.Array, looks: Any) -> Any:
        """Whether the loss at the parameters is known, and nothing is wrong there."""
        known = looks
        if context.value is not None:  # it may not be finite where the loss is
            known = _flow.either(looks, jnp.isfinite(context.average_value(context.learning_rate.dtype)))
        return _flow.both(known, ~overshot(status) & (status != ProbeStatus.NOT_FINITE))

    def _context(self, updates: Any, state: GenState, params: Any, extra_args: dict[str, Any]) -> Context:
        """What `update` was given, checked."""
        if params is None:
            raise ValueError(f"scale_by_gen probes the loss around the parameters: pass params to update.{_loss.USAGE}")
        _company.refuse_params(params)
        _tree.require_like(updates, params, "updates")
        loss, value, grad = _loss.arguments(extra_args, self.value_fn, params)
        _company.warn_in_multi_steps()
        _axes.require_axis_name(self.axis_name)
        searching = self.controller.searching(state.controller)
        at_once = _flow.either(searching, state.info.status == ProbeStatus.OVERSHOOT)
        trusts_value: Any = True
        if value is not None and self.controller.num_start_rates:
            differs = (state.info.notices & Notice.VALUE_DIFFERS) > 0
            average = _axes.mean(jnp.asarray(jax.lax.stop_gradient(value), state.learning_rate.dtype), self.axis_name)
            trusts_value = jnp.isfinite(average) & ~(differs | _alignment.is_power_of_two(state.info.num_probes + 1))
        turn = _is_turn(optax.safe_increment(state.count), self.every)
        return Context(
            loss=loss,
            params=params,
            updates=updates,
            value=value,
            grad=grad,
            count=state.count,
            every=self.every,
            learning_rate=state.learning_rate,
            applied_learning_rate=state.applied_learning_rate,
            decay=self._decay_at(state.count, state.learning_rate.dtype),
            in_turn=_flow.either(turn, at_once),
            searching=searching,
            axis_name=self.axis_name,
            trusts_value=trusts_value,
        )

    def _look(self, context: Context, starting: Any, listens: Any, state: GenState) -> _Seen:
        """Evaluates the loss: for the first rate, for a probe, or to hear whether one is due."""
        probe, direction = self.probe, self.probe.direction
        first = _line.Line(
            size=self.controller.num_start_rates,
            point=lambda k, tried, losses: self.controller.start_rate(k, tried, losses, context),
            direction=lambda: context.updates,
        )
        num_points = jax.eval_shape(lambda: probe.points(state.probe, context)).size
        line = _line.Line(
            size=num_points,
            point=lambda k, tried, losses: probe.points(state.probe, context)[jnp.minimum(k, num_points - 1)],
            direction=lambda: direction.vector(state.probe, context),
        )
        heard = _line.after_listening(line, lambda loss: direction.alarms(state.probe, context, loss))
        lines = [(starting, first), (listens, heard), (True, line)]
        tried, losses = _line.losses(context, [(wanted, x) for wanted, x in lines if wanted is not False])

        quiet, own = False, losses[: line.size]
        if listens is not False:
            quiet = _flow.both(listens, _flow.negation(direction.alarms(state.probe, context, losses[0])))
            own = jnp.where(listens, losses[1 : 1 + line.size], own)
        start = functools.partial(self._start, context, state, tried[: first.size], losses[: first.size])
        observe = functools.partial(self._observe, context, state, own)
        measure = functools.partial(_flow.cond, quiet, functools.partial(self._look_away, state), observe)
        return _flow.cond(starting, start, measure)

    def _look_away(self, state: GenState) -> _Seen:
        """Nothing is due."""
        return _Seen(state.learning_rate, state.controller, state.info, *_nothing(state.learning_rate))

    def _start(self, context: Context, state: GenState, tried: jax.Array, losses: jax.Array) -> _Seen:
        learning_rate, remembered, status = self.controller.start(
            state.learning_rate, state.controller, tried, losses, context
        )
        notices = state.info.notices | _notice.of_start(context, tried, losses, status)
        info = state.info._replace(status=status, notices=notices)
        return _Seen(learning_rate, remembered, info, *_nothing(state.learning_rate))

    def _observe(self, context: Context, state: GenState, losses: jax.Array) -> _Seen:
        learning_rate = state.learning_rate
        measurement = _typed(self.probe.measure(state.probe, losses, context), learning_rate)
        _axes.require_agreement(measurement, learning_rate, context.axis_name)
        status = judge(measurement)
        info = _info(state.info, measurement, status)
        noticed = _notice.of_probe(context, measurement, state.info.value, info.num_probes, info.num_ascents)
        info = info._replace(notices=info.notices | noticed)
        moved, remembered = self.controller.observe(learning_rate, state.controller, measurement, status, context)
        moved = jnp.where(measurement.is_flattered, jnp.minimum(moved, learning_rate), moved)
        # A known rate never becomes 0, which means that none was found.
        moved = jnp.maximum(moved, jnp.finfo(learning_rate.dtype).tiny)
        return _Seen(moved, remembered, info, measurement, status)


_INFO_DTYPES = {"accepted": jnp.bool_} | dict.fromkeys(
    ("status", "num_probes", "num_accepted", "num_ascents", "notices"), jnp.int32
)


def _info(info: GenInfo, measurement: Measurement, status: jax.Array) -> GenInfo:
    """The measurement per unit of learning rate, and the probes counted."""
    unit, accepted = _fit.nonzero(measurement.step_size), status == ProbeStatus.ACCEPTED
    minimizer = _fit.minimizer(measurement.slope, measurement.curvature)
    return GenInfo(
        value=measurement.value,
        slope=measurement.slope / unit,
        curvature=measurement.curvature / unit / unit,
        # At a rate of 0 there may be no minimum: inf.
        optimal_learning_rate=measurement.step_size * jnp.where(measurement.step_size > 0, minimizer, 0),
        r_squared=measurement.r_squared,
        status=status,
        accepted=accepted,
        num_probes=optax.safe_increment(info.num_probes),
        num_accepted=info.num_accepted + accepted.astype(jnp.int32),
        num_ascents=info.num_ascents + (status == ProbeStatus.ASCENT).astype(jnp.int32),
        notices=info.notices,
    )


def _typed(measurement: Measurement, learning_rate: jax.Array) -> Measurement:
    """Arrays of the type of the rate, or bool, through which nothing is differentiated."""
    zero = jnp.zeros_like(learning_rate)  # it varies over the devices over which the rate does
    flags = ("jumped", "is_complete", "is_flattered", "is_path", "out_of_turn")

    def typed(name, x):
        return jnp.asarray(x, jnp.bool_) | (zero > 0) if name in flags else jnp.asarray(x, zero.dtype) + zero

    return jax.lax.stop_gradient(Measurement(**{name: typed(name, x) for name, x in measurement._asdict().items()}))


def _nothing(learning_rate: jax.Array) -> tuple[Measurement, jax.Array]:
    """In place of a measurement and its status."""
    zero = jnp.zeros_like(learning_rate)
    return _typed(Measurement(zero, zero, zero, zero, zero), learning_rate), zero.astype(jnp.int32)


def _is_turn(call: jax.Array, every: Any) -> Any:
    """Whether a call is a regular one; known where every call is."""
    return True if isinstance(every, int) and every == 1 else call % every == 0


def _hold_then_linear(num_steps: Any) -> optax.Schedule:
    """s(t): 1 for three quarters of the steps, then linearly to 0."""
    if num_steps is None:
        return lambda count: 1.0
    return lambda count: jnp.clip(4 * (1 - count.astype(jnp.result_type(float)) / num_steps), 0, 1)


def _check_part(name: str, part: Any, method: Callable[..., Any], known: str) -> None:
    """Raises a ValueError on what is no controller, or no probe, for it does not define the method."""
    if isinstance(part, type) or getattr(type(part), method.__name__, method) is method:
        raise ValueError(f"{name} must be a gen_optax.{name.capitalize()} such as {known}, got {part!r}.")


def _check_settings(**settings: Any) -> None:
    """Raises a ValueError on a setting outside its range."""
    conditions = {
        "every": (_settings.whole, "a whole number of at least 1"),
        "num_steps": (_settings.whole, "a whole number of at least 1, or None for no decay"),
        "decay": (callable, "an optax schedule, a function of the step count"),
        "average": (_settings.bool_or_dtype, "True, False or a floating-point dtype such as jnp.bfloat16"),
        "value_fn": (callable, "a function of the parameters"),
    }
    for name, (condition, what) in conditions.items():
        if settings[name] is not None:
            _settings.require(name, settings[name], condition, what)
